"""`lightwam show`: what a recipe amounts to, before anything is run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightwam import checks, recipes
from lightwam.commands.options import AnyRecipe, listing, named_recipe, parse, wants_help
from lightwam.config import ModelConfig, Recipe
from lightwam.errors import ConfigError, did_you_mean

LATENT_STRIDE, TEMPORAL_STRIDE, POOL = 8, 4, 2
"""pixels a latent, video frames a latent frame, latents a side that the video pass averages: every LatentCodec's"""


@dataclass(frozen=True)
class ShowOptions:
    """Print what a recipe amounts to: windows, latents, tokens, parameters by part, memory of training."""

    recipe: AnyRecipe
    json: bool = False
    """print JSON instead of a table"""


@dataclass(frozen=True)
class PaperOptions:
    """Print the sizes of the published model for LIBERO; its Wan VAE and UMT5 are not counted."""

    json: bool = False
    """print JSON instead of a table"""


@dataclass(frozen=True)
class Design:
    """The part of a recipe that decides sizes."""

    name: str
    model: ModelConfig
    canvas: tuple[int, int]
    video_stride: int
    text_tokens: int
    bfloat16: bool
    """computed under autocast"""
    ema: bool
    """an average of the trained weights is kept"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam show RECIPE [--json] [OPTIONS]`; RECIPE may be "paper-libero", the published model's sizes."""
    if not arguments or wants_help(arguments):
        print(f"usage: lightwam show RECIPE [--json] [OPTIONS]\n\n{listing()}")
        print("  paper-libero  The published model for LIBERO: sizes only, it cannot be trained here yet.")
        return
    if arguments[0] == "paper-libero":
        paper = parse(PaperOptions(), arguments[1:], "show paper-libero")
        described, as_json = describe(paper_libero()), paper.json
    else:
        known = [*recipes.RECIPES, "paper-libero"]
        if not arguments[0].startswith("-") and arguments[0] not in known:
            raise ConfigError("unknown recipe", got=repr(arguments[0]), next_step=did_you_mean(arguments[0], known))
        recipe, rest = named_recipe(arguments, "show")
        options = parse(ShowOptions(recipe), rest, f"show {recipe.name}")
        described, as_json = describe(design_of(checks.check(options.recipe))), options.json
    print(json.dumps(described, indent=2) if as_json else table(described))


def design_of(recipe: Recipe) -> Design:
    """What of `recipe` decides sizes."""
    return Design(
        name=recipe.name,
        model=recipe.model,
        canvas=recipe.codec.canvas,
        video_stride=recipe.codec.video_stride,
        text_tokens=recipe.text.num_tokens,
        bfloat16=recipe.train.precision == "bfloat16",
        ema=recipe.train.ema_decay > 0,
    )


def paper_libero() -> Design:
    """The published model on LIBERO: two cameras of 224x224 side by side, every 4th step a frame, 128 text tokens."""
    return Design("paper-libero", recipes.paper_libero_model(), (224, 448), 4, 128, bfloat16=True, ema=False)


def describe(design: Design) -> dict[str, Any]:
    """Everything `lightwam show` knows, as JSON values; the model is built on the meta device, without memory."""
    parts = parameters(design.model)
    return {
        "name": design.name,
        "window": window(design),
        "tokens": tokens(design),
        "parameters": parts,
        "memory_bytes": memory(parts, design),
    }


def window(design: Design) -> dict[str, Any]:
    """One training window: steps, video frames, and latents as [C, T, h, w]."""
    frames = 1 + design.model.horizon // design.video_stride
    height, width = design.canvas
    latents = [
        design.model.backbone.latent_channels,
        1 + (frames - 1) // TEMPORAL_STRIDE,
        height // LATENT_STRIDE,
        width // LATENT_STRIDE,
    ]
    return {
        "horizon": design.model.horizon,
        "supervised_prefix": design.model.supervised_prefix,
        "frames": frames,
        "canvas": [height, width],
        "latents": latents,
        "pooled_latents": [*latents[:2], latents[2] // POOL, latents[3] // POOL],
    }


def tokens(design: Design) -> dict[str, int]:
    """Tokens of one sample: of the action pass (the present, full resolution), the video pass (pooled), the context."""
    shape, patch = window(design), design.model.backbone.patch
    _, _, height, width = shape["latents"]
    _, latent_frames, pooled_height, pooled_width = shape["pooled_latents"]
    return {
        "action_pass": height // patch[1] * (width // patch[2]),
        "video_pass": latent_frames // patch[0] * (pooled_height // patch[1]) * (pooled_width // patch[2]),
        "context": design.text_tokens + 1,
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


def memory(parts: Mapping[str, Mapping[str, int]], design: Design) -> dict[str, int]:
    """Bytes that training holds whatever the batch; activations, which grow with the batch, are not counted.

    Weights, gradients, AdamW's two moments and the EMA are float32. bfloat16 is autocast: the weights stay float32, and
    a step keeps a copy of the trained ones beside them.
    """
    total, trainable = parts["all"]["total"], parts["all"]["trainable"]
    held = {
        "weights": 4 * total,
        "gradients": 4 * trainable,
        "optimiser": 8 * trainable,
        "ema": 4 * trainable * design.ema,
        "autocast": 2 * trainable * design.bfloat16,
    }
    return held | {"all": sum(held.values())}


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
        "  memory of training, without activations",
        *(f"  {part:18}{size(held):>16}" for part, held in described["memory_bytes"].items()),
    ]
    return "\n".join(lines)


def size(count: int) -> str:
    """Bytes as text in binary units."""
    power = min(int(math.log(count, 1024)), 4) if count else 0
    return f"{count / 1024**power:.{1 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
