"""Datasets made ready for training: decoded pictures or latents, memory-mapped and checked."""

from lightwam.data.cache.frames import FrameCache as FrameCache
from lightwam.data.cache.latents import LatentCache as LatentCache
