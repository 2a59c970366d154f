"""Read what `lightwam watch` measured: ROC curves for each disturbance, and an example episode of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from lightwam.errors import CheckpointError
from lightwam.evaluation.watch.scores import ANY, PICTURES, WATCH, WITHOUT
from lightwam.system.checked_json import Table, read_arrays, read_object

DETECTORS = {WATCH: "watch", WITHOUT: "without", PICTURES: "pictures"}
"""the detectors that the report shows -> CSS class"""


@dataclass(frozen=True)
class Trace:
    """A detector's score during an episode."""

    step: Float[np.ndarray, " N"]
    score: Float[np.ndarray, " N"]
    threshold: float
    disturbed_at: float
    """control step"""


@dataclass(frozen=True)
class DetectorResult:
    """A detector's ROC curve and alarms."""

    area: float
    """under the ROC curve"""
    interval: tuple[float, float]
    alarms: int
    delay_steps: float | None
    false_alarm_rate: Float[np.ndarray, " N"]
    alarm_rate: Float[np.ndarray, " N"]


@dataclass(frozen=True)
class DisturbanceResult:
    """The detectors' results for one kind of disturbance."""

    kind: str
    episodes: int
    detectors: dict[str, DetectorResult]
    gain: tuple[float, float, float]
    """the watch's area less that of the detector without the world model, and the difference's interval"""
    gain_soon: tuple[float, float, float]
    """the same over the first moments after the disturbance alone"""


@dataclass(frozen=True)
class Example:
    """A disturbed episode."""

    kind: str
    task: str
    seed: int
    last_before: int
    """index of the last canvas before the disturbance"""
    trace: Trace
    canvases: UInt8[np.ndarray, "observations height width 3"]


@dataclass(frozen=True)
class WatchResult:
    """Everything in RUN/watch that the report shows."""

    calibration_episodes: int
    false_alarms: float
    soon_steps: int
    undisturbed_episodes: int
    undisturbed_alarms: int
    """of the watch"""
    disturbances: tuple[DisturbanceResult, ...]
    examples: tuple[Example, ...]
    watch_ms: float
    act_ms: float

    @property
    def overall(self) -> DisturbanceResult:
        """All disturbances together."""
        return next((result for result in self.disturbances if result.kind == ANY), self.disturbances[0])


def read_watch(run: Path) -> WatchResult | None:
    """Read RUN/watch, None when it was not measured; CheckpointError for a broken file."""
    path = run / "watch" / "result.json"
    if not path.is_file():
        return None
    table = read_object(path)
    undisturbed, cost = table.child("quiet"), table.child("cost_ms")
    rows = table.value("examples")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise table.refuse("examples", "a list of objects")
    return WatchResult(
        calibration_episodes=table.count("calibration_episodes"),
        false_alarms=table.number("false_alarms"),
        soon_steps=table.count("soon_steps"),
        undisturbed_episodes=undisturbed.count("episodes"),
        undisturbed_alarms=undisturbed.child("alarms").count(WATCH),
        disturbances=tuple(_read_disturbance(kind, row) for kind, row in table.children("kinds")),
        examples=_read_examples(run / "watch" / "examples.npz", [Table(row, f"{path}: examples") for row in rows]),
        watch_ms=cost.child("see").duration("p50_ms"),
        act_ms=cost.child("act").duration("p50_ms"),
    )


def _read_disturbance(kind: str, row: Table) -> DisturbanceResult:
    results = row.child("ways")
    detectors = {name: _read_detector(results.child(name)) for name in DETECTORS}
    gain, gain_soon = (_read_gain(row.child(key).child(WITHOUT)) for key in ("gain_over", "gain_over_soon"))
    return DisturbanceResult(kind, row.count("episodes"), detectors, gain, gain_soon)


def _read_gain(row: Table) -> tuple[float, float, float]:
    low, high = row.numbers("interval_95", 2)
    return row.number("area"), low, high


def _read_detector(row: Table) -> DetectorResult:
    curve = row.value("curve")
    if not (isinstance(curve, list) and len(curve) == 2):
        raise row.refuse("curve", "two lists of numbers")
    false_alarms, alarms = (np.array(Table({"curve": axis}, row.where).numbers("curve")) for axis in curve)
    if len(false_alarms) != len(alarms):
        raise row.refuse("curve", "two lists of the same length")
    delay = None if row.value("delay_steps") is None else row.duration("delay_steps")
    low, high = row.numbers("interval_95", 2)
    return DetectorResult(row.number("area"), (low, high), row.count("alarms"), delay, false_alarms, alarms)


def _read_examples(path: Path, rows: list[Table]) -> tuple[Example, ...]:
    what = "the watch's examples cannot be read"
    step = "delete RUN/watch/result.json, then run `lightwam watch RUN` again"
    arrays, examples = read_arrays(path, what, step), []
    for row in rows:
        kind, scores = row.text("kind"), row.numbers("scores")
        canvases = arrays.get(kind, np.empty(0))
        if canvases.dtype != np.uint8 or canvases.ndim != 4 or len(canvases) != len(scores) + 1:
            got = f"an array {kind!r}: {canvases.dtype} {canvases.shape}" if kind in arrays else f"no array {kind!r}"
            expected = f"{len(scores) + 1} pictures, one more than scores"
            raise CheckpointError(what, where=path, got=got, expected=expected, next_step=step)
        steps = row.numbers("look_steps", len(scores))
        trace = Trace(np.array(steps), np.array(scores), row.number("threshold"), row.number("disturbed_at"))
        examples.append(Example(kind, row.text("task"), row.count("seed"), row.count("look"), trace, canvases))
    return tuple(examples)
