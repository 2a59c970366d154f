"""What a program asks of a GPU, counted on the meta device: calls, bytes, waits for the GPU, kept activations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightwam.kernels import choice

META = torch.device("meta")
PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "convolution", "convolution_backward"}
WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"}
VIEWS = {
    *("view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "split", "split_with_sizes"),
    *("unbind", "unsqueeze", "squeeze", "detach", "alias", "as_strided", "view_as_complex", "view_as_real", "diagonal"),
    *(
        "empty",
        "empty_like",
        "new_empty",
        "empty_strided",
        "new_empty_strided",
        "_reshape_alias",
        "lift_fresh",
        "resize_",
    ),
}
"""calls that launch nothing"""


@dataclass
class Counts(TorchDispatchMode):
    """Counts the operators inside it that run on the meta device."""

    calls: Counter[str] = field(default_factory=Counter)
    traffic: Counter[str] = field(default_factory=Counter)
    """bytes that each operator reads and writes, but for products, convolutions and attention"""
    waits: Counter[str] = field(default_factory=Counter)
    on_cpu: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator; torch calls this for each."""
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
        if func.namespace == "aten" and name not in VIEWS and composite:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        given, made = (
            [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)] for tree in ((args, kwargs), result)
        )
        if name in VIEWS or not (given or made) or (name == "_to_copy" and made[0] is given[0]):
            return result
        if any(tensor.device.type == "cpu" and tensor.ndim for tensor in (*given, *made)):
            self.on_cpu[name] += 1
        if not any(tensor.device.type == "meta" for tensor in (*given, *made)):
            return result
        masks = args[1] if name.startswith(("index", "_index_put")) and isinstance(args[1], Sequence) else []
        if name in WAITS or any(mask is not None and mask.dtype == torch.bool for mask in masks):
            self.waits[name] += 1
        self.calls[name] += 1
        adds = name in ("addmm_", "baddbmm_") and kwargs.get("beta", 1) != 0
        if adds or not (name in PRODUCTS or "scaled_dot_product" in name):
            ours = func.namespace == "lightwam"
            self.traffic[name] += _kernel_bytes(name, args, made) if ours else _bytes(name, given, made)
        return result

    @property
    def gigabytes(self) -> float:
        """Traffic of everything but products, convolutions and attention, in 1e9 bytes."""
        return sum(self.traffic.values()) / 1e9


def _size(tensor: Tensor) -> int:
    """Return the bytes of a tensor's numbers; repeated ones count once."""
    numbers = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numbers *= length if stride else 1
    return numbers * tensor.element_size()


def _bytes(name: str, given: Sequence[Tensor], made: Sequence[Tensor]) -> int:
    distinct = {(t.untyped_storage()._cdata, t.storage_offset(), t.shape, t.stride()): t for t in given}
    read = sum(_size(tensor) for tensor in distinct.values())
    if name in ("copy_", "zero_", "fill_"):  # they do not read what they overwrite
        read -= _size(given[0])
    return read + sum(_size(tensor) for tensor in made)


def _kernel_bytes(name: str, args: Sequence[Any], made: Sequence[Tensor]) -> int:
    """Return what a kernel of ours reads and writes: not the columns that it leaves out."""
    tensors = [leaf for leaf in tree_leaves(list(args)) if isinstance(leaf, Tensor)]
    if name == "head_norm":
        x, weight = args[:2]
        return 2 * x.shape[0] * x.shape[1] * weight.numel() * x.element_size() + sum(map(_size, tensors[1:]))
    if name == "head_norm_backward":
        grads, x, weight, *_ = args
        tokens, width = grads[0].shape[0] * grads[0].shape[1], weight.shape[1]
        numbers = tokens * (weight.numel() + width * min(len(grads), 3))
        return sum(map(_size, (*grads, weight))) + numbers * x.element_size()
    set_columns = args[0].shape[-1]
    return sum(map(_size, tensors)) + sum(_size(part[..., :set_columns]) for part in made)


@contextmanager
def like_a_gpu() -> Iterator[None]:
    """Let the meta device take the operators that torch takes on a GPU, and our kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", _attention)
        patch.setattr(F, "rms_norm", _RMSNorm.apply)
        patch.setattr(torch, "autocast", lambda device, **settings: nullcontext())
        patch.setattr(torch, "is_autocast_enabled", lambda device: False)
        patch.setattr(choice, "on", lambda device: True)
        yield


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Flash attention, or, with a mask and in float32, the memory-efficient one; masks are padded to 8 columns."""
    ops = torch.ops.aten
    if mask is None and q.dtype == torch.bfloat16:
        return ops._scaled_dot_product_flash_attention(q, k, v)[0]
    if mask is not None:
        if mask.shape[-1] % 8:
            mask = F.pad(mask, (0, 8 - mask.shape[-1] % 8))[..., : mask.shape[-1]]
        mask = mask.expand(*q.shape[:3], k.shape[2])
    return ops._scaled_dot_product_efficient_attention(q, k, v, mask, q.requires_grad)[0]


LIBRARY = torch.library.Library("counting", "DEF")
LIBRARY.define("rms_norm(Tensor x, Tensor? weight) -> (Tensor, Tensor)")
LIBRARY.define("rms_norm_backward(Tensor grad, Tensor x, Tensor inverse, Tensor? weight) -> Tensor")
LIBRARY.impl("rms_norm", lambda x, weight: (torch.empty_like(x), x.new_empty(*x.shape[:-1], 1).float()), "Meta")
LIBRARY.impl("rms_norm_backward", lambda grad, x, inverse, weight: torch.empty_like(x), "Meta")


class _RMSNorm(torch.autograd.Function):
    """torch's RMSNorm on a GPU, one call forward and one backward; the meta device has it in many parts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: Any, weight: Tensor | None, eps: float) -> Tensor:
        normed, inverse = torch.ops.counting.rms_norm(x, weight)
        ctx.save_for_backward(x, inverse, *([] if weight is None else [weight]))
        return normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return one gradient an input; a weight must be frozen."""
        assert not ctx.needs_input_grad[2]
        x, inverse, *weight = ctx.saved_tensors
        return torch.ops.counting.rms_norm_backward(grads[0], x, inverse, *(weight or [None])), None, None, None


@contextmanager
def kept_bytes(parameters: Sequence[Tensor]) -> Iterator[dict[int, int]]:
    """Collect the storages that autograd keeps, but for those of parameters: identity -> bytes."""
    kept, known = dict[int, int](), {parameter.untyped_storage()._cdata for parameter in parameters}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.device.type == "meta" and tensor.untyped_storage()._cdata not in known:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
