"""A dataset at another rate: pictures by nearest time, values by kind, motions that keep their sum."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightwam.data.cache.frames import FrameCache
from lightwam.data.cache.resampled import ResampledCache, Timeline

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=4)


def cache_of(lengths: Sequence[int], fps: float) -> FrameCache:
    """Step i of every episode: the state is its time, a switch that closes at step 2 and a motion of i + 1."""
    count, step = sum(lengths), np.concatenate([np.arange(length) for length in lengths])
    vectors = np.stack([step / fps, step >= 2, step + 1], axis=1).astype(np.float32)
    return FrameCache(
        path=Path("memory"), frames=np.repeat(step.astype(np.uint8), 12).reshape(count, 2, 2, 3), state=vectors,
        action=vectors, episode_start=np.cumsum([0, *lengths]), fps=fps, tasks=("a", "b"),
        task_index=(step >= 2).astype(np.int64),
    )  # fmt: skip


def pictures(cache: ResampledCache) -> list[int]:
    return cache.video(np.arange(cache.num_steps)[:, None])[:, 0, 0, 0, 0].tolist()


def test_twice_the_rate() -> None:
    cache = ResampledCache.of(cache_of((3, 1), 10.0), 20.0, motions=(2,))
    assert cache.episode_start.tolist() == [0, 5, 6] and cache.fps == 20
    assert pictures(cache) == [0, 1, 1, 2, 2, 0]
    np.testing.assert_allclose(cache.state[:5, 0], [0, 0.05, 0.1, 0.15, 0.2], rtol=1e-6)
    assert cache.state[:5, 1].tolist() == cache.task_index[:5].tolist() == [0, 0, 0, 0, 1]
    # each motion is made in two halves; the last step has the half that is left of its time
    np.testing.assert_allclose(cache.action[:5, 2], [0.5, 0.5, 1, 1, 1.5])
    np.testing.assert_allclose(cache.state[:5, 2], [1, 1.5, 2, 2.5, 3])  # a position is interpolated


def test_a_third_of_the_rate() -> None:
    cache = ResampledCache.of(cache_of((8,), 30.0), 10.0, motions=(2,))
    assert pictures(cache) == [0, 3, 6]
    np.testing.assert_allclose(cache.state[:, 0], [0, 0.1, 0.2], rtol=1e-6)
    np.testing.assert_allclose(cache.action[:, 2], [1 + 2 + 3, 4 + 5 + 6, 7 + 8])


def test_rates_that_do_not_divide() -> None:
    cache = ResampledCache.of(cache_of((31,), 30.0), 24.0, motions=())
    assert cache.num_steps == 25
    times = np.arange(25) / 24
    np.testing.assert_allclose(cache.state[:, 0], times, rtol=1e-5, atol=1e-6)
    assert (np.abs(np.array(pictures(cache)) / 30 - times) <= 0.5 / 30 + 1e-9).all()


@settings(max_examples=40)
@given(LENGTHS, st.sampled_from([5.0, 10.0, 15.0, 24.0, 29.97, 30.0, 50.0]), st.sampled_from([7.5, 10.0, 30.0, 50.0]))
def test_steps_stay_in_their_episode_and_motions_keep_their_sum(lengths: list[int], fps: float, rate: float) -> None:
    source = cache_of(lengths, fps)
    timeline = Timeline.of(source.episode_start, fps / rate)
    motion = timeline.resample(source.action, motions=(0, 2))[:, 2]
    for episode, length in enumerate(lengths):
        own = slice(*timeline.episode_start[episode : episode + 2])
        first = source.episode_start[episode]
        for steps in (timeline.previous[own], timeline.nearest[own]):
            assert steps[0] == first and (np.diff(steps) >= 0).all() and steps[-1] < first + length
        assert abs((own.stop - own.start - 1) / rate - (length - 1) / fps) < 1 / rate + 1e-9
        made = np.interp(timeline.end[own][-1] - first, np.arange(length + 1), np.cumsum([0, *range(1, length + 1)]))
        assert motion[own].sum() == pytest.approx(made, rel=1e-5)


@given(LENGTHS)
def test_the_same_rate_changes_nothing(lengths: list[int]) -> None:
    source = cache_of(lengths, 30.0)
    cache = ResampledCache.of(source, 30.0, motions=(2,))
    for name in ("state", "episode_start", "task_index"):
        np.testing.assert_array_equal(getattr(cache, name), getattr(source, name))
    np.testing.assert_allclose(cache.action, source.action, rtol=1e-5)
    assert pictures(cache) == source.frames[:, 0, 0, 0].tolist()
