"""system/files.py: what the disk refuses is one error that says what is needed, and nothing is half written."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from disk import largest_file
from safetensors import SafetensorError
from safetensors.torch import save_file

from lightwam.data.lerobot.video import encode_video
from lightwam.errors import CheckpointError, DatasetError, LightwamError
from lightwam.system.files import (
    append_line,
    complete_lines,
    explain_disk_errors,
    machine_error,
    replace_file,
    write_file,
)

BIG = np.random.default_rng(0).integers(0, 255, 100_000, np.uint8)


def refusal(path: Path, error: Exception, **words: Any) -> LightwamError:
    with pytest.raises(LightwamError) as caught, explain_disk_errors(path, **words):
        raise error
    return caught.value


REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("your quota", "delete files of yours"),
    errno.EFBIG: ("larger than allowed", "ulimit -f"),
    errno.EROFS: ("read-only", "name another folder"),
    errno.EACCES: ("no permission for user", "the right to write"),
    errno.EPERM: ("no permission for user", "the right to write"),
    errno.EISDIR: ("something else is there", "move it away"),
    errno.ENOTDIR: ("something else is there", "move it away"),
    errno.EMFILE: ("too many files are open", "ulimit -n"),
    errno.ENAMETOOLONG: ("path cannot be used", "choose another"),
    errno.EIO: ("the drive fails", "check the drive"),
}


@pytest.mark.parametrize("number", REASONS, ids=[errno.errorcode[number] for number in REASONS])
def test_every_refusal_of_the_disk_says_why_and_what_to_do(tmp_path: Path, number: int) -> None:
    reason, next_step = REASONS[number]
    error = refusal(tmp_path / "no" / "a.json", OSError(number, os.strerror(number)), num_bytes=3 * 2**20)
    assert isinstance(error, CheckpointError) and error.where == tmp_path / "no" / "a.json"
    assert reason in str(error.got) and os.strerror(number) in str(error.got) and "MiB free)" in str(error.got)
    assert next_step in error.next_step and "run the same command again" in error.next_step
    if number in (errno.ENOSPC, errno.EFBIG):
        assert "3 MiB" in str(error.expected)


@pytest.mark.parametrize(
    "wrapped",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
    ],
    ids=["safetensors", "pyarrow"],
)
def test_a_library_may_wrap_the_systems_error(tmp_path: Path, wrapped: Exception) -> None:
    assert "the disk is full" in str(refusal(tmp_path / "a", wrapped).got)


def test_torch_forgets_the_systems_error_and_it_is_found_again(tmp_path: Path) -> None:
    told = pytest.raises(CheckpointError, match="larger than allowed")
    with largest_file(1000), told, replace_file(tmp_path / "a.pt") as beside, beside.open("wb") as file:
        torch.save({"a": torch.zeros(10_000)}, file)
    assert not list(tmp_path.iterdir())


def test_numpy_says_no_more_than_that_nothing_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 100, 0))
    error = refusal(tmp_path / "a.npy", OSError("1000 requested and 0 written"))
    assert "the disk is full" in str(error.got) and "0 MiB free" in str(error.got)


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("another"), KeyboardInterrupt()])
def test_other_errors_than_the_disks_pass_through(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), replace_file(tmp_path / "a") as beside:
        beside.write_bytes(b"half")
        raise error
    assert not list(tmp_path.iterdir())


def savez(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=BIG)


WRITES = {
    "bytes": lambda path: path.write_bytes(BIG),
    "numpy": savez,
    "safetensors": lambda path: save_file({"a": torch.from_numpy(BIG)}, path),
    "video": lambda path: encode_video(path, BIG[: 96 * 96 * 3 * 3].reshape(3, 96, 96, 3), 10),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", WRITES)
def test_the_old_file_stays_when_the_system_refuses_the_new_one(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    told = pytest.raises(DatasetError, match="larger than allowed")
    with largest_file(2000), told, replace_file(path, DatasetError) as beside:
        WRITES[kind](beside)
    assert [file.name for file in tmp_path.iterdir()] == ["a"] and path.read_bytes() == b"old"


def test_a_line_is_appended_completely_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_line(path, "0123456789")
    with largest_file(15), pytest.raises(CheckpointError, match=r"log\.jsonl") as caught:
        append_line(path, "abcdefghij")
    assert path.read_bytes() == b"0123456789\n" and "larger than allowed" in str(caught.value)
    append_line(path, "é\u2028")
    assert complete_lines(path) == ["0123456789", "é\u2028"]


def test_lines_end_at_the_line_feed_and_a_torn_one_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes('{"a": "one\u2028two\u0085\x0b"}\r\n{"b"'.encode())
    assert complete_lines(tmp_path / "a") == ['{"a": "one\u2028two\u0085\x0b"}\r']


def test_text_is_written_as_utf_8_and_what_is_there_already_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_file(path, "移动 \udce9")  # a path that was not UTF-8 on the command line
    assert path.read_text(encoding="utf-8") == "移动 \\udce9"
    before = path.stat().st_mtime_ns
    write_file(path, "移动 \udce9")
    assert path.stat().st_mtime_ns == before
    write_file(path, b"other")
    assert path.read_bytes() == b"other"


def test_machine_errors_elsewhere_are_reported_and_bugs_are_raised(tmp_path: Path) -> None:
    told = machine_error(PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "x")))
    assert told is not None and told.where == tmp_path / "x" and f"user {os.geteuid()}" in told.next_step
    assert machine_error(OSError(errno.ENOSPC, "No space left on device")) is not None
    assert machine_error(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    assert machine_error(OSError("no number")) is None
