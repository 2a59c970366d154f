"""What a family reads of one message of a real client, and what it leaves: for a person who connects a new robot.

Whether pictures are upright, colours are RGB, or the state is in the run's units, no program can tell: look at them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from lightwam.errors import LightwamError
from lightwam.wire.limits import below, short
from lightwam.wire.robot_schema import KeyPath, RobotSchema, path_text

DARK = 8
"""a picture whose brightest pixel is below this, of 255, shows nothing"""


@dataclass(frozen=True)
class FieldCheck:
    """One thing that the policy needs, and what was found."""

    what: str
    where: str
    found: str
    error: str = ""
    """why it cannot be used"""
    warning: str = ""
    """why it can be used and is suspicious all the same"""


@dataclass(frozen=True)
class MessageCheck:
    """What became of one message."""

    schema: str
    fields: tuple[FieldCheck, ...]
    unused: tuple[str, ...]
    """what came, and nobody asked for"""

    @property
    def fits(self) -> bool:
        """Whether the policy can answer such a message."""
        return not any(reading.error for reading in self.fields)

    def lines(self) -> list[str]:
        """For a person."""
        rows = [(f"{one.what}", one.where, one.found) for one in self.fields]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
        lines = []
        for row, one in zip(rows, self.fields, strict=True):
            told = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            lines.append(f"{'WRONG ' if one.error else 'look  ' if one.warning else 'ok    '} {told}")
            lines += [f"         {line}" for text in (one.error, one.warning) for line in text.splitlines()]
        if self.unused:
            lines.append(f"not read: {', '.join(self.unused)}")
        lines.append(f"the message {'fits' if self.fits else 'does not fit'} the family {self.schema!r}")
        return lines


def inspect(message: Any, schema: RobotSchema, check_sentence: Callable[[str], None] | None = None) -> MessageCheck:
    """Report every part of `message` that the fitted `schema` reads, with what is wrong or odd; never raises.

    `check_sentence` raises a LightwamError for a sentence that the run's text encoder cannot read.
    """

    def sentence() -> str:
        text = schema.instruction(message)
        if check_sentence is not None:
            check_sentence(text)
        return text

    fields = [_reading(f"camera {camera}", path, partial(schema.picture, message, camera), _picture)
                for camera, path in schema.cameras.items()]  # fmt: skip
    fields += [_reading("state", part.path, partial(schema.vector, message, part), _vector)
                 for part in schema.state]  # fmt: skip
    fields.append(_reading("instruction", schema.prompt[0], sentence, _sentence,
                             where=" or ".join(map(path_text, schema.prompt))))  # fmt: skip
    read = {*schema.cameras.values(), *(part.path for part in schema.state), *schema.prompt}
    return MessageCheck(schema.name, tuple(fields), tuple(_unread(message, read)))


def _reading(
    what: str, path: KeyPath, read: Callable[[], Any], describe: Callable[[Any], tuple[str, str]], where: str = ""
) -> FieldCheck:
    place = where or path_text(path)
    try:
        found, warning = describe(read())
    except LightwamError as error:
        lines = (("got", error.got), ("expected", error.expected), ("next", error.next_step))
        told = "; ".join(f"{name}: {value}" for name, value in lines if value not in (None, ""))
        return FieldCheck(what, place, "", f"{error.what} ({told})")
    return FieldCheck(what, place, found, warning=warning)


def _picture(picture: np.ndarray) -> tuple[str, str]:
    low, high = int(picture.min()), int(picture.max())
    warning = "the whole picture is of one colour" if (picture == picture[0, 0]).all() else ""
    if high < DARK:
        warning = f"the picture is almost black (at most {high} of 255): a covered lens, or floats in 0..1 made uint8"
    height, width, _ = picture.shape
    return f"{height} x {width} RGB, {low} to {high}", warning


def _vector(numbers: np.ndarray) -> tuple[str, str]:
    told = f"{len(numbers)} numbers" + (f", {numbers.min():.4g} to {numbers.max():.4g}" if len(numbers) else "")
    return told, "all are zero" if len(numbers) > 1 and not numbers.any() else ""


def _sentence(text: str) -> tuple[str, str]:
    return short(text), "" if text.strip() else "the instruction is empty"


def _unread(found: Any, read: set[KeyPath], path: KeyPath = ()) -> Iterator[str]:
    """Places of values that are at, or under, none of the paths `read`."""
    if path in read:
        return
    if isinstance(found, dict) and (found or not path):
        for key, item in found.items():
            yield from _unread(item, read, (*path, key))
    else:
        place = ""
        for key in path:
            place = below(place, key)
        yield f"{place or 'message'} ({_kind(found)})"


def _kind(found: Any) -> str:
    if isinstance(found, np.ndarray):
        return f"{found.dtype} {found.shape}"
    return short(found)
