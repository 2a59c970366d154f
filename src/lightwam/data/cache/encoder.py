"""Encoding of a dataset's windows into records, a few at a time: no episode is ever in memory completely."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lightwam.config.schema import CodecConfig
from lightwam.data.cache.base import CanvasReader
from lightwam.data.cache.record import encode_record
from lightwam.data.cache.shards import SampleShape
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.errors import DatasetError
from lightwam.system.read_ahead import ReadAhead
from lightwam.types import Latents, pool

Encode = Callable[[UInt8[np.ndarray, "B F height width 3"]], Latents]
"""canvases -> latents in float32, the clip pooled in float32; on any device"""

WINDOWS_AT_ONCE = 8
AHEAD = 2
"""batches of windows that are decoded, and encoded, before they are needed"""


@dataclass(frozen=True)
class ClipEncoder:
    """A function that makes latents, and the settings it is used with."""

    encode: Encode
    about: Mapping[str, Any]
    """JSON values that distinguish it from other encoders: kind, digest of the weights, ..."""
    dtype: torch.dtype = torch.bfloat16
    """of the stored numbers"""
    batch_size: int = WINDOWS_AT_ONCE


class WindowEncoder:
    """An encoder of windows into records of a latent cache; `shape` is set by the first batch."""

    def __init__(self, dataset: LeRobotDataset, config: CodecConfig, horizon: int, encoder: ClipEncoder) -> None:
        self._dataset, self._config, self._encode, self._dtype = dataset, config, encoder.encode, encoder.dtype
        self._steps, self._batch_size = np.arange(0, horizon + 1, config.video_stride), encoder.batch_size
        self.shape: SampleShape | None = None

    def records(self, episodes: Sequence[int]) -> Iterator[list[bytes]]:
        """Yield records in batches, which end with their episode: they must not depend on how shards are shared out.

        One thread decodes pictures, another encodes them, and this one packs the records.
        """
        with (
            ReadAhead(self._canvases(episodes), AHEAD, "pictures") as canvases,
            ReadAhead(
                ((episode, begin, self._values(clips)) for episode, begin, clips in canvases), AHEAD, "latents"
            ) as encoded,
        ):
            for episode, begin, values in encoded:
                if len(bad := torch.nonzero(~values.isfinite().all(dim=1))):
                    where = f"{self._dataset.root} episode {episode} frame {begin + int(bad[0])}"
                    what, step = "the encoder's numbers are not finite", "check the weights, or use float32"
                    raise DatasetError(what, where=where, got=self._dtype, next_step=step)
                first = int(self._dataset.episode_start[episode]) + begin
                yield [encode_record(row, first + number) for number, row in enumerate(values)]

    def _canvases(self, episodes: Sequence[int]) -> Iterator[tuple[int, int, UInt8[np.ndarray, "B F height width 3"]]]:
        """Yield batches of windows, each with its episode and first frame."""
        with closing(CanvasReader(self._dataset, self._config)) as canvases:
            for episode in episodes:
                for begin, clips in self._clips(canvases, episode):
                    yield episode, begin, clips

    def _clips(
        self, canvases: CanvasReader, episode: int
    ) -> Iterator[tuple[int, UInt8[np.ndarray, "B F height width 3"]]]:
        """Yield batches of an episode's windows, each with its first frame; holds only the canvases a batch needs."""
        length, reach = self._dataset.episodes[episode].length, self._batch_size + int(self._steps[-1])
        buffer, begin = np.empty((0, *self._config.canvas, 3), np.uint8), 0
        for more in canvases.stream(episode):
            buffer = np.concatenate((buffer, more))  # buffer[0] is frame `begin`
            ends = begin + len(buffer) == length
            while begin < length and (ends or len(buffer) >= reach):
                start = np.arange(min(self._batch_size, length - begin))
                yield begin, buffer[np.minimum(start[:, None] + self._steps, length - 1 - begin)]
                buffer, begin = buffer[len(start) :], begin + len(start)

    def _values(self, canvases: UInt8[np.ndarray, "B F height width 3"]) -> Float[Tensor, "B n"]:
        with torch.no_grad():
            present, clip = self._encode(canvases)
        assert present.dtype == clip.dtype == torch.float32, "rounding twice, or before the mean, would lose bits"
        assert torch.allclose(pool(present), clip[:, :, :1], rtol=1e-4, atol=1e-4), "first frames are made by pooling"
        shape = SampleShape(clip.shape[1], clip.shape[2], *present.shape[3:])
        assert self.shape in (None, shape), (self.shape, shape)
        self.shape = shape
        values = torch.cat((present.flatten(1), clip[:, :, 1:].flatten(1)), dim=1)
        return values.to(self._dtype).cpu()
