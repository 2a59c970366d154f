"""Paired comparison of success rates against published examples, and ROC curves against counting by hand."""

import itertools
import math

import numpy as np
import pytest

from lightwam.evaluation.statistics import (
    Pairs,
    bootstrap_roc_areas,
    mcnemar,
    paired_difference,
    percentile_interval,
    roc_area,
    roc_curve,
)


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


def test_area_and_curve_agree_with_counting() -> None:
    disturbed, quiet = np.array([3.0, 2.0, 2.0]), np.array([1.0, 2.0])
    assert roc_area(disturbed, quiet) == pytest.approx((3 * 1 + 1 + 0.5 + 0.5) / 6)
    false, true = roc_curve(disturbed, quiet)
    assert false.tolist() == [0, 0, 0.5, 1]
    assert true.tolist() == [0, pytest.approx(1 / 3), 1, 1]
    assert np.diff(false) @ (true[1:] + true[:-1]) / 2 == pytest.approx(roc_area(disturbed, quiet))


def test_a_score_of_chance_has_half_within_its_interval_and_a_good_one_has_not() -> None:
    rng = np.random.default_rng(1)
    seeds = np.arange(60), np.arange(60)
    chance, good = rng.normal(size=(2, 60)), np.stack([rng.normal(2, 1, 60), rng.normal(0, 1, 60)])
    draws = bootstrap_roc_areas([(chance[0], chance[1]), (good[0], good[1])], seeds)
    low, high = percentile_interval(draws[:, 0])
    assert low < 0.5 < high
    low, high = percentile_interval(draws[:, 1])
    assert 0.75 < low < roc_area(good[0], good[1]) < high <= 1
    assert percentile_interval(draws[:, 1] - draws[:, 0])[0] > 0
    assert np.median(draws[:, 1]) == pytest.approx(roc_area(good[0], good[1]), abs=0.02)


def test_episodes_of_a_seed_are_drawn_together() -> None:
    """Two seeds, each copied many times, are no more than two."""
    seeds = np.repeat([0, 1], 50), np.repeat([0, 1], 50)
    scores = np.repeat([0.0, 2.0], 50), np.repeat([1.0, 1.0], 50)
    draws = bootstrap_roc_areas([scores], seeds)[:, 0]
    assert set(np.round(draws, 6)) == {0, 0.5, 1}
