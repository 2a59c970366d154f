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

from lightwam.engine import fused_block
from lightwam.engine.cpu_attention import attention
from lightwam.engine.fused_lora import feed_forward, linear
from lightwam.model.dit import Block, DiT, KeyValue
from lightwam.model.layers import Attention, apply_rope, layer_norm
from lightwam.system.devices import check_compiler

MOST_GRAPHS = 64
"""of one process: kinds of blocks, times dtypes, sizes of models, and batches of one or of more; torch allows 8"""


class Layout(NamedTuple):
    """Number of tokens of each kind; those of time 0 come first."""

    action: int
    first: int
    later: int
    foreseen: int = 0

    @property
    def clean(self) -> int:
        """Number of tokens of time 0."""
        return self.action + self.first

    @property
    def kinds(self) -> tuple[int, ...]:
        """The numbers in order, without `foreseen` where it is 0: splitting off no tokens has a cost, too."""
        return self if self.foreseen else self[:3]

    @property
    def by_time(self) -> tuple[int, ...]:
        """Number of tokens of time 0, of the later tokens' times, and of noise level 1 if there are any."""
        return (self.clean, *self.kinds[2:])


Modulation = Float[Tensor, "rows 6 D"]
"""the six modulation vectors: a row for tokens of time 0, one for each sample's later tokens, one for foreseen ones"""


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
    last = (1,) * (layout.foreseen > 0)
    parts = modulation.split((1, len(modulation) - 1 - len(last), *last))
    by_time = ((part + block.scale_shift_table).unbind(1) for part in parts)
    shift1, scale1, gate1, shift2, scale2, gate2 = zip(*by_time, strict=True)
    attended = self_attention(block.attn1, modulate(x, shift1, scale1, layout), rope, layout, keeps_first)
    if not keeps_first:
        x, layout = without_first(x, layout), layout._replace(first=0)
    x = gated(x, attended, gate1, layout)
    query = block.attn2.query(block.norm2(x), linear)
    x = x + block.attn2.out(attention(query, *context_kv), linear)
    hidden = feed_forward(block.ffn, modulate(x, shift2, scale2, layout))
    return gated(x, hidden, gate2, layout)


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


class Functions(NamedTuple):
    """What applies a block to the tokens of samples with both passes, and of those with the action pass alone."""

    packed: Callable[..., Tensor]
    alone: Callable[..., Tensor]


def block_functions(dit: DiT, device: torch.device, compiled: bool) -> Functions:
    """Return torch.compile's if they are asked for, else the kernels' where they run, else plain torch."""
    if compiled:
        return Functions(compiled_block, compiled_block)
    return Functions(fused_block.run_block if fused_block.fits(dit, device) else run_block, run_block)


def self_attention(
    layer: Attention,
    x: Float[Tensor, "B S D"],
    rope: Complex[Tensor, "S 1 pairs"] | Float[Tensor, "S 1 pairs 2"],
    layout: Layout,
    keeps_first: bool,
) -> Float[Tensor, "B S2 D"]:
    """Apply self-attention to each kind of tokens, in at most four unmasked calls."""
    k, v = layer.key_value(x, linear)
    keys, values = apply_rope(k, rope).split(layout.kinds, dim=1), v.split(layout.kinds, dim=1)
    if not keeps_first:
        x, rope = without_first(x, layout), without_first(rope[None], layout)[0]
        layout = layout._replace(first=0)
    queries = apply_rope(layer.query(x, linear), rope).split(layout.kinds, dim=1)
    mixed = [attention(q, k, v) for q, k, v in zip(queries[:2], keys[:2], values[:2], strict=True) if q.shape[1]]
    if layout.later:
        mixed.append(attention(queries[2], *(torch.cat(part[1:3], dim=1) for part in (keys, values))))
    if layout.foreseen:
        mixed.append(attention(queries[3], *(torch.cat((part[0], part[3]), dim=1) for part in (keys, values))))
    return layer.out(torch.cat(mixed, dim=1), linear)


def without_first(x: Tensor, layout: Layout) -> Tensor:
    """Drop the tokens of the first frame."""
    action, _, *others = x.split(layout.kinds, dim=1)
    return _joined([action, *others])


def modulate(
    x: Float[Tensor, "B S D"], shifts: Sequence[Tensor], scales: Sequence[Tensor], layout: Layout
) -> Float[Tensor, "B S D"]:
    """Return norm(x) (1 + scale) + shift, with the shift and scale of each token's time, rounded to x's dtype.

    Shifts and scales are [rows D] for each of `layout.by_time`.
    """
    clean, later, *foreseen = x.split(layout.by_time, dim=1)
    shifts, scales = [shift.to(x.dtype) for shift in shifts], [(1 + scale).to(x.dtype) for scale in scales]
    parts = [layer_norm(clean, scales[0][0], shifts[0][0])] if layout.clean else []
    if layout.later:
        parts.append(torch.addcmul(shifts[1][:, None], layer_norm(later), scales[1][:, None]))
    return _joined(parts + [layer_norm(part, scales[2][0], shifts[2][0]) for part in foreseen])


def gated(
    x: Float[Tensor, "B S D"], update: Float[Tensor, "B S D"], gates: Sequence[Tensor], layout: Layout
) -> Float[Tensor, "B S D"]:
    """Return x + gate * update, with the gate of each token's time, one of `gates` for each of `layout.by_time`."""
    parts = (y.split(layout.by_time, dim=1) for y in (x, update))  # split, not slices, here too
    given = [(*pair, gate.to(x.dtype)) for *pair, gate in zip(*parts, gates, strict=True)]
    return _joined([torch.addcmul(a, gate[:, None], b) for a, b, gate in given if a.shape[1]])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Join tokens; parts without any are left out."""
    parts = [part for part in parts if part.shape[1]]
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
