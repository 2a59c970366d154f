"""`lightwam show`: a recipe's sizes, parameters, memory and training time, before anything is run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightwam.cli.options import JsonOptions, RecipeOptions, print_result, recipe_command
from lightwam.config.schema import Recipe
from lightwam.system.tables import table_lines


@dataclass(frozen=True, kw_only=True)
class ShowOptions(JsonOptions, RecipeOptions):
    """Print a recipe's window, latents and tokens, its parameters by part, and the memory and time of training it."""


def run(arguments: Sequence[str]) -> None:
    """`lightwam show RECIPE [--json] [OPTIONS]`."""
    options = recipe_command(ShowOptions, arguments or ["--help"], "show")
    print_result(describe(options.recipe), table, options)


def describe(recipe: Recipe) -> dict[str, Any]:
    """Return all of it as JSON values; the model is built on the meta device, without memory."""
    from lightwam.training import footprint
    from lightwam.training.benchmark import timed_step

    parts, train = footprint.num_parameters(recipe.model), recipe.train
    step = {card.name: footprint.step_seconds_on(card, recipe) for card in footprint.CARDS}
    here = timed_step(recipe)
    if here is not None:
        step = {"here": here} | (step if train.precision == "bfloat16" else {})
    return {
        "name": recipe.name,
        "window": {  # steps, video frames, and latents as [C, T, h, w]
            "horizon": recipe.model.horizon,
            "supervised_prefix": recipe.model.supervised_prefix,
            "frames": recipe.num_frames,
            "canvas": list(recipe.codec.canvas),
            "latents": list(recipe.latent_shape),
            "pooled_latents": list(recipe.pooled_shape),
        },
        "tokens": footprint.num_tokens(recipe),
        "parameters": parts,
        "memory_bytes": footprint.memory_bytes(parts, recipe),
        "training": {
            "steps": train.steps,
            "batch_size": train.batch_size,
            "tflop_per_step": footprint.step_tflop(recipe),
            "hours": {where: seconds * train.steps / 3600 for where, seconds in step.items()},  # of GPUs: calculated
        },
    }


def table(described: Mapping[str, Any]) -> str:
    """Return the same as text."""
    shape, count = described["window"], described["tokens"]
    parameters = [["parameters", "all", "trainable"]]
    parameters += [[part, f"{n['total']:,}", f"{n['trainable']:,}"] for part, n in described["parameters"].items()]
    memory = [[part, size(num_bytes)] for part, num_bytes in described["memory_bytes"].items()]
    training = described["training"]
    hours = [
        [where, duration(each), "" if where == "here" else "calculated"] for where, each in training["hours"].items()
    ]
    lines = [
        described["name"],
        f"  window      {shape['horizon']} actions, {shape['supervised_prefix']} supervised, "
        f"{shape['frames']} frames of {'x'.join(map(str, shape['canvas']))} pixels",
        f"  latents     {shape['latents']} a clip, {shape['pooled_latents']} in the video pass  [C, T, h, w]",
        f"  tokens      {count['action_pass']} in the action pass, {count['video_pass']} in the video pass, "
        f"{count['context']} of context\n",
        *table_lines(parameters),
        "\n  memory of a training step on one device",
        *table_lines(memory),
        f"\n  time of {training['steps']:,} steps of {training['batch_size']}",
        *table_lines(hours, "<><"),
    ]
    return "\n".join(lines)


def size(count: int) -> str:
    """Return a number of bytes as text in binary units."""
    power = min(int(math.log(count, 1024)), 4) if count else 0
    return f"{count / 1024**power:.{1 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def count(number: int) -> str:
    """Return a number of weights as text: 1.9 M, 1.86 B."""
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.{0 if number >= 1e7 else 1}f} M"


def duration(hours: float) -> str:
    """Return a time as text, in minutes below two hours."""
    return f"{hours:.1f} h" if hours >= 2 else f"{max(1, round(60 * hours))} min"
