"""What a page can ask for, as JSON: {"kind": "begin", "task": "red", "seed": 7}."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from lightwam.config.strict_json import from_dict
from lightwam.errors import WireError
from lightwam.sim.disturb import Kind

SPEEDS = (0.25, 0.5, 1.0, 2.0, 0.0)
"""times the control rate; 0: as fast as the machine can"""
MAX_TEXT, MAX_EVENTS = 1000, 1000
MAX_QUEUE = 64
"""commands that wait for the present step"""
Reply = Callable[[str], None]
"""tells the page that sent a command why it was refused"""

Count = Annotated[int, lambda number: 0 <= number < 2**53, "an integer from 0 to 2^53, JSON's largest exact one"]
Times = Annotated[float, lambda times: times in SPEEDS, f"one of {', '.join(f'{each:g}' for each in SPEEDS)}"]


def _is_text(text: str) -> bool:
    return len(text) <= MAX_TEXT and not any("\ud800" <= character <= "\udfff" for character in text)


Text = Annotated[str, _is_text, f"at most {MAX_TEXT} characters, no surrogates, which UTF-8 does not have"]


def _is_short(events: Sequence[object] | None) -> bool:
    return events is None or len(events) <= MAX_EVENTS


@dataclass(frozen=True)
class Event:
    """A change in the middle of an episode, made after `step` control steps."""

    step: Count
    what: Literal["sentence", "replan", "engine", "object", "camera", "frozen"]
    text: Text = ""
    """the new sentence"""
    number: Count = 0
    """the new replan; 1 for the engine, 0 for the plain model; a disturbance's seed"""


@dataclass(frozen=True)
class Begin:
    """Begin an episode; with the sentence and the `events` of an earlier one it is repeated."""

    task: Text
    seed: Count
    sentence: Text | None = None
    """None: the task's own"""
    events: Annotated[tuple[Event, ...] | None, _is_short, f"at most {MAX_EVENTS}"] = None
    """None: replan and engine stay as they are; else they are the recipe's and off, until an event changes them"""
    playing: bool | None = None
    """whether it then plays; None: as before"""
    kind: Literal["begin"] = "begin"


@dataclass(frozen=True)
class Transport:
    """Play, pause, or pause after one step."""

    action: Literal["play", "pause", "step"]
    kind: Literal["transport"] = "transport"


@dataclass(frozen=True)
class Sentence:
    """Tell the policy another sentence, from the present step on."""

    text: Text
    kind: Literal["sentence"] = "sentence"


@dataclass(frozen=True)
class Speed:
    """Change the speed."""

    times: Times
    kind: Literal["speed"] = "speed"


@dataclass(frozen=True)
class Replan:
    """Execute this many steps of a chunk, from the next one on."""

    steps: Count
    kind: Literal["replan"] = "replan"


@dataclass(frozen=True)
class Switch:
    """Turn something on or off."""

    name: Literal["engine", "imagine", "surprise", "attention", "next_seed"]
    on: bool
    kind: Literal["switch"] = "switch"


@dataclass(frozen=True)
class Attention:
    """Choose what the overlay shows: a layer by its place among the taps, and a query; None: the mean of all."""

    layer: Count
    query: Count | None = None
    kind: Literal["attention"] = "attention"


@dataclass(frozen=True)
class OpenEpisode:
    """Open a recorded episode, by its place in the list."""

    place: Count
    kind: Literal["open"] = "open"


@dataclass(frozen=True)
class Seek:
    """Go to a control step of a recorded episode."""

    step: Count
    kind: Literal["seek"] = "seek"


@dataclass(frozen=True)
class Disturb:
    """Disturb the simulator now."""

    what: Kind
    kind: Literal["disturb"] = "disturb"


@dataclass(frozen=True)
class Restart:
    """Start the simulator again after its process died."""

    kind: Literal["restart"] = "restart"


@dataclass(frozen=True)
class Save:
    """Save the episode so far with its film."""

    kind: Literal["save"] = "save"


InSimulator = Begin | Disturb | Restart | Save
InRecording = OpenEpisode | Seek
InBoth = Transport | Sentence | Speed | Replan | Switch | Attention
Command = InSimulator | InRecording | InBoth


@dataclass(frozen=True)
class _Message:
    command: Command


class CommandQueue:
    """The commands that wait for a session, which asks for them in its own thread."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[Command, Reply]] = queue.Queue(MAX_QUEUE)

    def put(self, command: Command, reply: Reply) -> None:
        """Add a command; `reply` is called with the reason if it is refused, now or later."""
        try:
            self._queue.put_nowait((command, reply))
        except queue.Full:
            reply("the session is busy; try again in a moment")

    def next(self, seconds: float) -> tuple[Command, Reply] | None:
        """Return the next command, after waiting up to `seconds` for it."""
        try:
            return self._queue.get(timeout=seconds) if seconds > 0 else self._queue.get_nowait()
        except queue.Empty:
            return None


def one_line(error: Exception) -> str:
    """Return an error's text in one line, for a page."""
    return "; ".join(line.strip() for line in str(error).split("\n"))


def parse(text: str) -> Command:
    """Read a command; WireError for anything else."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError("a command must be JSON", got=str(error)) from error
    return from_dict(_Message, {"command": data}, "page", WireError, defaults=True).command
