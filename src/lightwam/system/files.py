"""Reading and writing files: atomic writes, UTF-8, one kind of error for a full or failing disk; fingerprints.

Everything lightwam writes goes through `explain_disk_errors`, or one of the functions here that use it. Training,
evaluation and collecting resume from what was saved, so a disk error loses nothing, and the error says so.
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

from lightwam.errors import CheckpointError, DatasetError, LightwamError
from lightwam.system.file_damage import likely_cause

FULL_HASH_BYTES = 16 * 2**20
"""size up to which every byte of a file is hashed"""
SAMPLE_BYTES = 2**16
NUM_SAMPLES = 64
RESUME_HINT = "run the same command again: it resumes from what was saved"
OS_ERROR = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
"""the system's number in the message of a library that wraps its error (safetensors, pyarrow)"""
TORCH_WRITES = ("inline_container", "PytorchStreamWriter", "unexpected pos")
"""parts of torch.save's messages when a write fails"""
ErrorKind = type[LightwamError]


@contextlib.contextmanager
def explain_disk_errors(
    path: Path, kind: ErrorKind = CheckpointError, *, num_bytes: int | None = None, resume_hint: str = RESUME_HINT
) -> Iterator[None]:
    """Turn an operating system's error inside into one of `kind` that names the file, the reason and what is needed.

    `path` is the file or folder being written, `num_bytes` its size, if known. Errors that torch or safetensors wrap
    count too; any other error is raised unchanged.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(mark in str(error) for mark in TORCH_WRITES):
            raise
        raise disk_error(path, error, kind, num_bytes=num_bytes, resume_hint=resume_hint) from error


def disk_error(
    path: Path, error: Exception, kind: ErrorKind, *, num_bytes: int | None, resume_hint: str
) -> LightwamError:
    """Return the error that `explain_disk_errors` raises when writing `path` failed with `error`."""
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    number = _number(error)
    if number is None and free < max(2**20, num_bytes or 0):  # numpy and torch may only say "0 written"
        number = errno.ENOSPC
    reason, expected, next_step = _explain(number, folder, num_bytes)
    got = f"{reason} ({os.strerror(number)}" if number and reason else f"{error} ("
    got += f"{'; ' if reason else ''}{free / 2**20:.0f} MiB free)"
    return kind("could not save", where=path, got=got, expected=expected, next_step=f"{next_step}, then {resume_hint}")


MACHINE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE),
    *(errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP),
}
"""the operating system's errors about the machine and its files, never a bug in lightwam"""


def machine_error(error: OSError) -> LightwamError | None:
    """Return the error to show for an unexpected `error` of the operating system; None when it may be our own bug."""
    if error.errno not in MACHINE:
        return None
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else None
    denied = error.errno in (errno.EACCES, errno.EPERM)
    step = f"give user {os.geteuid()} the right to it" if denied else _explain(error.errno, Path("."), None)[2]
    return CheckpointError("a file cannot be used", where=path, got=error.strerror, next_step=step)


def _number(error: BaseException) -> int | None:
    """Find the errno of an error, of its cause, or of its context."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno:
            return link.errno
        if match := OS_ERROR.search(str(link)):
            return int(match[1] or match[2])
        link = link.__cause__ or link.__context__
    return None


def _explain(number: int | None, folder: Path, num_bytes: int | None) -> tuple[str, str, str]:
    """Return reason, expectation and next step for an errno; the reason is "" when the error's own text is enough."""
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
        return "something else is there", "no file or folder of that name", "move it away, or name another folder"
    if number in (errno.ENAMETOOLONG, errno.ELOOP):
        return "the path cannot be used", "a shorter path, without circular links", "choose another"
    if number in (errno.EMFILE, errno.ENFILE):
        return "too many files are open", "a higher limit", "raise it (`ulimit -n`)"
    if number in (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT):
        return "the drive fails", "a drive that answers", "check the drive or its network"
    return "", "room on the disk and the right to write", "free some space or check the rights"


@contextlib.contextmanager
def replace_file(path: Path, kind: ErrorKind = CheckpointError, *, num_bytes: int | None = None) -> Iterator[Path]:
    """Yield a temporary path for the new content of `path`, and rename it to `path` at the end.

    A reader sees the old file or the new one, whenever we are killed. After an error inside, or Ctrl-C, the old file is
    kept and the temporary one removed. Disk errors are raised as by `explain_disk_errors`.
    """
    with explain_disk_errors(path, kind, num_bytes=num_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _renamed_to(path, path.with_name(f".{path.name}.{os.getpid()}")) as temporary:
            yield temporary


@contextlib.contextmanager
def _renamed_to(path: Path, temporary: Path) -> Iterator[Path]:
    """Yield `temporary`, then rename it to `path`; remove it after an error."""
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: Path, content: bytes | str, kind: ErrorKind = CheckpointError) -> None:
    """Write `content` (text as UTF-8) to `path` atomically; disk errors are raised as `kind`.

    A file that holds `content` already is not touched: a finished command can be repeated on a read-only disk.
    """
    # Python represents a path that is not UTF-8 with lone surrogates, which UTF-8 cannot encode
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    with explain_disk_errors(path, kind):
        if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
            return
    with replace_file(path, kind, num_bytes=len(data)) as temporary:
        temporary.write_bytes(data)


def append_line(path: Path, line: str, kind: ErrorKind = CheckpointError) -> None:
    """Append `line` and a newline to a file: all of it or, on a disk error, nothing."""
    data = line.encode() + b"\n"
    with explain_disk_errors(path, kind, num_bytes=len(data)), path.open("ab", buffering=0) as file:
        size, rest = file.tell(), memoryview(data)
        try:
            while rest:  # after a short write, the next one raises the reason
                rest = rest[file.write(rest) :]
        except BaseException:
            file.truncate(size)
            raise


def complete_lines(path: Path) -> list[str]:
    r"""Return the complete lines of a JSON Lines file, without their "\n"; an incomplete last line is dropped.

    Only "\n" ends a line: a sentence may contain U+2028 and the like. Invalid UTF-8 is replaced.
    """
    return [line.decode("utf-8", "replace") for line in path.read_bytes().split(b"\n")[:-1]]


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that `path` has its old content or all of `data`, whenever we are killed.

    Its temporary file is NAME.draft, for files that only one process writes. Raises OSError, which callers turn into a
    LightwamError with `explain_disk_errors`, and then leaves no draft behind.
    """
    with _renamed_to(path, path.with_name(f"{path.name}.draft")) as temporary:
        temporary.write_bytes(data)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a dataset; DatasetError when it is missing or broken."""
    step = "copy it again"
    if not path.is_file():
        raise DatasetError("a file of the dataset is missing", where=path, next_step=step)
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(data, dict):
            raise ValueError(f"a {type(data).__name__}")
    except (ValueError, RecursionError) as error:
        what, got = "a file of the dataset must be JSON in UTF-8, an object", likely_cause(path) or error
        raise DatasetError(what, where=path, got=got, next_step=step) from error
    return data


def file_fingerprint(path: Path) -> str:
    """Return size and hash; above 16 MiB only 64 evenly spaced blocks of 64 KiB are hashed, with the first and last."""
    size = path.stat().st_size
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if size <= FULL_HASH_BYTES:
            digest.update(file.read())
        else:
            for sample in range(NUM_SAMPLES):
                file.seek((size - SAMPLE_BYTES) * sample // (NUM_SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return f"{size} bytes, {digest.hexdigest()}"
