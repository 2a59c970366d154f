"""The parameters of a recipe's model, and an estimate of the memory that training it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool

from lightwam.config.schema import POOL, ModelConfig, Recipe, TrainConfig
from lightwam.model.light_wam import LightWAM


def num_tokens(recipe: Recipe) -> dict[str, int]:
    """Count a sample's tokens: action pass (the present, full resolution; pooled foreseen frames), video pass (pooled),
    and context."""
    patch = recipe.model.backbone.patch
    _, _, height, width = recipe.latent_shape
    _, frames, pooled_height, pooled_width = recipe.pooled_shape
    pooled = pooled_height // patch[1] * (pooled_width // patch[2])
    return {
        "action_pass": height // patch[1] * (width // patch[2]) + recipe.model.foresight * pooled,
        "video_pass": frames // patch[0] * pooled,
        "context": recipe.text.num_tokens + 1,
    }


def num_parameters(model: ModelConfig) -> dict[str, dict[str, int]]:
    """Count the "total" and "trainable" parameters of each part of the model, and of "all"; takes no memory."""
    with torch.device("meta"):
        built = LightWAM(model)
    parts: dict[str, dict[str, int]] = {}
    for name, parameter in built.named_parameters():
        count = parts.setdefault(_part_of(name), {"total": 0, "trainable": 0})
        count["total"] += parameter.numel()
        count["trainable"] += parameter.numel() * parameter.requires_grad
    return parts | {"all": {key: sum(part[key] for part in parts.values()) for key in ("total", "trainable")}}


def _part_of(name: str) -> str:
    """Return the part of the model that a parameter belongs to."""
    if not name.startswith("dit."):
        return name.split(".")[0]
    if "lora_" in name:
        return "lora"
    parts = {"blocks": "blocks", "adapters": "adapters", "proj_out": "head", "scale_shift_table": "head"}
    return parts.get(name.split(".")[1], "embeddings")


def memory_bytes(parts: Mapping[str, Mapping[str, int]], recipe: Recipe) -> dict[str, int]:
    """Estimate the bytes that a training step holds on one device at its peak; `parts` is from `num_parameters`.

    Trained weights have float32 masters when the weights are bfloat16, and the gradients of micro batches are added up
    in float32; AdamW's two moments and the EMA are float32. `activations` are those of one micro batch.
    """
    total, trainable, train = parts["all"]["total"], parts["all"]["trainable"], recipe.train
    width = 2 if train.precision == "bfloat16" else 4
    sums = width == 2 and (train.micro_batch or train.batch_size) < train.batch_size
    held = {
        "weights": width * total,
        "masters": 4 * trainable * (width == 2),
        "gradients": (width + 4 * sums) * trainable,
        "optimiser": 8 * trainable,
        "ema": 4 * trainable * (train.ema_decay > 0),
        "activations": (train.micro_batch or train.batch_size) * activation_bytes(recipe),
    }
    return held | {"all": sum(held.values())}


def activation_bytes(recipe: Recipe) -> int:
    """Count what the packed step keeps of one sample for its backward pass, on a GPU with its kernels.

    In multiples of the width, a block over frozen weights with LoRA keeps of every token: its input; queries, keys and
    values, and queries and keys before their norms; the attention's output; the residual stream twice more; the
    queries of the cross-attention twice, and its output: 12 in all, and the hidden layer before its GELU. Other blocks
    keep modulated inputs, updates and normed tokens as well, and the hidden layer twice. Context and taps are added;
    with foresight also the keys and values of the action pass once more, joined for the foreseen tokens.
    With checkpointing a block keeps its input only, and one block at a time has everything.
    """
    backbone, count = recipe.model.backbone, num_tokens(recipe)
    width, lora = backbone.width, backbone.frozen and backbone.lora_rank > 0
    token = 12 * width + backbone.ffn_width if lora else 22 * width + 2 * backbone.ffn_width
    both, video = count["action_pass"] + count["video_pass"], count["video_pass"]
    until_tap, after = backbone.taps[-1] + 1, backbone.num_blocks - backbone.taps[-1] - 1
    rows = both * until_tap + video * after
    numbers = rows * width + both * token if recipe.train.checkpointing else rows * token
    numbers += 2 * width * count["context"] * backbone.num_blocks
    numbers += 2 * width * count["action_pass"] * until_tap if recipe.model.foresight else 0
    numbers += len(backbone.taps) * (both * 2 * (width + backbone.adapter_width) + count["action_pass"] * 3 * width)
    return numbers * (2 if recipe.train.precision == "bfloat16" else 4)


def memory_advice(train: TrainConfig, micro: int) -> str:
    """Return what to change when `micro` samples at a time do not fit."""
    smaller = [size for size in range(1, micro) if train.batch_size % size == 0]
    options = [f"--train.micro-batch {smaller[-1]}"] if smaller else ["--parallel fsdp over more GPUs"]
    options += [] if train.checkpointing else ["--train.checkpointing"]
    return f"{' or '.join(options)}; the run resumes where it stopped"


def num_with_video(train: TrainConfig, num_samples: int) -> int:
    """Return how many samples of a micro batch have the video pass: its first ones, at least one."""
    return max(1, round(train.video_share * num_samples))


def has_video(train: TrainConfig, num_samples: int) -> Bool[np.ndarray, " samples"] | None:
    """Return which samples of a batch have the video pass: the first ones of each micro batch. None if all have it."""
    if train.video_share == 1:
        return None
    micro = min(train.micro_batch or num_samples, num_samples)
    starts = range(0, num_samples, micro)
    sizes = [min(micro, num_samples - start) for start in starts]
    return np.concatenate([np.arange(size) < num_with_video(train, size) for size in sizes])


def step_tflop(recipe: Recipe) -> float:
    """Estimate the work of one training step of `train.batch_size` samples, packed, in 1e12 floating-point operations.

    The products of the blocks, their attention and the context's keys and values, in multiply-adds a token; twice that
    again for the backward pass, once if most weights are frozen. Leaves out the action expert's few rows.
    """
    backbone, count, foresight = recipe.model.backbone, num_tokens(recipe), recipe.model.foresight
    width, action, context = backbone.width, count["action_pass"], count["context"]
    foreseen = action * foresight // (POOL**2 + foresight)
    pairs = (action - foreseen) ** 2 + foreseen * action
    video = recipe.train.video_share * count["video_pass"]
    until_tap = backbone.taps[-1] + 1
    video_blocks = backbone.num_blocks if recipe.model.video_loss_weight else 0
    token = 6 * width**2 + 2 * width * backbone.ffn_width
    products = token * (action * until_tap + video * video_blocks) + 2 * width**2 * context * backbone.num_blocks
    attention = (pairs + action * context) * until_tap + video * (video + context) * video_blocks
    adapters = 2 * width * backbone.adapter_width * action * len(backbone.taps)
    forward = products + 2 * width * attention + adapters
    return 2 * forward * (2 if backbone.frozen else 3) * recipe.train.batch_size / 1e12


class Card(NamedTuple):
    """A GPU's seconds for 1e12 operations of a packed step in bfloat16, calculated, not timed."""

    name: str
    memory_gb: int
    products: float
    rest: float
    """elementwise work and norms, at the paper's width; a narrower model has more of it for each product"""


CARDS = (Card("RTX 4090", 24, 0.0078, 0.0052), Card("H100", 80, 0.0018, 0.0017))
"""from a roofline over the calls of the packed step (libero-10, 16 samples): trust it to a third"""
PAPER_WIDTH = 1536


def step_seconds_on(card: Card, recipe: Recipe) -> float:
    """Calculate the seconds of a training step on a GPU."""
    return step_tflop(recipe) * (card.products + card.rest * PAPER_WIDTH / recipe.model.backbone.width)
