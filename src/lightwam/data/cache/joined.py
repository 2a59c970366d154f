"""The caches of several datasets, seen as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from lightwam.config.schema import CodecConfig
from lightwam.data.cache.base import Cache
from lightwam.types import Latents


@dataclass(frozen=True, eq=False, kw_only=True)
class JoinedCache(Cache):
    """Several caches, one after the other; their sentences are one table, in which each occurs once."""

    caches: tuple[Cache, ...]

    @classmethod
    def join(cls, caches: Sequence[Cache]) -> JoinedCache:
        """Join caches with states and actions of one width and one rate, and pictures or latents of one shape."""
        assert len({cache.fps for cache in caches}) == 1, [cache.fps for cache in caches]
        tasks = tuple(dict.fromkeys(task for cache in caches for task in cache.tasks))
        numbers = [np.array([tasks.index(task) for task in cache.tasks], np.int64) for cache in caches]
        first = list(accumulate((cache.num_steps for cache in caches), initial=0))
        return cls(
            path=Path(" + ".join(str(cache.path) for cache in caches)),
            state=np.concatenate([cache.state for cache in caches]),
            action=np.concatenate([cache.action for cache in caches]),
            episode_start=np.concatenate(
                [[0], *(cache.episode_start[1:] + begin for cache, begin in zip(caches, first[:-1], strict=True))]
            ),
            task_index=np.concatenate([table[c.task_index] for table, c in zip(numbers, caches, strict=True)]),
            tasks=tasks,
            fps=caches[0].fps,
            caches=tuple(caches),
        )

    def video(self, frame: Int64[np.ndarray, "B F"]) -> UInt8[np.ndarray, "B F height width 3"] | Latents:
        """Return the clips of windows, each from its own cache."""
        first = np.cumsum([0, *(cache.num_steps for cache in self.caches)])
        which = np.searchsorted(first, frame[:, 0], side="right") - 1
        used = np.unique(which)
        clips = [self.caches[number].video(frame[which == number] - first[number]) for number in used]
        if len(used) == 1:
            return clips[0]
        order = np.argsort(np.argsort(which, kind="stable"), kind="stable")  # of a row among the joined clips
        pictures = [clip for clip in clips if isinstance(clip, np.ndarray)]
        if pictures:
            return np.concatenate(pictures)[order]
        latents = [clip for clip in clips if isinstance(clip, Latents)]
        return Latents(*(torch.cat(part)[torch.from_numpy(order)] for part in zip(*latents, strict=True)))

    def check_window(self, config: CodecConfig, horizon: int, shift_pixels: int) -> None:
        """Raise ConfigError when one of the caches cannot give such windows."""
        for cache in self.caches:
            cache.check_window(config, horizon, shift_pixels)


def without_actions(cache: Cache, state_dim: int, action_dim: int) -> Cache:
    """Return the cache with zeros for states and actions, of these widths."""
    shape = cache.num_steps
    return replace(
        cache, state=np.zeros((shape, state_dim), np.float32), action=np.zeros((shape, action_dim), np.float32)
    )
