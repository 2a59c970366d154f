"""ROC curves and their areas, against counting by hand."""

import numpy as np
import pytest

from lightwam.evaluation import roc


def test_area_and_curve_agree_with_counting() -> None:
    disturbed, quiet = np.array([3.0, 2.0, 2.0]), np.array([1.0, 2.0])
    assert roc.area(disturbed, quiet) == pytest.approx((3 * 1 + 1 + 0.5 + 0.5) / 6)
    false, true = roc.curve(disturbed, quiet)
    assert false.tolist() == [0, 0, 0.5, 1]
    assert true.tolist() == [0, pytest.approx(1 / 3), 1, 1]
    assert np.diff(false) @ (true[1:] + true[:-1]) / 2 == pytest.approx(roc.area(disturbed, quiet))


def test_a_score_of_chance_has_half_within_its_interval_and_a_good_one_has_not() -> None:
    rng = np.random.default_rng(1)
    seeds = np.arange(60), np.arange(60)
    chance, good = rng.normal(size=(2, 60)), np.stack([rng.normal(2, 1, 60), rng.normal(0, 1, 60)])
    draws = roc.area_interval([(chance[0], chance[1]), (good[0], good[1])], seeds)
    low, high = roc.interval(draws[:, 0])
    assert low < 0.5 < high
    low, high = roc.interval(draws[:, 1])
    assert 0.75 < low < roc.area(good[0], good[1]) < high <= 1
    assert roc.interval(draws[:, 1] - draws[:, 0])[0] > 0
    assert np.median(draws[:, 1]) == pytest.approx(roc.area(good[0], good[1]), abs=0.02)


def test_episodes_of_a_seed_are_drawn_together() -> None:
    """Two seeds, each copied many times, are no more than two."""
    seeds = np.repeat([0, 1], 50), np.repeat([0, 1], 50)
    scores = np.repeat([0.0, 2.0], 50), np.repeat([1.0, 1.0], 50)
    draws = roc.area_interval([scores], seeds)[:, 0]
    assert set(np.round(draws, 6)) == {0, 0.5, 1}
