"""What a policy acts with: the plain model, or an engine folded from it (`lightwam.engine.engine.Engine`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lightwam.model.light_wam import LightWAM
from lightwam.types import LatentCodec, to_pixels


@runtime_checkable
class Actor(Protocol):
    """Maps canvases, instructions and normalised states to chunks of normalised actions."""

    device: torch.device
    description: str
    """dtype and device, such as "bfloat16 on cuda, by the engine\""""

    @property
    def plain(self) -> PlainActor | None:
        """The actor by the plain model, which also imagines; None for an engine, which only acts."""
        ...

    def act(
        self, canvas: UInt8[Tensor, "B height width 3"], instructions: Sequence[str], state: Float[Tensor, "B P"]
    ) -> Float[Tensor, "B H A"]:
        """Return one chunk a sample. Canvases and states may lie on any device."""
        ...

    def warm(
        self,
        batch_sizes: Sequence[int],
        canvas: UInt8[Tensor, "1 height width 3"],
        instructions: Sequence[str],
        state: Float[Tensor, "1 P"],
    ) -> None:
        """Do what a GPU would otherwise do when the first batches of these sizes arrive."""
        ...


class PlainActor:
    """The plain model with its encoders."""

    def __init__(
        self, model: LightWAM, latents: LatentCodec, states: Callable[[Sequence[str]], Float[Tensor, "B L E"]]
    ) -> None:
        """`model` is used where it is, in its dtype. `states` returns the token states of instructions."""
        self.model, self.latents, self.states = model.eval(), latents, states
        self.device = next(model.parameters()).device
        self.description = f"{str(model.dtype).removeprefix('torch.')} on {self.device.type}"

    @property
    def plain(self) -> PlainActor:
        """This actor itself."""
        return self

    @torch.inference_mode()
    def act(
        self, canvas: UInt8[Tensor, "B height width 3"], instructions: Sequence[str], state: Float[Tensor, "B P"]
    ) -> Float[Tensor, "B H A"]:
        """Return one chunk a sample."""
        return self.model.act(*self.encode(canvas, instructions, state))

    def warm(
        self,
        batch_sizes: Sequence[int],
        canvas: UInt8[Tensor, "1 height width 3"],
        instructions: Sequence[str],
        state: Float[Tensor, "1 P"],
    ) -> None:
        """Act once for each batch size on a GPU, where libraries start and choose kernels then; nothing on a CPU."""
        if self.device.type != "cpu" and instructions:
            for size in batch_sizes:
                self.act(canvas.expand(size, -1, -1, -1), [instructions[0]] * size, state.expand(size, -1))

    def encode(
        self, canvas: UInt8[Tensor, "B height width 3"], instructions: Sequence[str], state: Float[Tensor, "B P"]
    ) -> tuple[Float[Tensor, "B C 1 h w"], Float[Tensor, "B L E"], Float[Tensor, "B P"]]:
        """Return the model's inputs: latents of the present, text states and state."""
        latent = self.latents.encode(to_pixels(canvas[:, None]).to(self.device))
        return latent, self.states(instructions).to(self.device), state.to(self.device)
