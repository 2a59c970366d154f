"""Statistics of a feature in one streaming pass: range, moments and quantiles, whatever the size of the dataset.

Moments are merged in float64 (Chan's update). Quantiles come from a histogram a dimension on a grid of power-of-two
bins: a bin of the next coarser grid is exactly two bins, so the sketch of a dataset does not depend on the order or the
size of the pieces it was fed, and two sketches merge exactly.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from lightwam.errors import ConfigError, did_you_mean

NUM_BINS = 4096
Row = Float64[np.ndarray, " D"]
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


@dataclass(frozen=True, eq=False)
class FeatureStats:
    """What normalisation needs to know of one feature (state or action), in robot units, a number a dimension.

    Quantiles are within `2 / (NUM_BINS - 2)` of the dimension's range (0.05 %) of numpy's linear quantiles.
    """

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
    """rows seen"""

    @property
    def dim(self) -> int:
        """Dimensions of the feature."""
        return len(self.min)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeatureStats) and self.to_dict() == other.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; floats survive the round trip bit by bit."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: Any, where: str = "stats") -> FeatureStats:
        """The stats from `to_dict`'s values; an unknown, missing or misshapen key raises ConfigError."""
        names = [f.name for f in dataclasses.fields(cls)]
        if not isinstance(data, dict):
            raise ConfigError("statistics are not a table", where=where, got=type(data).__name__, expected=names)
        for key in data:
            if key not in names:
                hint = did_you_mean(str(key), names)
                raise ConfigError("unknown statistic", where=where, got=repr(key), next_step=hint)
        if missing := [name for name in names if name not in data]:
            raise ConfigError("statistics are missing", where=where, got=sorted(data), expected=missing)
        if type(data["count"]) is not int or data["count"] < 1:
            raise ConfigError("a count is not positive", where=f"{where}.count", got=data["count"], expected="int >= 1")
        rows = {name: _numbers(data[name], f"{where}.{name}") for name in names if name != "count"}
        if len({len(row) for row in rows.values()}) != 1:
            raise ConfigError("statistics differ in length", where=where, got={k: len(v) for k, v in rows.items()})
        return cls(**rows, count=data["count"])


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _numbers(data: Any, where: str) -> Float64[np.ndarray, " D"]:
    good = isinstance(data, list) and all(type(x) in (int, float) and math.isfinite(x) for x in data)
    if not good:
        raise ConfigError("a statistic is not a list of finite numbers", where=where, got=repr(data)[:200])
    return np.array(data, np.float64)


class RunningStats:
    """Feed rows with `update`, take `finish`; memory is NUM_BINS counts a dimension, however many rows there are."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, rows: Shaped[np.ndarray, "n D"]) -> None:
        """Add rows; they must be finite (the dataset's door checks that and names the place)."""
        values = np.asarray(rows, np.float64)
        assert values.ndim == 2, values.shape
        assert np.isfinite(values).all(), "statistics of a value that is not finite"
        if not len(values):
            return
        mean = values.mean(0)
        self._add(len(values), values.min(0), values.max(0), mean, np.square(values - mean).sum(0))
        for sketch, column in zip(self._sketches, values.T, strict=True):
            sketch.add(column)

    def merge(self, other: RunningStats) -> None:
        """Add all that `other` has seen."""
        if not other.count:
            return
        self._add(other.count, other._min, other._max, other._mean, other._squares)
        for mine, theirs in zip(self._sketches, other._sketches, strict=True):
            mine.merge(theirs)

    def finish(self) -> FeatureStats:
        """The statistics of all rows so far; at least one row must have been seen."""
        assert self.count > 0, "no rows were seen"
        quantiles = {name: np.array([sketch.quantile(q) for sketch in self._sketches]) for name, q in QUANTILES.items()}
        std = np.sqrt(self._squares / self.count)
        return FeatureStats(self._min.copy(), self._max.copy(), self._mean.copy(), std, **quantiles, count=self.count)

    def _add(self, count: int, low: Row, high: Row, mean: Row, squares: Row) -> None:
        """Range, and Chan's update of the moments."""
        if not self.count:
            self._min, self._max, self._mean, self._squares = low, high, mean, squares
            self._sketches = [_Sketch() for _ in mean]
        assert len(mean) == len(self._mean), (len(mean), len(self._mean))
        if self.count:
            total, delta = self.count + count, mean - self._mean
            self._min, self._max = np.minimum(self._min, low), np.maximum(self._max, high)
            self._squares = self._squares + squares + np.square(delta) * (self.count * count / total)
            self._mean = self._mean + delta * (count / total)
        self.count += count


class _Sketch:
    """A histogram of NUM_BINS bins [i * 2**k, (i + 1) * 2**k); k depends on the smallest and largest value only."""

    def __init__(self) -> None:
        self.low, self.high, self.exponent, self.first = math.inf, -math.inf, 0, 0
        self.counts: Int64[np.ndarray, " bins"] = np.zeros(NUM_BINS, np.int64)

    def add(self, values: Float64[np.ndarray, " n"]) -> None:
        self._widen(float(values.min()), float(values.max()))
        bins = np.floor(np.ldexp(values, -self.exponent)).astype(np.int64) - self.first
        self.counts += np.bincount(bins, minlength=NUM_BINS)

    def merge(self, other: _Sketch) -> None:
        self._widen(other.low, other.high)
        self.counts += other._rebinned(self.exponent, self.first)

    def quantile(self, q: float) -> float:
        rank = q * (int(self.counts.sum()) - 1)
        below, above = self._ordered(math.floor(rank)), self._ordered(math.ceil(rank))
        return below + (above - below) * (rank - math.floor(rank))

    def _ordered(self, rank: int) -> float:
        """About the value that stands at `rank` among the sorted ones: in its bin, spread evenly."""
        cumulated = np.cumsum(self.counts)
        index = int(np.searchsorted(cumulated, rank, side="right"))
        count = int(self.counts[index])
        inside = (rank - (int(cumulated[index]) - count) + 0.5) / count
        return min(max(math.ldexp(self.first + index + inside, self.exponent), self.low), self.high)

    def _widen(self, low: float, high: float) -> None:
        low, high = min(low, self.low), max(high, self.high)
        exponent, first = _grid(low, high)
        if math.isfinite(self.low):
            self.counts = self._rebinned(exponent, first)
        self.low, self.high, self.exponent, self.first = low, high, exponent, first

    def _rebinned(self, exponent: int, first: int) -> Int64[np.ndarray, " bins"]:
        used = np.flatnonzero(self.counts)
        bins = ((used + self.first) >> (exponent - self.exponent)) - first
        return np.bincount(bins, weights=self.counts[used], minlength=NUM_BINS).astype(np.int64)


def _grid(low: float, high: float) -> tuple[int, int]:
    """The finest power-of-two grid whose NUM_BINS bins hold [low, high], and its first bin.

    A floor 40 binary places under the largest magnitude keeps the bins of a constant from shrinking to nothing.
    """
    magnitude = max(abs(low), abs(high))
    exponent = math.frexp(magnitude)[1] - 40
    spread = (high - low) / NUM_BINS
    if spread > 0:
        exponent = max(exponent, math.frexp(spread)[1] - 2)
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= NUM_BINS:
        exponent += 1
    return exponent, math.floor(math.ldexp(low, -exponent))


def measure(rows: Shaped[np.ndarray, "n D"], chunk: int = 65536) -> FeatureStats:
    """The statistics of an array (a memmap too), `chunk` rows at a time."""
    running = RunningStats()
    for start in range(0, len(rows), chunk):
        running.update(rows[start : start + chunk])
    return running.finish()


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate, as shares of 1; (0, 1) without trials. E. B. Wilson, 1927."""
    if trials == 0:
        return 0.0, 1.0
    z, share = 1.959963984540054, successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Pairs:
    """Trials that two contestants both had, counted by who succeeded."""

    both: int
    wins: int
    """the first succeeded, the second failed"""
    losses: int
    """the reverse"""
    neither: int

    @property
    def count(self) -> int:
        """All of them."""
        return self.both + self.wins + self.losses + self.neither


def mcnemar(pairs: Pairs) -> float:
    """The exact McNemar test: how likely wins and losses at least this uneven are if either were equally likely.

    Two-sided: twice the smaller tail of a fair coin, at most 1. Q. McNemar, 1947; exact as in A. Agresti, Categorical
    Data Analysis.
    """
    uneven = pairs.wins + pairs.losses
    tail = sum(math.comb(uneven, count) for count in range(min(pairs.wins, pairs.losses) + 1))
    return min(1.0, 2 * tail / 2**uneven)


def paired_difference(pairs: Pairs) -> tuple[float, float]:
    """The 95 % interval of the first's success rate less the second's, as shares of 1; (-1, 1) without pairs.

    Newcombe's square-and-add: the two Wilson intervals, put together with the correlation of the pairs. R. G. Newcombe,
    Improved confidence intervals for the difference between binomial proportions based on paired data, Statistics in
    Medicine 17, 1998, method 10. It does not collapse when nobody ever fails, as Wald's does.
    """
    if not pairs.count:
        return -1.0, 1.0
    first, second = pairs.both + pairs.wins, pairs.both + pairs.losses
    share, other = first / pairs.count, second / pairs.count
    low, high = wilson(first, pairs.count)
    other_low, other_high = wilson(second, pairs.count)
    together = _correlation(pairs)

    def reach(mine: float, theirs: float) -> float:
        return math.sqrt(max(0.0, mine * mine - 2 * together * mine * theirs + theirs * theirs))

    difference = share - other
    down, up = reach(share - low, other_high - other), reach(high - share, other - other_low)
    return max(-1.0, difference - down), min(1.0, difference + up)


def _correlation(pairs: Pairs) -> float:
    """Phi of the two by two table with Newcombe's continuity correction, which is for positive ones alone."""
    first, second, count = pairs.both + pairs.wins, pairs.both + pairs.losses, pairs.count
    margins = first * second * (count - first) * (count - second)
    if not margins:
        return 0.0
    lift = float(pairs.both * pairs.neither - pairs.wins * pairs.losses)
    return (max(0.0, lift - count / 2) if lift > 0 else lift) / math.sqrt(margins)
