"""The StateFusionActionExpert, folded: its queries are constants, and the steps of a chunk share one product.

A pooler scores a token by its queries' keys, which is one small matrix; as scores sum to 1, tokens are averaged before
they are projected to values. The steps of a chunk differ by a constant code, so the wide layer behind their LayerNorm
is applied to the state and to the codes separately: LN(s + c) = (s - mean s + c - mean c) / std(s + c).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightwam.engine.folding import Placement, fold
from lightwam.model.action_expert import NormedPair, Pooler, StateFusionActionExpert
from lightwam.model.layers import at_least_float32, gelu, sinusoid
from lightwam.model.state_reader import state_features


class FoldedPooler:
    """`Pooler`, up to its last norm."""

    def __init__(self, pooler: Pooler, placement: Placement) -> None:
        norm, self.num_heads, width = pooler.token_norm, pooler.num_heads, pooler.token_norm.weight.numel()
        weight, bias = placement.wide(pooler.attn.in_proj_weight), placement.wide(pooler.attn.in_proj_bias)
        query = F.linear(placement.wide(pooler.query_tokens), weight[:width], bias[:width])
        query = query.unflatten(1, (self.num_heads, -1))
        keys = weight[width : 2 * width].unflatten(0, (self.num_heads, -1))
        scores = torch.einsum("qhd,hdn->hqn", query, keys) * query.shape[-1] ** -0.5 * placement.wide(norm.weight)
        self.scores = placement.put(scores.flatten(0, 1))
        self.merge = placement.put_float32(placement.wide(pooler.query_merge_logits).softmax(0))
        value = weight[2 * width :]
        bias = bias[2 * width :] + value @ placement.wide(norm.bias)
        value = (value * placement.wide(norm.weight)).unflatten(0, (self.num_heads, -1))
        self.value = placement.put(value)
        self.bias = placement.put(bias.unflatten(0, (self.num_heads, 1, -1)))
        self.out = fold([(pooler.attn.out_proj, None)], placement)
        self.norm = placement.put(pooler.output_norm.weight), placement.put(pooler.output_norm.bias)

    def __call__(self, tokens: Float[Tensor, "B S D"]) -> Float[Tensor, "B D"]:
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
        shares = at_least_float32(F.linear(tokens, self.scores)).softmax(dim=1).unflatten(2, (self.num_heads, -1))
        averages = (shares @ self.merge).to(tokens.dtype).mT @ tokens
        values = torch.baddbmm(self.bias, averages.transpose(0, 1), self.value.mT)
        pooled = self.out(values.transpose(0, 1).flatten(1))
        return F.layer_norm(pooled, pooled.shape[-1:], *self.norm)


class FoldedPair:
    """`NormedPair`."""

    def __init__(self, pair: NormedPair, placement: Placement) -> None:
        self.fc1 = fold([(pair.fc1, None)], placement, scale=pair.norm.weight, shift=pair.norm.bias)
        self.fc2 = fold([(pair.fc2, None)], placement)

    def __call__(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        return self.fc2(self.fc1.gelu(F.layer_norm(x, x.shape[-1:])))


class FoldedExpert:
    """`StateFusionActionExpert`; taps are pooled one by one, so that their tokens need not be kept."""

    def __init__(self, expert: StateFusionActionExpert, placement: Placement) -> None:
        self.poolers = [FoldedPooler(cast(Pooler, pooler), placement) for pooler in expert.layer_poolers]
        self.compressors = [FoldedPair(cast(NormedPair, pair), placement) for pair in expert.layer_compressors]
        fused = expert.fused_norm
        self.fused = fold([(expert.fused_proj, None)], placement, scale=fused.weight, shift=fused.bias)
        reader = expert.state_reader
        self.state_proj = fold([(reader.proj, None)], placement, plain=True) if reader is not None else None
        self.state_frequencies = reader.frequencies if reader is not None else 0
        self.trunk = [FoldedPair(cast(NormedPair, block), placement) for block in expert.trunk]
        first, _, last = cast(tuple[nn.Linear, nn.GELU, nn.Linear], tuple(expert.output))
        weight = placement.wide(first.weight) * placement.wide(expert.output_norm.weight)
        codes = _centred(_step_codes(expert, placement.device))
        self.codes, self.projected_codes = placement.put_float32(codes), placement.put_float32(codes @ weight.t())
        shift = placement.wide(first.weight) @ placement.wide(expert.output_norm.bias)
        self.bias = placement.put_float32(placement.wide(first.bias) + shift)
        self.output1 = placement.put(weight)
        self.output2 = fold([(last, None)], placement, plain=True)  # rounding here would be an error of the actions

    def pool_tap(self, tap: int, tokens: Float[Tensor, "B S D"]) -> Float[Tensor, "B D2"]:
        """Pool and compress the adapted tokens of tap number `tap`."""
        return self.compressors[tap](self.poolers[tap](tokens))

    def __call__(
        self, layers: Sequence[Float[Tensor, "B D2"]], proprio: Float[Tensor, "B P"]
    ) -> Float[Tensor, "B H A"]:
        """Map the pooled taps and the normalised robot state to a chunk of normalised actions."""
        joined = torch.cat(tuple(layers), dim=-1)
        state = self.fused(F.layer_norm(joined, joined.shape[-1:]))
        if self.state_proj is not None:
            state = state + self.state_proj(state_features(proprio, self.state_frequencies).to(state.dtype))
        for block in self.trunk:
            state = state + block(state)
        centred = _centred(at_least_float32(state))
        variance = (centred[:, None] + self.codes).square().mean(dim=-1, keepdim=True)
        hidden = at_least_float32(F.linear(centred.to(state.dtype), self.output1))[:, None] + self.projected_codes
        hidden = torch.addcmul(self.bias, hidden, (variance + 1e-5).rsqrt())
        return self.output2(gelu(hidden).to(state.dtype))


def _step_codes(expert: StateFusionActionExpert, device: torch.device) -> Float[Tensor, "H W"]:
    """Return `expert.step_codes()`, computed in at least float32 on `device`."""
    weight = expert.fused_proj.weight
    dtype = torch.promote_types(weight.dtype, torch.float32)
    steps = torch.arange(expert.horizon, dtype=torch.float64, device=device)
    return copy.deepcopy(expert.step_pos_proj).to(device, dtype)(sinusoid(steps, expert.step_code_dim).to(dtype))


def _centred(x: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch W"]:
    return x - x.mean(dim=-1, keepdim=True)
