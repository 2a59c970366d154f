"""Random windows from a cache, in an order that depends on the seed alone, prefetched in a thread.

Which windows come in which order is in sampling.py. The loader's state is the number of batches it returned, so a
resumed one returns exactly the batches that would have followed. Several processes share every batch: together they
read the same rows as one process, and their number may change when they resume.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int64, UInt8

from lightwam.data.cache.base import Cache
from lightwam.data.codec import Codec
from lightwam.data.sampling import WindowOrder
from lightwam.errors import CheckpointError, ConfigError
from lightwam.system.read_ahead import ReadAhead
from lightwam.types import SINGLE_PROCESS, Latents, Rank, Windows

PREFETCHED = 3
"""batches"""


class WindowLoader:
    """An endless stream of batches of windows: `next` returns the next one, `state_dict` counts those returned.

    `batch_size` counts the samples of all processes; process `share.rank` of `share.size` reads its equal part, the
    rows from rank * batch_size / size on. `shift_pixels`: each camera's pictures in a window are moved by the same
    random amount of up to that many canvas pixels each way, and the edge is repeated. `wait_seconds` is the time that
    `next` waited for the thread. The cache's `sampling` says which windows are drawn and what they teach. `has_video`
    marks the rows of this process that have a video pass: later pictures of the others are 0, unless they come from a
    cache of latents. None: all rows have one.
    """

    def __init__(
        self,
        cache: Cache,
        codec: Codec,
        horizon: int,
        batch_size: int,
        seed: int,
        shift_pixels: int = 0,
        share: Rank = SINGLE_PROCESS,
        has_video: Bool[np.ndarray, " rows"] | None = None,
    ) -> None:
        self.cache, self.codec, self.horizon, self.batch_size, self.seed = cache, codec, horizon, batch_size, seed
        self.shift_pixels, self.stride, self.share = shift_pixels, codec.config.video_stride, share
        self.has_video = has_video
        self._check_arguments()
        self.sampling, self._digest = cache.sampling, cache.sampling.digest()
        self.num_windows = self.sampling.num_windows
        self._order = WindowOrder(self.sampling.parts, seed, len(codec.config.places), shift_pixels)
        self._state = codec.encode_state(cache.state)
        self._state[~self.sampling.has_state] = 0
        codec.encode_action(cache.action[:, None], cache.state)  # refuses what is not finite before training begins
        self._last = np.repeat(cache.episode_start[1:] - 1, np.diff(cache.episode_start))
        self._task = cache.task_index
        self._count = 0
        self.wait_seconds = 0.0
        self._ahead: ReadAhead[Windows] | None = None

    def next(self) -> Windows:
        """Return the next batch; raises any exception of the thread."""
        if self._ahead is None:
            self._ahead = ReadAhead(map(self._batch, itertools.count(self._count)), PREFETCHED, "windows")
        begin = time.perf_counter()
        windows = next(self._ahead)
        self.wait_seconds += time.perf_counter() - begin
        self._count += 1
        return windows

    def window(self, index: int) -> Windows:
        """Return the window that starts at frame `index` of the cache, not shifted, as a batch of 1."""
        return self._gather(np.array([index], np.int64))

    def state_dict(self) -> dict[str, Any]:
        """Return the number of batches returned, and the settings it depends on, as plain JSON values."""
        return {"batches": self._count, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches that `state` counts; CheckpointError when its settings are others."""
        expected = {"batches": state.get("batches"), **self._identity()}
        if state != expected or type(state["batches"]) is not int or state["batches"] < 0:
            what, step = "the loader's state belongs to other data or settings", "train with those of the run"
            raise CheckpointError(what, where="loader", got=state, expected=expected, next_step=step)
        self.close()
        self._count = state["batches"]

    def close(self) -> None:
        """Stop the thread; a later `next` starts it again."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def __enter__(self) -> WindowLoader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _identity(self) -> dict[str, Any]:
        names = ("seed", "batch_size", "horizon", "stride", "shift_pixels", "num_windows")
        return {name: getattr(self, name) for name in names} | ({"sampling": self._digest} if self._digest else {})

    def _check_arguments(self) -> None:
        if self.horizon < 1 or self.horizon % self.stride:
            raise ConfigError(f"the horizon must be a multiple of the video stride, {self.stride}", got=self.horizon)
        if self.batch_size < 1 or self.shift_pixels < 0:
            what = "batch_size must be >= 1 and shift_pixels >= 0"
            raise ConfigError(what, where="WindowLoader", got=(self.batch_size, self.shift_pixels))
        rank, size = self.share
        if not 0 <= rank < size:
            raise ConfigError("rank must be in 0..size - 1", where="WindowLoader", got=f"rank {rank} of {size}")
        if self.batch_size % size:
            what, got = f"batch_size must be a multiple of {size}", f"{self.batch_size} over {size} processes"
            step = f"take {-(-self.batch_size // size) * size}, or another number of processes"
            raise ConfigError(what, got=got, next_step=step)
        self.cache.check_window(self.codec.config, self.horizon, self.shift_pixels)

    def _batch(self, number: int) -> Windows:
        """Return this process's rows of batch `number`; called with rising numbers, from one thread."""
        size = self.batch_size // self.share.size
        positions = number * self.batch_size + self.share.rank * size + np.arange(size)
        index, shifts = self._order.at(positions)
        windows = self._gather(index, self.has_video)
        if self.shift_pixels:
            assert isinstance(windows.video, np.ndarray)  # check_window refuses to shift latents
            self._shift(windows.video, shifts)
        return windows

    def _gather(self, start: Int64[np.ndarray, " B"], has_video: Bool[np.ndarray, " B"] | None = None) -> Windows:
        last = self._last[start][:, None]
        frame = start[:, None] + np.arange(0, self.horizon + 1, self.stride)
        step = start[:, None] + np.arange(self.horizon)
        action = self.cache.action[np.minimum(step, last)]
        for dim in self.codec.config.delta_action_dims:
            action[..., dim] = np.where(step > last, 0, action[..., dim])
        action = self.codec.encode_action(action, self.cache.state[start])
        video = self._video(np.minimum(frame, last), has_video)
        untaught_action = ~self.sampling.teaches_action[np.minimum(step, last)]
        untaught_video = ~self.sampling.teaches_video[start][:, None]
        action_is_pad, frame_is_pad = (step > last) | untaught_action, (frame > last) | untaught_video
        return Windows(video, self._state[start], action, action_is_pad, frame_is_pad, self._task[start])

    def _video(
        self, frame: Int64[np.ndarray, "B F"], has_video: Bool[np.ndarray, " B"] | None
    ) -> UInt8[np.ndarray, "B F height width 3"] | Latents:
        if has_video is None:
            return self.cache.video(frame)
        clips = self.cache.video(frame[has_video])
        if isinstance(clips, Latents):
            return self.cache.video(frame)
        video = np.zeros((*frame.shape, *clips.shape[2:]), np.uint8)
        video[has_video] = clips
        if not has_video.all():
            video[~has_video, :1] = self.cache.video(frame[~has_video, :1])
        return video

    def _shift(self, frames: UInt8[np.ndarray, "B F height width 3"], shifts: Int[np.ndarray, "B places 2"]) -> None:
        for number, (window, moves) in enumerate(zip(frames, shifts, strict=True)):
            if self.has_video is not None and not self.has_video[number]:
                window = window[:1]
            for place, (down, right) in zip(self.codec.config.places, moves.tolist(), strict=True):
                view = window[:, place.top : place.top + place.height, place.left : place.left + place.width]
                _move(view, down, right)


def _move(clip: UInt8[np.ndarray, "F height width 3"], down: int, right: int) -> None:
    """Move the picture content in place, repeating the edge rows and columns."""
    height, width = clip.shape[1:3]
    down, right = max(-height + 1, min(down, height - 1)), max(-width + 1, min(right, width - 1))
    if down == 0 and right == 0:
        return
    rows, columns = slice(max(down, 0), height + min(down, 0)), slice(max(right, 0), width + min(right, 0))
    source = clip[:, max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)].copy()
    clip[:, rows, columns] = source
    clip[:, rows, : columns.start] = source[:, :, :1]
    clip[:, rows, columns.stop :] = source[:, :, -1:]
    clip[:, : rows.start] = clip[:, rows.start : rows.start + 1]
    clip[:, rows.stop :] = clip[:, rows.stop - 1 : rows.stop]
