"""Latents without weights: the low frequencies of an 8x8 block DCT, on the Wan VAE's grid, with its temporal stride.

The built-in default, so that everything runs without a download. A picture is split into 8x8 blocks; each block's
colours go through an orthonormal luma-chroma rotation and an orthonormal DCT, of which the lowest frequencies are
kept. The kept rows are orthonormal, so decoding is their transpose: what was kept comes back exactly, what was
dropped is the loss. The first frame stands alone; of every further four frames the mean is kept (the temporal DCT's
lowest frequency).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightwam.config.schema import DctConfig
from lightwam.config.strict_json import from_dict
from lightwam.errors import ConfigError

BLOCK = 8
SMOOTHNESS = 0.95
"""correlation of neighbouring pixels in the picture model behind `decode_pooled`"""


@dataclass(frozen=True)
class _Stored:
    """The statistics as JSON."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class DctLatents:
    """Implements `LatentCodec`; a channel is one (colour plane, frequency) pair, luma first, low frequencies first."""

    spatial_stride = BLOCK
    temporal_stride = 4

    def __init__(
        self, config: DctConfig, mean: Sequence[float], std: Sequence[float], where: str = "DctLatents"
    ) -> None:
        """`mean` and `std` standardise the channels; `fit` measures them. Errors name `where` as their source."""
        self.config = config
        self.channels = config.luma_channels + 2 * config.chroma_channels
        if not (1 <= config.luma_channels <= BLOCK**2 and 1 <= config.chroma_channels <= BLOCK**2):
            what = f"luma_channels and chroma_channels must be in 1..{BLOCK**2}"
            raise ConfigError(what, where="latents", got=(config.luma_channels, config.chroma_channels))
        finite = all(map(math.isfinite, (*mean, *std)))
        if {len(mean), len(std)} != {self.channels} or not finite or min(std) <= 0:
            got = f"{len(mean)} means, {len(std)} stds, smallest {min(std, default=None)}, finite: {finite}"
            raise ConfigError(
                f"latent statistics must be {self.channels} means and positive stds", where=where, got=got
            )
        self.mean, self.std = torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)
        self._rows = analysis(config)
        self._kernels: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @classmethod
    def fit(cls, config: DctConfig, pixels: Float[Tensor, "N 3 height width"]) -> DctLatents:
        """Return latents whose channels have mean 0 and deviation 1 over these single pictures in [-1, 1]."""
        channels = config.luma_channels + 2 * config.chroma_channels
        raw = cls(config, [0.0] * channels, [1.0] * channels).encode(pixels[:, :, None])
        std = raw.std(dim=(0, 2, 3, 4)).clamp_min(1e-3)  # a channel that never moves stays finite
        return cls(config, raw.mean(dim=(0, 2, 3, 4)).tolist(), std.tolist())

    def to_dict(self) -> dict[str, list[float]]:
        """Return the statistics as JSON values, which `from_dict` reads."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_dict(cls, config: DctConfig, data: Any, where: str = "latents") -> DctLatents:
        """Read `to_dict`'s values; ConfigError when a key is unknown, missing or mistyped."""
        stored = from_dict(_Stored, data, where)
        return cls(config, stored.mean, stored.std, where)

    def encode(self, pixels: Float[Tensor, "B 3 F height width"]) -> Float[Tensor, "B C T h w"]:
        """Encode pixels in [-1, 1] to standardised latents; ConfigError unless F = 1 + 4k and 8 divides the sides."""
        frames, height, width = pixels.shape[2:]
        if frames % 4 != 1 or height % BLOCK or width % BLOCK:
            got = f"{frames} frames of {height}x{width}"
            raise ConfigError("a clip must have 1 + 4k frames, sides multiples of 8", where="latents", got=got)
        later = pixels[:, :, 1:].unflatten(2, (-1, 4)).mean(dim=3)
        clip = torch.cat([pixels[:, :, :1], later], dim=2).transpose(1, 2)
        latents = F.conv2d(clip.flatten(0, 1), *self._kernel(pixels), stride=BLOCK)
        return latents.unflatten(0, clip.shape[:2]).transpose(1, 2)

    def with_frames_in(self, dtype: torch.dtype) -> DctLatents:
        """Return these latents: a frame is one small product."""
        return self

    def decode(self, latents: Float[Tensor, "B C T h w"]) -> Float[Tensor, "B 3 F height width"]:
        """Decode standardised latents to pixels: the inverse of `encode` on the kept frequencies."""
        raw = self._raw(latents)
        blocks = torch.einsum("ck,bcthw->btkhw", self._rows.to(raw), raw)
        return _clip(F.pixel_shuffle(blocks.flatten(0, 1), BLOCK).unflatten(0, blocks.shape[:2]))

    def decode_pooled(self, latents: Float[Tensor, "B C T h2 w2"]) -> Float[Tensor, "B 3 F height width"]:
        """Decode latents averaged 2x2 in space to pixels at the full picture size.

        Averaging four blocks' frequencies does not give a picture of half the size, so this is the least-squares
        estimate of the four blocks from the 3x3 averages around them, under a picture model in which neighbouring
        pixels correlate.
        """
        raw = self._raw(latents)
        around = F.pad(raw.transpose(1, 2).flatten(0, 1), (1, 1, 1, 1), mode="replicate")
        weight = pooled_synthesis(self.config).to(raw)
        pictures = F.pixel_shuffle(F.conv2d(around, weight), 2 * BLOCK)
        return _clip(pictures.unflatten(0, (raw.shape[0], raw.shape[2])))

    def motionless(self, present: Float[Tensor, "B C 1 h w"]) -> Float[Tensor, "B C 1 h w"]:
        """Return the later latents of a clip that stays as it is: those of its first frame."""
        return present

    def _kernel(self, like: Tensor) -> tuple[Float[Tensor, "C 3 8 8"], Float[Tensor, " C"]]:
        """Return weight and bias of `encode`, cached by device and dtype: a CUDA graph must not copy from the CPU."""
        key = like.device, like.dtype
        if key not in self._kernels:
            with torch.inference_mode(False):  # training may use them later
                std = self.std.to(like)
                weight = self._rows.to(like).view(-1, 3, BLOCK, BLOCK) / std.view(-1, 1, 1, 1)
                self._kernels[key] = weight, -self.mean.to(like) / std
        return self._kernels[key]

    def _raw(self, latents: Tensor) -> Tensor:
        mean, std = (s.to(latents).view(1, -1, 1, 1, 1) for s in (self.mean, self.std))
        return latents * std + mean


def _clip(pictures: Float[Tensor, "B T 3 height width"]) -> Float[Tensor, "B 3 F height width"]:
    later = pictures[:, 1:].repeat_interleave(4, dim=1)
    return torch.cat([pictures[:, :1], later], dim=1).transpose(1, 2)


@functools.cache
def analysis(config: DctConfig) -> Float[Tensor, "C 192"]:
    """Orthonormal rows that take a block's 3 * 64 pixels (colour, row, column) to its kept coefficients."""
    n = torch.arange(BLOCK, dtype=torch.float64)
    cosine = torch.cos(math.pi * (n + 0.5) * n[:, None] / BLOCK) * math.sqrt(2 / BLOCK)
    cosine[0] /= math.sqrt(2)
    rank = sorted(((u, v) for u in range(BLOCK) for v in range(BLOCK)), key=lambda f: (f[0] + f[1], f[0]))
    waves = torch.stack([torch.outer(cosine[u], cosine[v]).flatten() for u, v in rank])
    colours = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    colours /= colours.norm(dim=1, keepdim=True)
    counts = (config.luma_channels, config.chroma_channels, config.chroma_channels)
    rows = [torch.kron(colour, wave) for colour, count in zip(colours, counts, strict=True) for wave in waves[:count]]
    return torch.stack(rows).float()


@functools.cache
def pooled_synthesis(config: DctConfig) -> Float[Tensor, "768 C 3 3"]:
    """Convolution weight from 3x3 pooled latents to the 3 * 16 * 16 pixels of the middle one (see `decode_pooled`).

    With pixels x ~ N(0, K) and pooled coefficients y = P x, the estimate is K P' (P K P')^-1 y, for each colour plane
    by itself; a strong constant component in K makes flat pictures come back exactly.
    """
    side = 2 * BLOCK
    n = torch.arange(3 * side, dtype=torch.float64)
    line = SMOOTHNESS ** (n - n[:, None]).abs()
    prior = torch.kron(line, line) + 1e3
    rows = analysis(config).double()
    weight = torch.zeros(3 * side * side, len(rows), 3, 3, dtype=torch.float64)
    counts = (config.luma_channels, config.chroma_channels, config.chroma_channels)
    middle = torch.zeros(3, 3, dtype=torch.float64)
    middle[1, 1] = 1
    inside = torch.kron(middle, torch.ones(side, side, dtype=torch.float64)).flatten().bool()
    first = 0
    for count in counts:
        kept = rows[first : first + count].view(count, 3, BLOCK, BLOCK)
        colour = kept[0].sum(dim=(1, 2)) / kept[0].sum(dim=(1, 2)).norm()
        waves = torch.einsum("c,ncij->nij", colour, kept)
        pooled = waves.repeat(1, 2, 2) / 4
        masks = torch.zeros(count, 3, 3, 3 * side, 3 * side, dtype=torch.float64)
        for i in range(3):
            for j in range(3):
                masks[:, i, j, i * side : (i + 1) * side, j * side : (j + 1) * side] = pooled
        masks = masks.flatten(3).flatten(0, 2)
        gain = torch.linalg.solve(masks @ prior @ masks.T, masks @ prior[:, inside]).T
        weight[:, first : first + count] = torch.einsum("c,pk->cpk", colour, gain).reshape(-1, count, 3, 3)
        first += count
    return weight.float()
