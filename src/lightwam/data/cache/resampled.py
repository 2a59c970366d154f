"""A dataset at another rate of control steps, for sources that are trained on together.

Step k of an episode is at the time k / fps. Its picture is the nearest one (the later of two equally near). State and
absolute actions are interpolated linearly; a dimension that takes at most two values, such as a gripper's switch, keeps
its previous value. Of a motion (`delta_action_dims`), a step has the part that the source makes until the next step, so
that the sum of motions stays the same.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from lightwam.config.schema import CodecConfig
from lightwam.data.cache.base import Cache
from lightwam.types import Latents

MAX_SWITCH_VALUES = 2
_ROUNDING = 1e-6
"""steps: times are multiples of 1 / fps, computed in float64"""


@dataclass(frozen=True, eq=False)
class Timeline:
    """The steps of a dataset at another rate, as positions among its own steps."""

    episode_start: Int64[np.ndarray, " episodes_and_1"]
    position: Float64[np.ndarray, " N"]
    """on the source's steps: 3.5 is half way between its steps 3 and 4"""
    end: Float64[np.ndarray, " N"]
    """position of the next step, at most one step after the episode's last one"""
    last: Int64[np.ndarray, " N"]
    """the source's last step of the same episode"""

    @classmethod
    def of(cls, episode_start: Int64[np.ndarray, " episodes_and_1"], ratio: float) -> Timeline:
        """Return the steps of a source that has `ratio` of its own steps in the time of a new one."""
        positions, ends, lasts, counts = [], [], [], [0]
        for start, stop in zip(episode_start[:-1].tolist(), episode_start[1:].tolist(), strict=True):
            count = int((stop - start - 1) / ratio + _ROUNDING) + 1
            steps = start + np.arange(count + 1) * ratio
            positions.append(np.minimum(steps[:-1], stop - 1))
            ends.append(np.minimum(steps[1:], stop))
            lasts.append(np.full(count, stop - 1))
            counts.append(count)
        return cls(np.cumsum(counts), *(np.concatenate(parts) for parts in (positions, ends, lasts)))

    @property
    def previous(self) -> Int64[np.ndarray, " N"]:
        """The source's step at or before each step."""
        return np.floor(self.position + _ROUNDING).astype(np.int64)

    @property
    def nearest(self) -> Int64[np.ndarray, " N"]:
        """The source's step nearest to each step."""
        return np.minimum(np.floor(self.position + 0.5 + _ROUNDING).astype(np.int64), self.last)

    def resample(self, values: Float32[np.ndarray, "M D"], motions: Collection[int] = ()) -> Float32[np.ndarray, "N D"]:
        """Return the source's values at these steps; `motions`: the dimensions that are motions a step."""
        before = self.previous
        after, share = np.minimum(before + 1, self.last), np.clip(self.position - before, 0, 1)[:, None]
        out = values[before] * (1 - share) + values[after] * share
        for dim in range(values.shape[1]):
            if dim in motions:
                total = np.concatenate([[0], np.cumsum(values[:, dim], dtype=np.float64)])
                grid = np.arange(len(total))
                out[:, dim] = np.interp(self.end, grid, total) - np.interp(self.position, grid, total)
            elif len(np.unique(values[:, dim])) <= MAX_SWITCH_VALUES:
                out[:, dim] = values[before, dim]
        return out.astype(np.float32)


@dataclass(frozen=True, eq=False, kw_only=True)
class ResampledCache(Cache):
    """A cache at another rate; it needs a picture for every step, so a cache of latents cannot be resampled."""

    source: Cache
    timeline: Timeline

    @classmethod
    def of(cls, source: Cache, fps: float, motions: Collection[int]) -> ResampledCache:
        """Return `source` with `fps` steps a second."""
        timeline = Timeline.of(source.episode_start, source.fps / fps)
        return cls(
            path=source.path,
            state=timeline.resample(source.state),
            action=timeline.resample(source.action, motions),
            episode_start=timeline.episode_start,
            task_index=source.task_index[timeline.previous],
            tasks=source.tasks,
            fps=fps,
            source=source,
            timeline=timeline,
        )

    def video(self, frame: Int64[np.ndarray, "B F"]) -> UInt8[np.ndarray, "B F height width 3"] | Latents:
        """Return the clips of windows, of the source's nearest pictures."""
        return self.source.video(self.timeline.nearest[frame])

    def check_window(self, config: CodecConfig, horizon: int, shift_pixels: int) -> None:
        """Raise ConfigError when the source cannot give such windows."""
        self.source.check_window(config, horizon, shift_pixels)
