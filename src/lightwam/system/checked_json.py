"""Reading of the run's own files: strict, and every refusal says which file and which line or key."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightwam.errors import CheckpointError, did_you_mean


@dataclass(frozen=True)
class Table:
    """A JSON object and where it came from; each reader below returns a checked value or raises CheckpointError."""

    data: dict[str, Any]
    where: str

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def refuse(self, key: str, expected: str) -> CheckpointError:
        """The error of a value that is not what it has to be."""
        return CheckpointError(
            "a value in a file of the run is not what the report expects",
            where=f"{self.where}: {key}", got=repr(self.data.get(key)), expected=expected,
            next_step="write the file again with the command that made it, or delete it: the report does without",
        )  # fmt: skip

    def value(self, key: str) -> Any:
        """The value of `key`, whatever it is."""
        if key not in self.data:
            raise CheckpointError(
                "a key is missing in a file of the run", where=self.where, got=sorted(self.data), expected=repr(key),
                next_step=did_you_mean(key, self.data) if self.data else "write the file again, or delete it",
            )  # fmt: skip
        return self.data[key]

    def number(self, key: str) -> float:
        """A number; NaN and infinities too, a diverged run has them."""
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.refuse(key, "a number")
        return float(value)

    def duration(self, key: str) -> float:
        """A finite number of seconds or milliseconds, not below 0."""
        value = self.number(key)
        if not (math.isfinite(value) and value >= 0):
            raise self.refuse(key, "a finite number, at least 0")
        return value

    def count(self, key: str) -> int:
        """An integer, not below 0."""
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.refuse(key, "an integer, at least 0")
        return value

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self.value(key)
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return value

    def text(self, key: str) -> str:
        """A string."""
        value = self.value(key)
        if not isinstance(value, str):
            raise self.refuse(key, "a string")
        return value

    def child(self, key: str) -> Table:
        """An object inside this one."""
        value = self.value(key)
        if not isinstance(value, dict):
            raise self.refuse(key, "an object")
        return Table(value, f"{self.where}: {key}")


def read_object(path: Path) -> Table:
    """The JSON object in `path`."""
    return _parse(path.read_bytes(), str(path))


def read_lines(path: Path) -> tuple[list[Table], bool]:
    """The JSON objects of a file with one a line, and whether its last line was torn off (a run killed mid-write).

    Only a last line without its newline may be torn; anything else that does not parse is a broken file.
    """
    lines = path.read_bytes().split(b"\n")
    tail = lines.pop()
    tables = list(_parse_lines(path, lines))
    if not tail.strip():
        return tables, False
    try:
        whole = isinstance(json.loads(tail), dict)
    except ValueError:
        whole = False
    if whole:
        tables.append(_parse(tail, f"{path}:{len(lines) + 1}"))
    return tables, not whole


def _parse_lines(path: Path, lines: list[bytes]) -> Iterator[Table]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _parse(line, f"{path}:{number}")


def _parse(text: bytes, where: str) -> Table:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise CheckpointError(
            "a file of the run is not JSON", where=where, got=str(error), expected="a JSON object",
            next_step="restore the file, or delete it: the report does without",
        ) from error  # fmt: skip
    if not isinstance(data, dict):
        raise CheckpointError(
            "a file of the run holds another kind of JSON", where=where, got=type(data).__name__,
            expected="a JSON object",
        )  # fmt: skip
    return Table(data, where)
