"""Latents fitted on a dataset's own pictures: principal components of 8x8 blocks, on the Wan VAE's grid.

Like those of `dct` they are a linear code without pretrained weights, but its rows are measured instead of fixed. The
first frame of a clip has the components of a single picture. Of every further four frames, the mean has the first of
the same components, so that what stands still keeps its latents; the other channels hold the components of how the
four frames differ. The rows are orthonormal over a block's four frames, so decoding is their transpose.

Latents averaged 2x2 in space are decoded in two steps: a linear map, fitted on the same pictures, from the 3x3 averages
around a place to the latents of its four blocks, then the blocks themselves.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from lightwam.config.schema import PcaConfig
from lightwam.config.strict_json import from_dict
from lightwam.errors import ConfigError
from lightwam.types import pool, to_pixels

BLOCK = 8
STRIDE = 4
"""frames that share a latent frame"""
PIXELS = 3 * BLOCK**2
"""values of a block in one frame: colour, row, column"""
SMALLEST_STD = 1e-3
"""a channel that never changes stays finite"""
RIDGE = 1e-3
"""of the map from averaged latents, as a share of their variance"""
CLIPS_AT_ONCE = 16


@dataclass(frozen=True)
class Components:
    """The fitted numbers of `PcaLatents`: C channels, of which the last M are motion in a later latent."""

    mean: Float[Tensor, " 192"]
    """of a block in one frame"""
    spatial: Float[Tensor, "C 192"]
    """rows over one frame, orthonormal"""
    motion: Float[Tensor, "M 768"]
    """rows over four frames, orthonormal, also to the first C - M spatial rows of their mean"""
    std: Float[Tensor, " C"]
    """deviations of a single picture's coefficients"""
    motion_std: Float[Tensor, " M"]
    """deviations of the coefficients of motion"""
    first_upsampling: Float[Tensor, "C4 C 3 3"]
    """a convolution from averaged latents of a first frame to the latents of four blocks"""
    later_upsampling: Float[Tensor, "C4 C 3 3"]
    """the same of a later latent"""


@dataclass(frozen=True)
class _Stored:
    """`Components` as JSON: the arrays' float32 numbers, little-endian, in base64."""

    mean: str
    spatial: str
    motion: str
    std: str
    motion_std: str
    first_upsampling: str
    later_upsampling: str


class PcaLatents:
    """Implements `LatentCodec`; a channel is a principal component, the strongest first."""

    spatial_stride = BLOCK
    temporal_stride = STRIDE

    def __init__(self, config: PcaConfig, components: Components, where: str = "PcaLatents") -> None:
        """`components` were measured by `fit`; errors name `where` as their source."""
        self.config, self.components, self.channels = config, components, config.channels
        for name, shape in shapes(config).items():
            numbers = getattr(components, name)
            if tuple(numbers.shape) != shape or not numbers.isfinite().all():
                got = f"{name} {tuple(numbers.shape)}, finite: {bool(numbers.isfinite().all())}"
                raise ConfigError(
                    "components must be finite and fit the channels", where=where, got=got, expected=shape
                )
        if (smallest := min(float(components.std.min()), float(components.motion_std.min()))) <= 0:
            raise ConfigError("deviations must be positive", where=where, got=smallest)
        self._cached: dict[tuple[torch.device, torch.dtype], _Kernels] = {}

    @classmethod
    def fit(cls, config: PcaConfig, clips: UInt8[np.ndarray, "N 5 height width 3"]) -> PcaLatents:
        """Return latents fitted on clips of five frames, as far apart as those that the model predicts."""
        sizes, kept = shapes(config), config.channels - config.motion_channels
        single = _Moments.of(_single_blocks(clips))
        spatial, power = single.principal()
        lifted = (spatial[:kept] / math.sqrt(STRIDE)).repeat(1, STRIDE)
        centre = single.mean.repeat(STRIDE)
        rest = _Moments.of(x - (x @ lifted.T) @ lifted for x in (blocks - centre for blocks in _later_blocks(clips)))
        change = rest.principal()[0][: config.motion_channels]
        motion = _upright(torch.linalg.qr(torch.cat((lifted, change)).T).Q.T[kept:])
        numbers = {
            "mean": single.mean,
            "spatial": spatial[: config.channels],
            "motion": motion,
            "std": power[: config.channels].clamp_min(0).sqrt().clamp_min(SMALLEST_STD),
            "motion_std": (motion @ rest.covariance * motion).sum(1).clamp_min(0).sqrt().clamp_min(SMALLEST_STD),
        }
        numbers |= {name: torch.zeros(shape) for name, shape in sizes.items() if name not in numbers}
        first = cls(config, Components(**{name: value.float() for name, value in numbers.items()}))
        latents = torch.cat([first.encode(pixels) for pixels in _pixels(clips)])
        upsampling = [upsample_fit(latents[:, :, k]) for k in (0, 1)]
        components = replace(first.components, first_upsampling=upsampling[0], later_upsampling=upsampling[1])
        return cls(config, components)

    def to_dict(self) -> dict[str, str]:
        """Return the components as JSON values, which `from_dict` reads."""
        named = {field.name: getattr(self.components, field.name) for field in fields(Components)}
        return {name: base64.b64encode(value.numpy().astype("<f4").tobytes()).decode() for name, value in named.items()}

    @classmethod
    def from_dict(cls, config: PcaConfig, data: Any, where: str = "latents") -> PcaLatents:
        """Read `to_dict`'s values; ConfigError when a key is unknown, missing or not an array of its size."""
        stored, numbers = from_dict(_Stored, data, where), {}
        for name, shape in shapes(config).items():
            try:
                array = np.frombuffer(base64.b64decode(getattr(stored, name), validate=True), "<f4").reshape(shape)
            except ValueError as error:
                what = "latents must be float32 numbers in base64"
                raise ConfigError(what, where=f"{where}.{name}", got=str(error), expected=shape) from error
            numbers[name] = torch.from_numpy(array.astype(np.float32))
        return cls(config, Components(**numbers), where)

    def encode(self, pixels: Float[Tensor, "B 3 F height width"]) -> Float[Tensor, "B C T h w"]:
        """Encode pixels in [-1, 1] to standardised latents; ConfigError unless F = 1 + 4k and 8 divides the sides."""
        frames, height, width = pixels.shape[2:]
        if frames % STRIDE != 1 or height % BLOCK or width % BLOCK:
            got = f"{frames} frames of {height}x{width}"
            raise ConfigError("a clip must have 1 + 4k frames, sides multiples of 8", where="latents", got=got)
        kernels = self._kernels(pixels)
        first = F.conv2d(pixels[:, :, 0], *kernels.first, stride=BLOCK)[:, :, None]
        if frames == 1:
            return first
        groups = pixels[:, :, 1:].unflatten(2, (-1, STRIDE)).permute(0, 2, 3, 1, 4, 5)  # B T 4 3 height width
        later = F.conv2d(groups.flatten(2, 3).flatten(0, 1), *kernels.later, stride=BLOCK)
        return torch.cat((first, later.unflatten(0, groups.shape[:2]).transpose(1, 2)), dim=2)

    def with_frames_in(self, dtype: torch.dtype) -> PcaLatents:
        """Return these latents: a frame is one small product."""
        return self

    def decode(self, latents: Float[Tensor, "B C T h w"]) -> Float[Tensor, "B 3 F height width"]:
        """Decode standardised latents to pixels: the transpose of `encode`'s rows."""
        kernels = self._kernels(latents)
        first = torch.einsum("bchw,ck->bkhw", latents[:, :, 0], kernels.first_synthesis)
        first = F.pixel_shuffle(first + kernels.mean[:, None, None], BLOCK)[:, :, None]
        later = torch.einsum("bcthw,ck->btkhw", latents[:, :, 1:], kernels.later_synthesis)
        later = later + kernels.mean.repeat(STRIDE)[:, None, None]
        frames = F.pixel_shuffle(later, BLOCK).unflatten(2, (STRIDE, 3)).flatten(1, 2).transpose(1, 2)
        return torch.cat((first, frames), dim=2)

    def decode_pooled(self, latents: Float[Tensor, "B C T h2 w2"]) -> Float[Tensor, "B 3 F height width"]:
        """Decode latents averaged 2x2 in space to pixels at the full picture size: of four blocks the likeliest."""
        first, later = (
            weight.to(latents) for weight in (self.components.first_upsampling, self.components.later_upsampling)
        )
        parts = [_upsampled(latents[:, :, :1], first), _upsampled(latents[:, :, 1:], later)]
        return self.decode(torch.cat(parts, dim=2))

    def motionless(self, present: Float[Tensor, "B C 1 h w"]) -> Float[Tensor, "B C 1 h w"]:
        """Return the later latents of a clip that stays as it is: no motion in place of the finer detail."""
        kept = self.channels - self.config.motion_channels
        return torch.cat((present[:, :kept], torch.zeros_like(present[:, kept:])), dim=1)

    def _kernels(self, like: Tensor) -> _Kernels:
        """Return the weights for tensors such as `like`: cached, as a CUDA graph must not copy from the CPU."""
        key = like.device, like.dtype
        if key not in self._cached:
            with torch.inference_mode(False):  # training may use them later
                self._cached[key] = _Kernels.of(self.components, like)
        return self._cached[key]


@dataclass(frozen=True)
class _Kernels:
    """Weights of `encode` and `decode`, standardisation included."""

    first: tuple[Float[Tensor, "C 3 8 8"], Float[Tensor, " C"]]
    later: tuple[Float[Tensor, "C 12 8 8"], Float[Tensor, " C"]]
    first_synthesis: Float[Tensor, "C 192"]
    later_synthesis: Float[Tensor, "C 768"]
    mean: Float[Tensor, " 192"]

    @classmethod
    def of(cls, components: Components, like: Tensor) -> _Kernels:
        spatial, std, motion = components.spatial, components.std[:, None], components.motion
        motion_std, kept = components.motion_std[:, None], len(spatial) - len(motion)
        still = (spatial[:kept]).repeat(1, STRIDE)
        first = spatial / std
        later = torch.cat((still / STRIDE / std[:kept], motion / motion_std))
        mean = components.mean
        return cls(
            first=(first.view(-1, 3, BLOCK, BLOCK).to(like), -(first @ mean).to(like)),
            later=(later.view(-1, 3 * STRIDE, BLOCK, BLOCK).to(like), -(later @ mean.repeat(STRIDE)).to(like)),
            first_synthesis=(spatial * std).to(like),
            later_synthesis=torch.cat((still * std[:kept], motion * motion_std)).to(like),
            mean=mean.to(like),
        )


@dataclass(frozen=True)
class _Moments:
    """First and second moments of blocks."""

    mean: Float64[Tensor, " K"]
    covariance: Float64[Tensor, "K K"]

    @classmethod
    def of(cls, chunks: Iterable[Float64[Tensor, "n K"]]) -> _Moments:
        count, total, product = 0, torch.zeros(()), torch.zeros(())
        for blocks in chunks:
            count, total, product = count + len(blocks), total + blocks.sum(0), product + blocks.T @ blocks
        mean = total / count
        return cls(mean, product / count - torch.outer(mean, mean))

    def principal(self) -> tuple[Float64[Tensor, "K K"], Float64[Tensor, " K"]]:
        """Return the principal components as rows and their variances, the largest first."""
        power, rows = torch.linalg.eigh(self.covariance)
        return _upright(rows.T.flip(0)), power.flip(0)


def shapes(config: PcaConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each of `Components`; ConfigError when there cannot be such channels."""
    channels, motion = config.channels, config.motion_channels
    if not 1 <= motion < channels <= PIXELS:
        what, got = "latents must have 1 <= motion_channels < channels", f"{motion} of {channels}"
        raise ConfigError(what, where="latents", got=got, expected=f"at most {PIXELS} channels")
    upsampling = 4 * channels, channels, 3, 3
    return {
        "mean": (PIXELS,),
        "spatial": (channels, PIXELS),
        "motion": (motion, STRIDE * PIXELS),
        "std": (channels,),
        "motion_std": (motion,),
        "first_upsampling": upsampling,
        "later_upsampling": upsampling,
    }


def upsample_fit(latents: Float[Tensor, "N C h w"]) -> Float[Tensor, "C4 C 3 3"]:
    """Return the map from 3x3 averages to the four latents of the middle, by least squares."""
    channels = latents.shape[1]
    normal, target = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for some in latents.double().split(CLIPS_AT_ONCE):
        around = F.unfold(_padded(pool(some[:, :, None])[:, :, 0]), 3).transpose(1, 2).flatten(0, 1)
        four = F.pixel_unshuffle(some, 2).permute(0, 2, 3, 1).flatten(0, 2)
        normal, target = normal + around.T @ around, target + around.T @ four
    normal.diagonal().mul_(1 + RIDGE).add_(SMALLEST_STD)
    return torch.linalg.solve(normal, target).T.reshape(4 * channels, channels, 3, 3).float()


def _upsampled(latents: Float[Tensor, "B C T h2 w2"], weight: Float[Tensor, "C4 C 3 3"]) -> Float[Tensor, "B C T h w"]:
    flat = F.pixel_shuffle(F.conv2d(_padded(latents.transpose(1, 2).flatten(0, 1)), weight), 2)
    return flat.unflatten(0, (len(latents), latents.shape[2])).transpose(1, 2)


def _padded(latents: Float[Tensor, "N C h w"]) -> Float[Tensor, "N C h2 w2"]:
    return F.pad(latents, (1, 1, 1, 1), mode="replicate")


def _upright(rows: Tensor) -> Tensor:
    """Return the rows with their largest value positive, so that equal data gives equal rows everywhere."""
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return torch.where(largest < 0, -rows, rows)


def _pixels(clips: UInt8[np.ndarray, "N 5 height width 3"]) -> Iterator[Float[Tensor, "n 3 5 height width"]]:
    """Yield a few clips at a time, as all may be gigabytes."""
    for start in range(0, len(clips), CLIPS_AT_ONCE):
        yield to_pixels(clips[start : start + CLIPS_AT_ONCE])


def _single_blocks(clips: UInt8[np.ndarray, "N 5 height width 3"]) -> Iterator[Float64[Tensor, "n 192"]]:
    """Yield the blocks of first frames and of the means of the others."""
    for pixels in _pixels(clips):
        for frame in (pixels[:, :, 0], pixels[:, :, 1:].mean(2)):
            yield F.pixel_unshuffle(frame, BLOCK).permute(0, 2, 3, 1).flatten(0, 2).double()


def _later_blocks(clips: UInt8[np.ndarray, "N 5 height width 3"]) -> Iterator[Float64[Tensor, "n 768"]]:
    """Yield the blocks of the four later frames."""
    for pixels in _pixels(clips):
        frames = pixels[:, :, 1:].transpose(1, 2).flatten(1, 2)
        yield F.pixel_unshuffle(frames, BLOCK).permute(0, 2, 3, 1).flatten(0, 2).double()
