"""`lightwam show`: what a recipe amounts to, before anything is run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightwam.cli.options import AnyRecipe, listing, named_recipe, parse, wants_help
from lightwam.config import checks
from lightwam.config.schema import ModelConfig, Recipe

LATENT_STRIDE, TEMPORAL_STRIDE, POOL = 8, 4, 2
"""pixels a latent, video frames a latent frame, latents a side that the video pass averages: every LatentCodec's"""


@dataclass(frozen=True)
class ShowOptions:
    """Print what a recipe amounts to: windows, latents, tokens, parameters by part, memory of training."""

    recipe: AnyRecipe
    json: bool = False
    """print JSON instead of a table"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam show RECIPE [--json] [OPTIONS]`."""
    if wants_help(arguments) or not arguments:
        print(f"usage: lightwam show RECIPE [--json] [OPTIONS]\n\n{listing()}")
        return
    recipe, rest = named_recipe(arguments, "show")
    options = parse(ShowOptions(recipe), rest, f"show {recipe.name}")
    described = describe(checks.check(options.recipe))
    print(json.dumps(described, indent=2) if options.json else table(described))


def describe(recipe: Recipe) -> dict[str, Any]:
    """Everything `lightwam show` knows, as JSON values; the model is built on the meta device, without memory."""
    parts = parameters(recipe.model)
    return {
        "name": recipe.name,
        "window": window(recipe),
        "tokens": tokens(recipe),
        "parameters": parts,
        "memory_bytes": memory(parts, recipe),
    }


def window(recipe: Recipe) -> dict[str, Any]:
    """One training window: steps, video frames, and latents as [C, T, h, w]."""
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
    """Tokens of one sample: of the action pass (the present, full resolution), the video pass (pooled), the context."""
    shape, patch = window(recipe), recipe.model.backbone.patch
    _, _, height, width = shape["latents"]
    _, latent_frames, pooled_height, pooled_width = shape["pooled_latents"]
    return {
        "action_pass": height // patch[1] * (width // patch[2]),
        "video_pass": latent_frames // patch[0] * (pooled_height // patch[1]) * (pooled_width // patch[2]),
        "context": recipe.text.num_tokens + 1,
    }


def parameters(model: ModelConfig) -> dict[str, dict[str, int]]:
    """Part -> {"total", "trainable"} parameters; the part "all" is their sum."""
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
    """The same for the eye."""
    shape, count = described["window"], described["tokens"]
    canvas = "x".join(map(str, shape["canvas"]))
    lines = [
        f"{described['name']}",
        f"  window      {shape['horizon']} actions, {shape['supervised_prefix']} supervised, "
        f"{shape['frames']} frames of {canvas} pixels",
        f"  latents     {shape['latents']} a clip, {shape['pooled_latents']} as the video pass sees it  [C, T, h, w]",
        f"  tokens      {count['action_pass']} in the action pass, {count['video_pass']} in the video pass, "
        f"{count['context']} of context",
        "",
        f"  {'parameters':18}{'all':>16}{'trainable':>16}",
        *(f"  {part:18}{n['total']:>16,}{n['trainable']:>16,}" for part, n in described["parameters"].items()),
        "",
        "  memory of a training step on one device",
        *(f"  {part:18}{size(held):>16}" for part, held in described["memory_bytes"].items()),
    ]
    return "\n".join(lines)


def size(count: int) -> str:
    """Bytes as text in binary units."""
    power = min(int(math.log(count, 1024)), 4) if count else 0
    return f"{count / 1024**power:.{1 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
