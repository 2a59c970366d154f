"""bfloat16 on CPUs without units for it: matrix products are computed in float32 and rounded once.

Torch's own are no more exact there, and up to tens of times slower. Nothing changes on other devices, on CPUs that
have the units, or for other dtypes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
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


def products(device: torch.device) -> AbstractContextManager[Any]:
    """Where models run, backward passes included: within it bfloat16 products take the quick way on this device."""
    return nullcontext() if device.type != "cpu" or has_bfloat16() else Float32Products()


class Float32Products(TorchDispatchMode):
    """Every product of bfloat16 in float32; its results in the dtypes that they would have had."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every operator."""
        kwargs = kwargs or {}
        if func not in OPERATORS or not any(_is_half(x) for x in args):
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
