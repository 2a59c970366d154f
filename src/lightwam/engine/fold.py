"""Linear layers with what stands around them folded in: LoRA, the affine part of a norm before, a gate behind.

All of it is exact algebra, summed in float32 (or float64) and rounded once, to the dtype that the engine computes in:

    gate * (W (scale * x + shift) + b + up(down(scale * x + shift)))  =  W' x + b'

An update too small for that dtype would be lost in the rounding; such a one stays apart. Folded layers are plain
objects, not modules: a small model on a CPU spends half its time in looking things up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightwam.model.layers import Projection, wide
from lightwam.model.lora import LoRA

KEPT = 0.95
"""an update is merged when rounding leaves at least this much of its effect, and at most its inverse"""

PACKED_FROM = 2**20
"""elements of a weight; smaller ones gain nothing"""

Part = tuple[nn.Module, LoRA | None]
"""a linear layer and its low-rank update"""


class Place(NamedTuple):
    """Where the engine computes, and in what."""

    device: torch.device
    dtype: torch.dtype

    def put(self, x: Tensor) -> Tensor:
        """A tensor there, rounded once, in memory of its own."""
        return x.detach().to(self.device, self.dtype, copy=True)

    def put_wide(self, x: Tensor) -> Tensor:
        """A tensor there, in float32 or, where the engine computes in it, float64."""
        return x.detach().to(self.device, torch.promote_types(self.dtype, torch.float32), copy=True)


class Folded:
    """x W' + b', and down and up of an update that had to stay apart."""

    __slots__ = ("bias", "down", "up", "weight")

    def __init__(
        self,
        weight: Float[Tensor, "*stack m n"],
        bias: Float[Tensor, "*stack m"],
        down: Float[Tensor, "*stack r n"] | None = None,
        up: Float[Tensor, "*stack m r"] | None = None,
    ) -> None:
        self.weight, self.bias, self.down, self.up = weight, bias, down, up

    def __call__(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """[..., n] -> [..., m]."""
        y = F.linear(x, self.weight, self.bias)
        return y if self.down is None or self.up is None else y + F.linear(F.linear(x, self.down), self.up)


class Packed(Folded):
    """`Folded` in the order in which oneDNN reads its weight, on a CPU: a tenth sooner at the paper's sizes."""

    __slots__ = ()

    def __call__(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """[..., n] -> [..., m]."""
        y = torch.ops.mkldnn._linear_pointwise(x.contiguous(), self.weight, self.bias, "none", [], "")
        return y if self.down is None or self.up is None else y + F.linear(F.linear(x, self.down), self.up)


class Stack(Folded):
    """Layers of the same widths side by side: every tensor of `Folded` has a first dim more."""

    __slots__ = ()

    def __call__(self, x: Float[Tensor, "B n"]) -> Float[Tensor, "layers B m"]:
        """The same input to each of them."""
        x = x.expand(len(self.weight), *x.shape)
        y = torch.baddbmm(self.bias[:, None], x, self.weight.mT)
        return y if self.down is None or self.up is None else y + (x @ self.down.mT) @ self.up.mT


def fold(
    parts: Sequence[Part],
    place: Place,
    *,
    scale: Float[Tensor, " n"] | None = None,
    shift: Float[Tensor, " n"] | None = None,
    gate: Float[Tensor, " m"] | None = None,
    packed: bool = True,
) -> Folded:
    """Layers over the same input as one, their outputs one behind the other; `packed` where that pays."""
    linears = [cast(nn.Linear, layer.proj if isinstance(layer, Projection) else layer) for layer, _ in parts]
    weight = torch.cat([wide(layer.weight.detach()) for layer in linears])
    bias = torch.cat([wide(layer.bias.detach()) for layer in linears])
    updates = low_rank([lora for _, lora in parts], weight)
    scale = torch.ones_like(weight[0]) if scale is None else wide(scale.detach())
    gate = torch.ones_like(bias) if gate is None else wide(gate.detach())
    if shift is not None:
        shift = wide(shift.detach())
        bias = bias + weight @ shift
        if updates is not None:
            bias = bias + updates[1] @ (updates[0] @ shift)
    base, bias = gate[:, None] * weight * scale, place.put(gate * bias)
    if updates is None:
        return layer(place, base, bias, packed=packed)
    down, up = updates[0] * scale, gate[:, None] * updates[1]
    merged = (base + up @ down).to(place.dtype)
    if survives(merged, base, up @ down):
        return layer(place, merged, bias, packed=packed)
    return layer(place, base, bias, place.put(down), place.put(up), packed=packed)


def layer(
    place: Place, weight: Float[Tensor, "m n"], bias: Float[Tensor, " m"], *apart: Tensor, packed: bool
) -> Folded:
    """A folded layer for its place: packed for the CPU where that pays and this torch can."""
    weight = place.put(weight)
    large = packed and weight.numel() >= PACKED_FROM and place == (torch.device("cpu"), torch.float32)
    if large and torch.backends.mkldnn.is_available() and getattr(torch.ops.mkldnn, "_linear_pointwise", None):
        return Packed(torch.ops.mkldnn._reorder_linear_weight(weight), bias, *apart)
    return Folded(weight, bias, *apart)


def stack(layers: Sequence[Folded]) -> Stack:
    """Layers of the same widths over the same input."""
    weight, bias = (torch.stack([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
    rank = max(0 if layer.down is None else len(layer.down) for layer in layers)
    if not rank:
        return Stack(weight, bias)
    none = weight.new_zeros(rank, weight.shape[2]), weight.new_zeros(weight.shape[1], rank)
    apart = [none if layer.down is None or layer.up is None else (layer.down, layer.up) for layer in layers]
    return Stack(weight, bias, *(torch.stack(side) for side in zip(*apart, strict=True)))


def low_rank(
    updates: Sequence[LoRA | None], weight: Float[Tensor, "m n"]
) -> tuple[Float[Tensor, "r n"], Float[Tensor, "m r"]] | None:
    """down and up of all updates as one; each is of as many rows of `weight` as the others."""
    given = [lora for lora in updates if lora is not None]
    if not given:
        return None
    nothing = weight.new_zeros(len(weight) // len(updates), 0)
    ups = [nothing if lora is None else wide(lora.up.weight.detach()) * lora.scale for lora in updates]
    return torch.cat([wide(lora.down.weight.detach()) for lora in given]), torch.block_diag(*ups)


def survives(merged: Float[Tensor, "m n"], base: Float[Tensor, "m n"], update: Float[Tensor, "m n"]) -> bool:
    """Whether rounding leaves the update's effect: its projection on what the rounded weights differ by."""
    size = update.square().sum()
    if size == 0:
        return True
    moved = wide(merged) - wide(base.to(merged.dtype))
    kept = float((moved * update).sum() / size)
    return KEPT <= kept <= 1 / KEPT


def tensors(folded: Any) -> list[Tensor]:
    """All tensors that a folded object holds, in its lists and tables too."""
    if isinstance(folded, Tensor):
        return [folded]
    if isinstance(folded, list | tuple):
        return [tensor for one in folded for tensor in tensors(one)]
    if isinstance(folded, dict):
        return tensors(list(folded.values()))
    names = [
        *getattr(folded, "__dict__", {}),
        *(n for kind in type(folded).__mro__ for n in getattr(kind, "__slots__", ())),
    ]
    return [tensor for name in names for tensor in tensors(getattr(folded, name))] if names else []
