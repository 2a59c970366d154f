"""A trained LightWAM, folded once to act sooner: the same action as `LightWAM.act`, to rounding.

Only what acting needs is here: blocks up to the last tap, at time 0, on one frame. What does not depend on the camera
is computed when the model is folded (modulation, step codes, the poolers' queries) or once a sentence (`pool_tap`).
Letters as in model/dit.py and model/expert.py; N blocks up to the last tap, K keys a sentence.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor, nn

from lightwam.engine.folded_expert import FoldedExpert
from lightwam.engine.folding import Folded, Placement, fold, stack
from lightwam.model.dit import Block, ResidualAdapter
from lightwam.model.layers import EPS, Attention, apply_rope, at_least_float32, gelu, layer_norm, rope_3d
from lightwam.model.light_wam import LightWAM


class PromptKV(NamedTuple):
    """A prompt as the cross-attention of every block reads it; the padding, all alike, is one key."""

    keys: Float[Tensor, "N K heads d"]
    values: Float[Tensor, "N K heads d"]
    weight: Float[Tensor, " K"]
    """added to a key's score: the log of how many tokens it stands for"""


class ContextKV(NamedTuple):
    """The sentences of a batch; the last key is the proprioception token's, filled at every step."""

    keys: Float[Tensor, "N B K heads d"]
    values: Float[Tensor, "N B K heads d"]
    weight: Float[Tensor, "B 1 1 K"]


class FoldedBlock:
    """`Block` at time 0 on one frame."""

    def __init__(self, block: Block, modulation: Float[Tensor, "6 D"], placement: Placement) -> None:
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation + at_least_float32(block.scale_shift_table[0])
        one, two, ffn = block.attn1, block.attn2, block.ffn
        qkv = [(one.to_q, one.lora_q), (one.to_k, one.lora_k), (one.to_v, one.lora_v)]
        self.num_heads = one.num_heads
        self.qkv = fold(qkv, placement, scale=1 + scale1, shift=shift1)
        self.out = fold([(one.to_out[0], one.lora_out)], placement, gate=gate1)
        self.query = fold([(two.to_q, two.lora_q)], placement, scale=block.norm2.weight, shift=block.norm2.bias)
        self.out2 = fold([(two.to_out[0], two.lora_out)], placement)
        self.up = fold([(ffn.net[0], ffn.lora_in)], placement, scale=1 + scale2, shift=shift2)
        self.down = fold([(ffn.net[2], ffn.lora_out)], placement, gate=gate2)
        self.norm_qk = placement.put(torch.stack((one.norm_q.weight, one.norm_k.weight)))
        self.norm_query = placement.put(two.norm_q.weight)

    def __call__(
        self,
        x: Float[Tensor, "B S D"],
        rope: Complex[Tensor, "S 1 pairs"],
        keys: Float[Tensor, "B K heads d"],
        values: Float[Tensor, "B K heads d"],
        weight: Float[Tensor, "B 1 1 K"],
    ) -> Float[Tensor, "B S D"]:
        """Tokens through the block."""
        heads, width = (self.num_heads, -1), x.shape[-1]
        both, v = self.qkv(layer_norm(x)).split((2 * width, width), dim=-1)
        normed = F.rms_norm(both.unflatten(-1, (2, width)), (width,), None, EPS) * self.norm_qk
        q, k = apply_rope(normed.flatten(2).unflatten(-1, (2 * heads[0], -1)), rope).chunk(2, dim=2)
        x = x + self.out(attention(q, k, v.unflatten(-1, heads)))
        q = F.rms_norm(self.query(layer_norm(x)), (width,), self.norm_query, EPS).unflatten(-1, heads)
        x = x + self.out2(attention(q, keys, values, weight))
        return x + self.down(gelu(self.up(layer_norm(x))))


class FoldedAdapter:
    """`ResidualAdapter`."""

    def __init__(self, adapter: ResidualAdapter, placement: Placement) -> None:
        self.down = fold([(adapter.down, None)], placement, scale=adapter.norm.weight, shift=adapter.norm.bias)
        self.up = fold([(adapter.up, None)], placement)

    def __call__(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """The adapted tokens."""
        return x + self.up(gelu(self.down(layer_norm(x))))


class FoldedWAM:
    """`LightWAM.act`, folded. The model given is only read, and may be thrown away."""

    @torch.inference_mode()  # torch skips its book-keeping on tensors that were made so
    def __init__(self, model: LightWAM, placement: Placement) -> None:
        """Computes in `placement`, which need not be the model's; weights are summed in at least float32."""
        dit = model.dit
        assert dit.config.patch[0] == 1
        self.placement, self.patch = placement, dit.config.patch[1:]
        self.num_heads, self.head_dim = dit.config.num_heads, dit.config.width // dit.config.num_heads
        embedder = copy.deepcopy(dit.condition_embedder).to(at_least_float32(dit.scale_shift_table).dtype)
        modulation = embedder.time(torch.zeros(1, device=dit.scale_shift_table.device))[1][0]
        blocks = [cast(Block, block) for block in dit.blocks[: dit.config.taps[-1] + 1]]
        self.patch_weight = placement.put(dit.patch_embedding.weight[:, :, 0])
        self.patch_bias = placement.put(cast(Tensor, dit.patch_embedding.bias))
        self.blocks = [FoldedBlock(block, modulation, placement) for block in blocks]
        self.adapters = {
            int(name): FoldedAdapter(cast(ResidualAdapter, adapter), placement)
            for name, adapter in dit.adapters.items()
        }
        self.expert = FoldedExpert(model.expert, placement)
        text = embedder.text_embedder
        self.embed1, self.embed2 = (
            fold([(layer, None)], placement, plain=True) for layer in (text.linear_1, text.linear_2)
        )
        self.embed_state = _after(model.proprio_encoder, text.linear_1, placement)
        self.to_kv = stack([_key_value(block.attn2, placement) for block in blocks])
        self.norm_k = placement.put(torch.stack([block.attn2.norm_k.weight for block in blocks])[:, None])
        self.ropes: dict[tuple[int, int], Tensor] = {}  # held here, as a CUDA graph reads them where they lie

    @torch.inference_mode()
    def encode_prompt(self, states: Float[Tensor, "L E"]) -> PromptKV:
        """A prompt's token states, padding zeros, ready for every step with this sentence."""
        there = states.any(dim=1)
        rows, padding = states[there], int((~there).sum())
        weight = torch.zeros(len(rows), device=states.device, dtype=torch.float64)
        if padding:
            rows = torch.cat((rows, rows.new_zeros(1, rows.shape[1])))
            weight = torch.cat((weight, weight.new_tensor([padding]).log()))
        keys, values = self._keys_values(self.embed1(rows.to(self.placement.dtype)))
        return PromptKV(keys, values, weight.to(self.placement.dtype))

    @torch.inference_mode()
    def batch_prompts(self, sentences: Sequence[PromptKV]) -> ContextKV:
        """One sentence a sample."""
        most = max(len(sentence.weight) for sentence in sentences)
        keys, values = (
            torch.stack([F.pad(part, (0, 0, 0, 0, 0, most + 1 - part.shape[1])) for part in parts], dim=1)
            for parts in ([s.keys for s in sentences], [s.values for s in sentences])
        )
        weight = torch.stack([F.pad(s.weight, (0, most + 1 - len(s.weight)), value=-torch.inf) for s in sentences])
        weight[:, -1] = 0
        return ContextKV(keys, values, weight[:, None, None])

    @torch.inference_mode()
    def act(
        self, latent: Float[Tensor, "B C 1 h w"], context_kv: ContextKV, state: Float[Tensor, "B P"]
    ) -> Float[Tensor, "B H A"]:
        """The chunk of normalised actions for what is seen now; overwrites the memory's last key."""
        keys, values = self._keys_values(self.embed_state(state.to(self.placement.dtype)))
        context_kv.keys[:, :, -1], context_kv.values[:, :, -1] = keys, values
        patches = F.conv2d(latent[:, :, 0].to(self.placement.dtype), self.patch_weight, self.patch_bias, self.patch)
        rows, columns = patches.shape[2:]
        if (rows, columns) not in self.ropes:
            self.ropes[rows, columns] = rope_3d(1, rows, columns, self.head_dim, latent.device, self.placement.dtype)
        rope = self.ropes[rows, columns]
        x = patches.flatten(2).mT.contiguous()
        found: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x = block(x, rope, context_kv.keys[i], context_kv.values[i], context_kv.weight)
            if i in self.adapters:
                x = self.adapters[i](x)
                found.append(self.expert.pool_tap(len(found), x))
        return self.expert(found)

    def _keys_values(self, hidden: Float[Tensor, "n D"]) -> tuple[Tensor, Tensor]:
        """Tokens inside the text embedder, before its GELU -> keys and values [N, n, heads, d] of every block."""
        k, v = self.to_kv(self.embed2(gelu(hidden))).chunk(2, dim=-1)
        k = F.rms_norm(k, k.shape[-1:], None, EPS) * self.norm_k
        return k.unflatten(-1, (self.num_heads, -1)), v.unflatten(-1, (self.num_heads, -1))


def attention(
    q: Float[Tensor, "B S heads d"],
    k: Float[Tensor, "B K heads d"],
    v: Float[Tensor, "B K heads d"],
    weight: Float[Tensor, "B 1 1 K"] | None = None,
) -> Float[Tensor, "B S D"]:
    """Softmax attention, heads joined again; `weight` is added to the scores."""
    mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), weight)
    return mixed.transpose(1, 2).flatten(2)


def _key_value(attention: Attention, placement: Placement) -> Folded:
    return fold([(attention.to_k, attention.lora_k), (attention.to_v, attention.lora_v)], placement, plain=True)


def _after(first: nn.Linear, second: nn.Linear, placement: Placement) -> Folded:
    """Two linears with nothing between them, as one."""
    weight = at_least_float32(second.weight)
    bias = weight @ at_least_float32(first.bias) + at_least_float32(second.bias)
    return Folded(placement.put(weight @ at_least_float32(first.weight)), placement.put(bias))
