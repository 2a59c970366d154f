"""The small parts of the transformer: norms, positions, attention, feed-forward."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor, nn

from lightwam.model.lora import linear_with_lora, make_lora

EPS = 1e-6
"""of every norm in the backbone; the expert's LayerNorms have torch's 1e-5"""


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the whole width (before heads are split), in fp32 at least, rounded once."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The same shape and, as it feeds an attention, the same dtype."""
        if x.dtype == self.weight.dtype:
            return F.rms_norm(x, self.weight.shape, self.weight, EPS)
        return F.rms_norm(at_least_float32(x), self.weight.shape, at_least_float32(self.weight), EPS).to(x.dtype)


def at_least_float32(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """fp32, or fp64 where x is: what norms and rotations compute in."""
    return x if x.dtype == torch.float64 else x.float()


def layer_norm(
    x: Float[Tensor, "*batch D"], weight: Tensor | None = None, bias: Tensor | None = None
) -> Float[Tensor, "*batch D"]:
    """LayerNorm with the backbone's epsilon."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, EPS)


def gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """GELU in its tanh form, the only one in this model."""
    return F.gelu(x, approximate="tanh")


def sinusoid(position: Float[Tensor, " n"], dim: int) -> Float[Tensor, "n dim"]:
    """Cosines, then sines, of a position at dim/2 frequencies 10000^(-i / (dim/2)); in fp64, since times reach 1000."""
    half = dim // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=position.device) / half)
    angle = position.double()[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), dim=1).float()


@lru_cache(maxsize=32)
def rope_3d(
    frames: int, rows: int, columns: int, head_dim: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Complex[Tensor, "S 1 pairs"]:
    """3-D RoPE of a grid of tokens: the turn of every token and pair of a head's dims, as a complex number of length 1.

    complex128 for weights of fp64, else complex64.

    A third of the dims turn with the row, a third with the column, the rest (which come first) with time.
    """
    with torch.inference_mode(False):  # it is kept, and may be asked for by training later
        return _rope_3d(frames, rows, columns, head_dim).to(device, torch.promote_types(dtype, torch.complex64))


def _rope_3d(frames: int, rows: int, columns: int, head_dim: int) -> Complex[Tensor, "S 1 pairs"]:
    third = head_dim // 3
    parts = []
    grid = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (frames, rows, columns)), indexing="ij")
    for position, dim in zip(grid, (head_dim - 2 * third, third, third), strict=True):
        frequency = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        parts.append(position.reshape(-1, 1) * frequency)
    angle = torch.cat(parts, dim=1)[:, None]
    return torch.polar(torch.ones_like(angle), angle)


def apply_rope(x: Float[Tensor, "B S heads d"], rope: Complex[Tensor, "S 1 pairs"]) -> Float[Tensor, "B S heads d"]:
    """Every adjacent pair of dims turned by its token's angle, in fp32 (or fp64)."""
    # One complex product took a seventh of the time of four real ones and a stack (CPU, forward and backward).
    pairs = torch.view_as_complex(at_least_float32(x).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rope).flatten(-2).to(x.dtype)


def attention(
    q: Float[Tensor, "B S heads d"], k: Float[Tensor, "B L heads d"], v: Float[Tensor, "B L heads d"]
) -> Float[Tensor, "B S D"]:
    """Softmax attention without a mask, heads joined again."""
    mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return mixed.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Projections of one attention, RMSNorm on queries and keys, LoRA beside every projection when rank > 0."""

    def __init__(self, width: int, num_heads: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Identity()])
        self.norm_q, self.norm_k = RMSNorm(width), RMSNorm(width)
        self.lora_q, self.lora_k, self.lora_v, self.lora_out = (make_lora(width, width, rank, alpha) for _ in range(4))

    def query(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S heads d"]:
        """Normed queries, split in heads."""
        return self.norm_q(linear_with_lora(self.to_q, self.lora_q, x)).unflatten(-1, (self.num_heads, -1))

    def key_value(self, x: Float[Tensor, "B S D"]) -> tuple[Float[Tensor, "B S heads d"], Float[Tensor, "B S heads d"]]:
        """Normed keys, and values, split in heads."""
        k, v = self.norm_k(linear_with_lora(self.to_k, self.lora_k, x)), linear_with_lora(self.to_v, self.lora_v, x)
        return k.unflatten(-1, (self.num_heads, -1)), v.unflatten(-1, (self.num_heads, -1))

    def out(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """The output projection."""
        return linear_with_lora(self.to_out[0], self.lora_out, x)


class Projection(nn.Module):
    """A linear under the name that diffusers gives it."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch hidden"]:
        """[..., width] -> [..., hidden]."""
        return self.proj(x)


class FeedForward(nn.Module):
    """Linear, GELU, Linear; LoRA beside both linears when rank > 0."""

    def __init__(self, width: int, hidden: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.net = nn.ModuleList([Projection(width, hidden), nn.Identity(), nn.Linear(hidden, width)])
        self.lora_in, self.lora_out = make_lora(width, hidden, rank, alpha), make_lora(hidden, width, rank, alpha)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """One token at a time."""
        hidden = gelu(linear_with_lora(self.net[0], self.lora_in, x))
        return linear_with_lora(self.net[2], self.lora_out, hidden)
