"""Runs the kernels: the functions of `plain.py`, with the same arguments, results and names.

Tensors are on one GPU, or on the CPU where Triton's interpreter is on. What is not contiguous is copied first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightwam.kernels import gpu_code, plain
from lightwam.kernels.plain import EPS

GELU_BLOCK = 1024
"""columns of a program of the GELU's backward pass"""
PIXEL_NUMBERS = 2048
"""numbers of a program of the frame encoder's norm"""


def norm(
    x: Tensor, shift: Tensor | None, scale: Tensor | None, offset: float, clean: int, extra: int
) -> tuple[Tensor, Tensor]:
    """Run `add_norm` without an update."""
    return add_norm(x, None, None, shift, scale, offset, clean, extra)[1:]


def add(x: Tensor, update: Tensor, gate: Tensor | None, clean: int) -> Tensor:
    """Run `add_norm` without a norm."""
    x, update = x.contiguous(), update.contiguous()
    total = torch.empty_like(x)
    given = x, update, gate, None, None, total, None, None, x.shape[1], clean, _stride(gate), 0, 0
    run(gpu_code.add_norm, (_rows(x),), given, {**_columns(x), "OFFSET": 0.0, "EPS": EPS})
    return total


def add_norm(
    x: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    offset: float,
    clean: int,
    extra: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `add_norm`; without an update the total is x itself."""
    x, update = x.contiguous(), None if update is None else update.contiguous()
    total = x if update is None else torch.empty_like(x)
    normed, stats = plain.wide(x, extra), plain.new_stats(x)
    given = (
        *(x, update, gate, shift, scale, total, normed, stats),
        *(x.shape[1], clean, _stride(gate), _stride(scale), normed.stride(-2)),
    )
    run(gpu_code.add_norm, (_rows(x),), given, {**_columns(x), "OFFSET": offset, "EPS": EPS})
    return total, normed, stats


def norm_backward(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    shift: Tensor,
    scale: Tensor,
    offset: float,
    residual: Tensor,
    clean: int,
    extra: int,
) -> tuple[Tensor, Tensor]:
    """Run `norm_backward`."""
    grad, x, residual = grad.contiguous(), x.contiguous(), residual.contiguous()
    grad_x, normed = torch.empty_like(x), plain.wide(x, extra)
    given = (
        *(grad, x, stats, shift, scale, residual, grad_x, normed),
        *(x.shape[1], clean, _stride(scale), normed.stride(-2)),
    )
    run(gpu_code.norm_backward, (_rows(x),), given, {**_columns(x), "OFFSET": offset})
    return grad_x, normed


def gated(x: Tensor, gate: Tensor, clean: int, extra: int) -> Tensor:
    """Run `gated`."""
    x = x.contiguous()
    out = plain.wide(x, extra)
    run(gpu_code.gated, (_rows(x),), (x, gate, out, x.shape[1], clean, _stride(gate), out.stride(-2)), _columns(x))
    return out


def head_norm(x: Tensor, weight: Tensor, rope: Tensor | None, num_heads: int) -> Tensor:
    """Run `head_norm`, a program for each token and part."""
    x = x.contiguous()
    parts, width = weight.shape
    out = x.new_empty(*x.shape[:-1], parts, num_heads, width // num_heads)
    constants = {**_heads(num_heads, width), "EPS": EPS}
    run(gpu_code.head_norm, (_rows(x), parts), (x, weight, rope, out, x.shape[1], x.stride(-2)), constants)
    return out


def head_norm_backward(
    grads: Sequence[Tensor], x: Tensor, weight: Tensor, rope: Tensor | None, start: int, out: Tensor
) -> None:
    """Run `head_norm_backward`, a program for each token and part."""
    width, (batch, count, num_heads, _) = weight.shape[1], grads[0].shape
    q, (k, v), (more_k, more_v) = grads[0].contiguous(), _alike(grads[1:3]), _alike(grads[3:])
    strides = (0 if k is None else k.stride(0)), (0 if more_k is None else more_k.stride(0))
    given = (
        *(q, k, v, more_k, more_v, x, weight, rope, out),
        *(count, start, x.shape[1], *strides, x.stride(-2), out.stride(-2)),
    )
    grid = batch * count, len(grads[:3])
    run(gpu_code.head_norm_backward, grid, given, {**_heads(num_heads, width), "EPS": EPS})


def gelu_backward(grad: Tensor, hidden: Tensor, extra: int) -> tuple[Tensor, Tensor]:
    """Run `gelu_backward`."""
    grad, hidden = grad.contiguous(), hidden.contiguous()
    after, grad_hidden = plain.wide(hidden, extra), plain.wide(hidden, extra)
    width = hidden.shape[-1]
    block = min(GELU_BLOCK, triton.next_power_of_2(width))
    given, constants = (grad, hidden, after, grad_hidden, after.stride(-2)), {"WIDTH": width, "BLOCK": block}
    run(gpu_code.gelu_backward, (_rows(hidden), triton.cdiv(width, block)), given, constants)
    return after, grad_hidden


def norm_silu(x: Tensor, weight: Tensor, silu: bool) -> Tensor:
    """Run `norm_silu`."""
    x = x.contiguous(memory_format=torch.channels_last)
    out, channels, num_pixels = torch.empty_like(x), x.shape[1], x.numel() // x.shape[1]
    block = triton.next_power_of_2(channels)
    pixels = max(1, PIXEL_NUMBERS // block)
    constants = {"CHANNELS": channels, "PIXELS": pixels, "BLOCK": block, "SILU": silu}
    run(gpu_code.norm_silu, (triton.cdiv(num_pixels, pixels),), (x, weight, out, num_pixels), constants)
    return out


def run(kernel: Any, grid: tuple[int, ...], given: Sequence[Any], constants: Mapping[str, Any]) -> None:
    """Launch a kernel on the device of its tensors."""
    first: Tensor = given[0]
    compute = tl.float64 if first.dtype == torch.float64 else tl.float32
    if first.device.type == "cuda":
        with torch.cuda.device(first.device):
            kernel[grid](*given, **constants, COMPUTE=compute)
    else:
        kernel[grid](*given, **constants, COMPUTE=compute)


def _rows(x: Tensor) -> int:
    return x.shape[0] * x.shape[1]


def _columns(x: Tensor) -> dict[str, int]:
    return {"WIDTH": x.shape[-1], "BLOCK": triton.next_power_of_2(x.shape[-1])}


def _heads(num_heads: int, width: int) -> dict[str, int]:
    dim = width // num_heads
    powers = {"HEADS2": triton.next_power_of_2(num_heads), "DIM2": triton.next_power_of_2(dim)}
    return {"HEADS": num_heads, "DIM": dim, **powers}


def _stride(vectors: Tensor | None) -> int:
    """Return the distance of a table's rows; 0 where all tokens share one."""
    return 0 if vectors is None or len(vectors) == 1 else vectors.stride(0)


def _alike(grads: Sequence[Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """Return gradients of keys and values [B, count, heads, d] of equal strides, tokens side by side."""
    if not grads:
        return None, None
    one, two = grads
    ready = one.stride() == two.stride() and one[0].is_contiguous()
    return (one, two) if ready else (one.contiguous(), two.contiguous())
