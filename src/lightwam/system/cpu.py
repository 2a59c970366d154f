"""What makes large models bearable on a CPU: memory that is kept, and quick products of bfloat16."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
OPERATORS = {
    aten.mm.default,
    aten.addmm.default,
    aten.addmm_.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.convolution.default,
    aten.convolution_backward.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""glibc's malloc.h"""


def keep_memory() -> bool:
    """Have this process keep what it frees and use it again; whether the C library can (glibc).

    Left alone, glibc gives every large tensor back to the system, and gets it as fresh pages that are zeroed one by
    one: of a paper-scale step on 2 cores that was half the time. For all of the process, until it ends; commands that
    run models call it, a program of your own may.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread of this process inside; restores the number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fast_matmuls(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Within it, backward passes included, a CPU without bfloat16 units computes their products in float32.

    They are rounded once, to bfloat16. Torch's own are no more exact there, and up to tens of times slower. Nothing
    changes on other devices, on CPUs that have the units, or where a model's `dtype` is another.
    """
    return nullcontext() if matmul_dtype(device, dtype) == str(dtype).removeprefix("torch.") else Float32Matmuls()


def matmul_dtype(device: torch.device, dtype: torch.dtype) -> str:
    """What products are computed in within `fast_matmuls`."""
    needed = device.type == "cpu" and dtype == torch.bfloat16 and not has_bfloat16()
    return "float32" if needed else str(dtype).removeprefix("torch.")


class Float32Matmuls(TorchDispatchMode):
    """Every product of bfloat16 in float32; its results in the dtypes that they would have had."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every operator."""
        kwargs = kwargs or {}
        if func not in OPERATORS:
            with self:  # in inference mode torch shows operators that are composed of others
                made = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if made is NotImplemented else made
        if not any(_is_half(x) for x in args):
            return func(*args, **kwargs)
        if func is aten.addmm_.default:
            return args[0].copy_(aten.addmm.default(*map(_widened, args), **kwargs))
        made = func(*map(_widened, args), **kwargs)
        if isinstance(made, Tensor):
            return made.bfloat16()
        # of the attention's two results the second, the log of the softmax's sums, is float32 anyway
        kept = 1 if func is aten._scaled_dot_product_flash_attention_for_cpu.default else len(made)
        return tuple(x.bfloat16() if i < kept and isinstance(x, Tensor) else x for i, x in enumerate(made))


@lru_cache(maxsize=1)
def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself."""
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _is_half(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.bfloat16


def _widened(x: Any) -> Any:
    return x.float() if _is_half(x) else x
