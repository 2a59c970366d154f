"""The data that packages exchange, with shapes.

B batch, F video frames (1 + 4k), T latent frames (1 + k), H action horizon, A action dims, P state dims,
C latent channels, h w latent height and width, L text tokens, E text width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Observation:
    """One observation of a robot or a simulator, in its own units."""

    frames: Mapping[str, UInt8[np.ndarray, "height width 3"]]
    """camera name -> upright RGB picture"""
    state: Float32[np.ndarray, " P"]
    """proprioception in robot units"""
    instruction: str
    """the task as a sentence"""
    episode: int | None = None
    """a number that no other episode has, not even one with the same seed; None: unknown"""
    step: int | None = None
    """control steps since the episode began; None: unknown"""
    history: tuple[Observation, ...] = ()
    """the observations of the control steps before, oldest first, for policies that ask for them"""


class Rank(NamedTuple):
    """This process's rank and the number of processes."""

    rank: int
    size: int


SINGLE_PROCESS = Rank(0, 1)


class Latents(NamedTuple):
    """An encoded clip: all that the loss needs of it."""

    present: Float[Tensor, "B C 1 h w"]
    """the first frame at full resolution"""
    clip: Float[Tensor, "B C T h2 w2"]
    """the whole clip, averaged 2x2 in space"""


@dataclass(frozen=True)
class Windows:
    """A batch of training windows from the loader; state and action are normalised by the codec."""

    video: UInt8[np.ndarray, "B F height width 3"] | Latents
    """the codec's canvas at every `video_stride`-th control step; or, from a latent cache, its latents"""
    state: Float32[np.ndarray, "B P"]
    """at the window's first step"""
    action: Float32[np.ndarray, "B H A"]
    action_is_pad: Bool[np.ndarray, "B H"]
    """past the episode's end, or without an action to learn from: not part of the action loss"""
    frame_is_pad: Bool[np.ndarray, "B F"]
    """past the episode's end; all True: the sample is not part of the video loss"""
    task: Int64[np.ndarray, " B"]
    """index into the dataset's task sentences"""


@dataclass(frozen=True)
class Batch:
    """A batch that the model is trained on."""

    present: Float[Tensor, "B C 1 h w"]
    """standardised latents of the first frame at full resolution, the input of the action pass"""
    clip: Float[Tensor, "B C T h2 w2"]
    """standardised latents of all frames averaged 2x2 in space, which the video pass learns to predict"""
    context: Float[Tensor, "B L E"]
    """text token states, zeros where the prompt is padded"""
    state: Float[Tensor, "B P"]
    action: Float[Tensor, "B H A"]
    action_is_pad: Bool[Tensor, "B H"]
    """steps that are not part of the action loss; where all are, the sample's loss is 0 and the others' is the same"""
    frame_is_pad: Bool[Tensor, "B F"]
    """frames that are not part of the video loss, likewise"""
    is_token: Bool[Tensor, "B L"] | None = None
    """positions of `context` that are not padding. It stays on the CPU, where sizes follow from it without waiting for
    a GPU. None: they are read from `context`."""

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on `device`; `is_token` stays where it is."""
        return self._each(lambda name, value: value if name == "is_token" else value.to(device, non_blocking=True))

    def rows(self, start: int, stop: int) -> Batch:
        """Return the samples from `start` to `stop`."""
        return self._each(lambda name, value: value[start:stop])

    def pin_memory(self) -> Batch:
        """Return the batch in memory from which a GPU copies while the program goes on."""
        return self._each(lambda name, value: value.pin_memory() if value.device.type == "cpu" else value)

    def _each(self, change: Callable[[str, Tensor], Tensor]) -> Batch:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{name: change(name, value) for name, value in given.items() if value is not None})


class Losses(NamedTuple):
    """The joint objective and its two parts, each a mean over all samples of the batch, or all that have a video pass.

    A sample that is not part of a loss counts as 0, so it never changes what another sample's loss weighs.
    """

    total: Float[Tensor, ""]
    video: Float[Tensor, ""]
    action: Float[Tensor, ""]


@runtime_checkable
class LatentCodec(Protocol):
    """An encoder of pixels and its inverse. The first frame has a latent frame, every further 4 frames share one."""

    channels: int
    spatial_stride: int
    temporal_stride: int

    def encode(self, pixels: Float[Tensor, "B 3 F height width"]) -> Float[Tensor, "B C T h w"]:
        """Encode pixels in [-1, 1] as standardised latents; F = 1 + 4k frames give T = 1 + k."""

    def decode(self, latents: Float[Tensor, "B C T h w"]) -> Float[Tensor, "B 3 F height width"]:
        """Decode standardised latents to pixels, F = 1 + 4(T - 1)."""

    def with_frames_in(self, dtype: torch.dtype) -> LatentCodec:
        """Return the same latents with single frames encoded in `dtype`, where that is faster."""

    def decode_pooled(self, latents: Float[Tensor, "B C T h2 w2"]) -> Float[Tensor, "B 3 F height width"]:
        """Decode latents averaged 2x2 in space, as the world model predicts them, at the full picture size."""

    def motionless(self, present: Float[Tensor, "B C 1 h w"]) -> Float[Tensor, "B C 1 h w"]:
        """Return the later latents of a clip that stays as it is, averaged or not, from those of its first frame."""


@runtime_checkable
class TextEncoder(Protocol):
    """An encoder of prompts to token states; padding is zero."""

    dim: int
    num_tokens: int

    def encode(self, instructions: Sequence[str]) -> Float[Tensor, "B L E"]:
        """Encode every instruction as L = num_tokens states of width E = dim."""
        ...


def pool(latents: Float[Tensor, "B C T h w"]) -> Float[Tensor, "B C T h2 w2"]:
    """Average latents 2x2 in space, to the resolution at which the future is predicted."""
    return latents.unflatten(3, (-1, 2)).unflatten(5, (-1, 2)).mean(dim=(4, 6))


def to_pixels(
    canvas: UInt8[np.ndarray, "B F height width 3"] | UInt8[Tensor, "B F height width 3"],
) -> Float32[Tensor, "B 3 F height width"]:
    """Convert canvases to model input in [-1, 1]: (x / 255 - 0.5) / 0.5."""
    if isinstance(canvas, np.ndarray):
        canvas = torch.from_numpy(canvas if canvas.flags.writeable else canvas.copy())
    moved = canvas.permute(0, 4, 1, 2, 3)
    return moved.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 127.5).sub_(1)
