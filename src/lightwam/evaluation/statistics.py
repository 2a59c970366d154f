"""Statistics of evaluations: success rates and their intervals, paired comparison, and ROC curves of a score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


def sign_flip_test(differences: Sequence[int]) -> float:
    """Return the p-value of paired differences: a sum this far from 0, if each had either sign with equal chance.

    Two-sided and exact, for whole numbers; with differences of -1, 0 and 1 it is the exact McNemar test. R. A. Fisher,
    The Design of Experiments, 1935, section 21.
    """
    sizes = np.abs(np.asarray(differences, np.int64))
    sizes, reach = sizes[sizes > 0], int(sizes.sum())
    chance = np.zeros(2 * reach + 1)
    chance[reach] = 1.0  # of the sum i - reach, at i
    for size in sizes.tolist():
        chance = 0.5 * (np.roll(chance, size) + np.roll(chance, -size))  # never wraps: the sum stays within reach
    far = abs(int(np.sum(differences)))
    return min(1.0, float(chance[np.abs(np.arange(-reach, reach + 1)) >= far].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for their number. S. Holm, A simple sequentially rejective test, 1979."""
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = least
    return corrected


def mean_of_seeds(successes: Sequence[int], trials: int) -> dict[str, Any]:
    """Return the mean success rate of several trainings, with their standard deviation and a 95 % interval.

    `successes` has one count a training, each of the same `trials` episodes. The interval is Student's over trainings,
    and covers Wilson's of all episodes together, so that equal rates do not make it vanish. With one training it is
    Wilson's and "spread" is None: how much trainings differ is not known then.
    """
    rates, total = [count / trials for count in successes], sum(successes)
    mean, (low, high) = total / (trials * len(rates)), wilson(total, trials * len(rates))
    spread = None
    if len(rates) > 1:
        spread = float(np.std(rates, ddof=1))
        half = student_quantile(len(rates) - 1) * spread / math.sqrt(len(rates))
        low, high = max(0.0, min(low, mean - half)), min(1.0, max(high, mean + half))
    return {"mean": mean, "spread": spread, "interval_95": (low, high), "rates": rates}


def difference_of_means(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[float, float]:
    """Return the 95 % interval of a difference of two `mean_of_seeds`, from their intervals.

    Square-and-add of independent estimates: G. Y. Zou, A. Donner, Construction of confidence limits about effect
    measures, Statistics in Medicine 27, 2008.
    """
    (low, high), (other_low, other_high) = first["interval_95"], second["interval_95"]
    mean, other = first["mean"], second["mean"]
    down, up = math.hypot(mean - low, other_high - other), math.hypot(high - mean, other - other_low)
    return max(-1.0, mean - other - down), min(1.0, mean - other + up)


STUDENT_QUANTILES = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""of 1 to 10 degrees of freedom, at 97.5 %"""


def student_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t; above 10 degrees by its expansion, to 4 digits."""
    if degrees <= len(STUDENT_QUANTILES):
        return STUDENT_QUANTILES[degrees - 1]
    z = 1.959963984540054
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / degrees**power for power, term in enumerate(terms, 1))


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
