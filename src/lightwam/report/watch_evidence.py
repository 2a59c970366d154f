"""What `lightwam watch` left in a run, read strictly: ROC curves by disturbance, and an episode of each."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from lightwam.errors import CheckpointError
from lightwam.system.checked_json import Table, read_object

WATCH, WITHOUT, PICTURES = "watch", "without the world model", "picture difference"
LINES = ((WATCH, "watch"), (WITHOUT, "without"), (PICTURES, "pictures"))
"""scores that have a curve, and the CSS class of each"""


@dataclass(frozen=True)
class Trace:
    """A score over an episode's looks."""

    step: Float[np.ndarray, " N"]
    score: Float[np.ndarray, " N"]
    threshold: float
    disturbed_at: float
    """control step"""


@dataclass(frozen=True)
class Area:
    """A ROC curve with the area under it."""

    area: float
    interval: tuple[float, float]
    alarms: int
    delay_steps: float | None
    across: Float[np.ndarray, " N"]
    up: Float[np.ndarray, " N"]


@dataclass(frozen=True)
class Disturbed:
    """One kind of disturbance."""

    kind: str
    episodes: int
    ways: dict[str, Area]
    gain: tuple[float, float, float]
    """by how much the watch's area is above the one without the world model, and the interval of that"""
    gain_soon: tuple[float, float, float]
    """the same of the first moments after the disturbance alone"""


@dataclass(frozen=True)
class Example:
    """One disturbed episode."""

    kind: str
    task: str
    seed: int
    look: int
    trace: Trace
    canvases: UInt8[np.ndarray, "looks height width 3"]


@dataclass(frozen=True)
class Watched:
    """All of RUN/watch."""

    calibration_episodes: int
    false_alarms: float
    soon_steps: int
    quiet: int
    alarms: dict[str, int]
    kinds: tuple[Disturbed, ...]
    examples: tuple[Example, ...]
    see_ms: float
    act_ms: float


def read_watch(run: Path) -> Watched | None:
    """RUN/watch, None when nobody has measured it; CheckpointError for a broken file."""
    path = run / "watch" / "result.json"
    if not path.is_file():
        return None
    data = read_object(path)
    quiet, cost, kinds = data.child("quiet"), data.child("cost_ms"), data.child("kinds")
    counts = quiet.child("alarms")
    rows = data.value("examples")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise data.refuse("examples", "a list of objects")
    return Watched(
        calibration_episodes=data.count("calibration_episodes"),
        false_alarms=data.number("false_alarms"),
        soon_steps=data.count("soon_steps"),
        quiet=quiet.count("episodes"),
        alarms={way: counts.count(way) for way, _ in LINES},
        kinds=tuple(_kind(kind, kinds.child(kind)) for kind in kinds.data),
        examples=_examples(run / "watch" / "examples.npz", [Table(row, f"{path}: examples") for row in rows]),
        see_ms=cost.child("see").duration("p50_ms"),
        act_ms=cost.child("act").duration("p50_ms"),
    )


def _kind(kind: str, row: Table) -> Disturbed:
    ways = row.child("ways")
    gains = (row.child(name).child(WITHOUT) for name in ("gain_over", "gain_over_soon"))
    gain, soon = ((gain.number("area"), *_numbers(gain, "interval_95", 2)) for gain in gains)
    return Disturbed(
        kind, row.count("episodes"), {way: _area(ways.child(way)) for way, _ in LINES}, gain, soon
    )  # fmt: skip


def _area(row: Table) -> Area:
    curve = row.value("curve")
    if not (isinstance(curve, list) and len(curve) == 2):
        raise row.refuse("curve", "two lists of numbers")
    across, up = (np.array(_numbers(Table({"curve": axis}, row.where), "curve", None)) for axis in curve)
    if len(across) != len(up):
        raise row.refuse("curve", "two lists as long as each other")
    delay = None if row.value("delay_steps") is None else row.duration("delay_steps")
    return Area(row.number("area"), _numbers(row, "interval_95", 2), row.count("alarms"), delay, across, up)


def _numbers(row: Table, key: str, count: int | None) -> tuple:
    values = row.value(key)
    good = isinstance(values, list) and values and all(type(value) in (int, float) for value in values)
    if not good or count not in (None, len(values)):
        raise row.refuse(key, f"{count or 'some'} numbers")
    return tuple(map(float, values))


def _examples(path: Path, rows: list[Table]) -> tuple[Example, ...]:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            canvases = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _broken(path, error) from error
    examples = []
    for row in rows:
        kind, scores = row.text("kind"), _numbers(row, "scores", None)
        if kind not in canvases or canvases[kind].dtype != np.uint8 or canvases[kind].ndim != 4:
            raise _broken(path, f"no pictures of {kind!r}")
        if len(canvases[kind]) != len(scores) + 1:
            raise _broken(path, f"{len(canvases[kind])} pictures of {kind!r}, {len(scores)} scores")
        steps = _numbers(row, "look_steps", len(scores))
        trace = Trace(np.array(steps), np.array(scores), row.number("threshold"), row.number("disturbed_at"))
        examples.append(Example(kind, row.text("task"), row.count("seed"), row.count("look"), trace, canvases[kind]))
    return tuple(examples)


def _broken(path: Path, got: object) -> CheckpointError:
    return CheckpointError("the watch's examples cannot be read", where=path, got=got,
                           expected="the pictures that lightwam watch writes",
                           next_step="delete RUN/watch/result.json and give lightwam watch again")  # fmt: skip
