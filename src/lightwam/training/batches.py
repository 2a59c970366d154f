"""The loader's windows as the input of training steps: encoded, with the noise of the video pass, on the device."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightwam.config.schema import TrainConfig
from lightwam.data.codec import Codec
from lightwam.data.loader import WindowLoader
from lightwam.encoders.frozen import encode_clips
from lightwam.training.distributed import World
from lightwam.types import Batch, LatentCodec, Latents, Windows

ON_DEVICE = 2**30
"""bytes of text states that a GPU keeps; nearly every episode may have its own sentence, of 1 MiB with UMT5"""


@dataclass(frozen=True)
class BatchEncoder:
    """Encodes the loader's windows as the model's batches."""

    codec: Codec
    latents: LatentCodec | None
    """None if the windows come from a cache of latents"""
    prompts: Float[Tensor, "tasks L E"]
    """text states of every task sentence of the dataset"""
    is_token: Bool[Tensor, "tasks L"]
    """which of them are not padding, on the CPU"""
    device: torch.device | str = "cpu"
    """where latents are made, and text states are gathered if they are few"""

    @classmethod
    def of(cls, codec: Codec, latents: LatentCodec | None, prompts: Float[Tensor, "tasks L E"]) -> BatchEncoder:
        """Return the encoder for these states of the sentences."""
        return cls(codec, latents, prompts, prompts.any(dim=2))

    def to(self, device: torch.device, dtype: torch.dtype) -> BatchEncoder:
        """Return an encoder for `device`, with text states in `dtype`; more than ON_DEVICE of these stay on the CPU."""
        prompts = self.prompts.to(dtype)
        few = prompts.numel() * prompts.element_size() <= ON_DEVICE
        return replace(self, prompts=prompts.to(device) if few else prompts, device=device)

    def encode(self, windows: Windows, has_video: Bool[np.ndarray, " B"] | None = None) -> Batch:
        """Encode the loader's windows as the model's input: pictures to latents, task indices to text states.

        `has_video` is the loader's: clips of the other samples are 0. None: all samples have a video pass. New
        latents are on `device`, text states on that of `prompts`, all else is on the CPU.
        """
        video, task = windows.video, torch.from_numpy(windows.task)
        if not isinstance(video, Latents):
            assert self.latents is not None
            video = encode_clips(self.latents, video, has_video, self.device)
        return Batch(
            present=video.present,
            clip=video.clip,
            context=self.prompts.index_select(0, task.to(self.prompts.device, non_blocking=True)),
            state=torch.from_numpy(windows.state),
            action=torch.from_numpy(windows.action),
            action_is_pad=torch.from_numpy(windows.action_is_pad),
            frame_is_pad=torch.from_numpy(windows.frame_is_pad),
            is_token=self.is_token[task],
        )


class StepInput(NamedTuple):
    """The input of one training step, of this process's samples."""

    batch: Batch
    u: Float[Tensor, " B"]
    noise: Float[Tensor, "B C T h2 w2"]


class BatchStream:
    """The inputs of a training's steps, one after the other.

    On a GPU a thread makes the next one while a step runs: it encodes the loader's windows, draws the noise and copies
    both, so that the GPU does not wait for the CPU. `wait_seconds` is the time that `next` waited for data.
    """

    def __init__(
        self,
        loader: WindowLoader,
        encoder: BatchEncoder,
        settings: TrainConfig,
        world: World,
        *,
        ahead: bool | None = None,
    ) -> None:
        """`ahead` says whether the thread is used; None: on a GPU."""
        self.loader, self.settings, self.world = loader, settings, world
        self.encoder = encoder.to(world.device, getattr(torch, settings.precision))
        ahead = world.device.type == "cuda" if ahead is None else ahead
        self._thread = ThreadPoolExecutor(1, "batches", self._enter_thread) if ahead else None
        self._next: Future[tuple[StepInput, dict[str, Any]]] | None = None
        self._state, self._waited = loader.state_dict(), 0.0

    def next(self, step: int) -> StepInput:
        """Return the input of `step`, which must be one more than at the call before."""
        if self._thread is None:
            made, self._state = self._make(step)
            return made
        began = time.perf_counter()
        future = self._next or self._thread.submit(self._make, step)
        made, self._state = future.result()
        self._next = self._thread.submit(self._make, step + 1)
        self._waited += time.perf_counter() - began
        return made

    @property
    def wait_seconds(self) -> float:
        """The seconds that `next` has waited for data in all."""
        return self.loader.wait_seconds if self._thread is None else self._waited

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's state after the batch that was returned last."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches that `state` counts, before the first `next`."""
        self.loader.load_state_dict(state)
        self._state = self.loader.state_dict()

    def close(self) -> None:
        """Stop the threads."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self.loader.close()

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _make(self, step: int) -> tuple[StepInput, dict[str, Any]]:
        """Return the input of a step, and the loader's state after it."""
        device = self.world.device
        batch = self.encoder.encode(self.loader.next(), self.loader.has_video)
        if device.type == "cuda":
            batch = batch.pin_memory()
        batch = batch.to(device)
        draws = flow_draw(self.settings.seed, step, self.settings.batch_size, batch.clip, self.world.process.rank)
        return StepInput(batch, *draws), self.loader.state_dict()

    def _enter_thread(self) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.set_device(self.world.device)  # which is a thread's own


def flow_draw(
    seed: int, step: int, batch_size: int, clip: Float[Tensor, "B C T h2 w2"], rank: int = 0
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B C T h2 w2"]]:
    """Draw the flow's uniform numbers (stratified over the batch: every step has all noise levels) and its noise.

    They are drawn on the CPU for all `batch_size` samples of the step; process `rank` gets the rows of its `clip`, on
    its device.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    u = (torch.arange(batch_size) + torch.rand(batch_size, generator=generator)) / batch_size
    u = u[torch.randperm(batch_size, generator=generator)].clamp(1e-4, 1 - 1e-4)
    noise = torch.randn(batch_size, *clip.shape[1:], generator=generator)
    ours = slice(rank * len(clip), (rank + 1) * len(clip))
    return _sent(u[ours], clip.device), _sent(noise[ours], clip.device)


def _sent(value: Tensor, device: torch.device) -> Tensor:
    """Copy to a device; to a GPU without waiting for it."""
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)
