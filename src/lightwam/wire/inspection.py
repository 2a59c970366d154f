"""A check of one message of a real client against a robot schema, for a person who connects a new robot.

No program can tell whether pictures are upright, colours are RGB, or the state is in the run's units: look at them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from lightwam.errors import LightwamError
from lightwam.system.tables import table_lines
from lightwam.wire.limits import below, short
from lightwam.wire.robot_schema import EPISODE, HISTORY, STEP, KeyPath, RobotSchema, path_text

DARK = 8
"""a picture whose brightest pixel is below this, of 255, is suspicious"""


@dataclass(frozen=True)
class FieldCheck:
    """An input of the policy, and its value in the message."""

    name: str
    path: str
    value: str
    error: str = ""
    """why it cannot be used"""
    warning: str = ""
    """why it is suspicious, although it can be used"""


@dataclass(frozen=True)
class MessageCheck:
    """The result for one message."""

    schema: str
    fields: tuple[FieldCheck, ...]
    unused: tuple[str, ...]
    """keys that the schema does not use, with their values"""

    @property
    def fits(self) -> bool:
        """Whether the policy can answer such a message."""
        return not any(field.error for field in self.fields)

    def lines(self) -> list[str]:
        """Format the result for a person."""
        marks = ["WRONG" if field.error else "check" if field.warning else "ok" for field in self.fields]
        rows = [[mark, field.name, field.path, field.value] for mark, field in zip(marks, self.fields, strict=True)]
        lines = []
        for line, field in zip(table_lines(rows, "<", indent=0), self.fields, strict=True):
            lines.append(line)
            lines += [f"         {line}" for text in (field.error, field.warning) for line in text.splitlines()]
        if self.unused:
            lines.append(f"unused: {', '.join(self.unused)}")
        lines.append(f"the message {'fits' if self.fits else 'does not fit'} the robot schema {self.schema!r}")
        return lines


def inspect(message: Any, schema: RobotSchema, check_sentence: Callable[[str], None] | None = None) -> MessageCheck:
    """Check every part of a message that the (fitted) schema uses; never raises.

    `check_sentence` raises a LightwamError for an instruction that the run's text encoder cannot take.
    """

    def instruction() -> str:
        text = schema.instruction(message)
        if check_sentence is not None:
            check_sentence(text)
        return text

    fields = []
    for camera, path in schema.cameras.items():
        fields.append(_check(f"camera {camera}", path_text(path), partial(schema.picture, message, camera), _picture))
    for part in schema.state:
        fields.append(_check("state", path_text(part.path), partial(schema.vector, message, part), _vector))
    fields.append(_check("instruction", " or ".join(map(path_text, schema.prompt)), instruction, _instruction))
    used = {*schema.cameras.values(), *(part.path for part in schema.state), *schema.prompt}
    used |= {(key,) for key in (EPISODE, STEP, HISTORY) if schema.n_obs_steps}
    return MessageCheck(schema.name, tuple(fields), tuple(_unused(message, used)))


def _check(name: str, path: str, read: Callable[[], Any], describe: Callable[[Any], tuple[str, str]]) -> FieldCheck:
    try:
        value, warning = describe(read())
    except LightwamError as error:
        details = {"got": error.got, "expected": error.expected, "next": error.next_step}
        text = "; ".join(f"{label}: {detail}" for label, detail in details.items() if detail not in (None, ""))
        return FieldCheck(name, path, "", f"{error.what} ({text})")
    return FieldCheck(name, path, value, warning=warning)


def _picture(picture: np.ndarray) -> tuple[str, str]:
    low, high = int(picture.min()), int(picture.max())
    warning = "the picture has one colour only" if (picture == picture[0, 0]).all() else ""
    if high < DARK:
        warning = f"the picture is almost black (at most {high} of 255): a covered lens, or floats in 0..1 made uint8"
    height, width, _ = picture.shape
    return f"{height} x {width} RGB, {low} to {high}", warning


def _vector(numbers: np.ndarray) -> tuple[str, str]:
    span = f", {numbers.min():.4g} to {numbers.max():.4g}" if len(numbers) else ""
    return f"{len(numbers)} numbers{span}", "all are zero" if len(numbers) > 1 and not numbers.any() else ""


def _instruction(text: str) -> tuple[str, str]:
    return short(text), "" if text.strip() else "the instruction is empty"


def _unused(value: Any, used: set[KeyPath], path: KeyPath = ()) -> Iterator[str]:
    """Yield the paths of values that are neither at nor below a used path."""
    if path in used:
        return
    if isinstance(value, dict) and (value or not path):
        for key, item in value.items():
            yield from _unused(item, used, (*path, key))
    else:
        yield f"{functools.reduce(below, path, '') or 'message'} ({short(value)})"
