"""Wan's block over the packed tokens of a training step (order and letters: packed_step.py), in plain torch.

`fused_block.run_block` computes the same by the kernels of a GPU, `compiled_block` by torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, cast

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from lightwam.engine.cpu_attention import attention
from lightwam.engine.fused_lora import feed_forward, linear
from lightwam.model.dit import Block, KeyValue
from lightwam.model.layers import Attention, apply_rope, layer_norm
from lightwam.system.devices import check_compiler

MOST_GRAPHS = 64
"""of one process: kinds of blocks, times dtypes, sizes of models, and batches of one or of more; torch allows 8"""


class Layout(NamedTuple):
    """Number of tokens of each kind; those of time 0 come first."""

    action: int
    first: int
    later: int

    @property
    def clean(self) -> int:
        """Number of tokens of time 0."""
        return self.action + self.first


Modulation = Float[Tensor, "rows 6 D"]
"""the six modulation vectors: a row for tokens of time 0, then one for each sample's later tokens"""


def run_block(
    block: Block,
    x: Float[Tensor, "B S D"],
    rope: Complex[Tensor, "S 1 pairs"] | Float[Tensor, "S 1 pairs 2"],
    layout: Layout,
    modulation: Modulation,
    context_kv: KeyValue,
    keeps_first: bool,
) -> Float[Tensor, "B S2 D"]:
    """Apply `Block` to packed tokens; `keeps_first=False` uses those of the first frame for keys and values only."""
    parts = modulation.split((1, len(modulation) - 1))
    clean, later = ((part + block.scale_shift_table).unbind(1) for part in parts)
    attended = self_attention(block.attn1, modulate(x, clean[:2], later[:2], layout), rope, layout, keeps_first)
    if not keeps_first:
        x, layout = without_first(x, layout), layout._replace(first=0)
    x = gated(x, attended, clean[2], later[2], layout)
    query = block.attn2.query(block.norm2(x), linear)
    x = x + block.attn2.out(attention(query, *context_kv), linear)
    hidden = feed_forward(block.ffn, modulate(x, clean[3:5], later[3:5], layout))
    return gated(x, hidden, clean[5], later[5], layout)


def compiled_block(
    block: Block,
    x: Float[Tensor, "B S D"],
    rope: Complex[Tensor, "S 1 pairs"],
    layout: Layout,
    modulation: Modulation,
    context_kv: KeyValue,
    keeps_first: bool,
) -> Float[Tensor, "B S2 D"]:
    """Compute `run_block` as torch.compile makes it: once for all blocks of a kind and all batches of two or more.

    RoPE is in real numbers, as torch.compile has no complex ones. ConfigError where it cannot be compiled.
    """
    for tensor in (x, modulation, *context_kv):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    compiled = _compiled(x.device, x.dtype)
    return compiled(block, x, torch.view_as_real(rope), layout, modulation, context_kv, keeps_first)


@lru_cache
def _compiled(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    check_compiler(device, dtype)
    torch._dynamo.config.recompile_limit = max(MOST_GRAPHS, torch._dynamo.config.recompile_limit)
    return cast(Callable[..., Tensor], torch.compile(run_block, fullgraph=True))


def self_attention(
    layer: Attention,
    x: Float[Tensor, "B S D"],
    rope: Complex[Tensor, "S 1 pairs"] | Float[Tensor, "S 1 pairs 2"],
    layout: Layout,
    keeps_first: bool,
) -> Float[Tensor, "B S2 D"]:
    """Apply self-attention to each kind of tokens, in at most three unmasked calls."""
    k, v = layer.key_value(x, linear)
    keys, values = apply_rope(k, rope).split(layout, dim=1), v.split(layout, dim=1)
    if not keeps_first:
        x, rope = without_first(x, layout), without_first(rope[None], layout)[0]
        layout = layout._replace(first=0)
    queries = apply_rope(layer.query(x, linear), rope).split(layout, dim=1)
    mixed = [attention(q, k, v) for q, k, v in zip(queries[:2], keys[:2], values[:2], strict=True) if q.shape[1]]
    if layout.later:
        mixed.append(attention(queries[2], torch.cat(keys[1:], dim=1), torch.cat(values[1:], dim=1)))
    return layer.out(torch.cat(mixed, dim=1), linear)


def without_first(x: Tensor, layout: Layout) -> Tensor:
    """Drop the tokens of the first frame."""
    action, _, later = x.split(layout, dim=1)
    return torch.cat((action, later), dim=1) if layout.action else later


def modulate(
    x: Float[Tensor, "B S D"], clean: Sequence[Tensor], later: Sequence[Tensor], layout: Layout
) -> Float[Tensor, "B S D"]:
    """Return norm(x) (1 + scale) + shift, with the shift and scale of each token's time, rounded to x's dtype."""
    (shift0, scale0), (shift1, scale1) = ((s.to(x.dtype), (1 + c).to(x.dtype)) for s, c in (clean, later))
    present, future = x.split((layout.clean, layout.later), dim=1)
    if not layout.later:
        return layer_norm(present, scale0[0], shift0[0])
    changed = torch.addcmul(shift1[:, None], layer_norm(future), scale1[:, None])
    if not layout.clean:
        return changed
    return torch.cat((layer_norm(present, scale0[0], shift0[0]), changed), dim=1)


def gated(
    x: Float[Tensor, "B S D"], update: Float[Tensor, "B S D"], clean: Tensor, later: Tensor, layout: Layout
) -> Float[Tensor, "B S D"]:
    """Return x + gate * update, with the gate of each token's time."""
    sizes = layout.clean, layout.later  # split, not slices, here too
    halves = zip(x.split(sizes, dim=1), update.split(sizes, dim=1), (clean.to(x.dtype), later.to(x.dtype)), strict=True)
    return torch.cat([torch.addcmul(a, gate[:, None], b) for a, b, gate in halves if a.shape[1]], dim=1)
