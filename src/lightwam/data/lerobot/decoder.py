"""Decoding of episodes' pictures, from videos or from the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from lightwam.data.lerobot.features import Camera
from lightwam.data.lerobot.images import ImageReader
from lightwam.data.lerobot.meta import EpisodeRow, other_size
from lightwam.data.lerobot.video import VideoReader
from lightwam.errors import DatasetError

CHECK_BATCH = 16
"""pictures that `problems` decodes at a time"""


class FrameDecoder:
    """A decoder of episodes' pictures that keeps the latest file of every camera open; for one thread.

    `times` returns the times of an episode's rows; `check` is called with every camera before it is read.
    """

    def __init__(
        self,
        cameras: Mapping[str, Camera],
        times: Callable[[EpisodeRow], Float64[np.ndarray, " T"]],
        check: Callable[[str], None],
    ) -> None:
        self._cameras, self._times, self._check = cameras, times, check
        self._readers: dict[str, VideoReader | ImageReader] = {}

    def clip(self, episode: EpisodeRow, camera: str) -> UInt8[np.ndarray, "T height width 3"]:
        """Decode all pictures of one episode from one camera."""
        return next(self.stream(episode, camera, episode.length))

    def pick(
        self, episode: EpisodeRow, camera: str, rows: Int64[np.ndarray, " n"]
    ) -> UInt8[np.ndarray, "n height width 3"]:
        """Decode the pictures of some of an episode's rows, which must rise, without decoding all others."""
        reader = self._reader(episode, camera)
        if isinstance(reader, ImageReader):
            return reader.pick(episode.index, episode.length, rows)
        times = episode.clips[camera].start + self._times(episode)[rows]
        return next(reader.stream(times, max(1, len(rows)), f"episode {episode.index} "))

    def stream(self, episode: EpisodeRow, camera: str, batch: int) -> Iterator[UInt8[np.ndarray, "n height width 3"]]:
        """Yield the same pictures, at most `batch` of them at a time.

        Streams of several cameras may be interleaved; a camera's stream must end before its next one begins.
        """
        reader = self._reader(episode, camera)
        if isinstance(reader, ImageReader):
            return reader.stream(episode.index, episode.length, batch)
        times = episode.clips[camera].start + self._times(episode)
        return reader.stream(times, batch, f"episode {episode.index} ")

    def _reader(self, episode: EpisodeRow, camera: str) -> VideoReader | ImageReader:
        """Return the open reader of an episode's pictures from a camera, checked."""
        self._check(camera)
        about, clip = self._cameras[camera], episode.clips.get(camera)
        if clip is None:
            images: ImageReader = self._open(
                camera, episode.data_path, partial(ImageReader, key=about.key, size=about.size)
            )
            return images
        video: VideoReader = self._open(camera, clip.path, VideoReader)
        if (video.height, video.width) != about.size:
            raise other_size("a video", video.path, (video.height, video.width), about.size)
        return video

    def problems(self, episode: EpisodeRow, camera: str) -> Iterator[DatasetError]:
        """Decode an episode's pictures and yield the first problem, if any."""
        try:
            for _ in self.stream(episode, camera, CHECK_BATCH):
                pass
        except DatasetError as problem:
            yield problem

    def close(self) -> None:
        """Close the files."""
        while self._readers:
            self._readers.popitem()[1].close()

    def _open(self, camera: str, path: Path, reader: Callable[[Path], Any]) -> Any:
        """Return the camera's open reader if it is of this file; else close it and open another."""
        if camera in self._readers and self._readers[camera].path != path:
            self._readers.pop(camera).close()
        if camera not in self._readers:
            self._readers[camera] = reader(path)
        return self._readers[camera]
