"""The tokens that enter a packed training step, their RoPE and times (order and letters: packed_step.py)."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from lightwam.engine.packed_block import Layout, Modulation
from lightwam.model.foresight import foreseen
from lightwam.model.layers import rope_3d
from lightwam.model.light_wam import LightWAM


def tokens(
    model: LightWAM, present: Float[Tensor, "B C 1 h w"], noisy: Float[Tensor, "B C T h2 w2"]
) -> tuple[Float[Tensor, "B S D"], Complex[Tensor, "S 1 pairs"], Layout, tuple[int, int]]:
    """Return all tokens, their RoPE, how many of each kind, and the later frames' rows and columns."""
    dit, parts, ropes, grids = model.dit, [], [], []
    weight = dit.scale_shift_table
    head_dim = dit.config.width // dit.config.num_heads
    for latents in (present, noisy):
        x, (rows, columns) = dit.embed_patches(latents)
        parts.append(x.flatten(1, 2))
        ropes.append(rope_3d(x.shape[1], rows, columns, head_dim, weight.device, weight.dtype))
        grids.append((rows, columns))
    first = rows * columns
    layout = Layout(parts[0].shape[1], first, parts[1].shape[1] - first, model.config.foresight * first)
    if layout.foreseen:
        bias = cast(Tensor, dit.patch_embedding.bias)
        x, turned = foreseen(bias, model.config.foresight, *grids[0], head_dim)
        parts, ropes = [*parts, x.expand(len(present), -1, -1)], [*ropes, turned]
    return torch.cat(parts, dim=1), torch.cat(ropes), layout, grids[1]


def time_modulation(model: LightWAM, time: Float[Tensor, " B"]) -> tuple[Float[Tensor, "B D"], Modulation]:
    """Return the later frames' time embedding, and the modulation of all tokens."""
    clean, noise = time.new_zeros(1), time.new_full((int(model.config.foresight > 0),), model.config.flow.num_times)
    embedding, vectors = model.dit.condition_embedder.time(torch.cat((clean, time, noise)))
    return embedding[1 : 1 + len(time)], vectors


def acting(x: Tensor, layout: Layout) -> Tensor:
    """Return, of tokens or RoPE [B, S, ...], those of the action pass: the present's, then foreseen ones."""
    action = x[:, : layout.action]
    return torch.cat((action, x[:, -layout.foreseen :]), dim=1) if layout.foreseen else action


def acting_rows(modulation: Modulation, layout: Layout) -> Float[Tensor, "times 6 D"]:
    """Return the rows of `modulation` for `acting` tokens."""
    return torch.cat((modulation[:1], modulation[-1:])) if layout.foreseen else modulation[:1]
