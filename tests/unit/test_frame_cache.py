"""The decoded cache: right pictures in the right places, and no stale or torn one is ever used."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from caches import decoded_cache

from lightwam.config.schema import CameraPlace, CodecConfig
from lightwam.data.cache import base, location
from lightwam.data.cache import frames as cache_module
from lightwam.data.cache.base import CanvasReader
from lightwam.data.cache.frames import FrameCache, frames_folder
from lightwam.data.codec import compose_canvas
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.lerobot.writer import LeRobotWriter
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


def test_the_frame_cache_has_the_dataset_on_the_canvas(dataset: LeRobotDataset, path: Path) -> None:
    seen: list[tuple[int, int]] = []
    cache = decoded_cache(dataset, CONFIG, path, lambda done, total: seen.append((done, total)))
    assert cache.frames.shape == (dataset.num_frames, 16, 32, 3) and cache.num_episodes == NUM_EPISODES
    for episode in range(NUM_EPISODES):
        span = slice(*cache.episode_start[episode : episode + 2])
        clips = {camera: dataset.frames(episode, camera) for camera in dataset.cameras}
        np.testing.assert_array_equal(cache.frames[span], compose_canvas(CONFIG, clips))
        assert (cache.state[span] == episode).all() and (cache.action[span] == -episode).all()
        assert {cache.tasks[task] for task in cache.task_index[span]} == {f"task {episode % 2}"}
    assert seen[-1] == (dataset.num_frames, dataset.num_frames) and seen == sorted(seen)
    assert cache.fps == 10 and not cache.frames.flags.writeable


def test_one_camera_may_stand_in_two_places(dataset: LeRobotDataset, path: Path) -> None:
    twice = dataclasses.replace(CONFIG, places=(PLACES[0], dataclasses.replace(PLACES[1], camera="front")))
    frames = decoded_cache(dataset, twice, path).frames
    np.testing.assert_array_equal(frames[:, :, :16], frames[:, :, 16:])


def test_a_fresh_one_is_used_and_a_stale_one_is_built_again(
    dataset: LeRobotDataset, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FrameCache.build(dataset, CONFIG, path)
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_decode", None)
        FrameCache.build(dataset, dataclasses.replace(CONFIG, video_stride=2, state_norm="z_score"), path)
    moved = dataclasses.replace(CONFIG, places=PLACES[::-1])
    FrameCache.build(dataset, moved, path)
    FrameCache.open(path, dataset, moved)
    (path / "state.npy").unlink()
    FrameCache.build(dataset, moved, path)
    FrameCache.open(path, dataset, moved)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["cache", "set"]


def test_a_stale_one_says_exactly_what_differs(
    dataset: LeRobotDataset, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FrameCache.build(dataset, CONFIG, path)
    with pytest.raises(DatasetError, match=r"codec.canvas: \[16, 32\] in the cache, \[32, 32\] now"):
        FrameCache.open(path, dataset, dataclasses.replace(CONFIG, canvas=(32, 32)))
    add_episodes(dataset.root, range(2))
    with pytest.raises(DatasetError, match=r"dataset.data/chunk-000/file-001\.parquet: None in the cache"):
        FrameCache.open(path, LeRobotDataset(dataset.root), CONFIG)
    FrameCache.open(path)  # nothing given, nothing compared
    monkeypatch.setattr(cache_module, "_fingerprint", functools.partial(base.source_fingerprint, 2))
    with pytest.raises(DatasetError, match="format: 1 in the cache, 2 now"):
        FrameCache.open(path)


def test_one_changed_byte_of_a_video_is_noticed(dataset: LeRobotDataset, path: Path) -> None:
    FrameCache.build(dataset, CONFIG, path)
    content = bytearray((dataset.root / VIDEO).read_bytes())
    content[-1] ^= 1
    (dataset.root / VIDEO).write_bytes(content)
    with pytest.raises(DatasetError, match=rf"dataset.{VIDEO}"):
        FrameCache.open(path, dataset, CONFIG)


def test_a_torn_one_is_refused(dataset: LeRobotDataset, path: Path) -> None:
    FrameCache.build(dataset, CONFIG, path)
    frames = (path / "frames.npy").read_bytes()
    (path / "frames.npy").write_bytes(frames[:-7])
    with pytest.raises(DatasetError, match=rf"frames.npy has {len(frames) - 7} bytes, not {len(frames)}"):
        FrameCache.open(path)
    (path / "cache.json").unlink()
    with pytest.raises(DatasetError, match="no complete cache"):
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
    with pytest.raises(DatasetError, match=r"the disk is full(.|\n)*expected: \d+ MiB free"):
        FrameCache.build(dataset, CONFIG, path)
    assert not path.exists()


def test_a_disk_that_fills_up_loses_nothing(
    dataset: LeRobotDataset, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = decoded_cache(dataset, CONFIG, path.with_name("unbroken"))
    monkeypatch.setattr(cache_module, "EPISODES_A_JOB", 2)
    calls, sync = iter(range(100)), os.fsync

    def full(file: int) -> None:
        if next(calls) == 4:  # the pictures of the third job: two calls a job
            raise OSError(28, "No space left on device")
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            DatasetError, match=r"the disk is full(.|\n)*expected: 1 MiB free(.|\n)*decoded episodes are kept"
        ):
            FrameCache.build(dataset, CONFIG, path)
    decoded = decoded_by(monkeypatch)
    cache = decoded_cache(dataset, CONFIG, path)
    assert sorted(decoded) == list(range(4, NUM_EPISODES))
    np.testing.assert_array_equal(cache.frames, unbroken.frames)


def decoded_by(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by every episode that is decoded from now on."""
    decoded: list[int] = []
    stream = CanvasReader.stream

    def noted(self: CanvasReader, index: int) -> Iterator[np.ndarray]:
        decoded.append(index)
        return stream(self, index)

    monkeypatch.setattr(CanvasReader, "stream", noted)
    return decoded


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/../shared"]
import test_frame_cache as test
from lightwam.data.cache import frames as cache

cache.EPISODES_A_JOB = 1
write = cache.write_atomically

def die_behind_the_fifth(path, data):
    write(path, data)
    if b"5" in data:
        os.kill(os.getpid(), signal.SIGKILL)

cache.write_atomically = die_behind_the_fifth
test.FrameCache.build(test.LeRobotDataset(Path(sys.argv[2])), test.CONFIG, Path(sys.argv[3]))
"""


def test_a_killed_build_resumes(dataset: LeRobotDataset, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = decoded_cache(dataset, CONFIG, path.with_name("unbroken"))
    arguments = [str(Path(__file__).parent), str(dataset.root), str(path)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(path.parent.glob("cache.part-*"))) == 1
    safe, decoded, seen = 5, decoded_by(monkeypatch), list[tuple[int, int]]()
    cache = decoded_cache(dataset, CONFIG, path, lambda *row: seen.append(row))
    assert sorted(decoded) == list(range(safe, NUM_EPISODES))
    assert seen[0] == (dataset.episode_start[safe], dataset.num_frames) and seen[-1][0] == dataset.num_frames
    np.testing.assert_array_equal(cache.frames, unbroken.frames)
    assert sorted(os.listdir(path)) == sorted(os.listdir(unbroken.path))
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["cache", "set", "unbroken"]


def test_frames_of_another_dataset_are_dropped(
    dataset: LeRobotDataset, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "EPISODES_A_JOB", 1)
    with pytest.raises(KeyboardInterrupt):
        FrameCache.build(dataset, CONFIG, path, stop_after(dataset.num_frames // 2))
    assert len(list(path.parent.glob("cache.part-*"))) == 1
    add_episodes(dataset.root, range(2))
    more, decoded = LeRobotDataset(dataset.root), decoded_by(monkeypatch)
    FrameCache.build(more, CONFIG, path)
    assert sorted(decoded) == list(range(more.num_episodes))
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["cache", "set"]


def stop_after(frames: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done > frames:
            raise KeyboardInterrupt

    return progress


def test_of_two_builds_at_once_one_decodes(
    dataset: LeRobotDataset, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(location, "POLL_SECONDS", 0.01)
    decoded, barrier, began = decoded_by(monkeypatch), Event(), Event()
    stream = CanvasReader.stream

    def slow(self: CanvasReader, index: int) -> Iterator[np.ndarray]:
        began.set()
        assert barrier.wait(30)
        return stream(self, index)

    monkeypatch.setattr(CanvasReader, "stream", slow)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(decoded_cache, dataset, CONFIG, path)
        assert began.wait(30)
        told = Event()
        other = pool.submit(decoded_cache, dataset, CONFIG, path, lambda done, total: told.set())
        assert told.wait(30)  # it waits, and says how far the first one is
        barrier.set()
        np.testing.assert_array_equal(one.result().frames, other.result().frames)
    assert sorted(decoded) == list(range(NUM_EPISODES))


def test_pictures_a_few_at_a_time_are_the_same(
    dataset: LeRobotDataset, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = decoded_cache(dataset, CONFIG, path)
    monkeypatch.setattr(base, "MAX_DECODED_BYTES", 1)
    monkeypatch.setattr(cache_module, "FRAMES_A_JOB", 1)
    np.testing.assert_array_equal(decoded_cache(dataset, CONFIG, path.with_name("b")).frames, whole.frames)


def test_long_episodes_are_separate_jobs(dataset: LeRobotDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(cache_module._jobs(dataset, 0)) == [range(8), range(8, NUM_EPISODES)]
    monkeypatch.setattr(cache_module, "FRAMES_A_JOB", 5)  # lengths are 2, 3, 4, 2, 3, 4, ...
    jobs = list(cache_module._jobs(dataset, 1))
    assert [*jobs[0], *jobs[1]] == [1, 2, 3, 4] and sum(map(len, jobs)) == NUM_EPISODES - 1


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from lightwam.config.schema import CameraPlace, CodecConfig
from lightwam.data.cache import frames as cache
from lightwam.data.cache.latents import LatentCache
from lightwam.data.cache.encoder import ClipEncoder
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.types import Latents

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def encode(canvases):
    zeros = torch.zeros(len(canvases), 4, 3, 8, 8)
    return Latents(zeros[:, :, :1], zeros[:, :, :, ::2, ::2].contiguous())

cache.FRAMES_A_JOB = 1  # an episode a thread
places = tuple(CameraPlace(name, 0, 64 * i, 64, 64) for i, name in enumerate(("front", "wrist")))
config = CodecConfig(canvas=(64, 128), places=places, video_stride=1)
for root in sys.argv[1:]:  # what a small one needs is not of interest
    data, before = LeRobotDataset(Path(root)), peak()
    cache.FrameCache.build(data, config, Path(root + "-frames"))
    LatentCache.build(data, config, 8, ClipEncoder(encode, {}), Path(root + "-latents"))
    data.check()
print(peak() - before)
"""


def test_memory_does_not_grow_with_an_episodes_length(tmp_path: Path) -> None:
    """Decode, encode and check two episodes of 88 MiB on two threads; before pictures were streamed it took 330 MiB."""
    size, random = (240, 320), np.random.default_rng(0)
    picture = np.kron(random.integers(0, 256, (24, 32, 3), np.uint8), np.ones((10, 10, 1), np.uint8))
    for name, length in (("small", 2), ("long", 200)):
        with LeRobotWriter(tmp_path / name, 10, "arm", {"front": size, "wrist": size}, ["x"], ["u"]) as out:
            clip, vector = np.broadcast_to(picture, (length, *picture.shape)), np.zeros((length, 1), np.float32)
            for _ in range(2):
                out.add_episode({"front": clip, "wrist": clip}, vector, vector, "task")
    roots = [str(tmp_path / "small"), str(tmp_path / "long")]
    done = subprocess.run([sys.executable, "-c", MEMORY, *roots], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 150


def test_each_codec_has_a_folder_and_an_older_cache_is_taken(dataset: LeRobotDataset, tmp_path: Path) -> None:
    files, folder = dataset.fingerprint(), dataset.root / "cache"
    other = dataclasses.replace(CONFIG, places=PLACES[::-1])
    first, second = (frames_folder(folder, dataset, config, files) for config in (CONFIG, other))
    assert first.parent == second.parent == folder and first != second and first.name.startswith("16x32-front+wrist-")
    same = dataclasses.replace(CONFIG, video_stride=2, state_norm="z_score")
    assert frames_folder(folder, dataset, same, files) == first
    # in the dataset a cache of what it was before is replaced; elsewhere it may be another dataset's
    elsewhere = tmp_path / "c" / "set.lightwam" / "cache"
    changed = dict(files) | {"meta/info.json": "other"}
    assert frames_folder(folder, dataset, CONFIG, changed) == first
    assert frames_folder(elsewhere, dataset, CONFIG, changed) != frames_folder(elsewhere, dataset, CONFIG, files)
    FrameCache.build(dataset, CONFIG, folder)  # where earlier versions made it
    assert frames_folder(folder, dataset, CONFIG, files) == folder
    assert frames_folder(folder, dataset, other, files) == second


def test_a_camera_that_the_dataset_lacks_is_named(dataset: LeRobotDataset, path: Path) -> None:
    with pytest.raises(DatasetError, match=r"expected: frnt\n.*did you mean 'front'"):
        FrameCache.build(
            dataset, dataclasses.replace(CONFIG, places=(dataclasses.replace(PLACES[0], camera="frnt"),)), path
        )


def test_a_folder_of_something_else_is_not_replaced(dataset: LeRobotDataset, path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years")
    with pytest.raises(DatasetError, match=r"something else(.|\n)*got: thesis\.tex(.|\n)*another folder"):
        FrameCache.build(dataset, CONFIG, path)
    assert (path / "thesis.tex").exists()


def test_the_cache_gives_clips(dataset: LeRobotDataset, path: Path) -> None:
    cache = decoded_cache(dataset, CONFIG, path)
    frame = np.array([[0, 1, 1], [4, 3, 2]])
    np.testing.assert_array_equal(cache.video(frame), cache.frames[frame])
    assert cache.num_steps == dataset.num_frames
