"""What every cache of a dataset shares: what the loader asks of it, its tables, its pictures, what it was made from."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from lightwam.config import schema
from lightwam.config.schema import CodecConfig
from lightwam.data.codec import compose_canvas
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.errors import ConfigError, DatasetError, did_you_mean, first_few
from lightwam.system.differences import differences
from lightwam.types import Latents

TABLES = ("state", "action", "episode_start", "task_index")
Progress = Callable[[int, int], None]
"""called with frames or windows done, and in all; the first time before any is done"""
MAX_DECODED_BYTES = 4 * 2**20
"""pictures and canvases that a thread decodes at a time; resizing takes about five times as much memory"""
first_problems = functools.partial(first_few, separator="; ")
"""joins the first problems for an error"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Cache(ABC):
    """A dataset, ready for training. State and action are in robot units, control steps one behind the other."""

    path: Path
    """its folder"""
    state: Float32[np.ndarray, "N P"]
    action: Float32[np.ndarray, "N A"]
    episode_start: Int64[np.ndarray, " episodes_and_1"]
    """first control step of every episode, and the number of all control steps"""
    task_index: Int64[np.ndarray, " N"]
    """into `tasks`, for every control step: a task may change within an episode"""
    tasks: tuple[str, ...]
    fps: float

    @property
    def num_episodes(self) -> int:
        """Episodes."""
        return len(self.episode_start) - 1

    @property
    def num_steps(self) -> int:
        """Control steps of all episodes: as many windows begin."""
        return len(self.state)

    @abstractmethod
    def video(self, frame: Int64[np.ndarray, "B F"]) -> UInt8[np.ndarray, "B F height width 3"] | Latents:
        """The clips of windows; a row of `frame` is the control steps of its pictures, none past the episode's end."""

    @abstractmethod
    def check_window(self, config: CodecConfig, horizon: int, shift_pixels: int) -> None:
        """ConfigError when it holds no such windows."""


def check_canvas(path: Path, canvas: tuple[int, ...], config: CodecConfig) -> None:
    """ConfigError when a cache's canvas is not the codec's."""
    if canvas != config.canvas:
        raise ConfigError("the cache was made for another canvas", where=path, got=canvas, expected=config.canvas)


def dataset_arrays(dataset: LeRobotDataset) -> dict[str, np.ndarray]:
    """The numbers of a dataset by the names in TABLES, to be saved as NAME.npy."""
    vectors = dataset.vectors
    return {"state": vectors.state, "action": vectors.action, "episode_start": dataset.episode_start,
            "task_index": vectors.frame_task}  # fmt: skip


def read_tables(path: Path) -> dict[str, np.ndarray]:
    """The same from a cache's folder. Older caches have one task an episode."""
    read = {name: np.load(path / f"{name}.npy") for name in TABLES}
    lengths = np.diff(read["episode_start"])
    if len(read["task_index"]) == len(lengths):
        read["task_index"] = np.repeat(read["task_index"], lengths)
    return read


def check_cameras(dataset: LeRobotDataset, config: CodecConfig) -> None:
    """Raise DatasetError when the codec places a camera that the dataset lacks, or one with a problem."""
    for place in config.places:
        if place.camera not in dataset.cameras and place.camera not in dataset.left_out:
            raise DatasetError("the codec places a camera that the dataset lacks", where=dataset.root,
                               got=", ".join(sorted(dataset.cameras)), expected=place.camera,
                               next_step=f"{did_you_mean(place.camera, dataset.cameras)}; or rename one: "
                               f"--names {dataset.feature_of(min(dataset.cameras))}={place.camera}")  # fmt: skip
        dataset.check_camera(place.camera)


class CanvasReader:
    """The pictures of one episode after another on the codec's canvas; files stay open from episode to episode.

    For one thread, in a `with` block.
    """

    def __init__(self, dataset: LeRobotDataset, config: CodecConfig) -> None:
        self._dataset, self._config = dataset, config
        self._decoder = dataset.decoder()

    def stream(self, index: int) -> Iterator[UInt8[np.ndarray, "T height width 3"]]:
        """Yield all of one episode in order, a few at a time: the memory used does not grow with the episode."""
        episode = self._dataset.episodes[index]
        cameras = list(dict.fromkeys(place.camera for place in self._config.places))
        sizes = [self._config.canvas, *(self._dataset.cameras[camera] for camera in cameras)]
        batch = max(1, MAX_DECODED_BYTES // sum(3 * math.prod(size) for size in sizes))
        streams = [self._decoder.stream(episode, camera, batch) for camera in cameras]
        for clips in zip(*streams, strict=True):
            yield compose_canvas(self._config, dict(zip(cameras, clips, strict=True))).numpy()

    def __enter__(self) -> CanvasReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._decoder.close()


def canvas_fingerprint(config: CodecConfig) -> dict[str, Any]:
    """What the decoded pictures depend on; normalisation and stride do not touch them."""
    return {"canvas": list(config.canvas), "places": schema.to_dict(config.places)}


def mismatches(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe where a cache's fingerprint `then` differs from `now`; what `now` does not name is not compared."""
    rows = differences({part: then.get(part) for part in now}, now)
    return [f"{name}: {old} in the cache, {new} now" for name, old, new in rows]
