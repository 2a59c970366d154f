"""Paired comparison of success rates against published examples, and ROC curves against counting by hand."""

import itertools
import math

import numpy as np
import pytest

from lightwam.evaluation.statistics import (
    Pairs,
    bootstrap_roc_areas,
    difference_of_means,
    holm,
    mcnemar,
    mean_of_seeds,
    paired_difference,
    percentile_interval,
    roc_area,
    roc_curve,
    sign_flip_test,
    student_quantile,
    wilson,
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


def test_the_sign_flip_test_is_fishers() -> None:
    """Darwin's plants, in eighths of an inch: 863 of the 2^15 sums are at least as large (The Design, section 21)."""
    darwin = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    assert sign_flip_test(darwin) == sign_flip_test([-one for one in darwin]) == 2 * 863 / 2**15


@pytest.mark.parametrize("pairs", [Pairs(3, 5, 1, 2), Pairs(0, 0, 0, 4), Pairs(1, 2, 2, 0), Pairs(0, 9, 0, 0)])
def test_of_single_episodes_it_is_mcnemars(pairs: Pairs) -> None:
    differences = [1] * pairs.wins + [-1] * pairs.losses + [0] * (pairs.both + pairs.neither)
    assert sign_flip_test(differences) == pytest.approx(mcnemar(pairs), rel=1e-12)


def test_the_sign_flip_test_counts_all_signs() -> None:
    values = [3, 1, 0, -2, 4, 4]
    sums = [
        sum(s * abs(v) for s, v in zip(signs, values, strict=True)) for signs in itertools.product((1, -1), repeat=6)
    ]
    expected = sum(abs(total) >= abs(sum(values)) for total in sums) / len(sums)
    assert sign_flip_test(values) == pytest.approx(expected, rel=1e-12)


def test_holms_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # R: p.adjust(c(...), "holm")
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_students_quantiles() -> None:
    """Of published tables."""
    for degrees, quantile in ((1, 12.7062), (4, 2.7764), (11, 2.2010), (20, 2.0860), (60, 2.0003)):
        assert student_quantile(degrees) == pytest.approx(quantile, abs=2e-4)


def test_the_mean_over_seeds() -> None:
    row = mean_of_seeds([10, 14, 12], 20)
    assert row["mean"] == pytest.approx(0.6) and row["spread"] == pytest.approx(0.1)
    assert row["interval_95"] == pytest.approx((0.6 - 4.3027 * 0.1 / 3**0.5, 0.6 + 4.3027 * 0.1 / 3**0.5))
    alone = mean_of_seeds([7], 20)
    assert alone["spread"] is None and alone["interval_95"] == wilson(7, 20)
    equal = mean_of_seeds([20, 20, 20], 20)
    assert equal["spread"] == 0 and equal["interval_95"] == pytest.approx(wilson(60, 60)), (
        "equal rates prove no certainty"
    )


def test_the_interval_of_a_difference_of_means() -> None:
    """Of two single trainings it is Newcombe's method 10 without a correlation, that is his method for two samples."""
    first, second = mean_of_seeds([56], 70), mean_of_seeds([48], 80)  # R. G. Newcombe, 1998, 17:873, table II (a)
    assert difference_of_means(first, second) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    low, high = difference_of_means(second, first)
    assert (low, high) == pytest.approx((-0.3339, -0.0524), abs=5e-5)
