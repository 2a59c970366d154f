"""Statistics of a feature (state or action): range, moments and quantiles, as normalisation needs them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64, Shaped

from lightwam.config.strict_json import from_dict
from lightwam.errors import ConfigError

Row = Float64[np.ndarray, " D"]
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
MAX_OFFSETS = 2**16
"""most windows of which `measure_offsets` measures moments and quantiles"""
FEW_WINDOWS = 0.1
"""a step of the chunk that a smaller share of the windows reaches has the statistics of the step before"""
ROWS = ("min", "max", "mean", "std", *QUANTILES)


@dataclass(frozen=True, eq=False)
class FeatureStats:
    """Statistics of one feature in robot units, a number for each dimension."""

    min: Row
    max: Row
    mean: Row
    std: Row
    """of the population: divided by count"""
    q01: Row
    q10: Row
    q50: Row
    q90: Row
    q99: Row
    count: int
    """number of rows"""

    @property
    def dim(self) -> int:
        """Dimensions of the feature."""
        return len(self.min)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeatureStats) and self.to_dict() == other.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; floats survive the round trip bit by bit."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value.tolist() if name != "count" else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, data: Any, where: str = "stats") -> FeatureStats:
        """Read `to_dict`'s values; ConfigError when a key is unknown, missing or mistyped, or lengths differ."""
        read: Any = from_dict(_Stored, data, where)
        rows = {name: getattr(read, name) for name in ROWS}
        for name, row in rows.items():
            if not all(map(math.isfinite, row)):
                raise ConfigError("a statistic must be finite", where=f"{where}.{name}", got=repr(row)[:200])
        if len({len(row) for row in rows.values()}) != 1:
            raise ConfigError("statistics differ in length", where=where, got={k: len(v) for k, v in rows.items()})
        if read.count < 1:
            raise ConfigError("a count must be positive", where=f"{where}.count", got=read.count)
        return cls(**{name: np.array(row, np.float64) for name, row in rows.items()}, count=read.count)


_Stored = dataclasses.make_dataclass(
    "FeatureStats", [*((name, tuple[float, ...]) for name in ROWS), ("count", int)], frozen=True
)
"""the JSON form, with lists in place of arrays"""


def measure(rows: Shaped[np.ndarray, "n D"]) -> FeatureStats:
    """Measure the statistics of the rows, which must be finite; at least one row."""
    values = np.asarray(rows, np.float64)
    assert values.ndim == 2 and len(values), values.shape
    assert np.isfinite(values).all(), "statistics of a value that is not finite"
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    moments = values.min(0), values.max(0), values.mean(0), values.std(0)
    return FeatureStats(*moments, **dict(zip(QUANTILES, quantiles, strict=True)), count=len(values))


def measure_offsets(
    action: Float32[np.ndarray, "N D"],
    state: Float32[np.ndarray, "N D"],
    episode_start: Int64[np.ndarray, " episodes_and_1"],
    horizon: int,
) -> tuple[FeatureStats, ...]:
    """Measure action minus the state at the window's start, for each of the `horizon` steps of a window.

    The offsets grow with the step: with statistics of its own, a chunk's first action is learnt as precisely, for its
    size, as its last one. A window starts at every row, and steps past its episode's end are left out; the statistics
    end with the last step that FEW_WINDOWS of the windows reach. Of more than MAX_OFFSETS windows, evenly spaced ones
    are measured, but min and max are of all.
    """
    start, last = np.arange(len(action)), np.repeat(episode_start[1:] - 1, np.diff(episode_start))
    every, steps = -(-len(action) // MAX_OFFSETS), []
    for step in range(horizon):
        within = start[start + step <= last]
        if step and len(within) < FEW_WINDOWS * len(action):
            break
        offset = action[within + step].astype(np.float64) - state[within]
        kept = offset[within % every == 0] if (within % every == 0).any() else offset
        steps.append(dataclasses.replace(measure(kept), min=offset.min(0), max=offset.max(0)))
    return tuple(steps)
