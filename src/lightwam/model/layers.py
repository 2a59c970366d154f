"""Parts of the transformer: norms, positions, attention, feed-forward."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor, nn

from lightwam.model.lora import LoRA, linear_with_lora, make_lora

EPS = 1e-6
"""epsilon of every norm in the backbone; the expert's LayerNorms have torch's 1e-5"""
Linear = Callable[[nn.Linear, LoRA | None, Tensor], Tensor]
"""computes a linear layer and its low-rank update, as `linear_with_lora` does"""


class RMSNorm(nn.Module):
    """x / rms(x) * weight over all heads together, in at least float32, rounded once."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        if x.dtype == self.weight.dtype:
            return F.rms_norm(x, self.weight.shape, self.weight, EPS)
        return F.rms_norm(at_least_float32(x), self.weight.shape, at_least_float32(self.weight), EPS).to(x.dtype)


def at_least_float32(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return x in float32, or float64 if it is: the precision of norms, rotations and losses."""
    return x if x.dtype == torch.float64 else x.float()


def layer_norm(
    x: Float[Tensor, "*batch D"], weight: Tensor | None = None, bias: Tensor | None = None
) -> Float[Tensor, "*batch D"]:
    """Apply LayerNorm with the backbone's epsilon."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, EPS)


def gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Apply GELU in its tanh form, the only one in this model."""
    return F.gelu(x, approximate="tanh")


def sinusoid(position: Float[Tensor, " n"], dim: int) -> Float[Tensor, "n dim"]:
    """Encode positions as cosines, then sines, at dim/2 frequencies 10000^(-i / (dim/2)).

    Angles are computed in float64, since times reach 1000.
    """
    half = dim // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=position.device) / half)
    angle = position.double()[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), dim=1).float()


@lru_cache(maxsize=32)
def rope_3d(
    frames: int, rows: int, columns: int, head_dim: int, device: torch.device, dtype: torch.dtype = torch.float32,
    *, first_frame: int = 0, pool: int = 1,
) -> Complex[Tensor, "S 1 pairs"]:  # fmt: skip
    """Return the 3-D rotary embedding of a grid of tokens: one rotation a token and pair of a head's dims.

    Rotations are complex numbers of length 1, complex128 for float64 weights, else complex64. Of the dims, the last
    third rotates with the column, the third before with the row, and the rest, which come first, with time. A token
    that covers `pool` x `pool` others has the position of their centre.
    """
    third, angles = head_dim // 3, []
    with torch.inference_mode(False):  # the result is cached, and training may use it later
        time, *places = (torch.arange(n, dtype=torch.float64) for n in (frames, rows, columns))
        grid = torch.meshgrid(time + first_frame, *(pool * n + (pool - 1) / 2 for n in places), indexing="ij")
        for position, dim in zip(grid, (head_dim - 2 * third, third, third), strict=True):
            frequency = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
            angles.append(position.reshape(-1, 1) * frequency)
        angle = torch.cat(angles, dim=1)[:, None]
        return torch.polar(torch.ones_like(angle), angle).to(device, torch.promote_types(dtype, torch.complex64))


def apply_rope(
    x: Float[Tensor, "B S heads d"], rope: Complex[Tensor, "S 1 pairs"] | Float[Tensor, "S 1 pairs 2"]
) -> Float[Tensor, "B S heads d"]:
    """Rotate every adjacent pair of dims by its token's angle, in at least float32.

    `rope` may be given in real numbers (torch.view_as_real), for torch.compile, which fuses them. Without it, one
    complex product takes a sixth to a third of the time of two real ones on a CPU.
    """
    pairs = at_least_float32(x).unflatten(-1, (-1, 2))
    if rope.is_complex():
        return torch.view_as_real(torch.view_as_complex(pairs) * rope).flatten(-2).to(x.dtype)
    (a, b), (cos, sin) = pairs.unbind(-1), rope.unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(x.dtype)


def patches(
    latents: Float[Tensor, "B C T2 h w"], size: tuple[int, int, int]
) -> Float[Tensor, "B T rows columns values"]:
    """Cut latents into patches, with the values in the order of a convolution's weight.

    A convolution whose stride is its kernel is a linear layer of these, which no library computes in lower precision.
    cuDNN has had wrong results for such convolutions in bfloat16 (pytorch #163539).
    """
    cut = latents.unflatten(4, (-1, size[2])).unflatten(3, (-1, size[1])).unflatten(2, (-1, size[0]))
    return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def attention(
    q: Float[Tensor, "B S heads d"],
    k: Float[Tensor, "B L heads d"],
    v: Float[Tensor, "B L heads d"],
    score_bias: Float[Tensor, "B 1 1 L"] | None = None,
) -> Float[Tensor, "B S D"]:
    """Apply softmax attention without a mask and join the heads; `score_bias` is added to the scores."""
    mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), score_bias)
    return mixed.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Projections of one attention, with RMSNorm on queries and keys, and LoRA on all of them when rank > 0."""

    def __init__(self, width: int, num_heads: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Identity()])
        self.norm_q, self.norm_k = RMSNorm(width), RMSNorm(width)
        self.lora_q, self.lora_k, self.lora_v, self.lora_out = (make_lora(width, width, rank, alpha) for _ in range(4))

    def query(self, x: Float[Tensor, "*batch D"], linear: Linear = linear_with_lora) -> Float[Tensor, "*batch heads d"]:
        """Return normed queries, split in heads."""
        return self.norm_q(linear(self.to_q, self.lora_q, x)).unflatten(-1, (self.num_heads, -1))

    def key_value(
        self, x: Float[Tensor, "*batch D"], linear: Linear = linear_with_lora
    ) -> tuple[Float[Tensor, "*batch heads d"], Float[Tensor, "*batch heads d"]]:
        """Return normed keys, and values, split in heads."""
        k, v = self.norm_k(linear(self.to_k, self.lora_k, x)), linear(self.to_v, self.lora_v, x)
        return k.unflatten(-1, (self.num_heads, -1)), v.unflatten(-1, (self.num_heads, -1))

    def out(self, x: Float[Tensor, "*batch D"], linear: Linear = linear_with_lora) -> Float[Tensor, "*batch D"]:
        """Apply the output projection."""
        return linear(cast(nn.Linear, self.to_out[0]), self.lora_out, x)


class Projection(nn.Module):
    """A linear layer under diffusers' name for it."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)


class FeedForward(nn.Module):
    """Linear, GELU, Linear, with LoRA on both linears when rank > 0."""

    def __init__(self, width: int, hidden: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.net = nn.ModuleList([Projection(width, hidden), nn.Identity(), nn.Linear(hidden, width)])
        self.lora_in, self.lora_out = make_lora(width, hidden, rank, alpha), make_lora(hidden, width, rank, alpha)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        first, second = self.linears
        return linear_with_lora(second, self.lora_out, gelu(linear_with_lora(first, self.lora_in, x)))

    @property
    def linears(self) -> tuple[nn.Linear, nn.Linear]:
        """The two linear layers."""
        return cast(Projection, self.net[0]).proj, cast(nn.Linear, self.net[2])
