"""`lightwam show`: a recipe's sizes, parameters and memory, before anything is run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightwam.cli.options import JsonOptions, RecipeOptions, print_result, recipe_command
from lightwam.config.schema import ModelConfig, Recipe
from lightwam.system.tables import table_lines

LATENT_STRIDE, TEMPORAL_STRIDE, POOL = 8, 4, 2
"""pixels a latent, video frames a latent frame, latents a side that the video pass averages: every LatentCodec's"""


@dataclass(frozen=True, kw_only=True)
class ShowOptions(JsonOptions, RecipeOptions):
    """Print a recipe's window, latents and tokens, its parameters by part, and the memory of training it."""


def run(arguments: Sequence[str]) -> None:
    """`lightwam show RECIPE [--json] [OPTIONS]`."""
    options = recipe_command(ShowOptions, arguments or ["--help"], "show")
    print_result(describe(options.recipe), table, options)


def describe(recipe: Recipe) -> dict[str, Any]:
    """Return all of it as JSON values; the model is built on the meta device, without memory."""
    parts = parameters(recipe.model)
    return {
        "name": recipe.name,
        "window": window(recipe),
        "tokens": tokens(recipe),
        "parameters": parts,
        "memory_bytes": memory(parts, recipe),
    }


def window(recipe: Recipe) -> dict[str, Any]:
    """Return one training window: steps, video frames, and latents as [C, T, h, w]."""
    frames = 1 + recipe.model.horizon // recipe.codec.video_stride
    height, width = recipe.codec.canvas
    latents = [
        recipe.model.backbone.latent_channels,
        1 + (frames - 1) // TEMPORAL_STRIDE,
        height // LATENT_STRIDE,
        width // LATENT_STRIDE,
    ]
    return {
        "horizon": recipe.model.horizon,
        "supervised_prefix": recipe.model.supervised_prefix,
        "frames": frames,
        "canvas": [height, width],
        "latents": latents,
        "pooled_latents": [*latents[:2], latents[2] // POOL, latents[3] // POOL],
    }


def tokens(recipe: Recipe) -> dict[str, int]:
    """Return one sample's tokens of the action pass (the present, full resolution), video pass (pooled) and context."""
    shape, patch = window(recipe), recipe.model.backbone.patch
    _, _, height, width = shape["latents"]
    _, latent_frames, pooled_height, pooled_width = shape["pooled_latents"]
    return {
        "action_pass": height // patch[1] * (width // patch[2]),
        "video_pass": latent_frames // patch[0] * (pooled_height // patch[1]) * (pooled_width // patch[2]),
        "context": recipe.text.num_tokens + 1,
    }


def parameters(model: ModelConfig) -> dict[str, dict[str, int]]:
    """Return part -> {"total", "trainable"} parameters; the part "all" is their sum."""
    import torch

    from lightwam.model.light_wam import LightWAM, part_of

    with torch.device("meta"):
        built = LightWAM(model)
    parts: dict[str, dict[str, int]] = {}
    for name, parameter in built.named_parameters():
        count = parts.setdefault(part_of(name), {"total": 0, "trainable": 0})
        count["total"] += parameter.numel()
        count["trainable"] += parameter.numel() * parameter.requires_grad
    return parts | {"all": {key: sum(part[key] for part in parts.values()) for key in ("total", "trainable")}}


def memory(parts: Mapping[str, Mapping[str, int]], recipe: Recipe) -> dict[str, int]:
    """Bytes that a training step holds on one device, at its fullest.

    Trained weights have float32 masters when the weights are bfloat16; AdamW's two moments and the EMA are float32.
    `activations` is what the packed step keeps for its backward pass, by `activation_bytes`, of one micro batch.
    """
    total, trainable, train = parts["all"]["total"], parts["all"]["trainable"], recipe.train
    width = 2 if train.precision == "bfloat16" else 4
    held = {
        "weights": width * total,
        "masters": 4 * trainable * (width == 2),
        "gradients": width * trainable,
        "optimiser": 8 * trainable,
        "ema": 4 * trainable * (train.ema_decay > 0),
        "activations": (train.micro_batch or train.batch_size) * activation_bytes(recipe),
    }
    return held | {"all": sum(held.values())}


def activation_bytes(recipe: Recipe) -> int:
    """What one sample's blocks keep for the backward pass of the packed step (the expert's few rows are left out).

    Of every token, in widths: the block's input, the modulated input, queries, keys and values (those of attention, and
    queries and keys before their norms), the attention's output twice, the residual stream twice more, the normed input
    of the cross-attention, its queries twice, its output, the modulated input of the feed-forward: 17; and its hidden
    layer, once over frozen weights and twice else. With checkpointing: the input alone, and one block's all.
    """
    backbone, count = recipe.model.backbone, tokens(recipe)
    hidden = backbone.ffn_width * (1 if backbone.frozen and backbone.lora_rank else 2)
    token = 17 * backbone.width + hidden
    both, video = count["action_pass"] + count["video_pass"], count["video_pass"]
    until_tap, after = backbone.taps[-1] + 1, backbone.num_blocks - backbone.taps[-1] - 1
    rows = both * until_tap + video * after
    numbers = rows * backbone.width + both * token if recipe.train.checkpointing else rows * token
    return numbers * (2 if recipe.train.precision == "bfloat16" else 4)


def table(described: Mapping[str, Any]) -> str:
    """Return the same as text."""
    shape, count = described["window"], described["tokens"]
    parameters = [["parameters", "all", "trainable"]]
    parameters += [[part, f"{n['total']:,}", f"{n['trainable']:,}"] for part, n in described["parameters"].items()]
    memory = [[part, size(num_bytes)] for part, num_bytes in described["memory_bytes"].items()]
    lines = [
        f"{described['name']}",
        f"  window      {shape['horizon']} actions, {shape['supervised_prefix']} supervised, "
        f"{shape['frames']} frames of {'x'.join(map(str, shape['canvas']))} pixels",
        f"  latents     {shape['latents']} a clip, {shape['pooled_latents']} in the video pass  [C, T, h, w]",
        f"  tokens      {count['action_pass']} in the action pass, {count['video_pass']} in the video pass, "
        f"{count['context']} of context",
        "",
        *table_lines(parameters),
        "",
        "  memory of a training step on one device",
        *table_lines(memory),
    ]
    return "\n".join(lines)


def size(count: int) -> str:
    """Return a number of bytes as text in binary units."""
    power = min(int(math.log(count, 1024)), 4) if count else 0
    return f"{count / 1024**power:.{1 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
