"""All pictures of a dataset decoded once, on the codec's canvas, in a memory-mapped file that is checked before use.

Random windows come from it at thousands a second, from the videos at tens (docs/data.md).
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from lightwam.config import CodecConfig
from lightwam.data.cache_base import (
    TABLES,
    Cache,
    Canvases,
    Progress,
    canvas_fingerprint,
    check_cameras,
    check_canvas,
    differences,
    listed,
    read_tables,
    tables,
)
from lightwam.data.files import read_json, write_atomically
from lightwam.data.lerobot import LeRobotDataset
from lightwam.errors import DatasetError

FORMAT = 1
NUM_THREADS = 2
EPISODES_A_JOB = 8


@dataclass(frozen=True, eq=False, kw_only=True)
class FrameCache(Cache):
    """A decoded dataset: a cache of pictures, one a control step."""

    frames: UInt8[np.ndarray, "N height width 3"]

    def video(self, frame: Int64[np.ndarray, "B F"]) -> UInt8[np.ndarray, "B F height width 3"]:
        """The pictures of these control steps."""
        clips = np.empty((*frame.shape, *self.frames.shape[1:]), np.uint8)
        np.take(self.frames, frame, axis=0, out=clips, mode="clip")
        return clips

    def check_window(self, config: CodecConfig, horizon: int, shift_pixels: int) -> None:
        """ConfigError when its canvas is not the codec's; whatever window is cut from it, and shifted, is fine."""
        check_canvas(self.path, self.frames.shape[1:3], config)

    @classmethod
    def build(
        cls, dataset: LeRobotDataset, codec_config: CodecConfig, path: Path | str, progress: Progress | None = None
    ) -> FrameCache:
        """Decode everything into `path` (a folder), replacing what is there once the new one is whole.

        Raises DatasetError for whatever is wrong in the dataset, when the codec places a camera it lacks, and when
        `path` holds something else.
        """
        path = Path(path)
        if others := _others(path):
            raise DatasetError("the folder holds something else than such a cache", where=path, got=listed(others),
                               expected="no folder, or such a cache", next_step="give another folder")  # fmt: skip
        check_cameras(dataset, codec_config)
        arrays = tables(dataset)
        draft = path.with_name(f"{path.name}.draft-{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            _decode(dataset, codec_config, draft / "frames.npy", progress)
            for name, array in arrays.items():
                np.save(draft / f"{name}.npy", array)
            sizes = {file.name: file.stat().st_size for file in sorted(draft.iterdir())}
            about = {"fingerprint": _fingerprint(dataset, codec_config), "files": sizes, "tasks": list(dataset.tasks),
                     "fps": dataset.fps}  # fmt: skip
            write_atomically(draft / "cache.json", json.dumps(about, indent=1).encode())
            _replace_folder(draft, path)
        except OSError as error:
            raise DatasetError(
                "the cache could not be written",
                where=path,
                got=error,
                expected="a writable disk with room",
                next_step=f"it needs {_bytes_needed(dataset, codec_config) / 2**20:.0f} MiB",
            ) from error
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
        if faults := _faults(path, about, dataset, codec_config):
            raise DatasetError("the cache is torn, or was made from something else", where=path,
                               got=listed(faults), next_step="build it again")  # fmt: skip
        frames = np.load(path / "frames.npy", mmap_mode="r")
        return cls(path=path, frames=frames, **read_tables(path), tasks=tuple(about["tasks"]), fps=about["fps"])

    @classmethod
    def fresh(
        cls, dataset: LeRobotDataset, codec_config: CodecConfig, path: Path | str, progress: Progress | None = None
    ) -> FrameCache:
        """The cache at `path` if it is whole and was made from just this; else it is built."""
        path = Path(path)
        if (path / "cache.json").is_file():
            about = read_json(path / "cache.json")
            if not _faults(path, about, dataset, codec_config):
                return cls.open(path)
        return cls.build(dataset, codec_config, path, progress)


def _others(path: Path) -> list[str]:
    """What would be lost if the folder were replaced."""
    ours = {"cache.json", "frames.npy", *(f"{name}.npy" for name in TABLES)}
    return sorted({file.name for file in path.iterdir()} - ours) if path.is_dir() else []


def _faults(
    path: Path, about: dict[str, Any], dataset: LeRobotDataset | None, codec_config: CodecConfig | None
) -> list[str]:
    """Everything that speaks against using the cache, in words."""
    found = []
    for name, size in about["files"].items():
        got = (path / name).stat().st_size if (path / name).is_file() else "no"
        if got != size:
            found.append(f"{name} has {got} bytes, not {size}")
    return found + differences(about["fingerprint"], _fingerprint(dataset, codec_config))


def _fingerprint(dataset: LeRobotDataset | None, codec_config: CodecConfig | None) -> dict[str, Any]:
    """Everything that the cache's content depends on; normalisation and stride do not touch it."""
    print_: dict[str, Any] = {"format": FORMAT}
    if dataset is not None:
        print_["dataset"] = dataset.fingerprint()
    if codec_config is not None:
        print_["codec"] = canvas_fingerprint(codec_config)
    return print_


def _decode(dataset: LeRobotDataset, config: CodecConfig, path: Path, progress: Progress | None) -> None:
    # Written through files, not a memory map: a full disk is then an error and not a bus fault.
    shape = (dataset.num_frames, *config.canvas, 3)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        first_byte = file.tell()

    def decode_some(episodes: tuple[int, ...]) -> int:
        with path.open("r+b") as file, Canvases(dataset, config) as canvases:
            file.seek(first_byte + int(dataset.episode_start[episodes[0]]) * config.canvas[0] * config.canvas[1] * 3)
            for episode in episodes:
                file.write(canvases.episode(episode).data)
        return int(sum(dataset.episodes[episode].length for episode in episodes))

    done = 0
    if progress is not None:
        progress(done, dataset.num_frames)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        try:
            for count in pool.map(decode_some, _jobs(dataset.num_episodes)):
                done += count
                if progress is not None:
                    progress(done, dataset.num_frames)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


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
