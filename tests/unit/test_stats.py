"""The streaming statistics agree with numpy's over the whole array, however the array is cut up."""

import itertools
import math

import numpy as np
import pytest

from lightwam.data.statistics import (
    NUM_BINS,
    QUANTILES,
    FeatureStats,
    Pairs,
    RunningStats,
    mcnemar,
    measure,
    paired_difference,
)
from lightwam.errors import ConfigError


def rows(seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.stack(
        [random.normal(3, 0.1, 5000), random.exponential(20, 5000), random.integers(0, 2, 5000) * 1e-4], 1
    ).astype(np.float32)


def fed(pieces: list[np.ndarray]) -> FeatureStats:
    running = RunningStats()
    for piece in pieces:
        running.update(piece)
    return running.finish()


def test_moments_and_range_are_exact() -> None:
    values, stats = rows(), fed(np.array_split(rows(), 7))
    exact = values.astype(np.float64)
    assert stats.count == 5000 and stats.dim == 3
    np.testing.assert_array_equal(stats.min, exact.min(0))
    np.testing.assert_array_equal(stats.max, exact.max(0))
    np.testing.assert_allclose(stats.mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stats.std, exact.std(0), rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_quantiles_are_within_the_documented_error(seed: int) -> None:
    values = rows(seed).astype(np.float64)
    stats, span = fed(np.array_split(values, 11)), np.ptp(values, axis=0)
    for name, q in QUANTILES.items():
        error = np.abs(getattr(stats, name) - np.quantile(values, q, axis=0))
        assert (error <= 2 / (NUM_BINS - 2) * span).all(), name


def test_a_large_offset_does_not_swallow_the_deviation() -> None:
    values = rows().astype(np.float64)[:, :1] + 1e7
    np.testing.assert_allclose(fed(np.array_split(values, 50)).std, values.std(0), rtol=1e-6)


def test_neither_order_nor_cut_nor_merging_changes_the_quantiles() -> None:
    values = rows()
    whole = measure(values, chunk=100)
    shuffled = fed(np.array_split(np.random.default_rng(1).permutation(values), 3))
    left, right = RunningStats(), RunningStats()
    left.update(values[:17])
    right.update(values[17:])
    left.merge(right)
    left.merge(RunningStats())
    for other in (shuffled, left.finish()):
        for name in QUANTILES:
            np.testing.assert_array_equal(getattr(whole, name), getattr(other, name))


@pytest.mark.parametrize("value", [0.0, -2.5, 1e9, 1e-30])
def test_a_constant_is_itself(value: float) -> None:
    stats = fed([np.full((4, 1), value)] * 3)
    for name in ("min", "max", "mean", *QUANTILES):
        np.testing.assert_allclose(getattr(stats, name), value, rtol=1e-11)
    assert stats.std[0] == 0


def test_one_row_and_no_rows() -> None:
    assert fed([np.zeros((0, 2)), np.array([[1.0, 2.0]]), np.zeros((0, 2))]).q50.tolist() == [1.0, 2.0]


def test_json_round_trip_is_bit_equal() -> None:
    stats = measure(rows())
    assert FeatureStats.from_dict(stats.to_dict()) == stats


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"meen": [0.0]}, "'mean'"),
        ({"mean": None}, "finite numbers"),
        ({"mean": [float("nan")] * 3}, "finite numbers"),
        ({"mean": [0.0]}, "length"),
        ({"count": 0}, "count"),
    ],
)
def test_wrong_values_are_refused_by_name(change: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FeatureStats.from_dict(measure(rows()).to_dict() | change)


def test_a_missing_key_is_refused_by_name() -> None:
    data = measure(rows()).to_dict()
    del data["q10"]
    with pytest.raises(ConfigError, match="q10"):
        FeatureStats.from_dict(data)


@pytest.mark.parametrize(
    ("pairs", "low", "high", "digits"),
    [
        (Pairs(36, 12, 2, 0), 0.0569, 0.3404, 4),  # R. G. Newcombe, 1998, Statistics in Medicine 17:2635, method 10
        (Pairs(1, 1, 7, 12), -0.507, -0.026, 3),  # M. W. Fagerland et al., 2014, Statistics in Medicine 33:2850
        (Pairs(59, 6, 16, 80), -0.119, -0.005, 3),  # the same
        (Pairs(0, 0, 0, 0), -1, 1, 4),
    ],
)
def test_the_interval_of_a_paired_difference(pairs: Pairs, low: float, high: float, digits: int) -> None:
    found = paired_difference(pairs)
    assert found == pytest.approx((low, high), abs=0.5 * 10**-digits)
    turned = Pairs(pairs.both, pairs.losses, pairs.wins, pairs.neither)
    assert paired_difference(turned) == pytest.approx((-found[1], -found[0]))


@pytest.mark.parametrize("pairs", [Pairs(10, 0, 0, 0), Pairs(0, 0, 0, 10), Pairs(5, 0, 0, 5), Pairs(0, 10, 0, 0)])
def test_the_interval_of_extremes_has_width_and_stays_in_range(pairs: Pairs) -> None:
    low, high = paired_difference(pairs)
    difference = (pairs.wins - pairs.losses) / 10
    assert -1 <= low <= difference <= high <= 1 and high - low > 0.1


@pytest.mark.parametrize("shares", [(0.5, 0.2, 0.1, 0.2), (0.7, 0.1, 0.1, 0.1)])
def test_the_interval_covers_the_truth_about_19_times_in_20(shares: tuple[float, ...]) -> None:
    """By adding up the multinomial probability of every table of 15 pairs."""
    n, covered, total = 15, 0.0, 0.0
    for both, wins, losses in itertools.product(range(n + 1), repeat=3):
        if (neither := n - both - wins - losses) < 0:
            continue
        counts = (both, wins, losses, neither)
        ways = math.factorial(n) / math.prod(map(math.factorial, counts))
        probability = ways * math.prod(share**count for share, count in zip(shares, counts, strict=True))
        low, high = paired_difference(Pairs(*counts))
        total += probability
        covered += probability * (low <= shares[1] - shares[2] <= high)
    assert total == pytest.approx(1)
    assert 0.935 < covered < 0.985


def test_the_exact_mcnemar_test() -> None:
    assert mcnemar(Pairs(1, 1, 7, 12)) == pytest.approx(0.0703125)  # Fagerland et al.: 0.070
    assert mcnemar(Pairs(5, 0, 0, 5)) == mcnemar(Pairs(5, 3, 3, 5)) == 1
    assert mcnemar(Pairs(9, 0, 5, 1)) == mcnemar(Pairs(0, 5, 0, 0)) == 2 / 32
    assert 0 < mcnemar(Pairs(0, 1000, 300, 0)) < 1e-80


def test_the_exact_mcnemar_test_is_scipys_binomial_test() -> None:
    scipy = pytest.importorskip("scipy.stats")
    for wins, losses in itertools.product(range(12), repeat=2):
        if wins + losses:
            expected = scipy.binomtest(wins, wins + losses).pvalue
            assert mcnemar(Pairs(3, wins, losses, 4)) == pytest.approx(expected)
