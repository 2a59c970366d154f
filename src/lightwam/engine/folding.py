"""Linear layers with their surroundings folded in: LoRA, the affine part of the norm before, the gate after.

The algebra is exact, summed in at least float32 and rounded once, to the dtype that the engine computes in:

    gate * (W (scale * x + shift) + b + up(down(scale * x + shift)))  =  W' x + b'

In 8 bits (`Int8`, `Int8Product`) the rounding is coarser, and the engine no longer exact. A LoRA update too small to
survive rounding is kept unmerged. Folded layers are plain objects: a small model on a CPU would spend half its time in
the attribute lookups of nn.Module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from jaxtyping import Int8 as Int8Tensor
from torch import Tensor, nn

from lightwam.model.layers import at_least_float32, gelu
from lightwam.model.lora import LoRA
from lightwam.system import cpu

MIN_EFFECT_KEPT = 0.95
"""an update is merged if rounding leaves at least this share of its effect, and at most the inverse"""

PACKED_FROM = 2**20
"""smallest weight, in elements, that is packed; smaller ones gain nothing"""

INT8_FROM = 2**11
"""smallest weight, in elements, that is kept in 8 bits; smaller ones save nothing"""

Part = tuple[nn.Linear, LoRA | None]
"""a linear layer and its low-rank update"""


class Placement(NamedTuple):
    """Device and dtype in which the engine computes."""

    device: torch.device
    dtype: torch.dtype
    int8: bool = False
    """keep the weights of linear layers in 8 bits, which is not exact"""

    @property
    def packs(self) -> bool:
        """Whether oneDNN's own layout makes products faster: on a CPU, in a dtype that it multiplies in hardware."""
        if self.device.type != "cpu" or not torch.backends.mkldnn.is_available():
            return False
        return self.dtype == torch.float32 or (self.dtype == torch.bfloat16 and cpu.has_bfloat16())

    @property
    def multiplies_int8(self) -> bool:
        """Whether layers in 8 bits multiply integers, rather than convert their weights to floats at every call."""
        return self.int8 and self.packs and cpu.has_int8_products()

    def wide(self, x: Tensor) -> Tensor:
        """Return x on the engine's device in at least float32: folding computes there, a layer at a time."""
        return at_least_float32(x.detach().to(self.device))

    def put(self, x: Tensor) -> Tensor:
        """Return a copy in the engine's dtype on its device."""
        return x.detach().to(self.device, self.dtype, copy=True)

    def put_float32(self, x: Tensor) -> Tensor:
        """Return a copy on the engine's device in at least float32."""
        return x.detach().to(self.device, torch.promote_types(self.dtype, torch.float32), copy=True)


class Folded:
    """x W' + b', plus `down` and `up` of an update that is kept unmerged."""

    def __init__(
        self,
        weight: Float[Tensor, "*stack m n"] | Int8Tensor[Tensor, "_ _"],
        bias: Float[Tensor, "*stack m"],
        down: Float[Tensor, "*stack r n"] | None = None,
        up: Float[Tensor, "*stack m r"] | None = None,
    ) -> None:
        self.weight, self.bias, self.down, self.up = weight, bias, down, up

    def __call__(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        return self._with_update(F.linear(x, self.weight, self.bias), x)

    def gelu(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """Return GELU of the layer's output."""
        return gelu(self(x))

    def _with_update(self, y: Float[Tensor, "*batch m"], x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        return y if self.down is None or self.up is None else y + F.linear(F.linear(x, self.down), self.up)


class Packed(Folded):
    """`Folded` with its weight in oneDNN's own layout, on a CPU: 10 % faster at the paper's sizes, more in bfloat16."""

    def __call__(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        y = torch.ops.mkldnn._linear_pointwise(x.contiguous(), self.weight, self.bias, "none", [], "")
        return self._with_update(y, x)

    def gelu(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """Return GELU of the layer's output; in bfloat16 within the product, as torch's own takes as long."""
        if self.down is not None or x.dtype != torch.bfloat16:
            return super().gelu(x)
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), self.weight, self.bias, "gelu", [], "tanh")


class Int8(Folded):
    """`Folded` with its weight as integers from -127 to 127 and one scale a row: a quarter of float32's memory."""

    def __init__(
        self, placement: Placement, weight: Float[Tensor, "m n"], bias: Float[Tensor, " m"], *update: Tensor
    ) -> None:
        integers, scale = to_int8(weight)
        super().__init__(integers.to(placement.device), bias, *update)
        self.scale = placement.put_float32(scale)

    def __call__(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        return self._with_update(F.linear(x, self.weight.to(x.dtype)).mul_(self.scale).add_(self.bias), x)


class Int8Product(Folded):
    """`Folded` as a product of integers, on a CPU: weights as in `Int8`, each token rounded with a scale of its own."""

    def __init__(
        self, placement: Placement, weight: Float[Tensor, "m n"], bias: Float[Tensor, " m"], *update: Tensor
    ) -> None:
        integers, scale = to_int8(weight)
        super().__init__(cpu.pack_int8(integers), bias, *update)
        self.scale = placement.put_float32(scale)

    def __call__(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        integers, scale = round_tokens(x.flatten(0, -2))
        y = torch.addcmul(self.bias, cpu.int8_product(integers, self.weight, self.scale, x.dtype), scale)
        return self._with_update(y.view(*x.shape[:-1], -1), x)

    def gelu(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """Return GELU of the layer's output, in the form with erf.

        It takes a fifth of the other's time and differs by at most 5e-4: the result is rounded to steps 20 times as
        large.
        """
        return F.gelu(self(x))


class Stack(Folded):
    """Several `Folded` layers of the same widths: every tensor has one more dimension, the first."""

    def __call__(self, x: Float[Tensor, "B n"]) -> Float[Tensor, "layers B m"]:
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
    """Fold layers over the same input into one, their outputs concatenated.

    `plain`: neither packed nor in 8 bits, as `stack` requires.
    """
    weight = torch.cat([placement.wide(layer.weight) for layer, _ in parts])
    bias = torch.cat([placement.wide(layer.bias) for layer, _ in parts])
    updates = low_rank([lora for _, lora in parts], weight)
    scale = torch.ones_like(weight[0]) if scale is None else placement.wide(scale)
    gate = torch.ones_like(bias) if gate is None else placement.wide(gate)
    if shift is not None:
        shift = placement.wide(shift)
        bias = bias + weight @ shift
        if updates is not None:
            bias = bias + updates[1] @ (updates[0] @ shift)
    base, bias = gate[:, None] * weight * scale, placement.put(gate * bias)
    placement = placement._replace(int8=placement.int8 and not plain and weight.numel() >= INT8_FROM)
    if updates is None:
        return make_linear(placement, base, bias, plain=plain)
    down, up = updates[0] * scale, gate[:, None] * updates[1]
    update = up @ down
    if survives_rounding(placement, base, update):
        return make_linear(placement, base + update, bias, plain=plain)
    return make_linear(placement, base, bias, placement.put(down), placement.put(up), plain=plain)


def make_linear(
    placement: Placement, weight: Float[Tensor, "m n"], bias: Float[Tensor, " m"], *update: Tensor, plain: bool
) -> Folded:
    """Return the folded layer of the fitting kind: in 8 bits, packed where that is faster, or plain."""
    if placement.int8:
        return (Int8Product if placement.multiplies_int8 else Int8)(placement, weight, bias, *update)
    weight = placement.put(weight)
    if not plain and weight.numel() >= PACKED_FROM and placement.packs:
        return Packed(torch.ops.mkldnn._reorder_linear_weight(weight), bias, *update)
    return Folded(weight, bias, *update)


def to_int8(weight: Float[Tensor, "m n"]) -> tuple[Int8Tensor[Tensor, "m n"], Float[Tensor, " m"]]:
    """Return the nearest integers, and the scale of each row."""
    scale = weight.abs().amax(dim=1).clamp_min(torch.finfo(weight.dtype).tiny) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def round_tokens(x: Float[Tensor, "tokens n"]) -> tuple[UInt8[Tensor, "tokens n"], Float[Tensor, "tokens 1"]]:
    """Return the nearest integers, 128 added to each, and the scale of each token, in few passes over x.

    The largest number of a token becomes about 126: in bfloat16 the scale may be rounded by 1/256 of itself, and with
    127 the largest integer would then be 128, which int8 does not have.
    """
    inverse = 126 / x.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
    integers = (x * inverse).round_().to(torch.int8)
    # torch's conversion to int8 is vectorised, that to uint8 is not
    return integers.bitwise_xor_(-128).view(torch.uint8), 1 / inverse


def stack(layers: Sequence[Folded]) -> Stack:
    """Stack plain layers of the same widths over the same input."""
    weight, bias = (torch.stack([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
    rank = max(0 if layer.down is None else len(layer.down) for layer in layers)
    if not rank:
        return Stack(weight, bias)
    zeros = weight.new_zeros(rank, weight.shape[2]), weight.new_zeros(weight.shape[1], rank)
    updates = [zeros if layer.down is None or layer.up is None else (layer.down, layer.up) for layer in layers]
    return Stack(weight, bias, *(torch.stack(side) for side in zip(*updates, strict=True)))


def low_rank(
    updates: Sequence[LoRA | None], weight: Float[Tensor, "m n"]
) -> tuple[Float[Tensor, "r n"], Float[Tensor, "m r"]] | None:
    """Return `down` and `up` of all updates as one; each update covers an equal share of the rows of `weight`."""
    present = [lora for lora in updates if lora is not None]
    if not present:
        return None
    empty = weight.new_zeros(len(weight) // len(updates), 0)
    downs = [at_least_float32(lora.down.weight.detach().to(weight.device)) for lora in present]
    ups = [
        empty if lora is None else at_least_float32(lora.up.weight.detach().to(weight.device)) * lora.scale
        for lora in updates
    ]
    return torch.cat(downs), torch.block_diag(*ups)


def survives_rounding(placement: Placement, base: Float[Tensor, "m n"], update: Float[Tensor, "m n"]) -> bool:
    """Tell whether the rounded weights still differ by about the update, measured along its direction."""
    size = update.square().sum()
    if size == 0:
        return True
    moved = quantised(placement, base + update) - quantised(placement, base)
    kept = float((moved * update).sum() / size)
    return MIN_EFFECT_KEPT <= kept <= 1 / MIN_EFFECT_KEPT


def quantised(placement: Placement, weight: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """Return a weight as rounded by `placement`, in at least float32."""
    if not placement.int8:
        return at_least_float32(weight.to(placement.dtype))
    integers, scale = to_int8(weight)
    return integers * scale[:, None]


def tensors(folded: Any) -> list[Tensor]:
    """Return all tensors of a folded object, nested ones included; their size is the engine's memory."""
    if isinstance(folded, Tensor):
        return [folded]
    if isinstance(folded, dict):
        return tensors(list(folded.values()))
    parts = folded if isinstance(folded, list | tuple) else getattr(folded, "__dict__", {}).values()
    return [tensor for part in parts for tensor in tensors(part)]
