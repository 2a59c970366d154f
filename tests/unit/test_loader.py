"""The window loader: what a window holds, an order that depends on the seed only, resuming, failing loudly."""

import dataclasses
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from lightwam.config.schema import CameraPlace, CodecConfig
from lightwam.data.cache.frames import FrameCache
from lightwam.data.codec import Codec
from lightwam.data.loader import WindowLoader
from lightwam.errors import CheckpointError, ConfigError
from lightwam.types import Rank, Windows

LENGTHS = (5, 1, 11)
STARTS = np.cumsum([0, *LENGTHS])
PLACES = (CameraPlace("front", 0, 0, 8, 8), CameraPlace("wrist", 2, 10, 4, 6))
CONFIG = CodecConfig(canvas=(8, 16), places=PLACES, video_stride=2, delta_action_dims=(0,))


def cache() -> FrameCache:
    """Every pixel of frame i is i, but the pictures at the cameras' places vary over them."""
    random, count = np.random.default_rng(0), int(STARTS[-1])
    frames = np.repeat(np.arange(count, dtype=np.uint8), 8 * 16 * 3).reshape(count, 8, 16, 3)
    frames[:, 0:8, 0:8] = random.integers(0, 256, (8, 8, 3))
    frames[:, 2:6, 10:16] = random.integers(0, 256, (4, 6, 3))
    state, action = (random.normal(3, 1, (count, dims)).astype(np.float32) for dims in (3, 2))
    return FrameCache(
        path=Path("memory"), frames=frames, state=state, action=action, episode_start=STARTS,
        task_index=np.repeat([0, 1, 0], LENGTHS), tasks=("open", "close"), fps=10.0,
    )  # fmt: skip


@pytest.fixture
def make() -> Iterator[type]:
    made: list[WindowLoader] = []

    class Make:
        def __new__(cls, config: CodecConfig = CONFIG, **changes: int) -> WindowLoader:  # type: ignore[misc]
            data = cache()
            codec = Codec.fit(config, data.state, data.action, STARTS, changes.get("horizon", 4))
            settings = {"horizon": 4, "batch_size": 3, "seed": 5}
            made.append(WindowLoader(data, codec, **(settings | changes)))
            return made[-1]

    yield Make
    for loader in made:
        loader.close()


def equal(one: Windows, other: Windows) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(Windows))


def frame_numbers(windows: Windows) -> list[list[int]]:
    return windows.video[:, :, 0, 9, 0].tolist()  # a pixel that no camera covers


def test_a_window_in_the_middle(make: type) -> None:
    loader = make()
    window, data = loader.window(7), loader.cache
    assert frame_numbers(window) == [[7, 9, 11]]
    np.testing.assert_array_equal(window.video[0], data.frames[[7, 9, 11]])
    np.testing.assert_array_equal(window.state[0], loader.codec.encode_state(data.state[7]))
    np.testing.assert_array_equal(window.action[0], loader.codec.encode_action(data.action[7:11]))
    assert not window.action_is_pad.any() and not window.frame_is_pad.any() and window.task.tolist() == [0]


def test_a_window_has_the_task_of_its_first_frame(make: type) -> None:
    loader = make()
    changed = dataclasses.replace(loader.cache, task_index=(np.arange(17) >= 9).astype(np.int64))
    with WindowLoader(changed, loader.codec, 4, 3, 5) as other:
        assert [int(other.window(i).task[0]) for i in (7, 8, 9, 10)] == [0, 0, 1, 1]


def test_past_the_end_frames_repeat_and_delta_actions_rest(make: type) -> None:
    loader = make()
    window, data = loader.window(3), loader.cache
    assert frame_numbers(window) == [[3, 4, 4]]
    assert window.frame_is_pad.tolist() == [[False, True, True]]
    assert window.action_is_pad.tolist() == [[False, False, True, True]]
    robot = loader.codec.decode_action(window.action)[0]
    np.testing.assert_allclose(robot[:2], data.action[3:5], atol=1e-5)
    np.testing.assert_allclose(robot[2:, 0], 0, atol=1e-6)  # a delta: no motion
    np.testing.assert_allclose(robot[2:, 1], data.action[4, 1], atol=1e-5)  # a position: the last one


def test_past_the_end_a_relative_action_stays_at_the_last_target(make: type) -> None:
    config = dataclasses.replace(CONFIG, delta_action_dims=(), relative_action_dims=(1,))
    with closing(make(config)) as loader:
        window, data = loader.window(3), loader.cache
        np.testing.assert_allclose(
            loader.codec.decode_action(window.action, data.state[[3]])[0], data.action[[3, 4, 4, 4]], atol=1e-5
        )
        everywhere = np.concatenate([loader.window(i).action[~loader.window(i).action_is_pad] for i in range(17)])
    offsets = everywhere[:, 1]  # over all windows, what the loss sees spans [-1, 1]
    np.testing.assert_allclose([offsets.min(), offsets.max()], [-1, 1], atol=1e-6)


def test_an_episode_of_one_frame(make: type) -> None:
    window = make().window(5)
    assert frame_numbers(window) == [[5, 5, 5]] and window.task.tolist() == [1]
    assert window.frame_is_pad.tolist() == [[False, True, True]]


def test_an_epoch_begins_a_window_at_every_frame_once(make: type) -> None:
    loader, count = make(batch_size=4), int(STARTS[-1])
    firsts = np.concatenate([[row[0] for row in frame_numbers(loader.next())] for _ in range(count)])
    epochs = firsts.reshape(4, count)
    for epoch in epochs:
        assert sorted(epoch) == list(range(count))
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_batch_may_be_longer_than_an_epoch(make: type) -> None:
    firsts = [row[0] for row in frame_numbers(make(batch_size=40).next())]
    assert sorted(firsts[:17]) == sorted(firsts[17:34]) == list(range(17))


def test_the_seed_alone_decides(make: type) -> None:
    one, same, other = make(shift_pixels=2), make(shift_pixels=2), make(shift_pixels=2, seed=6)
    pairs = [(one.next(), same.next(), other.next()) for _ in range(10)]
    assert all(equal(a, b) for a, b, _ in pairs) and not all(equal(a, c) for a, _, c in pairs)


def test_shifting_does_not_change_which_windows_come(make: type) -> None:
    plain, shifted = make(), make(shift_pixels=3)
    for _ in range(10):
        assert np.array_equal(plain.next().action, shifted.next().action)


@pytest.mark.parametrize("shift", [1, 3, 20])
def test_a_shift_moves_each_camera_and_repeats_its_edge(make: type, shift: int) -> None:
    loader, moves = make(shift_pixels=shift, batch_size=17), set()
    windows = loader.next()
    for frames in windows.video:
        assert (frames[:, :2, 8:] == frames[:, :1, 8:9]).all()  # outside the places nothing moves
        for index, place in enumerate(PLACES):
            rows, columns = slice(place.top, place.top + place.height), slice(place.left, place.left + place.width)
            original, got = loader.cache.frames[0, rows, columns], frames[:, rows, columns]
            found = [
                (index, down, right)
                for down in range(-shift, shift + 1)
                for right in range(-shift, shift + 1)
                if (got == moved(original, down, right)).all()
            ]
            assert found, "no single shift explains all frames of the window"
            moves.add(found[0])
    assert len(moves) > 6


def moved(picture: np.ndarray, down: int, right: int) -> np.ndarray:
    height, width = picture.shape[:2]
    rows, columns = np.clip(np.arange(height) - down, 0, height - 1), np.clip(np.arange(width) - right, 0, width - 1)
    return picture[rows][:, columns]


@pytest.mark.parametrize("given", [0, 1, 5, 6, 30])
def test_a_loader_resumes_with_the_batches_that_follow(make: type, given: int) -> None:
    loader = make(shift_pixels=2)
    for _ in range(given):
        loader.next()
    state = json.loads(json.dumps(loader.state_dict()))  # batches made ahead must not count
    again = make(shift_pixels=2)
    again.next()
    again.load_state_dict(state)
    assert all(equal(loader.next(), again.next()) for _ in range(8))
    assert loader.state_dict() == again.state_dict() != state


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 2}, {"horizon": 6}, {"shift_pixels": 1}])
def test_the_state_of_other_settings_is_refused(make: type, change: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(change))):
        make(**change).load_state_dict(make().state_dict())


@pytest.mark.parametrize("state", [{}, {"batches": 3}, {"batches": -1}, {"batches": 1.5}])
def test_an_invalid_state_is_refused(make: type, state: dict[str, object]) -> None:
    loader = make()
    with pytest.raises(CheckpointError, match="loader"):
        loader.load_state_dict(loader.state_dict() | state if len(state) and state["batches"] != 3 else state)


def test_later_pictures_are_read_only_for_samples_with_a_video_pass(make: type) -> None:
    marked = np.array([True, False, False])
    whole, part = make(shift_pixels=2), make(shift_pixels=2, has_video=marked)
    for _ in range(4):
        all_of_it, some = whole.next(), part.next()
        np.testing.assert_array_equal(some.video[:, 0], all_of_it.video[:, 0])
        np.testing.assert_array_equal(some.video[0], all_of_it.video[0])
        assert not some.video[1:, 1:].any()
        assert equal(dataclasses.replace(some, video=all_of_it.video), all_of_it)


def test_errors_in_the_thread_are_raised_by_next(make: type, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make()
    gather = loader._gather

    def failing(*rows: np.ndarray) -> Windows:
        if loader.state_dict()["batches"] >= 0 and next(calls) == 2:
            raise RuntimeError("the disk is gone")
        return gather(*rows)

    calls = iter(range(100))
    monkeypatch.setattr(loader, "_gather", failing)
    loader.next()
    loader.next()
    for _ in range(3):
        with pytest.raises(RuntimeError, match="the disk is gone"):
            loader.next()
    loader.close()


def test_closing_ends_the_thread_and_next_restarts_it(make: type) -> None:
    loader, unbroken = make(), make()
    for _ in range(3):
        assert equal(loader.next(), unbroken.next())
        threads = threading.active_count()
        loader.close()
        assert threading.active_count() == threads - 1
    assert loader.wait_seconds > 0


@pytest.mark.parametrize("change", [{"horizon": 5}, {"horizon": 0}, {"batch_size": 0}, {"shift_pixels": -1}])
def test_settings_out_of_range_are_refused(make: type, change: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        make(**change)


def test_a_cache_of_another_canvas_is_refused(make: type) -> None:
    with pytest.raises(ConfigError, match=r"another canvas(.|\n)*\(8, 16\)(.|\n)*\(16, 16\)"):
        make(dataclasses.replace(CONFIG, canvas=(16, 16)))


@pytest.mark.parametrize("world", [2, 3, 6])
def test_processes_share_the_batch_of_one(make: type, world: int) -> None:
    one = make(batch_size=6, shift_pixels=2)
    shares = [make(batch_size=6, shift_pixels=2, share=Rank(rank, world)) for rank in range(world)]
    for _ in range(7):  # 17 windows: batches that reach into the next epoch too
        whole, parts = one.next(), [share.next() for share in shares]
        for field in dataclasses.fields(Windows):
            together = np.concatenate([getattr(part, field.name) for part in parts])
            assert np.array_equal(together, getattr(whole, field.name))
    assert all(share.state_dict() == one.state_dict() for share in shares)


def test_a_process_reads_only_its_rows(make: type, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    video = FrameCache.video

    def watched(self: FrameCache, frame: np.ndarray) -> np.ndarray:
        read.extend(frame[:, 0].tolist())
        return video(self, frame)

    monkeypatch.setattr(FrameCache, "video", watched)
    make(batch_size=6, share=Rank(1, 3))._batch(0)
    last_two_thirds = frame_numbers(make(batch_size=6).next())[2:4]
    assert read[:2] == [row[0] for row in last_two_thirds]


def test_a_loader_resumes_at_another_number_of_processes(make: type) -> None:
    one, two = make(batch_size=6), [make(batch_size=6, share=Rank(rank, 2)) for rank in range(2)]
    for _ in range(4):
        one.next()
    for share in two:
        share.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for _ in range(4):
        whole, parts = one.next(), [share.next() for share in two]
        assert np.array_equal(np.concatenate([part.video for part in parts]), whole.video)
    one.load_state_dict(two[1].state_dict())
    assert np.array_equal(one.next().video[:3], two[0].next().video)


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0), (1, 1)])
def test_a_process_that_there_is_not_is_refused(make: type, rank: int, world: int) -> None:
    with pytest.raises(ConfigError, match=f"rank {rank} of {world}"):
        make(batch_size=6, share=Rank(rank, world))


def test_a_batch_that_does_not_split_is_refused(make: type) -> None:
    with pytest.raises(ConfigError, match=r"multiple of 4(.|\n)*6 over 4 processes(.|\n)*take 8"):
        make(batch_size=6, share=Rank(0, 4))
