"""LoRA over frozen weights with little memory traffic: two autograd functions that add in place.

Neither computes a gradient for the frozen weight. On a GPU the feed-forward keeps one hidden activation instead of two.
The update as further columns of one product, as in fused_block.py, took 1.03 to 1.06 of this time on a CPU, even where
x and weight lay ready for it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightwam.model.layers import FeedForward, gelu
from lightwam.model.lora import LoRA, linear_with_lora

Grads = tuple[Tensor | None, ...]


def linear(layer: nn.Linear, lora: LoRA | None, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
    """Compute `linear_with_lora`, by `LoraLinear` where the layer is frozen and has LoRA."""
    if lora is None or layer.weight.requires_grad:
        return linear_with_lora(layer, lora, x)
    flat = x.reshape(-1, x.shape[-1])
    y = LoraLinear.apply(flat, layer.weight, layer.bias, lora.down.weight, lora.up.weight, lora.scale)
    return cast(Tensor, y).view(*x.shape[:-1], -1)


def feed_forward(ffn: FeedForward, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """Compute `ffn(x)`, by `LoraFeedForward` where it is frozen and has LoRA."""
    first, second = ffn.linears
    if ffn.lora_in is None or ffn.lora_out is None or first.weight.requires_grad:
        return ffn(x)
    flat = x.reshape(-1, x.shape[-1])
    parts = ((first, ffn.lora_in), (second, ffn.lora_out))
    weights = [(layer.weight, layer.bias, lora.down.weight, lora.up.weight, lora.scale) for layer, lora in parts]
    return cast(Tensor, LoraFeedForward.apply(flat, *weights[0], *weights[1])).view(x.shape)


class LoraLinear(torch.autograd.Function):
    """x W' + b + scale (x down') up', with gradients for x, down and up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
        # x [N, n], weight [m, n], bias [m], down [r, n], up [m, r] -> [N, m]
        y, low = low_rank_forward(x, weight, bias, down, up, scale)
        ctx.save_for_backward(x, low, weight, down, up)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Grads:
        """Return one gradient an input."""
        x, low, weight, down, up = ctx.saved_tensors
        grad_x, grad_down, grad_up = low_rank_backward(
            grads[0], x, low, weight, down, up, ctx.scale, ctx.needs_input_grad[0]
        )
        return grad_x, None, None, grad_down, grad_up, None


class LoraFeedForward(torch.autograd.Function):
    """Linear, GELU, linear, each with LoRA; on a GPU the backward pass computes the activation after the GELU again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parts: Any) -> Tensor:
        # x [N, n] and, for each linear, weight, bias, down, up, scale -> [N, n]
        first, second = parts[:5], parts[5:]
        hidden, low1 = low_rank_forward(x, *first)
        after = gelu(hidden)
        y, low2 = low_rank_forward(after, *second)
        kept = after if x.device.type == "cpu" else None  # a CPU takes as long for it as for half of a product
        ctx.save_for_backward(x, low1, hidden, low2, first[0], *first[2:4], second[0], *second[2:4], kept)
        ctx.scales = first[4], second[4]
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Grads:
        """Return one gradient an input."""
        x, low1, hidden, low2, weight1, down1, up1, weight2, down2, up2, kept = ctx.saved_tensors
        scale1, scale2 = ctx.scales
        after = gelu(hidden) if kept is None else kept
        grad, grad_down2, grad_up2 = low_rank_backward(grads[0], after, low2, weight2, down2, up2, scale2, True)
        del after
        grad = torch.ops.aten.gelu_backward(grad, hidden, approximate="tanh")
        grad_x, grad_down1, grad_up1 = low_rank_backward(
            grad, x, low1, weight1, down1, up1, scale1, ctx.needs_input_grad[0]
        )
        return grad_x, None, None, grad_down1, grad_up1, None, None, None, grad_down2, grad_up2, None


def low_rank_forward(
    x: Tensor, weight: Tensor, bias: Tensor, down: Tensor, up: Tensor, scale: float
) -> tuple[Float[Tensor, "N m"], Float[Tensor, "N r"]]:
    """Return the layer's output, and the low-rank activation that its backward pass needs."""
    low = _product(x, down.t())
    return _product(x, weight.t(), bias, low, up.t(), scale), low


def low_rank_backward(
    grad: Tensor, x: Tensor, low: Tensor, weight: Tensor, down: Tensor, up: Tensor, scale: float, wants_x: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the gradients of x (or None), down and up."""
    grad = grad.contiguous()
    grad_low = _scaled(grad, up, scale)
    grad_x = _product(grad, weight, None, grad_low, down, 1.0) if wants_x else None
    return grad_x, _product(grad_low.t(), x), _scaled(grad.t(), low, scale)


def _scaled(a: Float[Tensor, "N n"], b: Float[Tensor, "n m"], scale: float) -> Float[Tensor, "N m"]:
    """Return scale a b in one product."""
    return a.new_empty(len(a), b.shape[1]).addmm_(a, b, beta=0, alpha=scale)


def _product(
    a: Float[Tensor, "N n"],
    b: Float[Tensor, "n m"],
    bias: Float[Tensor, " m"] | None = None,
    low: Float[Tensor, "N r"] | None = None,
    up: Float[Tensor, "r m"] | None = None,
    scale: float = 1.0,
) -> Float[Tensor, "N m"]:
    """Return a b + bias + scale low up, adding in place."""
    y = a @ b if bias is None else torch.addmm(bias, a, b)
    if low is not None and up is not None:
        y.addmm_(low, up, alpha=scale)
    return y
