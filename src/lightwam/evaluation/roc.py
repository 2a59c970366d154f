"""How well a score tells two kinds of episodes apart: the ROC curve, its area, and what chance leaves open of both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 2000


def curve(
    disturbed: Float[np.ndarray, " D"], quiet: Float[np.ndarray, " Q"]
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """False alarms and alarms, as shares, at every threshold from the highest down; from (0, 0) to (1, 1)."""
    thresholds = np.unique(np.concatenate([disturbed, quiet]))[::-1]
    false = [(quiet >= threshold).mean() for threshold in thresholds]
    true = [(disturbed >= threshold).mean() for threshold in thresholds]
    return np.array([0.0, *false]), np.array([0.0, *true])


def area(disturbed: Float[np.ndarray, " D"], quiet: Float[np.ndarray, " Q"]) -> float:
    """The area under the curve: how often a disturbed episode scores above a quiet one; ties count half."""
    higher = disturbed[:, None] > quiet
    return float((higher + 0.5 * (disturbed[:, None] == quiet)).mean())


def area_interval(
    scores: Sequence[tuple[Float[np.ndarray, " D"], Float[np.ndarray, " Q"]]],
    seeds: tuple[Int[np.ndarray, " D"], Int[np.ndarray, " Q"]],
) -> Float[np.ndarray, "resamples scores"]:
    """Bootstrapped areas of several scores of the same episodes, whole seeds drawn with replacement.

    An episode with a disturbance and the one without share their seed, hence are drawn together; all scores see the
    same draws, so that a difference of two columns is a draw of the difference. Percentiles of a column are its
    interval (B. Efron, R. Tibshirani, An Introduction to the Bootstrap, chapter 13).
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


def interval(draws: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    """The 95 % percentile interval of bootstrapped values."""
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)
