"""A trained LightWAM, folded once to act faster: the same actions as `LightWAM.act`, up to rounding.

Only what acting needs: blocks up to the last tap, on one frame at time 0 and the foreseen ones after it. What does not
depend on the camera is computed when the model is folded (modulation, step codes, the poolers' queries) or once a
sentence (`encode_prompt`).
Letters as in model/dit.py and model/action_expert.py; N blocks up to the last tap, K keys a sentence.
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
from lightwam.engine.folded_times import FOLDED, Tables, split_modulation
from lightwam.engine.folding import Folded, Placement, fold, stack
from lightwam.kernels import choice
from lightwam.model.dit import Block, ResidualAdapter
from lightwam.model.foresight import foreseen
from lightwam.model.layers import EPS, apply_rope, at_least_float32, attention, gelu, layer_norm, patches, rope_3d
from lightwam.model.light_wam import LightWAM

ops = torch.ops.lightwam


class PromptKV(NamedTuple):
    """Keys and values of a prompt for every block; padding positions, all alike, are one key, or two in bfloat16."""

    keys: Float[Tensor, "N K heads d"]
    values: Float[Tensor, "N K heads d"]
    score_bias: Float[Tensor, " K"]
    """added to a key's score: the log of the number of tokens that it stands for"""


class BlockKV(NamedTuple):
    """Keys and values of a batch for one block: the last arguments of `layers.attention`."""

    keys: Float[Tensor, "B K heads d"]
    values: Float[Tensor, "B K heads d"]
    score_bias: Float[Tensor, "B 1 1 K"]


class ContextKV(NamedTuple):
    """Keys and values of a batch; the last key is the proprioception token's, written at every step."""

    keys: Float[Tensor, "N B K heads d"]
    values: Float[Tensor, "N B K heads d"]
    score_bias: Float[Tensor, "B 1 1 K"]

    def of_block(self, i: int) -> BlockKV:
        """Return block `i`'s part, a view."""
        return BlockKV(self.keys[i], self.values[i], self.score_bias)


class FoldedBlock:
    """`Block` on one frame at time 0; with foresight, at R = 2 times, on that frame and the foreseen ones."""

    def __init__(self, block: Block, modulation: Float[Tensor, "R 6 D"], placement: Placement) -> None:
        vectors = modulation + placement.wide(block.scale_shift_table)
        (given, self.first), (given2, self.second) = (split_modulation(v, placement) for v in vectors.split(3, dim=1))
        attn1, attn2, ffn = block.attn1, block.attn2, block.ffn
        qkv = [(attn1.to_q, attn1.lora_q), (attn1.to_k, attn1.lora_k), (attn1.to_v, attn1.lora_v)]
        self.num_heads = attn1.num_heads
        self.qkv = fold(qkv, placement, scale=given.scale, shift=given.shift)
        self.out = fold([(cast(nn.Linear, attn1.to_out[0]), attn1.lora_out)], placement, gate=given.gate)
        self.query = fold([(attn2.to_q, attn2.lora_q)], placement, scale=block.norm2.weight, shift=block.norm2.bias)
        self.out2 = fold([(cast(nn.Linear, attn2.to_out[0]), attn2.lora_out)], placement)
        first, second = ffn.linears
        self.up = fold([(first, ffn.lora_in)], placement, scale=given2.scale, shift=given2.shift)
        self.down = fold([(second, ffn.lora_out)], placement, gate=given2.gate)
        self.norm_qk = placement.put(torch.stack((attn1.norm_q.weight, attn1.norm_k.weight)))
        self.norm_query = placement.put(attn2.norm_q.weight)

    def __call__(
        self,
        x: Float[Tensor, "B S D"],
        rope: Complex[Tensor, "S 1 pairs"],
        context: BlockKV,
        present: int,
    ) -> Float[Tensor, "B S D"]:
        """Apply the block; the first `present` tokens are the present's."""
        heads, width = (self.num_heads, -1), x.shape[-1]
        both, v = self.qkv(self.first.norm(x, present)).split((2 * width, width), dim=-1)
        normed = rms_norm(both.unflatten(-1, (2, width)), self.norm_qk).flatten(2).unflatten(-1, (2 * heads[0], -1))
        q, k = apply_rope(normed, rope).to(x.dtype).chunk(2, dim=2)
        mixed = frame_attention(q, k, v.unflatten(-1, heads), present)
        x = self.first.add(x, self.out(mixed), present)
        q = rms_norm(self.query(layer_norm(x)), self.norm_query).to(x.dtype).unflatten(-1, heads)
        x = x + self.out2(attention(q, *context))
        return self.second.add(x, self.down(self.up.gelu(self.second.norm(x, present))), present)

    def with_kernels(
        self,
        x: Float[Tensor, "B S D"],
        normed: Float[Tensor, "B S D"],
        rope: Complex[Tensor, "S 1 pairs"],
        context: BlockKV,
        present: int,
        own: tuple[Tables, Tables],
        after: Tables,
    ) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "B S D"]]:
        """Compute the same by lightwam.kernels: from tokens and their norm, to tokens and their norm.

        `own` are the block's tables; `after` is for the norm that the block returns.
        """
        first, second = own
        qkv, heads = self.qkv(normed), self.num_heads
        q, k = ops.head_norm(qkv, self.norm_qk, torch.view_as_real(rope), heads).unbind(2)
        v = qkv[..., 2 * x.shape[-1] :].unflatten(-1, (heads, -1))
        x, normed = add_norm(x, self.out(frame_attention(q, k, v, present)), first.gate, clean=present)
        q = ops.head_norm(self.query(normed), self.norm_query[None], None, heads)[:, :, 0]
        x, normed = add_norm(x, self.out2(attention(q, *context)), None, second, present)
        return add_norm(x, self.down(self.up.gelu(normed)), second.gate, after, present)


def rms_norm(x: Float[Tensor, "*batch D"], weight: Float[Tensor, "*parts D"]) -> Float[Tensor, "*batch D"]:
    """Return RMSNorm(x) weight in at least float32; on a CPU in half of the time of torch's own."""
    wide = at_least_float32(x)
    mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_() / x.shape[-1]
    return (wide * mean_square.add_(EPS).rsqrt_()).mul_(weight)


def frame_attention(
    q: Float[Tensor, "B S heads d"], k: Float[Tensor, "B S heads d"], v: Float[Tensor, "B S heads d"], present: int
) -> Float[Tensor, "B S D"]:
    """Let the present's tokens, the first ones, attend to themselves and foreseen ones to all."""
    if q.shape[1] == present:
        return attention(q, k, v)
    seen = attention(*(part[:, :present] for part in (q, k, v)))
    return torch.cat((seen, attention(q[:, present:], k, v)), dim=1)


def add_norm(
    x: Float[Tensor, "B S D"],
    update: Float[Tensor, "B S D"],
    gate: Float[Tensor, "rows D"] | None = None,
    norm: Tables = FOLDED,
    clean: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return x + gate * update and its LayerNorm, modulated by the tables, by a kernel."""
    return ops.add_norm(x, update, gate, norm.shift, norm.scale, 0.0, clean, 0)[:2]


class FoldedAdapter:
    """`ResidualAdapter`."""

    def __init__(self, adapter: ResidualAdapter, placement: Placement) -> None:
        self.down = fold([(adapter.down, None)], placement, scale=adapter.norm.weight, shift=adapter.norm.bias)
        self.up = fold([(adapter.up, None)], placement)

    def __call__(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        return x + self.update(layer_norm(x))

    def update(self, normed: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """Return what is added to tokens of this norm."""
        return self.up(self.down.gelu(normed))


class FoldedWAM:
    """`LightWAM.act`, folded. The model is not changed and not needed afterwards."""

    @torch.inference_mode()  # torch keeps no autograd records of tensors created in this mode
    def __init__(self, model: LightWAM, placement: Placement) -> None:
        """Fold `model` to compute at `placement`, which need not be the model's; sums are in at least float32."""
        dit = model.dit
        assert dit.config.patch[0] == 1
        self.placement, self.patch = placement, dit.config.patch
        self.uses_kernels, self.foresight = choice.on(placement.device), model.config.foresight
        self.num_heads, self.head_dim = dit.config.num_heads, dit.config.width // dit.config.num_heads
        wide = placement.wide(dit.scale_shift_table)
        embedder = copy.deepcopy(dit.condition_embedder).to(wide)
        times = torch.arange(2 if self.foresight else 1, device=wide.device) * float(model.config.flow.num_times)
        modulation = embedder.time(times)[1]
        blocks = [cast(Block, block) for block in dit.blocks[: dit.config.taps[-1] + 1]]
        self.patch_weight = placement.put(dit.patch_embedding.weight.flatten(1))
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
        self.embed_state = _merge_linears(model.proprio_encoder, text.linear_1, placement)
        cross = [block.attn2 for block in blocks]
        key_value = [[(attn.to_k, attn.lora_k), (attn.to_v, attn.lora_v)] for attn in cross]
        self.to_kv = stack([fold(parts, placement, plain=True) for parts in key_value])
        self.norm_k = placement.put(torch.stack([attn.norm_k.weight for attn in cross])[:, None])
        self.ropes: dict[tuple[int, int], Tensor] = {}  # kept here, as a CUDA graph refers to their memory
        self.tables: dict[int, list[tuple[Tables, Tables]]] = {}  # likewise, by batch size

    @torch.inference_mode()
    def encode_prompt(self, states: Float[Tensor, "L E"]) -> PromptKV:
        """Return keys and values of a prompt's token states (padding: zeros), to be used at every step."""
        is_token = states.any(dim=1)
        rows, num_padding = states[is_token], int((~is_token).sum())
        padding = padding_bias(num_padding, self.placement.dtype).to(states.device)
        score_bias = torch.cat((padding.new_zeros(len(rows)), padding))
        rows = torch.cat((rows, rows.new_zeros(len(padding), rows.shape[1])))
        keys, values = self._keys_values(self.embed1(rows.to(self.placement.dtype)))
        return PromptKV(keys, values, score_bias)

    @torch.inference_mode()
    def batch_prompts(self, prompts: Sequence[PromptKV], multiple: int = 1) -> ContextKV:
        """Join one prompt a sample, with room for the proprioception token, padded to a `multiple` of keys."""
        length = 1 + max(len(prompt.score_bias) for prompt in prompts)
        length += -length % multiple
        keys, values = (
            torch.stack([F.pad(part, (0, 0, 0, 0, 0, length - part.shape[1])) for part in parts], dim=1)
            for parts in ([p.keys for p in prompts], [p.values for p in prompts])
        )
        biases = [F.pad(p.score_bias, (0, length - len(p.score_bias)), value=-torch.inf) for p in prompts]
        score_bias = torch.stack(biases)
        score_bias[:, -1] = 0
        return ContextKV(keys, values, score_bias[:, None, None])

    @torch.inference_mode()
    def act(
        self, latent: Float[Tensor, "B C 1 h w"], context_kv: ContextKV, state: Float[Tensor, "B P"]
    ) -> Float[Tensor, "B H A"]:
        """Return one chunk of normalised actions a sample; overwrites the last key of `context_kv`."""
        keys, values = self._keys_values(self.embed_state(state.to(self.placement.dtype)))
        context_kv.keys[:, :, -1], context_kv.values[:, :, -1] = keys, values
        cut = patches(latent.to(self.placement.dtype), self.patch)
        rows, columns = cut.shape[2:4]
        rope = self._rope(rows, columns)
        x, present = F.linear(cut.flatten(1, 3), self.patch_weight, self.patch_bias), rows * columns
        if self.foresight:
            x = torch.cat((x, self.patch_bias.expand(len(x), len(rope) - present, -1)), dim=1)
        pooled: list[Tensor] = []
        if self.uses_kernels:
            return self._act_with_kernels(x, present, rope, context_kv, state)
        for i, block in enumerate(self.blocks):
            x = block(x, rope, context_kv.of_block(i), present)
            if (adapter := self.adapters.get(i)) is not None:
                x = adapter(x)
                pooled.append(self.expert.pool_tap(len(pooled), x))
        return self.expert(pooled, state)

    def _act_with_kernels(
        self,
        x: Float[Tensor, "B S D"],
        present: int,
        rope: Complex[Tensor, "S 1 pairs"],
        context_kv: ContextKV,
        state: Float[Tensor, "B P"],
    ) -> Float[Tensor, "B H A"]:
        """Run blocks and expert; a kernel that ends a part of them also makes the norm that begins the next one."""
        if len(x) not in self.tables:
            self.tables[len(x)] = [(block.first.tables(len(x)), block.second.tables(len(x))) for block in self.blocks]
        tables, pooled = self.tables[len(x)], list[Tensor]()
        begins = [first for first, _ in tables] + [FOLDED]
        normed = ops.norm(x, begins[0].shift, begins[0].scale, 0.0, present, 0)[0]
        for i, block in enumerate(self.blocks):
            adapter = self.adapters.get(i)
            after = begins[i + 1] if adapter is None else FOLDED
            x, normed = block.with_kernels(x, normed, rope, context_kv.of_block(i), present, tables[i], after)
            if adapter is not None:
                x, normed = add_norm(x, adapter.update(normed), None, begins[i + 1], present)
                pooled.append(self.expert.pool_tap(len(pooled), x))
        return self.expert(pooled, state)

    def _rope(self, rows: int, columns: int) -> Complex[Tensor, "S 1 pairs"]:
        """Return the RoPE of the tokens of a present of rows x columns, then of the foreseen frames."""
        if (rows, columns) not in self.ropes:
            rope = rope_3d(1, rows, columns, self.head_dim, self.placement.device, self.placement.dtype)
            if self.foresight:
                future = foreseen(self.patch_bias, self.foresight, rows, columns, self.head_dim)[1]
                rope = torch.cat((rope, future))
            self.ropes[rows, columns] = rope
        return self.ropes[rows, columns]

    def _keys_values(self, hidden: Float[Tensor, "n D"]) -> tuple[Tensor, Tensor]:
        """Return keys and values [N, n, heads, d] for every block, of tokens before the text embedder's GELU."""
        k, v = self.to_kv(self.embed2(gelu(hidden))).chunk(2, dim=-1)
        k = F.rms_norm(k, k.shape[-1:], None, EPS) * self.norm_k
        return k.unflatten(-1, (self.num_heads, -1)), v.unflatten(-1, (self.num_heads, -1))


def padding_bias(count: int, dtype: torch.dtype) -> Float[Tensor, " keys"]:
    """Return biases of equal keys that weigh as much as `count` keys without one: the sum of e^bias is `count`.

    log(count) is rounded in bfloat16 by up to 1.6 % of `count`, so there a second key has what the first one lacks.
    """
    if count == 0:
        return torch.zeros(0, dtype=dtype)
    exact = torch.tensor(float(count), dtype=torch.float64).log()
    first = exact.to(dtype)
    if dtype in (torch.float32, torch.float64) or first == exact:
        return first[None]
    if first > exact:
        first = (exact - 2.0 ** (torch.frexp(exact).exponent - 8)).to(dtype)  # bfloat16 has 8 bits
    rest = count - first.double().exp()
    return torch.stack((first, rest.log().to(dtype)))


def _merge_linears(first: nn.Linear, second: nn.Linear, placement: Placement) -> Folded:
    """Merge two consecutive linear layers into one."""
    weight = placement.wide(second.weight)
    bias = weight @ placement.wide(first.bias) + placement.wide(second.bias)
    return Folded(placement.put(weight @ placement.wide(first.weight)), placement.put(bias))
