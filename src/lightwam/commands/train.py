"""`lightwam train`: a policy from a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightwam import config
from lightwam.commands.options import AnyRecipe, named_recipe, parse


@dataclass(frozen=True)
class TrainOptions:
    """Train a policy; a run that was stopped goes on from its newest checkpoint."""

    recipe: AnyRecipe
    data: Path
    """a LeRobot dataset, v3.0 or v2.1"""
    run: Path
    """the run directory: config, codec, log, checkpoints"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam train RECIPE [--data PATH] [--run PATH] [OPTIONS]`."""
    recipe, rest = named_recipe(arguments, "train")
    defaults = TrainOptions(recipe, Path("data") / recipe.name, Path("runs") / recipe.name)
    options = parse(defaults, rest, f"train {recipe.name}")
    config.check(options.recipe)
    from lightwam.train import train

    train(options.recipe, options.data, options.run)
