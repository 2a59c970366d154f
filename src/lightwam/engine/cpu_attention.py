"""Attention for training on a CPU with bfloat16 units: it keeps its probabilities, so its backward pass is products.

torch's attention on a CPU saves memory: its backward pass computes the probabilities again, in small products. Forward
and backward together took 14.1 ms there and 8.8 here (AMX units, one thread, 392 tokens, 12 heads of 128). In float32
both took the same time. Scores are computed in float32; probabilities and their gradients are rounded: at that size
gradients are as exact as torch's, at small ones torch rounds less.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from lightwam.model import layers
from lightwam.system.cpu import has_bfloat16


def attention(
    q: Float[Tensor, "B S heads d"], k: Float[Tensor, "B L heads d"], v: Float[Tensor, "B L heads d"]
) -> Float[Tensor, "B S D"]:
    """Compute `layers.attention`, by `KeptAttention` where it is faster."""
    if q.dtype != torch.bfloat16 or q.device.type != "cpu" or not has_bfloat16():
        return layers.attention(q, k, v)
    size, heads = len(q), q.shape[2]
    by_head = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    mixed = cast(Tensor, KeptAttention.apply(*by_head))
    return mixed.unflatten(0, (size, heads)).transpose(1, 2).flatten(2)


class KeptAttention(torch.autograd.Function):
    """softmax(q k' / sqrt(d)) v of each head, which keeps the softmax for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # q [N, S, d], k and v [N, L, d] -> [N, S, d]
        ctx.scale = q.shape[2] ** -0.5
        scores = torch.bmm(q.float(), k.float().mT).mul_(ctx.scale)
        weights = scores.softmax(dim=2).to(v.dtype)
        ctx.save_for_backward(q, k, v, weights)
        return torch.bmm(weights, v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of q, k and v."""
        q, k, v, weights = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_weights = torch.bmm(grad, v.mT)
        grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, 2, weights.dtype)
        grad_q = torch.bmm(grad_scores, k).mul_(ctx.scale)
        grad_k = torch.bmm(grad_scores.mT, q).mul_(ctx.scale)
        return grad_q, grad_k, torch.bmm(weights.mT, grad)
