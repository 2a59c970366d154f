"""Caches for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightwam.config.schema import CodecConfig
from lightwam.data.cache.frames import FrameCache
from lightwam.data.lerobot.reader import LeRobotDataset


def decoded_cache(dataset: LeRobotDataset, config: CodecConfig, path: Path, *rest: Any) -> FrameCache:
    """The cache of a dataset's pictures at `path`, made if it is not there."""
    FrameCache.build(dataset, config, path, *rest)
    return FrameCache.open(path)
