"""StateFusionActionExpert: tapped tokens of the present frame -> one chunk of actions, all steps at once.

B batch, S tokens, D backbone width, Q learned queries a tap, H horizon, A action dims, W trunk width, P state dims.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightwam.config.schema import ModelConfig
from lightwam.model.layers import attention, gelu, sinusoid
from lightwam.model.state_reader import StateReader


class Pooler(nn.Module):
    """Learned queries that attend to a tap's tokens; their results are merged into one vector."""

    def __init__(self, width: int, num_queries: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_tokens = nn.Parameter(torch.randn(num_queries, width) * 0.02)
        self.query_merge_logits = nn.Parameter(torch.zeros(num_queries))
        self.token_norm = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.output_norm = nn.LayerNorm(width)

    def forward(self, tokens: Float[Tensor, "B S D"]) -> Float[Tensor, "B D"]:
        pooled = attention(*self.query_key_value(tokens))
        # The merge weights sum to 1, so merging first and projecting once is the same as the reverse.
        merged = torch.einsum("q,bqd->bd", self.query_merge_logits.softmax(0).to(pooled.dtype), pooled)
        return self.output_norm(self.attn.out_proj(merged))

    def attention(self, tokens: Float[Tensor, "B S D"]) -> Float[Tensor, "B heads Q S"]:
        """Return how much each query takes from each token."""
        q, k, _ = self.query_key_value(tokens)
        return torch.einsum("bqhd,bshd->bhqs", q * q.shape[-1] ** -0.5, k).softmax(-1)

    def query_key_value(
        self, tokens: Float[Tensor, "B S D"]
    ) -> tuple[Float[Tensor, "B Q heads d"], Float[Tensor, "B S heads d"], Float[Tensor, "B S heads d"]]:
        """Return queries (the same for every sample), keys and values, split in heads."""
        weight, bias, width = self.attn.in_proj_weight, self.attn.in_proj_bias, tokens.shape[-1]
        queries = nn.functional.linear(self.query_tokens, weight[:width], bias[:width])
        both = nn.functional.linear(self.token_norm(tokens), weight[width:], bias[width:])
        k, v = both.unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        q = queries.unflatten(-1, (self.num_heads, -1)).expand(len(tokens), -1, -1, -1)
        return q, k, v


class NormedPair(nn.Module):
    """LayerNorm, Linear, GELU, Linear."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_width)
        self.fc1, self.fc2 = nn.Linear(in_width, width), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        return self.fc2(gelu(self.fc1(self.norm(x))))


class StateFusionActionExpert(nn.Module):
    """Pools and compresses every tap, fuses them into one state and decodes the chunk from it. Always trained."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        expert, width, num_taps = config.expert, config.backbone.width, len(config.backbone.taps)
        trunk, code, frequencies = expert.trunk_width, expert.step_code_dim, expert.state_frequencies
        self.horizon, self.step_code_dim, queries = config.horizon, code, expert.num_queries
        self.layer_poolers = nn.ModuleList(Pooler(width, queries, expert.num_pool_heads) for _ in range(num_taps))
        self.layer_compressors = nn.ModuleList(NormedPair(width, expert.layer_width) for _ in range(num_taps))
        self.fused_norm = nn.LayerNorm(num_taps * expert.layer_width)
        self.fused_proj = nn.Linear(num_taps * expert.layer_width, trunk)
        self.state_reader = StateReader(config.state_dim, frequencies, trunk) if frequencies else None
        self.trunk = nn.ModuleList([NormedPair(trunk, trunk)])
        self.step_pos_proj = nn.Sequential(
            nn.LayerNorm(code), nn.Linear(code, trunk), nn.GELU(approximate="tanh"), nn.Linear(trunk, trunk)
        )
        self.output_norm = nn.LayerNorm(trunk)
        self.output = nn.Sequential(
            nn.Linear(trunk, trunk), nn.GELU(approximate="tanh"), nn.Linear(trunk, config.action_dim)
        )

    def forward(self, taps: Sequence[Float[Tensor, "B S D"]], proprio: Float[Tensor, "B P"]) -> Float[Tensor, "B H A"]:
        """Map the adapted tokens of every tap, and the normalised robot state, to a chunk of normalised actions."""
        pairs = zip(self.layer_poolers, self.layer_compressors, taps, strict=True)
        layers = [compressor(pooler(tokens)) for pooler, compressor, tokens in pairs]
        state = self.fused_proj(self.fused_norm(torch.cat(layers, dim=-1)))
        if self.state_reader is not None:
            state = state + self.state_reader(proprio)
        for block in self.trunk:
            state = state + block(state)
        return self.output(self.output_norm(state[:, None] + self.step_codes()))

    def step_codes(self) -> Float[Tensor, "H W"]:
        """Return the code that is added to the state for each step of the chunk."""
        weight = self.fused_proj.weight
        steps = torch.arange(self.horizon, dtype=torch.float64, device=weight.device)
        return self.step_pos_proj(sinusoid(steps, self.step_code_dim).to(weight.dtype))

    def attention(self, taps: Sequence[Float[Tensor, "B S D"]]) -> list[Float[Tensor, "B heads Q S"]]:
        """Return each tap's attention of queries over tokens."""
        return [cast(Pooler, pooler).attention(tokens) for pooler, tokens in zip(self.layer_poolers, taps, strict=True)]
