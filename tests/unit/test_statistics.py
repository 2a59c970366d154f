"""Statistics of a feature are numpy's, and survive being stored."""

import numpy as np
import pytest

from lightwam.data.statistics import QUANTILES, FeatureStats, combine, measure
from lightwam.errors import ConfigError


def rows(seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.stack(
        [random.normal(3, 0.1, 5000), random.exponential(20, 5000), random.integers(0, 2, 5000) * 1e-4], 1
    ).astype(np.float32)


def test_moments_range_and_quantiles_are_exact() -> None:
    stats, exact = measure(rows()), rows().astype(np.float64)
    assert stats.count == 5000 and stats.dim == 3
    np.testing.assert_array_equal(stats.min, exact.min(0))
    np.testing.assert_array_equal(stats.max, exact.max(0))
    np.testing.assert_allclose(stats.mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stats.std, exact.std(0), rtol=1e-12)
    for name, q in QUANTILES.items():
        np.testing.assert_allclose(getattr(stats, name), np.quantile(exact, q, axis=0), rtol=1e-12)


def test_a_large_offset_does_not_swallow_the_deviation() -> None:
    values = rows()[:, :1].astype(np.float64)
    np.testing.assert_allclose(measure(values + 1e7).std, values.std(0), rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, -2.5, 1e9, 1e-30])
def test_a_constant_is_itself(value: float) -> None:
    stats = measure(np.full((12, 1), value))
    for name in ("min", "max", "mean", *QUANTILES):
        np.testing.assert_allclose(getattr(stats, name), value, rtol=1e-11)
    assert stats.std[0] == 0


def test_one_row_is_enough_and_no_rows_or_a_nan_are_not() -> None:
    assert measure(np.array([[1.0, 2.0]])).q50.tolist() == [1.0, 2.0]
    for bad in (np.zeros((0, 2)), np.array([[np.nan]])):
        with pytest.raises(AssertionError):
            measure(bad)


def test_json_round_trip_is_bit_equal() -> None:
    stats = measure(rows())
    assert FeatureStats.from_dict(stats.to_dict()) == stats


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"meen": [0.0]}, "did you mean 'mean'"),
        ({"mean": None}, r"stats.mean\n.*got: None"),
        ({"mean": ["1.0"] * 3}, r"stats.mean\[0\]\n.*got: '1.0'"),
        ({"mean": [float("nan")] * 3}, r"must be finite\n.*stats.mean"),
        ({"mean": [0.0]}, "length"),
        ({"count": 0}, "count"),
        ({"count": 1.5}, "count"),
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


def test_statistics_of_a_mixture_are_those_of_its_rows() -> None:
    random = np.random.default_rng(1)
    one = np.stack([random.uniform(0, 1, 4000), np.full(4000, 7.0), random.integers(0, 2, 4000)], axis=1)
    other = np.stack([random.uniform(2, 6, 1000), np.full(1000, 9.0), np.zeros(1000)], axis=1)
    found = combine([measure(one), measure(other)], [1.0, 3.0])
    rows_of_both = measure(np.concatenate([one, *[other] * 12]))
    assert found.min.tolist() == rows_of_both.min.tolist() and found.max.tolist() == rows_of_both.max.tolist()
    assert found.count == 5000
    for name in ("mean", "std", *QUANTILES):
        np.testing.assert_allclose(getattr(found, name), getattr(rows_of_both, name), rtol=0.02, atol=0.01)
    assert combine([measure(one)], [0.3]) == measure(one)
    empty = combine([measure(one[:, :0]), measure(other[:, :0])], [1.0, 3.0])
    assert empty.dim == 0 and empty.q50.shape == (0,)
