"""Files written and read: whole or absent, in UTF-8, with what the disk refuses said in one error; fingerprints.

Whatever lightwam writes goes through `writing`, or through one of the functions here that use it. Training, evaluation
and collecting go on from what was saved, so a refusal of the disk loses nothing: the error says so.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lightwam.data.damage import likely_cause
from lightwam.errors import CheckpointError, DatasetError, LightwamError

WHOLE_BYTES = 16 * 2**20
"""files up to this size are hashed whole"""
SAMPLE_BYTES = 2**16
NUM_SAMPLES = 64
GOES_ON = "run the same command again: it goes on from what was saved"
OS_ERROR = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
"""the system's number in the message of a library that wraps its error (safetensors, pyarrow)"""
TORCH_WRITES = ("inline_container", "PytorchStreamWriter", "unexpected pos")
"""in the messages of torch.save where a write fails"""


@contextlib.contextmanager
def writing(
    place: Path,
    kind: type[LightwamError] = CheckpointError,
    *,
    num_bytes: int | None = None,
    goes_on: str = GOES_ON,
) -> Iterator[None]:
    """Turn what the disk refuses inside into one error of `kind`: the file, the reason, and what is needed.

    `place` is the file or folder that is written, `num_bytes` its size where that is known. Errors of the operating
    system count, also where torch or safetensors wrap them; any other error passes as it is.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(mark in str(error) for mark in TORCH_WRITES):
            raise
        raise refused(place, error, kind, num_bytes=num_bytes, goes_on=goes_on) from error


def refused(
    place: Path,
    error: Exception,
    kind: type[LightwamError] = CheckpointError,
    *,
    num_bytes: int | None = None,
    goes_on: str = GOES_ON,
) -> LightwamError:
    """Return the error that `writing` raises when `error` stopped the writing of `place`."""
    folder = next(path for path in (place, *place.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    number = _number(error)
    if number is None and free < max(2**20, num_bytes or 0):  # numpy and torch may say no more than "0 written"
        number = errno.ENOSPC
    reason, expected, next_step = _told(number, folder, num_bytes)
    got = f"{reason} ({os.strerror(number)}" if number and reason else f"{error} ("
    got += f"{'; ' if reason else ''}{free / 2**20:.0f} MiB free)"
    return kind("could not save", where=place, got=got, expected=expected, next_step=f"{next_step}, then {goes_on}")


MACHINE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE),
    *(errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP),
}
"""errors of the operating system that speak of the machine and its files, never of a fault in lightwam"""


def machine_error(error: OSError) -> LightwamError | None:
    """Return what to say of an error that came from where nobody expected it; None when it may be a fault of ours."""
    if error.errno not in MACHINE:
        return None
    place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else None
    if error.errno in (errno.EACCES, errno.EPERM):
        next_step = f"give user {os.geteuid()} the right to it"
    else:
        next_step = _told(error.errno, place or Path("."), None)[2] or "name another file"
    return CheckpointError("a file cannot be used", where=place, got=error.strerror, next_step=next_step)


def _number(error: BaseException) -> int | None:
    """The operating system's number of an error, also of the one that it wraps or that it came after."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno:
            return seen.errno
        if found := OS_ERROR.search(str(seen)):
            return int(found[1] or found[2])
        seen = seen.__cause__ or seen.__context__
    return None


def _told(number: int | None, folder: Path, num_bytes: int | None) -> tuple[str, str, str]:
    """Reason, what is expected and what to do, of an error number; no reason for one that says enough itself."""
    room = "room on the disk" if num_bytes is None else f"{max(1, num_bytes / 2**20):.0f} MiB free"
    if number == errno.ENOSPC:
        return "the disk is full", room, "free some space"
    if number == errno.EDQUOT:
        return "your quota on this disk is used up", f"{room}, within the quota", "delete files of yours there"
    if number == errno.EFBIG:
        size = "a file of this size" if num_bytes is None else f"a file of {max(1, num_bytes / 2**20):.0f} MiB"
        return "the file is larger than allowed here", size, "raise the limit (`ulimit -f`), or use another disk"
    if number == errno.EROFS:
        return "the file system is read-only", "a disk that can be written", "mount it writable, or name another folder"
    if number in (errno.EACCES, errno.EPERM):
        about = folder.stat()
        mode = stat.filemode(about.st_mode)
        reason = f"no permission for user {os.geteuid()}; {folder} is of user {about.st_uid}, {mode}"
        return reason, "permission to write", f"give this user the right to write {folder}, or name another folder"
    if number in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY):
        return "something else lies there", "a free place", "move it away, or name another folder"
    if number in (errno.ENAMETOOLONG, errno.ELOOP):
        return "no such name is possible here", "a shorter path, without links that lead in a circle", "choose another"
    if number in (errno.EMFILE, errno.ENFILE):
        return "too many files are open", "a higher limit", "raise it (`ulimit -n`)"
    if number in (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT):
        return "the drive fails", "a drive that answers", "check the drive or its network"
    return "", "room on the disk and the right to write", "free some space or check the rights"


@contextlib.contextmanager
def replacing(
    path: Path, kind: type[LightwamError] = CheckpointError, *, num_bytes: int | None = None, goes_on: str = GOES_ON
) -> Iterator[Path]:
    """Give a path to write the new content of `path` to; on leaving, it takes the place of what was there.

    A reader sees the old file or the new one, whenever we are killed. An error inside, Ctrl-C too, leaves the old one
    and no draft. What the disk refuses is told as by `writing`.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path, kind, num_bytes=num_bytes, goes_on=goes_on):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield beside
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


def write_file(path: Path, content: bytes | str, kind: type[LightwamError] = CheckpointError) -> None:
    """Write `content` (text as UTF-8) to `path`, there whole or not at all; what the disk refuses is of `kind`.

    A file that holds just this is left alone, so that what is finished can be asked for again on a read-only disk.
    """
    # a path that is not UTF-8 is in Python's text as lone surrogates, which UTF-8 does not have
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    with writing(path, kind):
        if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
            return
    with replacing(path, kind, num_bytes=len(data)) as beside:
        beside.write_bytes(data)


def append_line(path: Path, line: str, kind: type[LightwamError] = CheckpointError) -> None:
    """Add one line, given without its end, to a file of lines: all of it or, when the disk refuses, nothing."""
    data = line.encode() + b"\n"
    with writing(path, kind, num_bytes=len(data)), path.open("ab", buffering=0) as file:
        size, rest = file.tell(), memoryview(data)
        try:
            while rest:  # a short write: the system says why when it is asked again
                rest = rest[file.write(rest) :]
        except BaseException:
            file.truncate(size)
            raise


def whole_lines(path: Path) -> list[str]:
    """Return the lines of a file of JSON lines, without their ends; a last one that was cut short is left out.

    Lines end at the line feed only: U+2028 and its like may stand inside a sentence. Bytes that are no UTF-8 are
    replaced.
    """
    return [line.decode("utf-8", "replace") for line in path.read_bytes().split(b"\n")[:-1]]


def write_atomically(path: Path, *data: bytes, draft: str = "draft") -> None:
    """Write a file so that `path` holds either what was there before or all of `data`, whenever we are killed.

    It is written beside its place as NAME.`draft`, which must not be another writer's. OSError leaves no draft behind:
    for callers that turn it into an error of their own with `writing`.
    """
    beside = path.with_name(f"{path.name}.{draft}")
    try:
        with beside.open("wb") as file:
            file.writelines(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a dataset; DatasetError when it is missing or broken."""
    if not path.is_file():
        raise DatasetError("a file of the dataset is missing", where=path,
                           next_step="copy it again")  # fmt: skip
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DatasetError("a file of the dataset is not JSON", where=path, got=likely_cause(path) or error,
                           expected="a JSON object in UTF-8", next_step="copy it again") from error  # fmt: skip
    if not isinstance(data, dict):
        raise DatasetError("a file of the dataset is not a JSON object", where=path, got=type(data).__name__,
                           next_step="copy it again")  # fmt: skip
    return data


def file_fingerprint(path: Path) -> str:
    """Size and hash. Of a file above 16 MiB 64 evenly spaced blocks of 64 KiB are hashed (with first and last)."""
    size = path.stat().st_size
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            digest.update(file.read())
        else:
            for sample in range(NUM_SAMPLES):
                file.seek((size - SAMPLE_BYTES) * sample // (NUM_SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return f"{size} bytes, {digest.hexdigest()}"
