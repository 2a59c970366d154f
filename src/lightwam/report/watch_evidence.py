"""Read what `lightwam watch` measured: ROC curves for each disturbance, and an example episode of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import UInt8

from lightwam.config.strict_json import stored_as
from lightwam.errors import CheckpointError
from lightwam.evaluation.result_files import Count, Duration, read_arrays
from lightwam.evaluation.watch.scores import ANY, PICTURES, WATCH, WITHOUT

DETECTORS = {WATCH: "watch", WITHOUT: "without", PICTURES: "pictures"}
"""the detectors that the report shows -> CSS class"""
Numbers = tuple[float, ...]
Curve = Annotated[tuple[Numbers, Numbers], lambda curve: len(curve[0]) == len(curve[1]) > 0, "two lists of one length"]
"""rates of false alarms and of alarms"""


@dataclass(frozen=True)
class Area:
    """An area under the ROC curve, or a difference of two, with its 95 % interval."""

    area: float
    interval_95: tuple[float, float]


@dataclass(frozen=True)
class DetectorResult(Area):
    """A detector's ROC curve and alarms."""

    curve: Curve
    alarms: Count
    delay_steps: Duration | None


Detectors = Annotated[Mapping[str, DetectorResult], lambda found: DETECTORS.keys() <= found.keys(), list(DETECTORS)]
Gains = Annotated[Mapping[str, Area], lambda gains: WITHOUT in gains, f"gains over detectors, {WITHOUT!r} among them"]
Costs = Annotated[
    Mapping[str, Mapping[str, Duration]],
    lambda cost: "p50_ms" in cost.get("see", ()) and "p50_ms" in cost.get("act", ()),
    "p50_ms of see (the watch) and act, among others",
]
Alarms = Annotated[Mapping[str, Count], lambda alarms: WATCH in alarms, f"numbers of alarms, {WATCH!r} among them"]


@dataclass(frozen=True, kw_only=True)
class DisturbanceResult:
    """The detectors' results for one kind of disturbance."""

    episodes: Count
    detectors: Detectors = stored_as("ways")
    gain_over: Gains
    """the watch's area less those of the others"""
    gain_over_soon: Gains
    """the same over the first moments after the disturbance alone"""


@dataclass(frozen=True)
class UndisturbedResult:
    """Episodes without a disturbance, and every detector's alarms in them."""

    episodes: Count
    alarms: Alarms


@dataclass(frozen=True, kw_only=True)
class Example:
    """A disturbed episode, with the watch's score at every observation but the first."""

    kind: str
    task: str
    seed: Count
    last_before: Count = stored_as("look")
    """index of the last canvas before the disturbance"""
    disturbed_at: float
    """control step"""
    steps: Numbers = stored_as("look_steps")
    scores: Numbers
    threshold: float

    def __post_init__(self) -> None:
        if not len(self.steps) == len(self.scores) > 0:
            raise ValueError("scores and look_steps must have one length")


@dataclass(frozen=True, kw_only=True)
class WatchResult:
    """What the report shows of RUN/watch/result.json."""

    calibration_episodes: Count
    false_alarms: float
    soon_steps: Count
    undisturbed: UndisturbedResult = stored_as("quiet")
    disturbances: Mapping[str, DisturbanceResult] = stored_as("kinds")
    examples: tuple[Example, ...]
    cost_ms: Costs

    @property
    def overall(self) -> DisturbanceResult:
        """All disturbances together."""
        return self.disturbances.get(ANY) or next(iter(self.disturbances.values()))


def read_canvases(
    path: Path, examples: Sequence[Example]
) -> dict[str, UInt8[np.ndarray, "observations height width 3"]]:
    """Read the pictures of the examples, by kind; CheckpointError for a broken file."""
    what = "the watch's examples cannot be read"
    step = "delete RUN/watch/result.json, then run `lightwam watch RUN` again"
    arrays = read_arrays(path, what, step)
    for example in examples:
        canvases, count = arrays.get(example.kind, np.empty(0)), len(example.scores) + 1
        if canvases.dtype != np.uint8 or canvases.ndim != 4 or len(canvases) != count:
            got = f"{example.kind!r} of {canvases.dtype} {canvases.shape} among {sorted(arrays)}"
            expected = f"{count} pictures, one more than scores"
            raise CheckpointError(what, where=path, got=got, expected=expected, next_step=step)
    return arrays
