"""Read a run's own files strictly: every refusal names the file and the line or key."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Callable
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
            what, step = f"the key {key!r} is missing", did_you_mean(key, self.data) if self.data else REWRITE
            raise CheckpointError(what, where=self.where, got=sorted(self.data), next_step=step)
        return self.data[key]

    def _checked(self, key: str, fits: Callable[[Any], bool], expected: str) -> Any:
        if not fits(self.value(key)):
            raise self.refuse(key, expected)
        return self.data[key]

    def number(self, key: str) -> float:
        """Return a number; it may be NaN or infinite, as those of a diverged run are."""
        return float(self._checked(key, _is_number, "a number"))

    def numbers(self, key: str, count: int | None = None) -> tuple[float, ...]:
        """Return a list of `count` numbers, by default of at least one."""

        def fits(x: Any) -> bool:
            return isinstance(x, list) and len(x) == (count or len(x) or 1) and all(map(_is_number, x))

        return tuple(map(float, self._checked(key, fits, f"a list of {count or 'some'} numbers")))

    def duration(self, key: str) -> float:
        """Return a number of seconds or milliseconds."""
        return float(self._checked(key, lambda x: _is_number(x) and 0 <= x < math.inf, "a finite number, at least 0"))

    def count(self, key: str) -> int:
        """Return an integer that is at least 0."""
        return int(self._checked(key, lambda x: type(x) is int and x >= 0, "an integer, at least 0"))

    def text(self, key: str) -> str:
        """Return a string."""
        return str(self._checked(key, lambda x: isinstance(x, str), "a string"))

    def child(self, key: str) -> Table:
        """Return an object inside this one."""
        return Table(self._checked(key, lambda x: isinstance(x, dict), "an object"), f"{self.where}: {key}")

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
        if not isinstance(data, dict):
            raise ValueError(type(data).__name__)
    except ValueError as error:
        raise CheckpointError("this must be a JSON object", where=where, got=str(error), next_step=REWRITE) from error
    return Table(data, where)


def _is_number(x: Any) -> bool:
    return type(x) in (int, float)
