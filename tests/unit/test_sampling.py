"""Several sources: how often each is drawn and in which order, what its samples teach, and their caches as one."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightwam.config.schema import CameraPlace, CodecConfig
from lightwam.data.cache.base import Cache
from lightwam.data.cache.frames import FrameCache
from lightwam.data.cache.joined import JoinedCache, without_actions
from lightwam.data.codec import Codec
from lightwam.data.loader import WindowLoader
from lightwam.data.sampling import BLOCK, Part, Sampling, WindowOrder
from lightwam.data.statistics import measure
from lightwam.errors import CheckpointError
from lightwam.types import Rank, Windows

CONFIG = CodecConfig(canvas=(4, 4), places=(CameraPlace("front", 0, 0, 4, 4),), video_stride=2)
PARTS = st.lists(st.tuples(st.integers(1, 40), st.floats(0.001, 1000)), min_size=1, max_size=5)


def parts_of(sizes: Sequence[tuple[int, float]]) -> list[Part]:
    """Sources whose windows begin at 1000, 2000, ..."""
    return [Part(1000 * (i + 1) + np.arange(size), weight) for i, (size, weight) in enumerate(sizes)]


def cache_of(lengths: Sequence[int], value: int, tasks: tuple[str, ...]) -> FrameCache:
    """Every number of step i is `value` + i, and so are its pictures."""
    count = sum(lengths)
    numbers = (value + np.arange(count)).astype(np.uint8)
    vectors = np.repeat(numbers[:, None], 2, axis=1).astype(np.float32)
    return FrameCache(
        path=Path(f"cache{value}"), frames=np.repeat(numbers, 48).reshape(count, 4, 4, 3), state=vectors,
        action=vectors, episode_start=np.cumsum([0, *lengths]), fps=10.0, tasks=tasks,
        task_index=np.repeat(np.arange(len(lengths)) % len(tasks), lengths),
    )  # fmt: skip


TWO = JoinedCache.join([cache_of((5, 3), 0, ("open", "close")), cache_of((4, 6), 100, ("close", "push"))])
CODEC = Codec(CONFIG, measure(TWO.state), measure(TWO.action))


def sampling(first: float = 3.0, second: float = 1.0, **tables: np.ndarray) -> Sampling:
    yes = np.ones(18, np.bool_)
    parts = Part(np.array([0, 1, 2, 6]), first), Part(8 + np.arange(10), second)
    return Sampling(parts=parts, **({"teaches_action": yes, "teaches_video": yes, "has_state": yes} | tables))


def equal(one: Windows, other: Windows) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(Windows))


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_one_source_has_the_order_of_earlier_versions(epoch: int) -> None:
    stream = np.random.default_rng([5, epoch])
    order, shifts = stream.permutation(17), stream.integers(-2, 2, (17, 3, 2), np.int16, endpoint=True)
    window, moves = WindowOrder([Part(np.arange(17), 9.0)], 5, 3, 2).at(17 * epoch + np.arange(17))
    np.testing.assert_array_equal(window, order)
    np.testing.assert_array_equal(moves, shifts)
    assert Sampling.everything(17).digest() == ""


@settings(max_examples=8)
@given(PARTS, st.integers(0, 2**31), st.integers(0, 3))
def test_every_block_has_its_share_of_every_source(sizes: list[tuple[int, float]], seed: int, block: int) -> None:
    order, total = WindowOrder(parts_of(sizes), seed, 1, 0), sum(weight for _, weight in sizes)
    window, _ = order.at(np.arange((block + 1) * BLOCK))
    for number, (_, weight) in enumerate(sizes):
        count = (window // 1000 == number + 1).sum()
        assert abs(count - len(window) * weight / total) <= len(sizes)


@settings(max_examples=8)
@given(PARTS, st.integers(0, 2**31))
def test_every_source_walks_through_all_its_windows_an_epoch(sizes: list[tuple[int, float]], seed: int) -> None:
    window, _ = WindowOrder(parts_of(sizes), seed, 1, 0).at(np.arange(2 * BLOCK))
    for number, (size, _) in enumerate(sizes):
        own = window[window // 1000 == number + 1] % 1000
        epochs = own[: len(own) // size * size].reshape(-1, size)
        assert (np.sort(epochs, axis=1) == np.arange(size)).all()


@settings(max_examples=8)
@given(PARTS, st.integers(0, 99), st.lists(st.integers(0, 3 * BLOCK), min_size=1, max_size=50))
def test_a_position_alone_decides_its_window(sizes: list[tuple[int, float]], seed: int, positions: list[int]) -> None:
    whole, moves = WindowOrder(parts_of(sizes), seed, 2, 3).at(np.arange(3 * BLOCK + 1))
    window, shifts = WindowOrder(parts_of(sizes), seed, 2, 3).at(np.array(positions))
    np.testing.assert_array_equal(window, whole[positions])
    np.testing.assert_array_equal(shifts, moves[positions])


def test_sources_are_mixed_within_a_block() -> None:
    window, _ = WindowOrder(parts_of([(10, 1.0), (10, 1.0)]), 0, 1, 0).at(np.arange(BLOCK))
    halves = (window[: BLOCK // 2] < 2000).mean()
    assert 0.4 < halves < 0.6 and (window < 2000).sum() == BLOCK // 2


def test_windows_of_a_joined_cache_are_those_of_each() -> None:
    one, other = TWO.caches
    for frame in ([[0, 2], [9, 11], [8, 8], [7, 7]], [[10, 12]], [[3, 4], [1, 1]]):
        expected = [row if row[0] < 8 else [100 + step - 8 for step in row] for row in frame]
        np.testing.assert_array_equal(TWO.video(np.array(frame))[..., 0, 0, 0], expected)
    assert TWO.tasks == ("open", "close", "push") and TWO.num_episodes == 4
    np.testing.assert_array_equal(TWO.episode_start, [0, 5, 8, 12, 18])
    np.testing.assert_array_equal(TWO.task_index, [0] * 5 + [1] * 3 + [1] * 4 + [2] * 6)
    np.testing.assert_array_equal(TWO.state, np.concatenate([one.state, other.state]))


def test_only_drawn_windows_come_and_the_mix_resumes() -> None:
    with WindowLoader(TWO, CODEC, 4, 6, 3, 1, sampling=sampling()) as loader:
        batches = [loader.next() for _ in range(2 * BLOCK // 6)]
        state = loader.state_dict()
        more = [loader.next() for _ in range(3)]
    firsts = np.concatenate([batch.state[:, 0] for batch in batches])
    steps = np.rint((firsts + 1) / 2 * 109).astype(int)
    assert set(steps) == {0, 1, 2, 6, *range(100, 110)}
    assert abs((steps < 100).mean() - 0.75) < 0.02
    with WindowLoader(TWO, CODEC, 4, 6, 3, 1, sampling=sampling()) as again:
        again.load_state_dict(state)
        assert all(equal(batch, again.next()) for batch in more)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_a_mixed_batch(world: int) -> None:
    def loader(share: Rank) -> WindowLoader:
        return WindowLoader(TWO, CODEC, 4, 6, 3, 1, share, sampling())

    whole, shares = loader(Rank(0, 1)), [loader(Rank(rank, world)) for rank in range(world)]
    for _ in range(5):
        parts, one = [share.next() for share in shares], whole.next()
        for field in dataclasses.fields(Windows):
            np.testing.assert_array_equal(
                np.concatenate([getattr(part, field.name) for part in parts]), getattr(one, field.name)
            )
    for each in (whole, *shares):
        each.close()


@pytest.mark.parametrize(
    "other",
    [
        sampling(first=2.0),
        sampling(teaches_action=np.arange(18) > 3),
        sampling(teaches_video=np.arange(18) > 3),
        Sampling.everything(18),
        dataclasses.replace(sampling(), parts=(Part(np.array([0, 1, 2, 7]), 3.0), Part(8 + np.arange(10)))),
    ],
)
def test_the_state_of_another_mix_is_refused(other: Sampling) -> None:
    with (
        WindowLoader(TWO, CODEC, 4, 6, 3, sampling=sampling()) as one,
        WindowLoader(TWO, CODEC, 4, 6, 3, sampling=other) as two,
        pytest.raises(CheckpointError, match="other data or settings"),
    ):
        two.load_state_dict(one.state_dict())


def test_what_is_not_taught_is_masked() -> None:
    tables = {"teaches_action": np.arange(18) % 2 == 0, "teaches_video": np.arange(18) < 8}
    with WindowLoader(TWO, CODEC, 4, 6, 3, sampling=sampling(**tables, has_state=np.arange(18) < 8)) as loader:
        window, other = loader.window(2), loader.window(9)
    assert window.action_is_pad.tolist() == [[False, True, False, True]]  # steps 2, 3, 4; then past the end
    assert window.frame_is_pad.tolist() == [[False, False, True]] and window.state.any()
    assert other.action_is_pad.tolist() == [[True, False, True, True]]  # steps 9, 10, 11; then past the end
    assert other.frame_is_pad.all() and not other.state.any()


def test_a_cache_without_actions_gets_zeros() -> None:
    cache: Cache = without_actions(cache_of((2, 3), 7, ("t",)), 3, 4)
    assert cache.state.shape == (5, 3) and cache.action.shape == (5, 4) and not cache.state.any()
