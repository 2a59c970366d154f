"""Read a run's result files strictly: every error names the file, and the line or key. Arrays are written here too."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np

from lightwam.config.schema import SimConfig
from lightwam.config.strict_json import added, from_dict
from lightwam.errors import CheckpointError
from lightwam.system.files import replace_file

Result = TypeVar("Result")
Count = Annotated[int, lambda count: count >= 0, "an integer, at least 0"]
Duration = Annotated[float, lambda value: 0 <= value < math.inf, "a finite number, at least 0"]
"""seconds, milliseconds or control steps"""

EvalSettings = Annotated[
    Mapping[str, Count],
    lambda eval: {"trials", "first_seed", "replan"} <= eval.keys(),
    "trials, first_seed, replan, ...",
]

REWRITE = "write the file again with the command that made it, or delete it: the report works without it"
broken = partial(CheckpointError, next_step=REWRITE)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What reports name of an evaluation's constants."""

    sim: SimConfig
    eval: EvalSettings
    disturb: Literal["none", "object", "camera"] = added("none")
    """`eval.disturb`"""

    @property
    def what_is_disturbed(self) -> str:
        """What happens at each reset, in words; "" for nothing."""
        return {"none": "", "object": "the task's object is moved", "camera": "the cameras are turned"}[self.disturb]


def read_result(kind: type[Result], path: Path) -> Result | None:
    """Read the JSON object in `path` as the dataclass `kind`, ignoring other keys; None without the file."""
    return read_part(kind, read_object(path), str(path)) if path.is_file() else None


def read_part(kind: type[Result], data: Any, where: str) -> Result:
    """Convert a part of a file, found at `where`, to the dataclass `kind`, ignoring other keys."""
    return from_dict(kind, data, where, broken, partial=True)


def read_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in `path`."""
    return _parse(path.read_bytes(), str(path))


def read_lines(path: Path, numbers: Sequence[str]) -> tuple[list[dict[str, Any]], bool]:
    """Read a file with a JSON object on every line, which has these `numbers`; and whether an incomplete line follows.

    A line without its newline is incomplete, as of a run killed mid-write, and left out. Numbers may be NaN or
    infinite, as those of a diverged run are.
    """
    *lines, incomplete = path.read_bytes().split(b"\n")
    rows = {f"{path}:{number}": line for number, line in enumerate(lines, 1) if line.strip()}
    objects = {where: _parse(line, where) for where, line in rows.items()}
    for where, row in objects.items():
        for key in numbers:
            if type(row.get(key)) not in (int, float):
                raise broken(f"{key} must be a number", where=f"{where}: {key}", got=repr(row.get(key)))
    return list(objects.values()), incomplete != b""


def read_arrays(path: Path, what: str, next_step: str) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file by name; CheckpointError(`what`, next_step=`next_step`) when it is broken."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(what, where=path, got=error, next_step=next_step) from error


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays by name as a compressed .npz file, atomically."""
    with replace_file(path) as draft, draft.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _parse(text: bytes, where: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError(type(data).__name__)
    except (ValueError, RecursionError) as error:
        raise broken("this must be a JSON object", where=where, got=error) from error
    return data
