"""Running large models on a CPU: reuse of freed memory, and fast matrix products of bfloat16 and 8-bit integers."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
OPERATORS = {
    *(aten.mm.default, aten.addmm.default, aten.addmm_.default, aten.bmm.default, aten.baddbmm.default),
    *(aten.convolution.default, aten.convolution_backward.default),
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""glibc's malloc.h"""


def keep_memory() -> bool:
    """Make this process reuse the memory that it frees; return whether the C library can (glibc).

    By default glibc returns every large tensor to the system and gets fresh pages, which the kernel zeroes one by one:
    half of the time of a paper-scale step on 2 cores. It holds for the process until it ends. Commands that run models
    call it; other programs may.
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
    """Compute the bfloat16 products of a CPU without bfloat16 units in float32 while inside, backward passes included.

    Each result is rounded once, to bfloat16. Torch's own kernels are no more exact there, and up to tens of times
    slower. Nothing changes on other devices, on CPUs that have the units, or for a model of another `dtype`.
    """
    return Float32Matmuls() if matmul_dtype(device, dtype) != str(dtype).removeprefix("torch.") else nullcontext()


def matmul_dtype(device: torch.device, dtype: torch.dtype) -> str:
    """Return the name of the dtype in which `fast_matmuls` computes products."""
    needed = device.type == "cpu" and dtype == torch.bfloat16 and not has_bfloat16()
    return "float32" if needed else str(dtype).removeprefix("torch.")


class Float32Matmuls(TorchDispatchMode):
    """A mode in which products of bfloat16 are computed in float32 and rounded to the dtypes they would have had.

    Training at the paper's scale on a CPU needs it: weights stay in bfloat16, which saves memory, and only operators
    that are slow without bfloat16 units are replaced.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator; torch calls this for each."""
        kwargs = kwargs or {}
        if func not in OPERATORS:
            with self:  # in inference mode torch shows operators that are composed of others
                result = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result
        if not any(_is_half(x) for x in args):
            return func(*args, **kwargs)
        if func is aten.addmm_.default:
            return args[0].copy_(aten.addmm.default(*map(_widened, args), **kwargs))
        result = func(*map(_widened, args), **kwargs)
        if isinstance(result, Tensor):
            return result.bfloat16()
        # of the attention's two results the second, the log of the softmax's sums, is float32 anyway
        kept = 1 if func is aten._scaled_dot_product_flash_attention_for_cpu.default else len(result)
        return tuple(x.bfloat16() if i < kept and isinstance(x, Tensor) else x for i, x in enumerate(result))


@lru_cache(maxsize=1)
def has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware."""
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@lru_cache(maxsize=1)
def has_int8_products() -> bool:
    """Return whether this CPU has units for products of 8-bit integers (VNNI, AMX), and torch's operators are exact."""
    if not (torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()):
        return False
    x, weight = torch.full((2, 64), 255, dtype=torch.uint8), torch.full((16, 64), -127, dtype=torch.int8)
    product = int8_product(x, pack_int8(weight), torch.ones(16), torch.float32)
    return bool((product == 64 * (255 - 128) * -127).all())


def pack_int8(weight: Int8[Tensor, "m n"]) -> Tensor:
    """Return a weight for `int8_product`, in oneDNN's own layout."""
    return torch.ops.onednn.qlinear_prepack(weight, None)


def int8_product(
    x: UInt8[Tensor, "N n"], weight: Tensor, scale: Float[Tensor, " m"], dtype: torch.dtype
) -> Float[Tensor, "N m"]:
    """Return scale * (x - 128) weight', summed in integers and rounded once to `dtype`; `weight` is packed.

    Signed integers would need no 128, but with them oneDNN is hundreds of times slower on CPUs with VNNI but not AMX.
    """
    product, zeros = torch.ops.onednn.qlinear_pointwise, torch.zeros(len(scale), dtype=torch.int64)
    return product(x, 1.0, 128, weight, scale, zeros, None, 1.0, 0, dtype, "none", [], "none")


def _is_half(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.bfloat16


def _widened(x: Any) -> Any:
    return x.float() if _is_half(x) else x
