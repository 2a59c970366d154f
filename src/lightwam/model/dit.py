"""The video diffusion transformer: Wan2.1's blocks, tapped by residual adapters, without a mask.

B batch, C latent channels, T latent frames, h w latent height and width, S = T n tokens, n tokens a frame, D width,
L context tokens (text and proprioception), E text width, R distinct times a sample (1 or 2).

Parameters carry diffusers' names (WanTransformer3DModel), so that its weights load strictly; LoRA and adapters stand
beside them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from lightwam.config.schema import BackboneConfig
from lightwam.model.layers import Attention, FeedForward, apply_rope, attention, gelu, layer_norm, rope_3d, sinusoid

KeyValue = tuple[Float[Tensor, "B L heads d"], Float[Tensor, "B L heads d"]]
"""the context as one block's cross-attention reads it"""


class Tap(NamedTuple):
    """The tokens of a tapped block before and after its residual adapter."""

    state: Float[Tensor, "B S D"]
    adapted: Float[Tensor, "B S D"]


class DiTOutput(NamedTuple):
    """All that a forward produced."""

    velocity: Float[Tensor, "B C T h w"] | None
    """noise - clean; None when the forward stopped after its last tap"""
    taps: tuple[Tap, ...]
    """one a tapped block, in the order of the blocks"""


class LinearPair(nn.Module):
    """Two linears by diffusers' names, an activation between them."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(in_width, width), nn.Linear(width, width)


class ConditionEmbedder(nn.Module):
    """Times and context tokens -> the backbone's width."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.time_code_dim = config.time_code_dim
        self.time_embedder = LinearPair(config.time_code_dim, config.width)
        self.time_proj = nn.Linear(config.width, 6 * config.width)
        self.text_embedder = LinearPair(config.text_dim, config.width)

    def time(self, time: Float[Tensor, " R"]) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R 6 D"]]:
        """The time embedding (the head's), and its projection to six modulation vectors (the blocks').

        Outside autocast: these are a few rows, and rounding them would move every token.
        """
        pair, silu = self.time_embedder, nn.functional.silu
        code = sinusoid(time, self.time_code_dim).to(pair.linear_1.weight.dtype)
        with torch.autocast(code.device.type, enabled=False):
            embedding = pair.linear_2(silu(pair.linear_1(code)))
            return embedding, self.time_proj(silu(embedding)).unflatten(1, (6, -1))

    def text(self, context: Float[Tensor, "*batch E"]) -> Float[Tensor, "*batch D"]:
        """Context tokens; the zeros of padding go through too and stay visible."""
        return self.text_embedder.linear_2(gelu(self.text_embedder.linear_1(context)))


class Block(nn.Module):
    """Wan's block: modulated self-attention, cross-attention to the context, modulated feed-forward."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        lora = (config.lora_rank, config.lora_alpha)
        self.attn1 = Attention(config.width, config.num_heads, *lora)
        self.attn2 = Attention(config.width, config.num_heads, *lora)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.ffn = FeedForward(config.width, config.ffn_width, *lora)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, config.width) / math.sqrt(config.width))

    def forward(
        self,
        x: Float[Tensor, "B T n D"],
        modulation: Float[Tensor, "Bm Tm 6 D"],
        context: KeyValue,
        rope: Complex[Tensor, "S 1 pairs"],
    ) -> Float[Tensor, "B T n D"]:
        """Tokens by frames, with one modulation a frame (or one for all: Bm = Tm = 1)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.scale_shift_table).unbind(2)
        attended = self.self_attention(modulate(x, shift1, scale1), rope)
        x = torch.addcmul(x, gate1[:, :, None], attended.to(x.dtype))
        tokens = self.norm2(x).flatten(1, 2)
        x = x + self.attn2.out(attention(self.attn2.query(tokens), *context)).view_as(x)
        return torch.addcmul(x, gate2[:, :, None], self.ffn(modulate(x, shift2, scale2)).to(x.dtype))

    def self_attention(
        self, x: Float[Tensor, "B T n D"], rope: Complex[Tensor, "S 1 pairs"]
    ) -> Float[Tensor, "B T n D"]:
        """First-frame-causal: the first frame sees itself only, later frames see all. Two unmasked attentions."""
        tokens, n = x.flatten(1, 2), x.shape[2]
        q = apply_rope(self.attn1.query(tokens), rope)
        k, v = self.attn1.key_value(tokens)
        k = apply_rope(k, rope)
        mixed = attention(q[:, :n], k[:, :n], v[:, :n])
        if x.shape[1] > 1:
            mixed = torch.cat((mixed, attention(q[:, n:], k, v)), dim=1)
        return self.attn1.out(mixed).view_as(x)


def modulate(
    x: Float[Tensor, "B T n D"], shift: Float[Tensor, "Bm Tm D"], scale: Float[Tensor, "Bm Tm D"]
) -> Float[Tensor, "B T n D"]:
    """norm(x) (1 + scale) + shift; when all tokens share one time the LayerNorm kernel does it in a single pass."""
    if scale.shape[:2] == (1, 1):
        return layer_norm(x, 1 + scale[0, 0], shift[0, 0])
    return torch.addcmul(shift[:, :, None], layer_norm(x), 1 + scale[:, :, None])


class ResidualAdapter(nn.Module):
    """x + up(gelu(down(LayerNorm(x)))); `up` starts at zero, so that a fresh adapter changes nothing."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The adapted tokens, which replace x and which the action expert reads."""
        return x + self.up(gelu(self.down(self.norm(x))))


class DiT(nn.Module):
    """The whole backbone. `frozen` leaves LoRA, adapters and the head trainable, else everything is.

    A fresh one has torch's own linears, modulation tables of randn / sqrt(D), and zeros in `up` of adapters and LoRA:
    it trains from scratch, and loaded weights are what the first step computes with.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv3d(config.latent_channels, config.width, config.patch, config.patch)
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.adapters = nn.ModuleDict(
            {str(i): ResidualAdapter(config.width, config.adapter_width) for i in config.taps}
        )
        self.proj_out = nn.Linear(config.width, config.latent_channels * math.prod(config.patch))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, config.width) / math.sqrt(config.width))
        if config.frozen:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(trains_when_frozen(name))

    def encode_context(
        self, context: Float[Tensor, "B L E"], *, stop_at_last_tap: bool = False
    ) -> tuple[KeyValue, ...]:
        """Keys and values of the context, a pair a block: made once for all passes over the same context."""
        tokens = self.condition_embedder.text(context)
        blocks = self.blocks[: self.config.taps[-1] + 1] if stop_at_last_tap else self.blocks
        return tuple(cast(Block, block).attn2.key_value(tokens) for block in blocks)

    def forward(
        self,
        latents: Float[Tensor, "B C T h w"],
        later_time: Float[Tensor, " B"] | None,
        context_kv: Sequence[KeyValue],
        *,
        stop_at_last_tap: bool = False,
    ) -> DiTOutput:
        """Velocity and taps of latents whose first frame is clean, at time 0, and later frames noised, at `later_time`.

        `context_kv` is `encode_context(context)`. A single frame has no later time (None). With
        `stop_at_last_tap` there is no velocity.
        """
        config = self.config
        x = self.patch_embedding(latents.to(self.scale_shift_table.dtype))
        frames, rows, columns = x.shape[2:]
        assert (later_time is None) == (frames == 1), "later frames, and only they, have a time"
        # Contiguous, because the residual stream inherits this layout through all blocks.
        x = x.flatten(3).permute(0, 2, 3, 1).contiguous()
        embedding, modulation = self.frame_times(later_time, frames)
        rope = rope_3d(frames, rows, columns, config.width // config.num_heads, x.device, x.dtype)
        taps = []
        for i in range(config.taps[-1] + 1 if stop_at_last_tap else config.num_blocks):
            x = self.blocks[i](x, modulation, context_kv[i], rope)
            if i in config.taps:
                adapted = self.adapters[str(i)](x)
                taps.append(Tap(x.flatten(1, 2), adapted.flatten(1, 2)))
                x = adapted
        return DiTOutput(None if stop_at_last_tap else self.head(x, embedding, rows, columns), tuple(taps))

    def frame_times(
        self, later_time: Float[Tensor, " B"] | None, frames: int
    ) -> tuple[Float[Tensor, "Bm Tm D"], Float[Tensor, "Bm Tm 6 D"]]:
        """Time embedding and modulation of every frame, from two times a sample at most."""
        now = torch.zeros(1, device=self.scale_shift_table.device)
        if later_time is None:
            embedding, modulation = self.condition_embedder.time(now)
            return embedding[None], modulation[None]
        rows = self.condition_embedder.time(torch.cat((now.to(later_time.dtype), later_time)))
        size = (len(later_time), frames - 1)
        embedding, modulation = (
            torch.cat(
                (row[:1, None].expand(size[0], 1, *row.shape[1:]), row[1:, None].expand(*size, *row.shape[1:])), dim=1
            )
            for row in rows
        )
        return embedding, modulation

    def head(
        self, x: Float[Tensor, "B T n D"], embedding: Float[Tensor, "Bm Tm D"], rows: int, columns: int
    ) -> Float[Tensor, "B C T2 h w"]:
        """Tokens -> velocity: modulated norm, linear, patches put back in their places."""
        shift, scale = (self.scale_shift_table[:, None] + embedding[:, :, None]).unbind(2)
        patches = self.proj_out(modulate(x, shift, scale))
        pf, ph, pw = self.config.patch
        batch, frames = x.shape[:2]
        grid = patches.view(batch, frames, rows, columns, pf, ph, pw, self.config.latent_channels)
        return grid.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(batch, -1, frames * pf, rows * ph, columns * pw)


def trains_when_frozen(name: str) -> bool:
    """Whether a backbone parameter is trained over frozen weights: LoRA, adapters and the head with its modulation."""
    return "lora_" in name or name.startswith(("adapters.", "proj_out.", "scale_shift_table"))
