"""The video diffusion transformer: Wan2.1's blocks, tapped by residual adapters, without a mask.

B batch, C latent channels, T latent frames, h w latent height and width, S = T n tokens, n tokens a frame, D width,
L context tokens (text and proprioception), E text width, R distinct times a sample (1 or 2).

Parameters carry diffusers' names (WanTransformer3DModel), so that its weights load strictly; only LoRA and adapters
are added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from lightwam.config.schema import POOL, BackboneConfig
from lightwam.model.foresight import append_foreseen, foreseen
from lightwam.model.layers import (
    Attention,
    FeedForward,
    apply_rope,
    attention,
    gelu,
    layer_norm,
    patches,
    rope_3d,
    sinusoid,
)

KeyValue = tuple[Float[Tensor, "B L heads d"], Float[Tensor, "B L heads d"]]
"""keys and values of the context for one block's cross-attention"""


class DiTOutput(NamedTuple):
    """Result of a forward pass."""

    velocity: Float[Tensor, "B C T h w"] | None
    """noise - clean; None when the forward stopped after its last tap"""
    taps: tuple[Float[Tensor, "B S D"], ...]
    """tokens of every tapped block after its residual adapter"""


class LinearPair(nn.Module):
    """Two linear layers under diffusers' names."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(in_width, width), nn.Linear(width, width)


class ConditionEmbedder(nn.Module):
    """Embeddings of times and of context tokens."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.time_code_dim = config.time_code_dim
        self.time_embedder = LinearPair(config.time_code_dim, config.width)
        self.time_proj = nn.Linear(config.width, 6 * config.width)
        self.text_embedder = LinearPair(config.text_dim, config.width)

    def time(self, time: Float[Tensor, " R"]) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R 6 D"]]:
        """Return the time embedding, for the head, and the six modulation vectors made from it, for the blocks.

        Computed outside autocast: these few rows move every token, so they must not be rounded.
        """
        pair, silu = self.time_embedder, nn.functional.silu
        code = sinusoid(time, self.time_code_dim).to(pair.linear_1.weight.dtype)
        with torch.autocast(code.device.type, enabled=False):
            embedding = pair.linear_2(silu(pair.linear_1(code)))
            return embedding, self.time_proj(silu(embedding)).unflatten(1, (6, -1))

    def text(self, context: Float[Tensor, "*batch E"]) -> Float[Tensor, "*batch D"]:
        """Embed context tokens; padding (zeros) is embedded and attended to as well."""
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
        present: int = 1,
    ) -> Float[Tensor, "B T n D"]:
        """Apply the block to tokens by frames, with one modulation a frame (or one for all: Bm = Tm = 1).

        The first frame may be given in several parts of n tokens, `present` of them.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.scale_shift_table).unbind(2)
        attended = self.self_attention(modulate(x, shift1, scale1), rope, present)
        x = torch.addcmul(x, gate1[:, :, None].to(x.dtype), attended.to(x.dtype))
        tokens = self.norm2(x).flatten(1, 2)
        x = x + self.attn2.out(attention(self.attn2.query(tokens), *context)).view_as(x)
        return torch.addcmul(x, gate2[:, :, None].to(x.dtype), self.ffn(modulate(x, shift2, scale2)).to(x.dtype))

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return function(self, *arguments). Where blocks are sharded, this one's weights are gathered for the call."""
        return function(self, *arguments)

    def self_attention(
        self, x: Float[Tensor, "B T n D"], rope: Complex[Tensor, "S 1 pairs"], present: int
    ) -> Float[Tensor, "B T n D"]:
        """Let the first frame attend to itself and later frames to all frames, in two unmasked attentions."""
        tokens, n = x.flatten(1, 2), present * x.shape[2]
        q = apply_rope(self.attn1.query(tokens), rope)
        k, v = self.attn1.key_value(tokens)
        k = apply_rope(k, rope)
        mixed = attention(q[:, :n], k[:, :n], v[:, :n])
        if x.shape[1] > present:
            mixed = torch.cat((mixed, attention(q[:, n:], k, v)), dim=1)
        return self.attn1.out(mixed).view_as(x)


def modulate(
    x: Float[Tensor, "B T n D"], shift: Float[Tensor, "Bm Tm D"], scale: Float[Tensor, "Bm Tm D"]
) -> Float[Tensor, "B T n D"]:
    """Return norm(x) (1 + scale) + shift; in a single LayerNorm when all tokens share one time.

    Shift and scale may be more precise than x; they are rounded to its dtype.
    """
    shift, scale = shift.to(x.dtype), (1 + scale).to(x.dtype)
    if scale.shape[:2] == (1, 1):
        return layer_norm(x, scale[0, 0], shift[0, 0])
    return torch.addcmul(shift[:, :, None], layer_norm(x), scale[:, :, None])


class ResidualAdapter(nn.Module):
    """x + up(gelu(down(LayerNorm(x)))); `up` starts at zero, so a fresh adapter changes nothing."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        return x + self.up(gelu(self.down(self.norm(x))))


class DiT(nn.Module):
    """The backbone. With `config.frozen` only LoRA, adapters and the head are trainable.

    Initialisation: torch's own for linear layers, randn / sqrt(D) for modulation tables, zeros for `up` of adapters and
    LoRA. So it trains from scratch, and loaded weights compute unchanged in the first step.
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
            trained = "adapters.", "proj_out.", "scale_shift_table"  # and LoRA
            for name, parameter in self.named_parameters():
                parameter.requires_grad_("lora_" in name or name.startswith(trained))

    def encode_context(
        self, context: Float[Tensor, "B L E"], *, stop_at_last_tap: bool = False
    ) -> tuple[KeyValue, ...]:
        """Return the context's keys and values for every block, computed once for all passes over that context."""
        tokens = self.condition_embedder.text(context)
        blocks = self.blocks[: self.config.taps[-1] + 1] if stop_at_last_tap else self.blocks
        return tuple(cast(Block, block).attn2.key_value(tokens) for block in blocks)

    def forward(
        self,
        latents: Float[Tensor, "B C T h w"],
        later_time: Float[Tensor, " Bt"] | None,
        context_kv: Sequence[KeyValue],
        *,
        stop_at_last_tap: bool = False,
        foresight: int = 0,
    ) -> DiTOutput:
        """Return velocity and taps of latents: the first frame clean, at time 0, later ones noised, at `later_time`.

        `context_kv` comes from `encode_context`. `later_time` is None for a single frame. `stop_at_last_tap` skips the
        blocks after the last tap, and so the velocity. `foresight` appends that many foreseen frames to a single one;
        they have one time for all samples (Bt = 1).
        """
        config, head_dim = self.config, self.config.width // self.config.num_heads
        x, (rows, columns) = self.embed_patches(latents)
        frames, present = x.shape[1], 1
        assert (later_time is None) == (frames + foresight == 1), "later frames, and only they, have a time"
        rope = rope_3d(frames, rows, columns, head_dim, x.device, x.dtype)
        if foresight:
            assert stop_at_last_tap and frames == 1, "foreseen frames have no velocity"
            future = foreseen(cast(Tensor, self.patch_embedding.bias), foresight, rows, columns, head_dim)
            (x, rope), present = append_foreseen(x, rope, future), POOL**2
        embedding, modulation = self.frame_times(later_time, present, x.shape[1] - present)
        taps = []
        for i in range(config.taps[-1] + 1 if stop_at_last_tap else config.num_blocks):
            x = self.blocks[i](x, modulation, context_kv[i], rope, present)
            if i in config.taps:
                x = self.adapters[str(i)](x)
                taps.append(x.flatten(1, 2))
        return DiTOutput(None if stop_at_last_tap else self.head(x, embedding, rows, columns), tuple(taps))

    def embed_patches(self, latents: Float[Tensor, "B C T2 h w"]) -> tuple[Float[Tensor, "B T n D"], tuple[int, int]]:
        """Return the tokens that enter the first block, by frames, and the rows and columns of a frame."""
        layer = self.patch_embedding
        cut = patches(latents.to(layer.weight.dtype), self.config.patch)
        x = nn.functional.linear(cut, layer.weight.flatten(1), layer.bias)
        return x.flatten(2, 3), (x.shape[2], x.shape[3])

    def frame_times(
        self, later_time: Float[Tensor, " B"] | None, present: int, later: int
    ) -> tuple[Float[Tensor, "Bm Tm D"], Float[Tensor, "Bm Tm 6 D"]]:
        """Return time embedding and modulation of the parts of each frame; at most two times a sample are embedded."""
        zero = torch.zeros(1, device=self.scale_shift_table.device)
        if later_time is None:
            embedding, modulation = self.condition_embedder.time(zero)
            return embedding[None], modulation[None]
        rows = self.condition_embedder.time(torch.cat((zero.to(later_time.dtype), later_time)))
        batch = len(later_time)
        first = (row[:1, None].expand(batch, present, *row.shape[1:]) for row in rows)
        others = (row[1:, None].expand(batch, later, *row.shape[1:]) for row in rows)
        embedding, modulation = (torch.cat(pair, dim=1) for pair in zip(first, others, strict=True))
        return embedding, modulation

    def head(
        self, x: Float[Tensor, "B T n D"], embedding: Float[Tensor, "Bm Tm D"], rows: int, columns: int
    ) -> Float[Tensor, "B C T2 h w"]:
        """Map tokens to velocity: modulated norm, linear layer, patches reassembled."""
        shift, scale = (self.scale_shift_table[:, None] + embedding[:, :, None]).unbind(2)
        patches = self.proj_out(modulate(x, shift, scale))
        pf, ph, pw = self.config.patch
        batch, frames = x.shape[:2]
        grid = patches.view(batch, frames, rows, columns, pf, ph, pw, self.config.latent_channels)
        return grid.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(batch, -1, frames * pf, rows * ph, columns * pw)
