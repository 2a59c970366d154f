"""`lightwam show`: what a recipe amounts to, before anything is run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightwam.cli.options import AnyRecipe, listing, named_recipe, parse, wants_help
from lightwam.config import checks
from lightwam.config.schema import Recipe


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
    described = describe(checks.check_recipe(options.recipe))
    print(json.dumps(described, indent=2) if options.json else table(described))


def describe(recipe: Recipe) -> dict[str, Any]:
    """Everything `lightwam show` knows, as JSON values; the model is built on the meta device, without memory."""
    from lightwam.training import footprint

    parts = footprint.num_parameters(recipe.model)
    return {
        "name": recipe.name,
        "window": window(recipe),
        "tokens": footprint.num_tokens(recipe),
        "parameters": parts,
        "memory_bytes": footprint.memory_bytes(parts, recipe),
    }


def window(recipe: Recipe) -> dict[str, Any]:
    """One training window: steps, video frames, and latents as [C, T, h, w]."""
    return {
        "horizon": recipe.model.horizon,
        "supervised_prefix": recipe.model.supervised_prefix,
        "frames": recipe.num_frames,
        "canvas": list(recipe.codec.canvas),
        "latents": list(recipe.latent_shape),
        "pooled_latents": list(recipe.pooled_shape),
    }


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
