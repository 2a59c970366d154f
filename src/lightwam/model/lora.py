"""Low-rank updates of linear layers, kept apart from the weights that they update."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LoRA(nn.Module):
    """up(down(x)) * alpha / rank, added to a linear layer's output; `up` starts at zero, so the layer is unchanged."""

    def __init__(self, in_width: int, out_width: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.down = nn.Linear(in_width, rank, bias=False)
        self.up = nn.Linear(rank, out_width, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        return self.up(self.down(x)) * self.scale

    def update(self) -> Float[Tensor, "m n"]:
        """Return what merging adds to the layer's weight, in float32, so that a merged weight is rounded once."""
        with torch.autocast(self.up.weight.device.type, enabled=False):
            return self.up.weight.float() @ self.down.weight.float() * self.scale


def make_lora(in_width: int, out_width: int, rank: int, alpha: float) -> LoRA | None:
    """Return a LoRA for a layer of these widths; None at rank 0."""
    return LoRA(in_width, out_width, rank, alpha) if rank else None


def linear_with_lora(linear: nn.Linear, lora: LoRA | None, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
    """Apply a linear layer and its low-rank update, if it has one."""
    return linear(x) if lora is None else linear(x) + lora(x)
