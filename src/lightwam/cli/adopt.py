"""`lightwam adopt`: a published Light-WAM checkpoint as a run, which evaluates and which another run may start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightwam.cli.options import AnyRecipe, Names, named_recipe, parse


@dataclass(frozen=True)
class AdoptOptions:
    """Make a run directory of a published checkpoint; every tensor must fit the recipe's model."""

    recipe: AnyRecipe
    checkpoint: Path
    """the published .pt file"""
    data: Path
    """the LeRobot dataset it was trained on: statistics of state and action, and the task sentences"""
    run: Path
    """the run directory to make"""
    names: Names = ()
    cache: Path | None = None
    """folder for caches; default: $LIGHTWAM_CACHE, else the dataset's own folder"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where prompts are encoded"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam adopt RECIPE --checkpoint FILE.pt [--data PATH] [--run PATH]`."""
    recipe, rest = named_recipe(arguments, "adopt")
    defaults = AdoptOptions(recipe, Path("published.pt"), Path("data") / recipe.name, Path("runs") / recipe.name)
    options = parse(defaults, rest, f"adopt {recipe.name}")
    from lightwam.data.lerobot.features import parse_names
    from lightwam.training.adopt import adopt
    from lightwam.training.caches import DatasetSource

    source = DatasetSource(options.data, parse_names(options.names), options.cache)
    print(adopt(options.recipe, options.checkpoint, source, options.run, device=options.device))
