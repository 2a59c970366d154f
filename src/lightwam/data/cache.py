"""All pictures of a dataset decoded once, on the codec's canvas, in a memory-mapped file that is checked before use.

Random windows from it come at thousands a second; from the videos at tens (facts: docs/data.md).
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from lightwam import config as configs
from lightwam.codec import place_cameras
from lightwam.config import CodecConfig
from lightwam.data.files import read_json, write_atomically
from lightwam.data.lerobot import LeRobotDataset
from lightwam.data.video import VideoReader
from lightwam.errors import DatasetError, did_you_mean

FORMAT = 1
NUM_THREADS = 2
EPISODES_A_JOB = 8

Progress = Callable[[int, int], None]
"""called with frames done, frames in all"""


@dataclass(frozen=True, eq=False)
class FrameCache:
    """Decoded dataset. State and action are in robot units; `episode_start` has one entry more than episodes."""

    path: Path
    frames: UInt8[np.ndarray, "N height width 3"]
    state: Float32[np.ndarray, "N P"]
    action: Float32[np.ndarray, "N A"]
    episode_start: Int64[np.ndarray, " episodes_and_1"]
    task_index: Int64[np.ndarray, " episodes"]
    tasks: tuple[str, ...]
    fps: float

    @property
    def num_episodes(self) -> int:
        """Episodes."""
        return len(self.task_index)

    @classmethod
    def build(
        cls, dataset: LeRobotDataset, codec_config: CodecConfig, path: Path | str, progress: Progress | None = None
    ) -> FrameCache:
        """Decode everything into `path` (a folder), replacing what is there once the new one is whole.

        Raises DatasetError for whatever is wrong in the dataset, and when the codec places a camera it lacks.
        """
        path = Path(path)
        for place in codec_config.places:
            if place.camera not in dataset.cameras:
                raise DatasetError("the codec places a camera that the dataset lacks", where=dataset.root,
                                   got=sorted(dataset.cameras), expected=place.camera,
                                   next_step=did_you_mean(place.camera, dataset.cameras))  # fmt: skip
        vectors = dataset.vectors
        draft = path.with_name(f"{path.name}.draft-{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            _decode(dataset, codec_config, draft / "frames.npy", progress)
            arrays = {"state": vectors.state, "action": vectors.action, "episode_start": dataset.episode_start,
                      "task_index": vectors.task_index}  # fmt: skip
            for name, array in arrays.items():
                np.save(draft / f"{name}.npy", array)
            sizes = {file.name: file.stat().st_size for file in sorted(draft.iterdir())}
            about = {"fingerprint": _fingerprint(dataset, codec_config), "files": sizes, "tasks": list(dataset.tasks),
                     "fps": dataset.fps}  # fmt: skip
            write_atomically(draft / "cache.json", json.dumps(about, indent=1).encode())
            _replace_folder(draft, path)
        except OSError as error:
            raise DatasetError("the cache could not be written", where=path, got=error, expected="a writable disk with room",
                               next_step=f"it needs {_bytes_needed(dataset, codec_config) / 2**20:.0f} MiB") from error  # fmt: skip
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return cls.open(path)

    @classmethod
    def open(
        cls, path: Path | str, dataset: LeRobotDataset | None = None, codec_config: CodecConfig | None = None
    ) -> FrameCache:
        """The cache at `path`. What is given of dataset and codec is compared with what the cache was made from.

        Raises DatasetError saying what is torn or what differs.
        """
        path = Path(path)
        if not (path / "cache.json").is_file():
            raise DatasetError("no whole cache here", where=path, expected="cache.json", next_step="build it")
        about = read_json(path / "cache.json")
        for name, size in about["files"].items():
            got = (path / name).stat().st_size if (path / name).is_file() else None
            if got != size:
                raise DatasetError("the cache is torn", where=path / name, got=got, expected=f"{size} bytes",
                                   next_step="build it again")  # fmt: skip
        if differences := _differences(about["fingerprint"], dataset, codec_config):
            raise DatasetError("the cache was made from something else", where=path, got="; ".join(differences[:5]),
                               next_step="build it again")  # fmt: skip
        arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r") for name in ("frames",)}
        small = {name: np.load(path / f"{name}.npy") for name in ("state", "action", "episode_start", "task_index")}
        return cls(path=path, **arrays, **small, tasks=tuple(about["tasks"]), fps=about["fps"])

    @classmethod
    def fresh(
        cls, dataset: LeRobotDataset, codec_config: CodecConfig, path: Path | str, progress: Progress | None = None
    ) -> FrameCache:
        """The cache at `path` if it is whole and was made from just this; else it is built."""
        path = Path(path)
        if (path / "cache.json").is_file() and not _stale(path, dataset, codec_config):
            return cls.open(path)
        return cls.build(dataset, codec_config, path, progress)


def _stale(path: Path, dataset: LeRobotDataset, codec_config: CodecConfig) -> bool:
    about = read_json(path / "cache.json")
    torn = any(not (path / n).is_file() or (path / n).stat().st_size != size for n, size in about["files"].items())
    return torn or bool(_differences(about["fingerprint"], dataset, codec_config))


def _fingerprint(dataset: LeRobotDataset | None, codec_config: CodecConfig | None) -> dict[str, Any]:
    """Everything that the cache's content depends on; normalisation and stride do not touch it."""
    print_: dict[str, Any] = {"format": FORMAT}
    if dataset is not None:
        print_["dataset"] = dataset.fingerprint()
    if codec_config is not None:
        print_["codec"] = {"canvas": list(codec_config.canvas), "places": configs.to_dict(codec_config.places)}
    return print_


def _differences(stored: dict[str, Any], dataset: LeRobotDataset | None, codec_config: CodecConfig | None) -> list[str]:
    found = []
    for part, now in _fingerprint(dataset, codec_config).items():
        then = stored.get(part)
        if isinstance(now, dict) and isinstance(then, dict):
            for key in sorted(now.keys() | then.keys()):
                if now.get(key) != then.get(key):
                    found.append(f"{part} {key}: {then.get(key)} in the cache, {now.get(key)} now")
        elif now != then:
            found.append(f"{part}: {then} in the cache, {now} now")
    return found


def _decode(dataset: LeRobotDataset, config: CodecConfig, path: Path, progress: Progress | None) -> None:
    frames = np.lib.format.open_memmap(path, "w+", np.uint8, (dataset.num_frames, *config.canvas, 3))

    def decode_some(episodes: tuple[int, ...]) -> int:
        with ExitStack() as stack:
            readers: dict[Path, VideoReader] = {}
            for episode in episodes:
                clips = {}
                for place in config.places:
                    file = dataset.episodes[episode].clips[place.camera].path
                    if file not in readers:
                        readers[file] = stack.enter_context(VideoReader(file))
                    clips[place.camera] = dataset.clip(readers[file], episode, place.camera)
                start, stop = dataset.episode_start[episode], dataset.episode_start[episode + 1]
                frames[start:stop] = place_cameras(config, clips)
        return int(sum(dataset.episodes[episode].length for episode in episodes))

    done = 0
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        try:
            for count in pool.map(decode_some, _jobs(dataset.num_episodes)):
                done += count
                if progress is not None:
                    progress(done, dataset.num_frames)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    frames.flush()


def _jobs(num_episodes: int) -> Iterator[tuple[int, ...]]:
    episodes = iter(range(num_episodes))
    while job := tuple(itertools.islice(episodes, EPISODES_A_JOB)):
        yield job


def _bytes_needed(dataset: LeRobotDataset, config: CodecConfig) -> int:
    return dataset.num_frames * config.canvas[0] * config.canvas[1] * 3


def _replace_folder(new: Path, path: Path) -> None:
    if path.exists():
        old = path.with_name(f"{path.name}.old-{os.getpid()}")
        os.rename(path, old)
        os.rename(new, path)
        shutil.rmtree(old)
    else:
        os.rename(new, path)
