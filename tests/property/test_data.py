"""What must hold of any data: the codec has an inverse, windows cover every frame, resuming is exact, no stray keys."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lightwam.config import schema
from lightwam.config.schema import CameraPlace, CodecConfig
from lightwam.data.cache.frames import FrameCache
from lightwam.data.codec import Codec
from lightwam.data.loader import WindowLoader
from lightwam.data.statistics import QUANTILES, measure, measure_offsets
from lightwam.errors import ConfigError
from lightwam.types import Rank, Windows

PLACE = CameraPlace("front", 0, 0, 4, 4)
CONFIG = CodecConfig(canvas=(4, 4), places=(PLACE,))
NUMBERS = st.floats(-1e6, 1e6, width=32)
ROWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 60), st.integers(1, 4)), elements=NUMBERS)
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def cache_of(lengths: list[int]) -> FrameCache:
    starts, count = np.cumsum([0, *lengths]), sum(lengths)
    frames = np.repeat(np.arange(count, dtype=np.uint8), 48).reshape(count, 4, 4, 3)
    vectors = np.arange(count * 2, dtype=np.float32).reshape(count, 2)
    return FrameCache(
        path=Path("memory"), frames=frames, state=vectors, action=vectors, episode_start=starts,
        task_index=np.zeros(sum(lengths), np.int64), tasks=("t",), fps=10.0,
    )  # fmt: skip


def loader_of(
    lengths: list[int],
    horizon: int,
    batch_size: int,
    seed: int,
    shift: int = 0,
    stride: int = 2,
    rank: int = 0,
    world: int = 1,
) -> WindowLoader:
    cache = cache_of(lengths)
    codec = Codec(dataclasses.replace(CONFIG, video_stride=stride), measure(cache.state), measure(cache.action))
    return WindowLoader(cache, codec, horizon, batch_size, seed, shift, Rank(rank, world))


def equal(one: Windows, other: Windows) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(Windows))


@given(ROWS, st.sampled_from(["min_max", "z_score", "quantile", "identity"]))
def test_decoding_is_the_inverse_of_encoding(rows: np.ndarray, kind: schema.NormKind) -> None:
    codec = Codec(dataclasses.replace(CONFIG, action_norm=kind), measure(rows), measure(rows))
    again = codec.decode_action(codec.encode_action(rows))
    # float32 holds the normalised number: its error grows with the number and with the scale that it is in
    slack = 4e-7 * (np.abs(rows).max(0) + np.ptp(rows.astype(np.float64), axis=0) + 1e-30)
    assert (np.abs(again.astype(np.float64) - rows) <= slack).all()


@given(ROWS, LENGTHS, st.integers(1, 9), st.sampled_from(["min_max", "z_score", "quantile", "identity"]))
def test_decoding_relative_actions_is_the_inverse_too(
    rows: np.ndarray, lengths: list[int], horizon: int, kind: schema.NormKind
) -> None:
    """For any chunk and state, whatever the statistics were measured on."""
    starts, dims = np.cumsum([0, *lengths]), tuple(range(rows.shape[1]))[::-2]
    table = np.resize(rows, (starts[-1], rows.shape[1]))
    config = dataclasses.replace(CONFIG, action_norm=kind, relative_action_dims=dims)
    codec, state = Codec.fit(config, table[::-1].copy(), table, starts, horizon), rows[len(rows) // 2]
    again = codec.decode_action(codec.encode_action(rows, state), state)
    spans = np.abs(codec.action.max) + np.abs(codec.action.min)
    spans[list(dims)] = np.max([np.abs(step.max) + np.abs(step.min) for step in codec.relative], axis=0)
    slack = 4e-7 * (np.abs(rows).max(0) + np.abs(state) + spans + 1e-30)
    assert (np.abs(again.astype(np.float64) - rows) <= slack).all()


@given(LENGTHS, st.integers(1, 12), st.integers(0, 99))
def test_offsets_are_measured_over_all_windows_for_each_step(lengths: list[int], horizon: int, seed: int) -> None:
    starts = np.cumsum([0, *lengths])
    action, state = np.random.default_rng(seed).normal(size=(2, starts[-1], 2)).astype(np.float32)
    for step, stats in enumerate(measure_offsets(action, state, starts, horizon)):
        rows = [
            action[begin + step].astype(np.float64) - state[begin]
            for first, end in pairwise(starts)
            for begin in range(first, end - step)
        ]
        exact = measure(np.array(rows))
        assert stats.count == exact.count == len(rows) >= 0.1 * starts[-1]
        for name in ("min", "max", "q01", "q50", "q99"):
            np.testing.assert_array_equal(getattr(stats, name), getattr(exact, name))
        np.testing.assert_allclose([stats.mean, stats.std], [exact.mean, exact.std], atol=1e-9)


@given(ROWS)
def test_min_max_stays_within_its_bounds(rows: np.ndarray) -> None:
    codec = Codec(CONFIG, measure(rows), measure(rows))
    assert np.abs(codec.encode_state(rows)).max() <= 1 + 1e-6


@given(ROWS)
def test_statistics_are_numpys_of_the_same_rows(rows: np.ndarray) -> None:
    stats, exact = measure(rows), rows.astype(np.float64)
    np.testing.assert_array_equal([stats.min, stats.max], [exact.min(0), exact.max(0)])
    for name, q in QUANTILES.items():
        np.testing.assert_array_equal(getattr(stats, name), np.quantile(exact, q, axis=0))


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.integers(1, 3), st.integers(1, 8), st.integers(0, 2**31))
def test_an_epoch_covers_every_frame_and_no_window_leaves_its_episode(
    lengths: list[int], steps: int, batch_size: int, seed: int
) -> None:
    count, starts = sum(lengths), np.cumsum([0, *lengths])
    with loader_of(lengths, 2 * steps, batch_size, seed) as loader:
        batches = [loader.next() for _ in range(-(-count // batch_size))]
    frames = np.concatenate([batch.video[:, :, 0, 0, 0] for batch in batches])[:count].astype(int)
    is_pad = np.concatenate([batch.frame_is_pad for batch in batches])[:count]
    assert sorted(frames[:, 0]) == list(range(count))
    assert set(frames[~is_pad]) == set(range(count))
    episode = np.searchsorted(starts, frames, side="right")
    assert (episode == episode[:, :1]).all()
    last = starts[episode[:, :1]] - 1
    assert np.array_equal(frames, np.minimum(frames[:, :1] + 2 * np.arange(steps + 1), last))
    assert np.array_equal(is_pad, frames[:, :1] + 2 * np.arange(steps + 1) > last)


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.integers(1, 8), st.integers(0, 99), st.integers(0, 20), st.integers(0, 2))
def test_a_resumed_loader_equals_an_unbroken_one(
    lengths: list[int], batch_size: int, seed: int, given_before: int, shift: int
) -> None:
    with (
        loader_of(lengths, 4, batch_size, seed, shift) as unbroken,
        loader_of(lengths, 4, batch_size, seed, shift) as resumed,
    ):
        for _ in range(given_before):
            unbroken.next()
        resumed.load_state_dict(unbroken.state_dict())
        assert all(equal(unbroken.next(), resumed.next()) for _ in range(4))


@settings(max_examples=15, deadline=None)
@given(LENGTHS, st.integers(1, 3), st.integers(1, 4), st.integers(0, 99), st.integers(0, 9), st.integers(1, 4))
def test_any_number_of_processes_gives_the_rows_of_one(
    lengths: list[int], rows: int, factor: int, seed: int, given_before: int, world: int
) -> None:
    size = rows * factor * world
    with loader_of(lengths, 4, size, seed, 1) as whole:
        state = whole.state_dict() | {"batches": given_before}
        whole.load_state_dict(state)
        batch = whole.next()
    for rank in range(world):
        with loader_of(lengths, 4, size, seed, 1, rank=rank, world=world) as part:
            part.load_state_dict(state)
            share = part.next()
        span = slice(rank * size // world, (rank + 1) * size // world)
        for field in dataclasses.fields(Windows):
            assert np.array_equal(getattr(share, field.name), getattr(batch, field.name)[span])


@given(st.text(min_size=1), st.sampled_from(["", "config", "state", "action"]))
def test_an_unknown_key_of_a_saved_codec_is_refused(key: str, section: str) -> None:
    rows = np.ones((2, 1), np.float32)
    data = Codec(CONFIG, measure(rows), measure(rows)).to_dict()
    table = data[section] if section else data
    if key in table:
        return
    table[key] = 0
    with pytest.raises(ConfigError):
        Codec.from_dict(data)
