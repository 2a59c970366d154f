"""The decoded cache: right pictures in the right places, and no stale or torn one is ever used."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from lightwam.codec import place_cameras
from lightwam.config import CameraPlace, CodecConfig
from lightwam.data import cache as cache_module
from lightwam.data.cache import FrameCache
from lightwam.data.lerobot import LeRobotDataset
from lightwam.data.lerobot_writer import LeRobotWriter
from lightwam.errors import DatasetError

PLACES = (CameraPlace("front", 0, 0, 16, 16), CameraPlace("wrist", 0, 16, 16, 16))
CONFIG = CodecConfig(canvas=(16, 32), places=PLACES)
NUM_EPISODES = 11
VIDEO = "videos/observation.images.wrist/chunk-000/file-000.mp4"


def add_episodes(root: Path, numbers: range) -> None:
    with LeRobotWriter(root, 10, "arm", {"front": (16, 16), "wrist": (24, 24)}, ["x"], ["u"]) as out:
        for number in numbers:
            length = 2 + number % 3
            levels = (10 * number + 20 * np.arange(length)).astype(np.uint8)[:, None, None, None]
            frames = {"front": np.tile(levels, (1, 16, 16, 3)), "wrist": np.tile(255 - levels, (1, 24, 24, 3))}
            vector = np.full((length, 1), number, np.float32)
            out.add_episode(frames, vector, -vector, f"task {number % 2}")


@pytest.fixture
def dataset(tmp_path: Path) -> LeRobotDataset:
    add_episodes(tmp_path / "set", range(NUM_EPISODES))
    return LeRobotDataset(tmp_path / "set")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_it_holds_the_dataset_on_the_canvas(dataset: LeRobotDataset, path: Path) -> None:
    seen: list[tuple[int, int]] = []
    cache = FrameCache.build(dataset, CONFIG, path, lambda done, total: seen.append((done, total)))
    assert cache.frames.shape == (dataset.num_frames, 16, 32, 3) and cache.num_episodes == NUM_EPISODES
    for episode in range(NUM_EPISODES):
        span = slice(*cache.episode_start[episode : episode + 2])
        clips = {camera: dataset.frames(episode, camera) for camera in dataset.cameras}
        np.testing.assert_array_equal(cache.frames[span], place_cameras(CONFIG, clips))
        assert (cache.state[span] == episode).all() and (cache.action[span] == -episode).all()
        assert {cache.tasks[task] for task in cache.task_index[span]} == {f"task {episode % 2}"}
    assert seen[-1] == (dataset.num_frames, dataset.num_frames) and seen == sorted(seen)
    assert cache.fps == 10 and not cache.frames.flags.writeable


def test_one_camera_may_stand_in_two_places(dataset: LeRobotDataset, path: Path) -> None:
    twice = dataclasses.replace(CONFIG, places=(PLACES[0], dataclasses.replace(PLACES[1], camera="front")))
    frames = FrameCache.build(dataset, twice, path).frames
    np.testing.assert_array_equal(frames[:, :, :16], frames[:, :, 16:])


def test_a_fresh_one_is_used_and_a_stale_one_is_built_again(
    dataset: LeRobotDataset, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FrameCache.fresh(dataset, CONFIG, path)
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_decode", None)
        FrameCache.fresh(dataset, dataclasses.replace(CONFIG, video_stride=2, state_norm="z_score"), path)
    moved = dataclasses.replace(CONFIG, places=PLACES[::-1])
    assert FrameCache.fresh(dataset, moved, path) is not None
    FrameCache.open(path, dataset, moved)
    (path / "state.npy").unlink()
    FrameCache.fresh(dataset, moved, path)
    FrameCache.open(path, dataset, moved)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["cache", "set"]


def test_a_stale_one_says_exactly_what_differs(
    dataset: LeRobotDataset, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FrameCache.build(dataset, CONFIG, path)
    with pytest.raises(DatasetError, match=r"codec canvas: \[16, 32\] in the cache, \[32, 32\] now"):
        FrameCache.open(path, dataset, dataclasses.replace(CONFIG, canvas=(32, 32)))
    add_episodes(dataset.root, range(2))
    with pytest.raises(DatasetError, match=r"dataset data/chunk-000/file-001\.parquet: None in the cache"):
        FrameCache.open(path, LeRobotDataset(dataset.root), CONFIG)
    FrameCache.open(path)  # nothing given, nothing compared
    monkeypatch.setattr(cache_module, "FORMAT", 2)
    with pytest.raises(DatasetError, match="format: 1 in the cache, 2 now"):
        FrameCache.open(path)


def test_one_changed_byte_of_a_video_is_noticed(dataset: LeRobotDataset, path: Path) -> None:
    FrameCache.build(dataset, CONFIG, path)
    content = bytearray((dataset.root / VIDEO).read_bytes())
    content[-1] ^= 1
    (dataset.root / VIDEO).write_bytes(content)
    with pytest.raises(DatasetError, match=rf"dataset {VIDEO}"):
        FrameCache.open(path, dataset, CONFIG)


def test_a_torn_one_is_refused(dataset: LeRobotDataset, path: Path) -> None:
    FrameCache.build(dataset, CONFIG, path)
    frames = (path / "frames.npy").read_bytes()
    (path / "frames.npy").write_bytes(frames[:-7])
    with pytest.raises(DatasetError, match=rf"frames.npy has {len(frames) - 7} bytes, not {len(frames)}"):
        FrameCache.open(path)
    (path / "cache.json").unlink()
    with pytest.raises(DatasetError, match="no whole cache"):
        FrameCache.open(path)


def test_a_build_that_fails_leaves_the_old_one(dataset: LeRobotDataset, path: Path) -> None:
    FrameCache.build(dataset, CONFIG, path)
    before = json.loads((path / "cache.json").read_text())
    video = (dataset.root / VIDEO).read_bytes()
    (dataset.root / VIDEO).write_bytes(video[: len(video) // 2])
    with pytest.raises(DatasetError, match="cannot be decoded"):
        FrameCache.build(dataset, CONFIG, path)
    assert json.loads((path / "cache.json").read_text()) == before
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["cache", "set"]


def test_a_full_disk_says_how_much_is_needed(
    dataset: LeRobotDataset, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "_decode", full)
    with pytest.raises(DatasetError, match=r"No space left(.|\n)*it needs \d+ MiB"):
        FrameCache.build(dataset, CONFIG, path)
    assert not path.exists()


def test_a_camera_that_the_dataset_lacks_is_named(dataset: LeRobotDataset, path: Path) -> None:
    with pytest.raises(DatasetError, match=r"expected: frnt\n.*did you mean 'front'"):
        FrameCache.build(
            dataset, dataclasses.replace(CONFIG, places=(dataclasses.replace(PLACES[0], camera="frnt"),)), path
        )


def test_a_folder_of_something_else_is_not_replaced(dataset: LeRobotDataset, path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years")
    with pytest.raises(DatasetError, match=r"something else(.|\n)*got: thesis\.tex(.|\n)*another folder"):
        FrameCache.fresh(dataset, CONFIG, path)
    assert (path / "thesis.tex").exists()


def test_it_gives_clips(dataset: LeRobotDataset, path: Path) -> None:
    cache = FrameCache.build(dataset, CONFIG, path)
    frame = np.array([[0, 1, 1], [4, 3, 2]])
    np.testing.assert_array_equal(cache.video(frame), cache.frames[frame])
    assert cache.num_steps == dataset.num_frames
