"""Linear layers with what stands around them folded in: LoRA, the affine part of a norm before, a gate behind.

All of it is exact algebra, summed in float32 (or float64) and rounded once, to the dtype that the engine computes in:

    gate * (W (scale * x + shift) + b + up(down(scale * x + shift)))  =  W' x + b'

With weights in 8 bits (`Int8`) the rounding is coarser, and the engine no longer exact.

An update too small for that dtype would be lost in the rounding; such a one stays apart. Folded layers are plain
objects, not modules: a small model on a CPU spends half its time in looking things up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from jaxtyping import Int8 as Int8Tensor
from torch import Tensor, nn

from lightwam.model.layers import Projection, at_least_float32
from lightwam.model.lora import LoRA

MIN_EFFECT_KEPT = 0.95
"""an update is merged when rounding leaves at least this much of its effect, and at most its inverse"""

PACKED_FROM = 2**20
"""elements of a weight; smaller ones gain nothing"""

INT8_FROM = 2**11
"""elements of a weight; smaller ones save nothing"""

Part = tuple[nn.Module, LoRA | None]
"""a linear layer and its low-rank update"""


class Placement(NamedTuple):
    """Where the engine computes, and in what."""

    device: torch.device
    dtype: torch.dtype
    int8: bool = False
    """keep the weights of linear layers in 8 bits, which is not exact"""

    def put(self, x: Tensor) -> Tensor:
        """A tensor there, rounded once, in memory of its own."""
        return x.detach().to(self.device, self.dtype, copy=True)

    def put_float32(self, x: Tensor) -> Tensor:
        """A tensor there, in float32 or, where the engine computes in it, float64."""
        return x.detach().to(self.device, torch.promote_types(self.dtype, torch.float32), copy=True)


class Folded:
    """x W' + b', and down and up of an update that had to stay apart."""

    __slots__ = ("bias", "down", "up", "weight")

    def __init__(
        self,
        weight: Float[Tensor, "*stack m n"] | Int8Tensor[Tensor, "m n"],
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


class Int8(Folded):
    """`Folded`, its weight kept as whole numbers of -127 to 127 and one scale a row: a quarter of float32's memory."""

    __slots__ = ("scale",)

    def __init__(
        self, placement: Placement, weight: Float[Tensor, "m n"], bias: Float[Tensor, " m"], *apart: Tensor
    ) -> None:
        whole, scale = to_int8(weight)
        super().__init__(whole.to(placement.device), bias, *apart)
        self.scale = placement.put_float32(scale)

    def __call__(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """[..., n] -> [..., m]."""
        y = F.linear(x, self.weight.to(x.dtype)).mul_(self.scale).add_(self.bias)
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
    placement: Placement,
    *,
    scale: Float[Tensor, " n"] | None = None,
    shift: Float[Tensor, " n"] | None = None,
    gate: Float[Tensor, " m"] | None = None,
    plain: bool = False,
) -> Folded:
    """Layers over the same input as one, their outputs one behind the other.

    `plain`: neither packed nor in 8 bits, so that `stack` may take it.
    """
    linears = [cast(nn.Linear, layer.proj if isinstance(layer, Projection) else layer) for layer, _ in parts]
    weight = torch.cat([at_least_float32(layer.weight.detach()) for layer in linears])
    bias = torch.cat([at_least_float32(layer.bias.detach()) for layer in linears])
    updates = low_rank([lora for _, lora in parts], weight)
    scale = torch.ones_like(weight[0]) if scale is None else at_least_float32(scale.detach())
    gate = torch.ones_like(bias) if gate is None else at_least_float32(gate.detach())
    if shift is not None:
        shift = at_least_float32(shift.detach())
        bias = bias + weight @ shift
        if updates is not None:
            bias = bias + updates[1] @ (updates[0] @ shift)
    base, bias = gate[:, None] * weight * scale, placement.put(gate * bias)
    placement = placement._replace(int8=placement.int8 and not plain and weight.numel() >= INT8_FROM)
    if updates is None:
        return layer(placement, base, bias, plain=plain)
    down, up = updates[0] * scale, gate[:, None] * updates[1]
    update = up @ down
    if survives_rounding(placement, base, update):
        return layer(placement, base + update, bias, plain=plain)
    return layer(placement, base, bias, placement.put(down), placement.put(up), plain=plain)


def layer(
    placement: Placement, weight: Float[Tensor, "m n"], bias: Float[Tensor, " m"], *apart: Tensor, plain: bool
) -> Folded:
    """A folded layer for its place: in 8 bits, packed for a CPU where that pays, or as it is."""
    if placement.int8:
        return Int8(placement, weight, bias, *apart)
    weight = placement.put(weight)
    large = not plain and weight.numel() >= PACKED_FROM and placement[:2] == (torch.device("cpu"), torch.float32)
    if large and torch.backends.mkldnn.is_available():
        return Packed(torch.ops.mkldnn._reorder_linear_weight(weight), bias, *apart)
    return Folded(weight, bias, *apart)


def to_int8(weight: Float[Tensor, "m n"]) -> tuple[Int8Tensor[Tensor, "m n"], Float[Tensor, " m"]]:
    """The nearest whole numbers, and what one of them is worth in each row."""
    scale = weight.abs().amax(dim=1).clamp_min(torch.finfo(weight.dtype).tiny) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


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
    ups = [nothing if lora is None else at_least_float32(lora.up.weight.detach()) * lora.scale for lora in updates]
    return torch.cat([at_least_float32(lora.down.weight.detach()) for lora in given]), torch.block_diag(*ups)


def survives_rounding(placement: Placement, base: Float[Tensor, "m n"], update: Float[Tensor, "m n"]) -> bool:
    """Whether rounding leaves the update's effect: its projection on what the rounded weights differ by."""
    size = update.square().sum()
    if size == 0:
        return True
    moved = quantised(placement, base + update) - quantised(placement, base)
    kept = float((moved * update).sum() / size)
    return MIN_EFFECT_KEPT <= kept <= 1 / MIN_EFFECT_KEPT


def quantised(placement: Placement, weight: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """What a place keeps of a weight."""
    if not placement.int8:
        return at_least_float32(weight.to(placement.dtype))
    whole, scale = to_int8(weight)
    return whole * scale[:, None]


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
