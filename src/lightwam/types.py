"""Everything that crosses a module border, with shapes.

B batch, F video frames (1 + 4k), T latent frames (1 + k), H action horizon, A action dims, P state dims,
C latent channels, h w latent height and width, L text tokens, E text width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Observation:
    """What a robot or a simulator sees at one moment, in its own units."""

    frames: Mapping[str, UInt8[np.ndarray, "height width 3"]]
    """camera name -> RGB picture, upright"""
    state: Float32[np.ndarray, " P"]
    """proprioception in robot units"""
    instruction: str
    """the task as a sentence"""


class Rank(NamedTuple):
    """Which of the processes that work together this one is."""

    rank: int
    size: int


SINGLE_PROCESS = Rank(0, 1)


class Latents(NamedTuple):
    """A clip, encoded, as the loss reads it: nothing else of it need be kept."""

    present: Float[Tensor, "B C 1 h w"]
    """the first frame at full resolution"""
    clip: Float[Tensor, "B C T h2 w2"]
    """the whole clip, averaged 2x2 in space"""


@dataclass(frozen=True)
class Windows:
    """A batch of training windows as the loader gives them; state and action are normalised by the codec."""

    video: UInt8[np.ndarray, "B F height width 3"] | Latents
    """the codec's canvas, every `video_stride`-th control step; or, from a latent cache, what the encoder made of it"""
    state: Float32[np.ndarray, "B P"]
    """of the window's first step"""
    action: Float32[np.ndarray, "B H A"]
    action_is_pad: Bool[np.ndarray, "B H"]
    frame_is_pad: Bool[np.ndarray, "B F"]
    task: Int64[np.ndarray, " B"]
    """index into the dataset's task sentences"""


@dataclass(frozen=True)
class Batch:
    """What the model learns from."""

    present: Float[Tensor, "B C 1 h w"]
    """standardised latents of the first frame, at full resolution: what the action pass sees"""
    clip: Float[Tensor, "B C T h2 w2"]
    """those of the whole clip averaged 2x2 in space: what the video pass learns to foresee"""
    context: Float[Tensor, "B L E"]
    """text token states, zeros where the prompt is padded"""
    state: Float[Tensor, "B P"]
    action: Float[Tensor, "B H A"]
    action_is_pad: Bool[Tensor, "B H"]
    frame_is_pad: Bool[Tensor, "B F"]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        return Batch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    def rows(self, start: int, stop: int) -> Batch:
        """Some of its samples."""
        return Batch(*(getattr(self, field.name)[start:stop] for field in fields(self)))


class Losses(NamedTuple):
    """The joint objective and its two halves, each a scalar over the batch."""

    total: Float[Tensor, ""]
    video: Float[Tensor, ""]
    action: Float[Tensor, ""]


@runtime_checkable
class LatentCodec(Protocol):
    """Pixels <-> latents. The first frame stands alone; every further 4 frames become one latent frame."""

    channels: int
    spatial_stride: int
    temporal_stride: int

    def encode(self, pixels: Float[Tensor, "B 3 F height width"]) -> Float[Tensor, "B C T h w"]:
        """Pixels in [-1, 1] -> standardised latents; F = 1 + 4k frames give T = 1 + k."""
        ...

    def decode(self, latents: Float[Tensor, "B C T h w"]) -> Float[Tensor, "B 3 F height width"]:
        """Standardised latents -> pixels, F = 1 + 4(T - 1)."""
        ...

    def decode_pooled(self, latents: Float[Tensor, "B C T h2 w2"]) -> Float[Tensor, "B 3 F height width"]:
        """The same from latents averaged 2x2 in space (what the world model predicts), at the full picture size."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """Prompts -> token states, padding set to zero."""

    dim: int
    num_tokens: int

    def encode(self, instructions: Sequence[str]) -> Float[Tensor, "B L E"]:
        """One row of L = num_tokens states of width E = dim an instruction."""
        ...


def pool(latents: Float[Tensor, "B C T h w"]) -> Float[Tensor, "B C T h2 w2"]:
    """Latents averaged 2x2 in space, the resolution at which the future is imagined."""
    return latents.unflatten(3, (-1, 2)).unflatten(5, (-1, 2)).mean(dim=(4, 6))


def to_pixels(
    canvas: UInt8[np.ndarray, "B F height width 3"] | UInt8[Tensor, "B F height width 3"],
) -> Float32[Tensor, "B 3 F height width"]:
    """Canvases -> model input in [-1, 1]: (x / 255 - 0.5) / 0.5."""
    if isinstance(canvas, np.ndarray):
        canvas = torch.from_numpy(canvas if canvas.flags.writeable else canvas.copy())
    moved = canvas.permute(0, 4, 1, 2, 3)
    return moved.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 127.5).sub_(1)
