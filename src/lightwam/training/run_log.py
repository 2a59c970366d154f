"""The lines of log.jsonl that a resumed training keeps."""

from __future__ import annotations

import json
from pathlib import Path

from lightwam.errors import CheckpointError
from lightwam.system.files import complete_lines, write_file


def truncate_log(path: Path, step: int) -> int:
    """Drop the lines after `step`, which a killed process wrote after its last checkpoint: they will be written again.

    Return the last step that was logged, 0 for none. An incomplete last line is dropped; CheckpointError names any
    other broken line.
    """
    if not path.exists():
        return 0
    lines = [(_step_of(line, f"{path}:{number}"), line) for number, line in enumerate(complete_lines(path), 1)]
    kept = "".join(f"{line}\n" for at, line in lines if at <= step)
    if kept.encode() != path.read_bytes():
        write_file(path, kept)
    return max((at for at, _ in lines), default=0)


def _step_of(line: str, where: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError) as error:
        what = 'a line of the log must be {"step": 20, ...}'
        got = f"{type(error).__name__}: {error}"
        raise CheckpointError(what, where=where, got=got, next_step="delete this line") from error
