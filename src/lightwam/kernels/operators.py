"""The kernels as operators of torch, `torch.ops.lightwam.NAME`, so that tensors without data and compilers know them.

They have no gradients of their own: the autograd functions that use them compute both directions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightwam.kernels import plain

SCHEMAS = {
    "norm": "(Tensor x, Tensor? shift, Tensor? scale, float offset, int clean, int extra) -> (Tensor, Tensor)",
    "add": "(Tensor x, Tensor update, Tensor? gate, int clean) -> Tensor",
    "add_norm": "(Tensor x, Tensor update, Tensor? gate, Tensor? shift, Tensor? scale, float offset, int clean, "
    "int extra) -> (Tensor, Tensor, Tensor)",
    "norm_backward": "(Tensor grad, Tensor x, Tensor stats, Tensor shift, Tensor scale, float offset, "
    "Tensor residual, int clean, int extra) -> (Tensor, Tensor)",
    "gated": "(Tensor x, Tensor gate, int clean, int extra) -> Tensor",
    "head_norm": "(Tensor x, Tensor weight, Tensor? rope, int num_heads) -> Tensor",
    "head_norm_backward": "(Tensor[] grads, Tensor x, Tensor weight, Tensor? rope, int start, Tensor(a!) out) -> ()",
    "gelu_backward": "(Tensor grad, Tensor hidden, int extra) -> (Tensor, Tensor)",
    "norm_silu": "(Tensor x, Tensor weight, bool silu) -> Tensor",
}
LIBRARY = torch.library.Library("lightwam", "DEF")
"""registers the operators for as long as it lives"""


def interpreted() -> bool:
    """Tell whether Triton's interpreter runs kernels on a CPU: TRITON_INTERPRET=1, set before Triton is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _launched(name: str) -> Callable[..., Any]:
    """Return the function that runs a kernel; Triton is imported at its first call."""

    def call(*arguments: Any) -> Any:
        from lightwam.kernels import launch

        return getattr(launch, name)(*arguments)

    return call


def _fake_head_norm(x: Tensor, weight: Tensor, rope: Tensor | None, num_heads: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight), num_heads, weight.shape[1] // num_heads)


def _fake_head_norm_backward(
    grads: Sequence[Tensor], x: Tensor, weight: Tensor, rope: Tensor | None, start: int, out: Tensor
) -> None:
    return None


FAKES: dict[str, Callable[..., Any]] = {
    "norm": lambda x, shift, scale, offset, clean, extra: (plain.wide(x, extra), plain.new_stats(x)),
    "add": lambda x, *others: x.new_empty(x.shape),
    "add_norm": lambda x, update, gate, shift, scale, offset, clean, extra: (
        x.new_empty(x.shape), plain.wide(x, extra), plain.new_stats(x)
    ),
    "norm_backward": lambda grad, x, stats, shift, scale, offset, residual, clean, extra: (
        x.new_empty(x.shape), plain.wide(x, extra)
    ),
    "gated": lambda x, gate, clean, extra: plain.wide(x, extra),
    "head_norm": _fake_head_norm,
    "head_norm_backward": _fake_head_norm_backward,
    "gelu_backward": lambda grad, hidden, extra: (plain.wide(hidden, extra), plain.wide(hidden, extra)),
    "norm_silu": lambda x, weight, silu: torch.empty_like(x, memory_format=torch.channels_last),
}  # fmt: skip
"""tensors like the results, without their values"""

for _name, _schema in SCHEMAS.items():
    LIBRARY.define(_name + _schema)
    LIBRARY.impl(_name, _launched(_name), "CUDA")
    LIBRARY.impl(_name, _launched(_name) if interpreted() else getattr(plain, _name), "CPU")
    torch.library.register_fake(f"lightwam::{_name}", FAKES[_name], lib=LIBRARY)
