"""The kernels' code, in Triton's language; `launch.py` runs it and `plain.py` says what each computes.

A program handles one token, or a few pixels of a picture, and reads each number once. Numbers are widened to COMPUTE
(float32, or float64) and rounded once, when they are stored. Arguments in capitals are known when a kernel is compiled.
A pointer that is None is left out. Only GPUs and tests import this module.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _row(token, num_tokens, clean):
    """Row of the modulation: 0 for the first `clean` tokens of a sample, then one for each sample."""
    return tl.where(token % num_tokens < clean, 0, 1 + token // num_tokens)


@triton.jit
@no_type_check
def add_norm(
    x, update, gate, shift, scale, total, normed, stats, num_tokens, clean, gate_stride, scale_stride, out_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, OFFSET: tl.constexpr, EPS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """total = x + gate update;  normed = LayerNorm(total) (OFFSET + scale) + shift;  stats = mean, 1 / deviation."""
    i = tl.program_id(0).to(tl.int64)
    row = _row(i, num_tokens, clean)
    c = tl.arange(0, BLOCK)
    inside = c < WIDTH
    values = tl.load(x + i * WIDTH + c, mask=inside, other=0.0)
    if update is not None:
        change = tl.load(update + i * WIDTH + c, mask=inside, other=0.0).to(COMPUTE)
        if gate is not None:
            change *= tl.load(gate + row * gate_stride + c, mask=inside, other=0.0).to(COMPUTE)
        values = (values.to(COMPUTE) + change).to(values.dtype)  # normed as rounded, as the backward pass reads it
        tl.store(total + i * WIDTH + c, values, mask=inside)
    if normed is not None:
        wide = values.to(COMPUTE)
        mean = tl.sum(wide, 0) / WIDTH
        centred = tl.where(inside, wide - mean, 0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / WIDTH + EPS)
        out = centred * inverse
        if scale is not None:
            factor = OFFSET + tl.load(scale + row * scale_stride + c, mask=inside, other=0.0).to(COMPUTE)
            out = out * factor + tl.load(shift + row * scale_stride + c, mask=inside, other=0.0).to(COMPUTE)
        tl.store(normed + i * out_stride + c, out.to(values.dtype), mask=inside)
        tl.store(stats + 2 * i, mean)
        tl.store(stats + 2 * i + 1, inverse)


@triton.jit
@no_type_check
def norm_backward(
    grad, x, stats, shift, scale, residual, grad_x, normed, num_tokens, clean, scale_stride, out_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, OFFSET: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """grad_x = residual + the gradient through `add_norm`'s norm, whose result is computed again."""
    i = tl.program_id(0).to(tl.int64)
    row = _row(i, num_tokens, clean)
    c = tl.arange(0, BLOCK)
    inside = c < WIDTH
    values = tl.load(x + i * WIDTH + c, mask=inside, other=0.0)
    mean, inverse = tl.load(stats + 2 * i), tl.load(stats + 2 * i + 1)
    unit = tl.where(inside, (values.to(COMPUTE) - mean) * inverse, 0.0)
    factor = OFFSET + tl.load(scale + row * scale_stride + c, mask=inside, other=0.0).to(COMPUTE)
    out = unit * factor + tl.load(shift + row * scale_stride + c, mask=inside, other=0.0).to(COMPUTE)
    tl.store(normed + i * out_stride + c, out.to(values.dtype), mask=inside)
    inner = tl.load(grad + i * WIDTH + c, mask=inside, other=0.0).to(COMPUTE) * factor
    inner = (inner - tl.sum(inner, 0) / WIDTH - unit * (tl.sum(inner * unit, 0) / WIDTH)) * inverse
    inner += tl.load(residual + i * WIDTH + c, mask=inside, other=0.0).to(COMPUTE)
    tl.store(grad_x + i * WIDTH + c, inner.to(values.dtype), mask=inside)


@triton.jit
@no_type_check
def gated(
    x, gate, out, num_tokens, clean, gate_stride, out_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """out = gate x"""
    i = tl.program_id(0).to(tl.int64)
    row = _row(i, num_tokens, clean)
    c = tl.arange(0, BLOCK)
    inside = c < WIDTH
    values = tl.load(x + i * WIDTH + c, mask=inside, other=0.0)
    factor = tl.load(gate + row * gate_stride + c, mask=inside, other=0.0).to(COMPUTE)
    tl.store(out + i * out_stride + c, (values.to(COMPUTE) * factor).to(values.dtype), mask=inside)


@triton.jit
@no_type_check
def _turned(values, rope, DIM: tl.constexpr, HEADS2: tl.constexpr, DIM2: tl.constexpr, SIGN: tl.constexpr):
    """Rotate pairs by the angles whose cosines and sines take turns at `rope`; backwards where SIGN is -1."""
    c = tl.arange(0, DIM2)
    angles = tl.load(rope + c, mask=c < DIM, other=0.0).to(values.dtype)
    cos, sin = tl.split(tl.reshape(angles, (1, DIM2 // 2, 2)))
    sin *= SIGN
    first, second = tl.split(tl.reshape(values, (HEADS2, DIM2 // 2, 2)))
    both = tl.join(first * cos - second * sin, first * sin + second * cos)
    return tl.reshape(both, (HEADS2, DIM2))


@triton.jit
@no_type_check
def head_norm(
    x, weight, rope, out, num_tokens, x_stride,
    HEADS: tl.constexpr, DIM: tl.constexpr, HEADS2: tl.constexpr, DIM2: tl.constexpr,
    EPS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """out = RoPE(RMSNorm(x) weight), over all heads of a part together: queries, or keys."""
    i, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    h, c = tl.arange(0, HEADS2)[:, None], tl.arange(0, DIM2)[None, :]
    inside, column = (h < HEADS) & (c < DIM), part * HEADS * DIM + h * DIM + c
    values = tl.load(x + i * x_stride + column, mask=inside, other=0.0)
    wide = values.to(COMPUTE)
    inverse = 1.0 / tl.sqrt(tl.sum(tl.sum(wide * wide, 1), 0) / (HEADS * DIM) + EPS)
    wide = wide * inverse * tl.load(weight + column, mask=inside, other=0.0).to(COMPUTE)
    if rope is not None:
        wide = _turned(wide, rope + i % num_tokens * DIM, DIM, HEADS2, DIM2, 1)
    tl.store(out + i * tl.num_programs(1) * HEADS * DIM + column, wide.to(values.dtype), mask=inside)


@triton.jit
@no_type_check
def head_norm_backward(
    grad_q, grad_k, grad_v, more_k, more_v, x, weight, rope, out,
    count, start, num_tokens, kv_stride, more_stride, x_stride, out_stride,
    HEADS: tl.constexpr, DIM: tl.constexpr, HEADS2: tl.constexpr, DIM2: tl.constexpr,
    EPS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """out = the gradient of x, from those of queries, keys and values of tokens start to start + count."""
    i, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    sample, token = i // count, i % count
    row = sample * num_tokens + start + token
    h, c = tl.arange(0, HEADS2)[:, None], tl.arange(0, DIM2)[None, :]
    inside, here = (h < HEADS) & (c < DIM), h * DIM + c
    at, column = token * HEADS * DIM + here, part * HEADS * DIM + here
    if part == 0:
        grad = tl.load(grad_q + sample * count * HEADS * DIM + at, mask=inside, other=0.0).to(COMPUTE)
    else:
        grad = tl.zeros((HEADS2, DIM2), COMPUTE)
        if grad_k is not None:
            source = grad_k if part == 1 else grad_v
            grad = tl.load(source + sample * kv_stride + at, mask=inside, other=0.0).to(COMPUTE)
            if more_k is not None:
                source = more_k if part == 1 else more_v
                grad += tl.load(source + sample * more_stride + at, mask=inside, other=0.0).to(COMPUTE)
    if part < 2:
        if rope is not None:
            grad = _turned(grad, rope + (start + token) * DIM, DIM, HEADS2, DIM2, -1)
        wide = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(COMPUTE)
        inverse = 1.0 / tl.sqrt(tl.sum(tl.sum(wide * wide, 1), 0) / (HEADS * DIM) + EPS)
        wide *= inverse
        grad *= tl.load(weight + column, mask=inside, other=0.0).to(COMPUTE)
        grad = (grad - wide * (tl.sum(tl.sum(grad * wide, 1), 0) / (HEADS * DIM))) * inverse
    tl.store(out + row * out_stride + column, grad.to(out.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def gelu_backward(
    grad, hidden, after, grad_hidden, out_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, COMPUTE: tl.constexpr
):
    """after = GELU(hidden), in its tanh form, computed again;  grad_hidden = grad GELU'(hidden)."""
    i, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < WIDTH
    values = tl.load(hidden + i * WIDTH + c, mask=inside, other=0.0)
    x = values.to(COMPUTE)
    slope = 0.7978845608028654 * (1 + 3 * 0.044715 * x * x)
    # 1 + tanh(u) = 2 sigmoid(2 u)
    share = 1.0 / (1.0 + tl.exp(-2 * 0.7978845608028654 * (x + 0.044715 * x * x * x)))
    incoming = tl.load(grad + i * WIDTH + c, mask=inside, other=0.0).to(COMPUTE)
    tl.store(after + i * out_stride + c, (x * share).to(values.dtype), mask=inside)
    change = incoming * (share + 2 * x * share * (1 - share) * slope)
    tl.store(grad_hidden + i * out_stride + c, change.to(values.dtype), mask=inside)


@triton.jit
@no_type_check
def norm_silu(
    x, weight, out, num_pixels,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """out = SiLU(weight x / |x|), the length over a pixel's channels; without the SiLU where SILU is False."""
    i, c = (tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS))[:, None], tl.arange(0, BLOCK)[None, :]
    inside, at = (i < num_pixels) & (c < CHANNELS), i * CHANNELS + c
    values = tl.load(x + at, mask=inside, other=0.0)
    wide = values.to(COMPUTE)
    length = tl.maximum(tl.sqrt(tl.sum(wide * wide, 1)), 1e-12)[:, None]
    wide = wide / length * tl.load(weight + c, mask=c < CHANNELS, other=0.0).to(COMPUTE)
    if SILU:
        wide = wide / (1.0 + tl.exp(-wide))
    tl.store(out + at, wide.to(values.dtype), mask=inside)
