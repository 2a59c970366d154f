"""Where the kernels are used: on GPUs that run them and get what plain torch gets; nowhere else."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lightwam.kernels import operators, plain

MAX_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""largest relative difference from plain torch at which a kernel is taken to be right"""


@lru_cache(maxsize=16)
def on(device: torch.device) -> bool:
    """Tell whether kernels run on a device. A GPU's are compiled, run and compared with plain torch at the first call.

    Without Triton, which torch's CUDA packages bring along, the answer is False. Where a kernel does not compile or is
    wrong there is one warning, and plain torch computes everything. A CPU runs them under TRITON_INTERPRET=1 only.
    """
    if device.type == "cpu":
        return operators.interpreted()
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    if (wrong := difference(device)) is None:
        return True
    warnings.warn(f"kernels are off on {device}, and plain torch does their work more slowly: {wrong}", stacklevel=2)
    return False


def difference(device: torch.device) -> str | None:
    """Return what is wrong with the kernels on a device, at a tiny size; None if nothing is."""
    for dtype, limit in MAX_ERROR.items():
        for name, arguments, columns in examples(device, dtype):
            try:
                found = results(operator(name), arguments, columns)
            except Exception as error:  # of a compiler or a driver: any kind
                return f"{name} in {dtype} does not run ({type(error).__name__}: {str(error)[:200]})"
            for ours, theirs in zip(found, results(getattr(plain, name), arguments, columns), strict=True):
                distance = float((ours.double() - theirs.double()).norm() / theirs.double().norm())
                if not distance <= limit:
                    return f"{name} in {dtype} differs from plain torch by {distance:.1e}"
    return None


def operator(name: str) -> Callable[..., Any]:
    """Return an operator that runs a kernel."""
    return getattr(torch.ops.lightwam, name)


def results(function: Callable[..., Any], arguments: tuple[Any, ...], columns: int) -> list[Tensor]:
    """Return what a function returns, or writes into its last argument, without the columns that it leaves unset."""
    written = arguments[-1].clone() if isinstance(arguments[-1], Tensor) else None
    results = function(*arguments[:-1], arguments[-1] if written is None else written)
    if written is not None:
        return [written]
    return [part[..., :columns] for part in (results if isinstance(results, tuple | list) else [results])]


def examples(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, tuple[Any, ...], int]]:
    """Yield an operator's name, arguments and number of columns that it sets, for each use of an operator."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int, as_dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=random).to(device, as_dtype)

    wide = torch.promote_types(dtype, torch.float32)
    (batch, tokens, heads, dim), clean, extra = (2, 5, 3, 8), 2, 16
    width = heads * dim
    x, update, residual = (draw(batch, tokens, width) for _ in range(3))
    table, one = draw(1 + batch, 3, width, as_dtype=wide).unbind(1), draw(3, 1, width).unbind(0)
    stats = plain.norm(x, None, None, 0.0, 0, 0)[1]
    yield "norm", (x, None, None, 0.0, clean, 0), width
    for vectors, offset in ((table, 1.0), (one, 0.0)):
        yield "norm", (x, *vectors[1:], offset, clean, extra), width
        yield "add", (x, update, vectors[0], clean), width
        yield "add_norm", (x, update, vectors[0], *one[1:], 0.0, clean, extra), width
        yield "norm_backward", (update, x, stats, *vectors[1:], offset, residual, clean, extra), width
        yield "gated", (x, vectors[0], clean, extra), width
    yield "add", (x, update, None, clean), width
    yield "add_norm", (x, update, None, None, None, 0.0, clean, 0), width
    qkv, weight = draw(batch, tokens, 3 * width), draw(2, width)
    angle = torch.randn(tokens, 1, dim // 2, generator=random)
    rope = torch.stack((angle.cos(), angle.sin()), dim=-1).to(device, wide)
    yield "head_norm", (qkv, weight, rope, heads), dim
    yield "head_norm", (x, weight[:1], None, heads), dim
    grads = [draw(batch, clean, heads, dim) for _ in range(5)]
    for count in (3, 5):
        yield "head_norm_backward", (grads[:count], qkv, weight, rope, 1, torch.zeros_like(qkv)), 0
    yield "head_norm_backward", ([draw(batch, tokens, heads, dim)], x, weight[:1], None, 0, torch.zeros_like(x)), 0
    yield "gelu_backward", (x, update, extra), width
    picture = draw(batch, 12, 3, 5).contiguous(memory_format=torch.channels_last)
    for silu in (True, False):
        yield "norm_silu", (picture, draw(12), silu), picture.shape[-1]
