"""What the kernels compute, in plain torch: CPUs run this, and GPUs compare their kernels with it at first use.

B samples, S tokens a sample, D width. A vector that differs by token has one row for all tokens [1 D], or a row for the
first `clean` tokens of each sample and one for the others of each sample [1+B D]. Results of a norm may have `extra`
more columns, left unset, for the low-rank part of the product that reads them. Sums are in at least float32, rounded
once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

EPS = 1e-6
"""epsilon of the backbone's norms"""
Vectors = Float[Tensor, "_ D"]
"""a vector for each row that the tokens fall into"""


def norm(
    x: Float[Tensor, "B S D"], shift: Vectors | None, scale: Vectors | None, offset: float, clean: int, extra: int
) -> tuple[Float[Tensor, "B S wide"], Float[Tensor, "B S 2"]]:
    """Return LayerNorm(x) (offset + scale) + shift, and each token's mean and inverse deviation."""
    wide = _widened(x)
    inverse = (wide.var(dim=-1, unbiased=False, keepdim=True) + EPS).rsqrt()
    stats = torch.cat((wide.mean(dim=-1, keepdim=True), inverse), dim=-1)
    return _put(_modulated(_unit(wide, stats), shift, scale, offset, clean), x, extra), stats


def add(
    x: Float[Tensor, "B S D"], update: Float[Tensor, "B S D"], gate: Vectors | None, clean: int
) -> Float[Tensor, "B S D"]:
    """Return x + gate * update."""
    change = _widened(update)
    change = change if gate is None else change * _by_token(gate, x, clean)
    return (_widened(x) + change).to(x.dtype)


def add_norm(
    x: Float[Tensor, "B S D"],
    update: Float[Tensor, "B S D"],
    gate: Vectors | None,
    shift: Vectors | None,
    scale: Vectors | None,
    offset: float,
    clean: int,
    extra: int,
) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "B S wide"], Float[Tensor, "B S 2"]]:
    """Return `add`, and its `norm`."""
    total = add(x, update, gate, clean)
    return total, *norm(total, shift, scale, offset, clean, extra)


def norm_backward(
    grad: Float[Tensor, "B S D"],
    x: Float[Tensor, "B S D"],
    stats: Float[Tensor, "B S 2"],
    shift: Vectors,
    scale: Vectors,
    offset: float,
    residual: Float[Tensor, "B S D"],
    clean: int,
    extra: int,
) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "B S wide"]]:
    """Return residual + the gradient of x through `norm`, and the result of `norm` once more."""
    unit = _unit(_widened(x), stats)
    inner = _widened(grad) * (offset + _by_token(scale, x, clean))
    inner = inner - inner.mean(dim=-1, keepdim=True) - unit * (inner * unit).mean(dim=-1, keepdim=True)
    grad_x = (_widened(residual) + inner * stats[..., 1:]).to(x.dtype)
    return grad_x, _put(_modulated(unit, shift, scale, offset, clean), x, extra)


def gated(x: Float[Tensor, "B S D"], gate: Vectors, clean: int, extra: int) -> Float[Tensor, "B S wide"]:
    """Return gate * x."""
    return _put(_widened(x) * _by_token(gate, x, clean), x, extra)


def head_norm(
    x: Float[Tensor, "B S columns"], weight: Float[Tensor, "parts D"], rope: Float[Tensor, "S 1 pairs 2"] | None,
    num_heads: int,
) -> Float[Tensor, "B S parts heads d"]:  # fmt: skip
    """Return RoPE(RMSNorm(x) weight) of the first parts of x, queries and perhaps keys; `rope`: cosines and sines."""
    parts = x[..., : weight.numel()].unflatten(-1, weight.shape)
    normed = F.rms_norm(_widened(parts), weight.shape[1:], None, EPS) * _widened(weight)
    return _turned(normed.unflatten(-1, (num_heads, -1)), rope, 1).to(x.dtype)


def head_norm_backward(
    grads: Sequence[Float[Tensor, "B count heads d"]],
    x: Float[Tensor, "B S columns"],
    weight: Float[Tensor, "parts D"],
    rope: Float[Tensor, "S 1 pairs 2"] | None,
    start: int,
    out: Float[Tensor, "B S columns2"],
) -> None:
    """Write the gradient of x into `out`, for tokens from `start` on.

    `grads` is of queries; or of queries, keys and values; or, as well, further ones of the same keys and values.
    """
    sums = [_widened(grad) for grad in grads[:3]]
    for i, more in enumerate(grads[3:]):
        sums[1 + i] = sums[1 + i] + _widened(more)
    here = slice(start, start + grads[0].shape[1])
    angles = None if rope is None else rope[here]
    parts, width = len(weight), weight.shape[1]
    inputs = _widened(x[:, here, : weight.numel()]).unflatten(-1, weight.shape)
    inverse = (inputs.square().mean(dim=-1, keepdim=True) + EPS).rsqrt()
    unit = inputs * inverse
    inner = torch.stack([_turned(grad, angles, -1).flatten(2) for grad in sums[:parts]], dim=2) * _widened(weight)
    inner = (inner - unit * (inner * unit).mean(dim=-1, keepdim=True)) * inverse
    rest = [grad.flatten(2) for grad in sums[parts:]]
    out[:, here, : width * len(sums)] = torch.cat((inner.flatten(2), *rest), dim=-1).to(x.dtype)


def gelu_backward(
    grad: Float[Tensor, "B S F"], hidden: Float[Tensor, "B S F"], extra: int
) -> tuple[Float[Tensor, "B S wide"], Float[Tensor, "B S wide"]]:
    """Return GELU(hidden), in its tanh form, once more, and the gradient of `hidden`."""
    wide = _widened(hidden)
    inner = torch.ops.aten.gelu_backward(_widened(grad), wide, approximate="tanh")
    return _put(F.gelu(wide, approximate="tanh"), hidden, extra), _put(inner, hidden, extra)


def norm_silu(x: Float[Tensor, "B c h w"], weight: Float[Tensor, " c"], silu: bool) -> Float[Tensor, "B c h w"]:
    """Return SiLU(weight x / |x|) of channels that lie last, the length over a pixel's; or that without the SiLU."""
    normed = F.normalize(_widened(x), dim=1) * _widened(weight).view(1, -1, 1, 1)
    return (F.silu(normed) if silu else normed).to(x.dtype)


def wide(x: Tensor, extra: int) -> Tensor:
    """Return room for a result of x's rows with `extra` more columns."""
    return x.new_empty(*x.shape[:-1], x.shape[-1] + extra)


def new_stats(x: Tensor) -> Tensor:
    """Return room for each token's mean and inverse deviation."""
    return x.new_empty(*x.shape[:-1], 2, dtype=torch.promote_types(x.dtype, torch.float32))


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _by_token(vectors: Vectors, like: Float[Tensor, "B S D"], clean: int) -> Tensor:
    """Return the vector of each token."""
    vectors = _widened(vectors)
    if len(vectors) == 1:
        return vectors[None]
    batch, tokens, _ = like.shape
    first, later = vectors[:1, None].expand(batch, clean, -1), vectors[1:, None].expand(-1, tokens - clean, -1)
    return torch.cat((first, later), dim=1)


def _unit(wide: Tensor, stats: Float[Tensor, "B S 2"]) -> Tensor:
    return (wide - stats[..., :1]) * stats[..., 1:]


def _modulated(unit: Tensor, shift: Vectors | None, scale: Vectors | None, offset: float, clean: int) -> Tensor:
    if shift is None or scale is None:
        return unit
    return unit * (offset + _by_token(scale, unit, clean)) + _by_token(shift, unit, clean)


def _put(values: Tensor, like: Tensor, extra: int) -> Tensor:
    """Return values in the dtype of `like`, with further columns."""
    out = like.new_empty(*values.shape[:-1], values.shape[-1] + extra)
    out[..., : values.shape[-1]] = values
    return out


def _turned(values: Float[Tensor, "*batch d"], rope: Float[Tensor, "S 1 pairs 2"] | None, sign: int) -> Tensor:
    """Rotate pairs by angles whose cosines and sines are given; backwards where `sign` is -1."""
    if rope is None:
        return values
    rope = rope if values.ndim == 4 else rope[:, None]
    cos, sin = rope[..., 0], sign * rope[..., 1]
    first, second = values.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1).flatten(-2)
