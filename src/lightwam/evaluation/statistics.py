"""Statistics of evaluations: success rates and their intervals, paired comparison, and ROC curves of a score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 2000
"""bootstrap draws of an area's interval"""


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a success rate, as shares of 1; (0, 1) without trials. E. B. Wilson, 1927."""
    if trials == 0:
        return 0.0, 1.0
    z, share = 1.959963984540054, successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def success_rate(successes: int, trials: int) -> dict[str, Any]:
    """Return a success rate as results hold it, with its 95 % interval."""
    return {"successes": successes, "trials": trials, "interval_95": wilson(successes, trials)}


@dataclass(frozen=True)
class Pairs:
    """Numbers of trials that two candidates both ran, by which of them succeeded."""

    both: int
    wins: int
    """the first succeeded, the second failed"""
    losses: int
    """the reverse"""
    neither: int

    @property
    def count(self) -> int:
        """All pairs."""
        return self.both + self.wins + self.losses + self.neither


def mcnemar(pairs: Pairs) -> float:
    """Return the p-value of the exact McNemar test: wins and losses this uneven, if both were equally likely.

    Two-sided: twice the smaller tail of a fair coin, at most 1. Q. McNemar, 1947; exact as in A. Agresti, Categorical
    Data Analysis.
    """
    uneven = pairs.wins + pairs.losses
    tail = sum(math.comb(uneven, count) for count in range(min(pairs.wins, pairs.losses) + 1))
    return min(1.0, 2 * tail / 2**uneven)


def paired_difference(pairs: Pairs) -> tuple[float, float]:
    """Return the 95 % interval of the first success rate less the second, as shares of 1; (-1, 1) without pairs.

    Newcombe's square-and-add: the two Wilson intervals, combined with the correlation of the pairs. R. G. Newcombe,
    Improved confidence intervals for the difference between binomial proportions based on paired data, Statistics in
    Medicine 17, 1998, method 10. Unlike Wald's, it keeps a width when neither candidate ever fails.
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
    """Return phi of the two by two table, with Newcombe's continuity correction where it is positive."""
    first, second, count = pairs.both + pairs.wins, pairs.both + pairs.losses, pairs.count
    margins = first * second * (count - first) * (count - second)
    if not margins:
        return 0.0
    lift = float(pairs.both * pairs.neither - pairs.wins * pairs.losses)
    return (max(0.0, lift - count / 2) if lift > 0 else lift) / math.sqrt(margins)


def roc_curve(
    disturbed: Float[np.ndarray, " D"], quiet: Float[np.ndarray, " Q"]
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Return the ROC curve: shares of false and of true alarms at each falling threshold, from (0, 0) to (1, 1)."""
    thresholds = np.unique(np.concatenate([disturbed, quiet]))[::-1]
    false = [(quiet >= threshold).mean() for threshold in thresholds]
    true = [(disturbed >= threshold).mean() for threshold in thresholds]
    return np.array([0.0, *false]), np.array([0.0, *true])


def roc_area(disturbed: Float[np.ndarray, " D"], quiet: Float[np.ndarray, " Q"]) -> float:
    """Return the area under the ROC curve: how often a disturbed episode scores above a quiet one; ties count half."""
    higher = disturbed[:, None] > quiet
    return float((higher + 0.5 * (disturbed[:, None] == quiet)).mean())


def bootstrap_roc_areas(
    scores: Sequence[tuple[Float[np.ndarray, " D"], Float[np.ndarray, " Q"]]],
    seeds: tuple[Int[np.ndarray, " D"], Int[np.ndarray, " Q"]],
) -> Float[np.ndarray, "resamples scores"]:
    """Return bootstrapped ROC areas of several scores of the same episodes; seeds are drawn with replacement.

    The episode with a disturbance and the one without share their seed and so are drawn together. All scores share the
    draws, so a difference of two columns is a draw of the difference. Percentiles of a column are its interval
    (B. Efron, R. Tibshirani, An Introduction to the Bootstrap, chapter 13).
    """
    names = np.unique(np.concatenate(seeds))
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
    disturbed, quiet = (drawn[:, np.searchsorted(names, column)].astype(float) for column in seeds)
    pairs = disturbed.sum(1) * quiet.sum(1)
    kept = pairs > 0
    out = []
    for high, low in scores:
        wins = (high[:, None] > low) + 0.5 * (high[:, None] == low)
        out.append(np.einsum("rd,dq,rq->r", disturbed[kept], wins, quiet[kept]) / pairs[kept])
    return np.stack(out, axis=1)


def percentile_interval(draws: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    """Return the 95 % percentile interval of bootstrapped values."""
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)
