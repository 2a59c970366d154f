"""Read a run's own files strictly: every refusal names the file and the line or key."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightwam.errors import CheckpointError, did_you_mean

REWRITE = "write the file again with the command that made it, or delete it: the report works without it"


@dataclass(frozen=True)
class Table:
    """A JSON object and where it came from; each method returns a checked value or raises CheckpointError."""

    data: dict[str, Any]
    where: str

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def refuse(self, key: str, expected: str) -> CheckpointError:
        """Return the error for a value that is not what it must be."""
        where, got = f"{self.where}: {key}", repr(self.data.get(key))
        return CheckpointError(f"{key} must be {expected}", where=where, got=got, next_step=REWRITE)

    def value(self, key: str) -> Any:
        """Return the value of `key`, of any type."""
        if key not in self.data:
            step = did_you_mean(key, self.data) if self.data else REWRITE
            raise CheckpointError(
                f"the key {key!r} is missing", where=self.where, got=sorted(self.data), next_step=step
            )
        return self.data[key]

    def number(self, key: str) -> float:
        """Return a number; it may be NaN or infinite, as those of a diverged run are."""
        value = self.value(key)
        if type(value) not in (int, float):
            raise self.refuse(key, "a number")
        return float(value)

    def numbers(self, key: str, count: int | None = None) -> tuple[float, ...]:
        """Return a list of `count` numbers, by default of at least one."""
        values = self.value(key)
        good = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not good or len(values) != (count or len(values) or 1):
            raise self.refuse(key, f"a list of {count or 'some'} numbers")
        return tuple(map(float, values))

    def duration(self, key: str) -> float:
        """Return a number of seconds or milliseconds."""
        value = self.number(key)
        if not (math.isfinite(value) and value >= 0):
            raise self.refuse(key, "a finite number, at least 0")
        return value

    def count(self, key: str) -> int:
        """Return an integer that is at least 0."""
        value = self.value(key)
        if type(value) is not int or value < 0:
            raise self.refuse(key, "an integer, at least 0")
        return value

    def text(self, key: str) -> str:
        """Return a string."""
        value = self.value(key)
        if not isinstance(value, str):
            raise self.refuse(key, "a string")
        return value

    def child(self, key: str) -> Table:
        """Return an object inside this one."""
        value = self.value(key)
        if not isinstance(value, dict):
            raise self.refuse(key, "an object")
        return Table(value, f"{self.where}: {key}")

    def children(self, key: str) -> list[tuple[str, Table]]:
        """Return the objects inside an object inside this one, each with its key."""
        objects = self.child(key)
        return [(name, objects.child(name)) for name in objects.data]


def read_object(path: Path) -> Table:
    """Read the JSON object in `path`."""
    return _parse(path.read_bytes(), str(path))


def read_lines(path: Path) -> tuple[list[Table], bool]:
    """Read a file with a JSON object on every line; return them, and whether the last line was incomplete.

    Only a last line without its newline may be incomplete, as of a run killed mid-write; it is left out. Any other line
    that does not parse is an error.
    """
    *lines, last = path.read_bytes().split(b"\n")
    tables = [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    try:
        tables += [_parse(last, str(path))] if last.strip() else []
    except CheckpointError:
        return tables, True
    return tables, False


def read_arrays(path: Path, what: str, next_step: str) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file by name; CheckpointError(`what`, next_step=`next_step`) when it is broken."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(what, where=path, got=error, next_step=next_step) from error


def _parse(text: bytes, where: str) -> Table:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise CheckpointError("this must be a JSON object", where=where, got=str(error), next_step=REWRITE) from error
    if not isinstance(data, dict):
        raise CheckpointError("this must be a JSON object", where=where, got=type(data).__name__, next_step=REWRITE)
    return Table(data, where)
