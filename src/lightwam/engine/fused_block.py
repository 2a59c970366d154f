"""The packed step's block on a GPU: frozen weights with LoRA, in three autograd functions around its attentions.

The steps between products are the kernels of lightwam.kernels. A low-rank update is part of its layer's product,
y = [x | s x down'] [W | up]', so nothing passes over y again; the norms write x where that product reads it. Normed
tokens and hidden activations after the GELU are computed again in the backward pass instead of being kept.

    enter    norm, modulation, q k v, their norm and RoPE
    middle   output of the self-attention, gate, residual, norm, query of the cross-attention
    leave    output of the cross-attention, residual, norm, modulation, feed-forward, gate, residual

`packed_block.run_block` computes the same in plain torch, and tests compare the two. N rows of tokens, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from lightwam.engine import fused_lora
from lightwam.kernels import choice
from lightwam.model.dit import Block, DiT, KeyValue
from lightwam.model.layers import attention
from lightwam.model.lora import LoRA

ops = torch.ops.lightwam
Grads = tuple[Tensor | None, ...]


def fits(dit: DiT, device: torch.device) -> bool:
    """Tell whether tokens take these functions: where kernels run, weights are frozen and all have LoRA."""
    config = dit.config
    if not (config.frozen and config.lora_rank > 0 and choice.on(device)):
        return False
    return not torch.is_autocast_enabled(device.type)


class Call(NamedTuple):
    """What a block's functions need beside their inputs."""

    block: Block
    layout: tuple[int, int, int]
    """number of action, first and later tokens"""
    vectors: tuple[Tensor, ...]
    """shift, scale and gate of self-attention, then of the feed-forward: [1+B D] or [1 D], as in lightwam.kernels"""
    rope: Float[Tensor, "S 1 pairs 2"]

    @property
    def clean(self) -> int:
        """Number of tokens of time 0."""
        return self.layout[0] + self.layout[1]


def run_block(
    block: Block,
    x: Float[Tensor, "B S D"],
    rope: Complex[Tensor, "S 1 pairs"],
    layout: tuple[int, int, int, int],
    modulation: Float[Tensor, "rows 6 D"],
    context_kv: KeyValue,
    keeps_first: bool,
) -> Float[Tensor, "B S2 D"]:
    """Compute `packed_block.run_block`; `modulation` has a row for time 0, then one for each sample's later tokens.

    With foreseen tokens there is one more row, theirs. The kernels have two times a sample, so these tokens have calls
    of their own.
    """
    *kinds, foreseen = layout
    table, turns, size = modulation + block.scale_shift_table, torch.view_as_real(rope), x.shape[1] - foreseen
    call = Call(block, (kinds[0], kinds[1], kinds[2]), table[: len(table) - (foreseen > 0)].unbind(1), turns[:size])
    x, future = x.split((size, foreseen), dim=1) if foreseen else (x, x)
    x, *qkv = _enter(x, call)
    given = zip(qkv[:3], qkv[3:6], qkv[6:], strict=True)
    parts = [attention(q, k, v) if q.shape[1] else q.flatten(2) for q, k, v in given]
    if not keeps_first:
        action, _, later = x.split(kinds, dim=1)
        x, call = torch.cat((action, later), dim=1), call._replace(layout=(kinds[0], 0, kinds[2]))
        parts[1] = parts[1][:, :0]
    x = _leave(x, parts, call, context_kv)
    if not foreseen:
        return x
    call = Call(block, (0, 0, foreseen), table[-1:].unbind(1), turns[size:])
    future, *own = _enter(future, call)
    mixed = attention(own[2], torch.cat((qkv[3], own[5]), dim=1), torch.cat((qkv[6], own[8]), dim=1))
    empty = mixed[:, :0]
    return torch.cat((x, _leave(future, [empty, empty, mixed], call, context_kv)), dim=1)


def _enter(x: Float[Tensor, "B S D"], call: Call) -> tuple[Tensor, ...]:
    attn = call.block.attn1
    return cast(tuple[Tensor, ...], Enter.apply(x.contiguous(), call, *_weights(attn.lora_q, attn.lora_k, attn.lora_v)))


def _leave(
    x: Float[Tensor, "B S D"], parts: Sequence[Tensor], call: Call, context_kv: KeyValue
) -> Float[Tensor, "B S D"]:
    """Return the block's result from tokens and the three parts of their self-attention."""
    attn1, attn2, ffn = call.block.attn1, call.block.attn2, call.block.ffn
    x, query = Middle.apply(x, *parts, call, *_weights(attn1.lora_out, attn2.lora_q))
    attended = attention(query, *context_kv)
    return cast(Tensor, Leave.apply(x, attended, call, *_weights(attn2.lora_out, ffn.lora_in, ffn.lora_out)))


class Enter(torch.autograd.Function):
    """x -> x, and the queries, keys and values of the action, first and later tokens; later ones read first's too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Call, *lora: Tensor) -> tuple[Tensor, ...]:
        attn, (shift, scale, *_), width = call.block.attn1, call.vectors, x.shape[-1]
        normed, stats = ops.norm(x, shift, scale, 1.0, call.clean, _rank(lora))
        qkv = product(normed, _qkv(call.block), lora, _scale(attn.lora_q))
        weight = torch.stack((attn.norm_q.weight, attn.norm_k.weight))
        q, k = ops.head_norm(qkv, weight, call.rope, attn.num_heads).unbind(2)
        ctx.save_for_backward(x, stats, qkv, weight, shift, scale, *lora)
        ctx.call = call
        action, _, _ = call.layout
        v = qkv[..., 2 * width :].unflatten(-1, (attn.num_heads, -1))
        keys, values = ((*part.split(call.layout, dim=1)[:2], part[:, action:]) for part in (k, v))
        return x, *q.split(call.layout, dim=1), *keys, *values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Grads:
        """Return one gradient an input."""
        x, stats, qkv, weight, shift, scale, *lora = ctx.saved_tensors
        call, attn = ctx.call, ctx.call.block.attn1
        action, first, later = call.layout
        residual, qs, ks, vs = grads[0], grads[1:4], grads[4:7], grads[7:]
        grad = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] + _rank(lora))
        (k_first, k_later), (v_first, v_later) = (part[2].split((first, later), dim=1) for part in (ks, vs))
        sources = (qs[0], ks[0], vs[0]), (qs[1], ks[1], vs[1], k_first, v_first), (qs[2], k_later, v_later)
        for start, source in zip((0, action, action + first), sources, strict=True):
            if source[0].shape[1]:
                ops.head_norm_backward(list(source), qkv, weight, call.rope, start, grad)
        layers, factor, extra = _qkv(call.block), _scale(attn.lora_q), _rank(lora)
        if ctx.needs_input_grad[0]:
            inner = input_gradient(grad, layers, lora, factor)
            given = inner, x, stats, shift, scale, 1.0, residual, call.clean, extra
            grad_x, normed = ops.norm_backward(*given)
        else:  # the first block's tokens
            lora_inputs(grad, lora, factor)
            grad_x, normed = None, ops.norm(x, shift, scale, 1.0, call.clean, extra)[0]
        return grad_x, None, *lora_gradients(grad, normed, lora, factor)


class Middle(torch.autograd.Function):
    """Tokens and the three parts of their self-attention -> tokens, and queries of the cross-attention."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, action: Tensor, first: Tensor, later: Tensor, call: Call, *lora: Tensor) -> Grads:
        (attn1, attn2), norm, gate = (call.block.attn1, call.block.attn2), call.block.norm2, call.vectors[2]
        parts = action, first, later
        change = product(_joined(parts, lora[:2]), _out(attn1.to_out), lora[:2], _scale(attn1.lora_out))
        given = x, change, gate, norm.bias[None], norm.weight[None], 0.0, call.clean, _rank(lora[2:])
        x, normed, stats = ops.add_norm(*given)
        raw = product(normed, (attn2.to_q,), lora[2:], _scale(attn2.lora_q))
        ctx.save_for_backward(x, stats, raw, gate, *parts, *lora)
        ctx.call = call
        return x, ops.head_norm(raw, attn2.norm_q.weight[None], None, attn2.num_heads)[:, :, 0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Grads:
        """Return one gradient an input."""
        x, stats, raw, gate, *parts = ctx.saved_tensors
        parts, lora, block = parts[:3], parts[3:], ctx.call.block
        attn1, attn2, norm, clean = block.attn1, block.attn2, block.norm2, ctx.call.clean
        grad = raw.new_empty(*raw.shape[:2], raw.shape[2] + _rank(lora[2:]))
        ops.head_norm_backward([grads[1]], raw, attn2.norm_q.weight[None], None, 0, grad)
        inner = input_gradient(grad, (attn2.to_q,), lora[2:], _scale(attn2.lora_q))
        affine = norm.bias[None], norm.weight[None], 0.0
        grad_x, normed = ops.norm_backward(inner, x, stats, *affine, grads[0], clean, _rank(lora[2:]))
        query = lora_gradients(grad, normed, lora[2:], _scale(attn2.lora_q))
        grad = ops.gated(grad_x, gate, clean, _rank(lora[:2]))
        mixed = input_gradient(grad, _out(attn1.to_out), lora[:2], _scale(attn1.lora_out))
        out = lora_gradients(grad, _joined(parts, lora[:2]), lora[:2], _scale(attn1.lora_out))
        return grad_x, *mixed.split([part.shape[1] for part in parts], dim=1), None, *out, *query


class Leave(torch.autograd.Function):
    """Tokens and their cross-attention -> the block's result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, attended: Tensor, call: Call, *lora: Tensor) -> Tensor:
        block, (shift, scale, gate) = call.block, call.vectors[3:]
        (out,), (first, second) = _out(block.attn2.to_out), block.ffn.linears
        (down, up), factor = lora[:2], _scale(block.attn2.lora_out)
        change, low = fused_lora.low_rank_forward(attended.flatten(0, 1), out.weight, out.bias, down, up, factor)
        given = x, change.view_as(x), None, shift, scale, 1.0, call.clean, _rank(lora[2:4])
        x, normed, stats = ops.add_norm(*given)
        hidden = product(normed, (first,), lora[2:4], _scale(block.ffn.lora_in))
        after = hidden.new_empty(*hidden.shape[:2], hidden.shape[2] + _rank(lora[4:]))
        torch.ops.aten.gelu.out(hidden, approximate="tanh", out=after[..., : hidden.shape[2]])
        change = product(after, (second,), lora[4:], _scale(block.ffn.lora_out))
        ctx.save_for_backward(attended, low, x, stats, hidden, shift, scale, gate, *lora)
        ctx.call = call
        return ops.add(x, change, gate, call.clean)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Grads:
        """Return one gradient an input."""
        attended, low, x, stats, hidden, shift, scale, gate, *lora = ctx.saved_tensors
        block, clean = cast(Block, ctx.call.block), ctx.call.clean
        (out,), (first, second) = _out(block.attn2.to_out), block.ffn.linears
        grad = ops.gated(grads[0], gate, clean, _rank(lora[4:]))
        inner = input_gradient(grad, (second,), lora[4:], _scale(block.ffn.lora_out))
        after, grad_hidden = ops.gelu_backward(inner, hidden, _rank(lora[2:4]))
        second_lora = lora_gradients(grad, after, lora[4:], _scale(block.ffn.lora_out))
        inner = input_gradient(grad_hidden, (first,), lora[2:4], _scale(block.ffn.lora_in))
        given = inner, x, stats, shift, scale, 1.0, grads[0], clean, _rank(lora[2:4])
        grad_x, normed = ops.norm_backward(*given)
        first_lora = lora_gradients(grad_hidden, normed, lora[2:4], _scale(block.ffn.lora_in))
        flat, (down, up), factor = attended.flatten(0, 1), lora[:2], _scale(block.attn2.lora_out)
        grads_out = fused_lora.low_rank_backward(grad_x.flatten(0, 1), flat, low, out.weight, down, up, factor, True)
        grad_attended, *out_lora = grads_out
        assert grad_attended is not None
        return grad_x, grad_attended.view_as(attended), None, *out_lora, *first_lora, *second_lora


def product(
    x: Float[Tensor, "B S wide"], layers: Sequence[nn.Linear], lora: Sequence[Tensor], scale: float
) -> Float[Tensor, "B S m"]:
    """Return the outputs of layers over the same x, side by side; writes x's low-rank part into its last columns.

    `lora` is `down` and `up` of each layer in turn.
    """
    rank, flat, ups = _rank(lora), x.flatten(0, 1), lora[1::2]
    _low(flat, lora, scale)
    if len(layers) == 1:
        weight, bias = torch.cat((layers[0].weight, ups[0]), dim=1), cast(Tensor, layers[0].bias)
    else:
        weight = flat.new_empty(sum(len(up) for up in ups), flat.shape[1])
        torch.cat([layer.weight for layer in layers], out=weight[:, :-rank])
        corner = weight[:, -rank:].zero_().unflatten(0, (len(ups), -1)).unflatten(2, (len(ups), -1))
        corner.diagonal(dim1=0, dim2=2).copy_(torch.stack(tuple(ups), dim=2))
        bias = torch.cat([layer.bias for layer in layers])
    return torch.addmm(bias, flat, weight.t()).view(*x.shape[:2], -1)


def input_gradient(
    grad: Float[Tensor, "B S wider"], layers: Sequence[nn.Linear], lora: Sequence[Tensor], scale: float
) -> Float[Tensor, "B S n"]:
    """Return the gradient of `product`'s x; writes the low-rank part's into the last columns of `grad`."""
    lora_inputs(grad, lora, scale)
    weight = torch.cat([*(layer.weight for layer in layers), *lora[::2]])
    return (grad.flatten(0, 1) @ weight).view(*grad.shape[:2], -1)


def lora_inputs(grad: Float[Tensor, "B S wider"], lora: Sequence[Tensor], scale: float) -> None:
    """Write the gradient of s x down' into the last columns of `grad`."""
    outputs, lows = _by_layer(grad, lora)
    ups = lora[1::2]
    lows.baddbmm_(outputs, ups[0][None] if len(ups) == 1 else torch.stack(tuple(ups)), beta=0, alpha=scale)


def lora_gradients(
    grad: Float[Tensor, "B S wider"], x: Float[Tensor, "B S wide"], lora: Sequence[Tensor], scale: float
) -> list[Tensor]:
    """Return the gradients of `lora`; `grad` and the first columns of `x` are set."""
    rank, flat, count = _rank(lora), x.flatten(0, 1), len(lora) // 2
    _low(flat, lora, scale)
    grad_downs = (grad.flatten(0, 1)[:, -rank:].t() @ flat[:, :-rank]).chunk(count)
    low = flat[:, -rank:].unflatten(1, (count, -1)).transpose(0, 1)
    grad_ups = (_by_layer(grad, lora)[0].mT @ low).unbind()
    return [grad for pair in zip(grad_downs, grad_ups, strict=True) for grad in pair]


def _by_layer(
    grad: Float[Tensor, "B S wider"], lora: Sequence[Tensor]
) -> tuple[Float[Tensor, "layers N m"], Float[Tensor, "layers N r"]]:
    """Return the gradients of the layers' outputs and of their low-rank parts, as views; the layers are of one size."""
    rank, flat, count = _rank(lora), grad.flatten(0, 1), len(lora) // 2
    outputs, lows = flat[:, :-rank].unflatten(1, (count, -1)), flat[:, -rank:].unflatten(1, (count, -1))
    return outputs.transpose(0, 1), lows.transpose(0, 1)


def _low(flat: Float[Tensor, "N wide"], lora: Sequence[Tensor], scale: float) -> None:
    """Write s x down' into the last columns."""
    downs, rank = lora[::2], _rank(lora)
    down = downs[0] if len(downs) == 1 else torch.cat(tuple(downs))
    flat[:, -rank:].addmm_(flat[:, :-rank], down.t(), beta=0, alpha=scale)


def _joined(parts: Sequence[Tensor], lora: Sequence[Tensor]) -> Float[Tensor, "B S wide"]:
    """Join the parts' tokens, with room for a low-rank part."""
    batch, _, width = parts[0].shape
    wide = parts[0].new_empty(batch, sum(part.shape[1] for part in parts), width + _rank(lora))
    torch.cat(tuple(parts), dim=1, out=wide[..., :width])
    return wide


def _weights(*loras: LoRA | None) -> list[Tensor]:
    """Return `down` and `up` of each."""
    return [layer.weight for lora in loras if lora is not None for layer in (lora.down, lora.up)]


def _rank(lora: Sequence[Tensor]) -> int:
    """Return the columns of all low-rank parts together."""
    return sum(len(down) for down in lora[::2])


def _scale(lora: LoRA | None) -> float:
    assert lora is not None
    return lora.scale


def _qkv(block: Block) -> tuple[nn.Linear, ...]:
    return block.attn1.to_q, block.attn1.to_k, block.attn1.to_v


def _out(layers: nn.ModuleList) -> tuple[nn.Linear]:
    return (cast(nn.Linear, layers[0]),)
