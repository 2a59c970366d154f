"""The StateFusionActionExpert, folded: its queries are constants, and the steps of a chunk share one product.

A pooler scores a token by its queries' keys, which is one small matrix; as scores sum to 1, tokens are averaged before
they are made into values. The chunk's steps differ by a constant code, so the wide layer behind their LayerNorm is
applied to the state and to the codes apart: LN(s + c) = (s - mean s + c - mean c) / std(s + c).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightwam.engine.folding import Place, fold
from lightwam.model.action_expert import NormedPair, Pooler, StateFusionActionExpert
from lightwam.model.layers import gelu, sinusoid, wide


class FoldedPooler:
    """`Pooler`, up to its last norm."""

    def __init__(self, pooler: Pooler, place: Place) -> None:
        attention, norm, self.num_heads = pooler.attn, pooler.token_norm, pooler.num_heads
        weight, bias, width = wide(attention.in_proj_weight), wide(attention.in_proj_bias), norm.weight.numel()
        query = F.linear(wide(pooler.query_tokens), weight[:width], bias[:width]).unflatten(1, (self.num_heads, -1))
        keys = weight[width : 2 * width].unflatten(0, (self.num_heads, -1))
        scores = torch.einsum("qhd,hdn->hqn", query, keys) * query.shape[-1] ** -0.5 * wide(norm.weight)
        self.scores = place.put(scores.flatten(0, 1))
        self.share = place.put_wide(wide(pooler.query_merge_logits).softmax(0))
        value = weight[2 * width :]
        bias = bias[2 * width :] + value @ wide(norm.bias)
        value = (value * wide(norm.weight)).unflatten(0, (self.num_heads, -1))
        self.value = place.put(value)
        self.bias = place.put(bias.unflatten(0, (self.num_heads, 1, -1)))
        self.out = fold([(pooler.attn.out_proj, None)], place)
        self.norm = place.put(pooler.output_norm.weight), place.put(pooler.output_norm.bias)

    def __call__(self, tokens: Float[Tensor, "B S D"]) -> Float[Tensor, "B D"]:
        """One vector a sample."""
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
        taken = wide(F.linear(tokens, self.scores)).softmax(dim=1).unflatten(2, (self.num_heads, -1))
        averages = (taken @ self.share).to(tokens.dtype).mT @ tokens
        values = torch.baddbmm(self.bias, averages.transpose(0, 1), self.value.mT)
        found = self.out(values.transpose(0, 1).flatten(1))
        return F.layer_norm(found, found.shape[-1:], *self.norm)


class FoldedPair:
    """`NormedPair`."""

    def __init__(self, pair: NormedPair, place: Place) -> None:
        self.fc1 = fold([(pair.fc1, None)], place, scale=pair.norm.weight, shift=pair.norm.bias)
        self.fc2 = fold([(pair.fc2, None)], place)

    def __call__(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """[..., in_width] -> [..., width]."""
        return self.fc2(gelu(self.fc1(F.layer_norm(x, x.shape[-1:]))))


class FoldedExpert:
    """`StateFusionActionExpert`; taps are read as they come, so that their tokens need not be kept."""

    def __init__(self, expert: StateFusionActionExpert, place: Place) -> None:
        self.poolers = [FoldedPooler(cast(Pooler, pooler), place) for pooler in expert.layer_poolers]
        self.compressors = [FoldedPair(cast(NormedPair, pair), place) for pair in expert.layer_compressors]
        fused = expert.fused_norm
        self.fused = fold([(expert.fused_proj, None)], place, scale=fused.weight, shift=fused.bias)
        self.trunk = [FoldedPair(cast(NormedPair, block), place) for block in expert.trunk]
        first, _, last = cast(tuple[nn.Linear, nn.GELU, nn.Linear], tuple(expert.output))
        weight = wide(first.weight) * wide(expert.output_norm.weight)
        codes = _centred(_step_codes(expert))
        self.codes, self.read_codes = place.put_wide(codes), place.put_wide(codes @ weight.t())
        self.bias = place.put_wide(wide(first.bias) + wide(first.weight) @ wide(expert.output_norm.bias))
        self.output1 = place.put(weight)
        self.output2 = fold([(last, None)], place, plain=True)  # its error would be the action's

    def read(self, tap: int, tokens: Float[Tensor, "B S D"]) -> Float[Tensor, "B D2"]:
        """What the expert takes from a tap's adapted tokens."""
        return self.compressors[tap](self.poolers[tap](tokens))

    def __call__(self, layers: Sequence[Float[Tensor, "B D2"]]) -> Float[Tensor, "B H A"]:
        """What was read of every tap -> a chunk of normalised actions."""
        joined = torch.cat(list(layers), dim=-1)
        state = self.fused(F.layer_norm(joined, joined.shape[-1:]))
        for block in self.trunk:
            state = state + block(state)
        centred = _centred(wide(state))
        variance = (centred[:, None] + self.codes).square().mean(dim=-1, keepdim=True)
        both = wide(F.linear(centred.to(state.dtype), self.output1))[:, None] + self.read_codes
        hidden = torch.addcmul(self.bias, both, (variance + 1e-5).rsqrt())
        return self.output2(gelu(hidden).to(state.dtype))


def _step_codes(expert: StateFusionActionExpert) -> Float[Tensor, "H W"]:
    """`expert.step_codes()`, in float32 at least."""
    norm, first, act, second = cast(tuple[nn.LayerNorm, nn.Linear, nn.GELU, nn.Linear], tuple(expert.step_pos_proj))
    steps = torch.arange(expert.horizon, dtype=torch.float64, device=first.weight.device)
    weight, bias = wide(norm.weight), wide(norm.bias)
    x = F.layer_norm(sinusoid(steps, expert.step_code_dim).to(weight), norm.normalized_shape, weight, bias)
    return F.linear(act(F.linear(x, wide(first.weight), wide(first.bias))), wide(second.weight), wide(second.bias))


def _centred(x: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch W"]:
    return x - x.mean(dim=-1, keepdim=True)
