"""The packed training step: both passes of the model go through every linear layer as one sequence of tokens.

`packed_loss(model, ...)` equals `model.loss(...)`, gradients included; tests compare the two. Tokens of one sample, in
this order (letters as in model/dit.py):

    action   the present at full resolution     time 0     dropped after the last tap
    first    the present, averaged 2x2          time 0
    later    the noised future, averaged 2x2    time t
    foreseen the frames of model/foresight.py   time of noise level 1, dropped with action

They share all weights and the encoded context. Only self-attention separates them, in calls without a mask: action over
action, first over first, later over first and later, foreseen over action and foreseen. The last block uses `first` for
keys and values only, as nothing depends on its output. A sample without a video pass has action and foreseen tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightwam.engine.fused_lora import linear
from lightwam.engine.packed_block import Functions, Layout, Modulation, block_functions
from lightwam.engine.packed_tokens import acting, acting_rows, time_modulation, tokens
from lightwam.model import flow
from lightwam.model.dit import Block, KeyValue
from lightwam.model.light_wam import LightWAM
from lightwam.types import Batch, Losses


class PackedLoss(nn.Module):
    """`packed_loss` as a module, for DistributedDataParallel and FSDP to wrap."""

    def __init__(self, model: LightWAM, checkpointing: bool = False, compiled: bool = False) -> None:
        super().__init__()
        self.model, self.checkpointing, self.compiled = model, checkpointing, compiled

    def forward(self, batch: Batch, u: Float[Tensor, " V"], noise: Float[Tensor, "V C T h2 w2"]) -> Losses:
        return packed_loss(self.model, batch, u, noise, checkpointing=self.checkpointing, compiled=self.compiled)


def packed_loss(
    model: LightWAM,
    batch: Batch,
    u: Float[Tensor, " V"],
    noise: Float[Tensor, "V C T h2 w2"],
    *,
    checkpointing: bool = False,
    compiled: bool = False,
) -> Losses:
    """Return `model.loss(batch, u, noise)`, in one pass; samples after the first V have the action pass alone.

    `checkpointing` keeps only the input of each block and computes blocks again in the backward pass. `compiled` runs
    blocks as torch.compile makes them, on a GPU instead of the kernels.
    """
    config = model.config
    if config.video_loss_weight == 0:
        return model.loss(batch, u, noise)
    sigma, size = flow.shifted(u, config.flow.shift), len(u)
    noisy, time = flow.mix(batch.clip[:size], noise, sigma), config.flow.num_times * sigma
    run = partial(run_both, block_functions(model.dit, noisy.device, compiled))
    if checkpointing:
        run = partial(checkpoint, run, use_reentrant=False)
    velocity, taps = forward(model, batch.present, noisy, time, embed_context(model, batch), run)
    return model.losses(model.expert(taps, batch.state), velocity, batch, noise, sigma)


class Context(NamedTuple):
    """A batch's context, of which each block makes its keys and values when it runs."""

    tokens: Float[Tensor, "n1 D"]
    """embedded tokens that are not padding, proprioception included, and one row for all that is padding"""
    place: Int64[Tensor, " n"]
    """of the tokens in the flattened context"""
    size: tuple[int, ...]
    """of the context: B, L1"""

    def key_value(self, block: Block) -> KeyValue:
        """Return the block's keys and values, as `DiT.encode_context` does."""
        k, v = block.attn2.key_value(self.tokens, linear)
        return restore_padding(k, self.place, self.size), restore_padding(v, self.place, self.size)


def embed_context(model: LightWAM, batch: Batch) -> Context:
    """Embed text and state of a batch; all padding positions, which are equal, are computed once."""
    context, place = model.append_proprio(batch.context, batch.state), token_places(batch)
    rows = torch.cat((context.flatten(0, 1).index_select(0, place), context.new_zeros(1, context.shape[2])))
    return Context(model.dit.condition_embedder.text(rows), place, tuple(context.shape[:2]))


def token_places(batch: Batch) -> Int64[Tensor, " n"]:
    """Return where in the flattened context, proprioception tokens included, a token is not padding.

    Padding is text states that are all zero. The places are found on the CPU, as their number is the size of tensors:
    a GPU would have to be waited for.
    """
    text = batch.context.any(dim=2).cpu() if batch.is_token is None else batch.is_token
    keep = torch.cat((text, torch.ones(len(text), 1, dtype=torch.bool)), dim=1)
    return keep.flatten().nonzero()[:, 0].to(batch.context.device, non_blocking=True)


def restore_padding(
    rows: Float[Tensor, "n1 heads d"], place: Int64[Tensor, " n"], size: tuple[int, ...]
) -> Float[Tensor, "B L1 heads d"]:
    """Return one row for every token of the context of `size` [B, L1]; the last of `rows` is the padding's."""
    # The padding's row is expanded, not gathered: the gradient of a gather would add its many terms in bfloat16.
    tokens, padding = rows.split((len(rows) - 1, 1))
    return padding.expand(size[0] * size[1], *rows.shape[1:]).index_copy(0, place, tokens).unflatten(0, size)


def forward(
    model: LightWAM,
    present: Float[Tensor, "B C 1 h w"],
    noisy: Float[Tensor, "V C T h2 w2"],
    time: Float[Tensor, " V"],
    context: Context,
    run: Callable[..., tuple[Tensor, Tensor | None]],
) -> tuple[Float[Tensor, "V C later h2 w2"], list[Float[Tensor, "B acting D"]]]:
    """Return the velocity of the later frames, and the tokens of the action pass at every tap.

    The first V samples have both passes, packed; the others the action pass `alone`. `run` is `run_both`.
    """
    dit, size = model.dit, len(noisy)
    x, rope, layout, (rows, columns) = tokens(model, present[:size], noisy)
    alone = dit.embed_patches(present[size:])[0].flatten(1, 2) if size < len(present) else None
    if alone is not None and layout.foreseen:
        alone = torch.cat((alone, x[:1, -layout.foreseen :].expand(len(alone), -1, -1)), dim=1)
    embedding, modulation = time_modulation(model, time)
    last, taps = dit.config.num_blocks - 1, []
    for i, block in enumerate(dit.blocks):
        x, alone = cast(Block, block).run(run, x, alone, rope, layout, modulation, context, i < last)
        if i == last:
            layout = layout._replace(first=0)
        if i in dit.config.taps:
            x = dit.adapters[str(i)](x)
            taps.append(acting(x, layout))
            if alone is not None:
                alone = dit.adapters[str(i)](alone)
                taps[-1] = torch.cat((taps[-1], alone))
        if i == dit.config.taps[-1]:
            x, rope = (part[:, layout.action : part.shape[1] - layout.foreseen] for part in (x, rope[None]))
            rope, modulation = rope[0], modulation[: 1 + size]
            alone, layout = None, layout._replace(action=0, foreseen=0)
    x = x.unflatten(1, (noisy.shape[2] - 1, -1))
    return dit.head(x, embedding[:, None], rows, columns), taps


def run_both(
    functions: Functions,
    block: Block,
    x: Float[Tensor, "V S D"],
    alone: Float[Tensor, "rest n D"] | None,
    rope: Complex[Tensor, "S 1 pairs"],
    layout: Layout,
    modulation: Modulation,
    context: Context,
    keeps_first: bool,
) -> tuple[Float[Tensor, "V S2 D"], Float[Tensor, "rest n D"] | None]:
    """Apply a block to the packed tokens, and to those of samples that have the action pass alone."""
    k, v = context.key_value(block)
    both = rest = (k, v)
    if len(k) > len(x):  # split, not slices: its backward pass is a concatenation, and makes no tensors of zeros
        sizes = len(x), len(k) - len(x)
        both, rest = zip(k.split(sizes), v.split(sizes), strict=True)
    x = functions.packed(block, x, rope, layout, modulation, both, keeps_first)
    if alone is None:
        return x, None
    rope, layout = acting(rope[None], layout)[0], layout._replace(first=0, later=0)
    return x, functions.alone(block, alone, rope, layout, acting_rows(modulation, layout), rest, True)
