"""`lightwam demo`: demonstrations, training, closed loop and report in one go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightwam.cli.options import AnyRecipe, named_recipe, parse
from lightwam.config import checks


@dataclass(frozen=True)
class DemoOptions:
    """Collect demonstrations, train on them, evaluate in closed loop on unseen seeds, and write a report."""

    recipe: AnyRecipe
    run: Path
    """where everything goes: dataset, checkpoints, episodes, result.json, report.html"""
    cache: Path | None = None
    """folder for caches; default: $LIGHTWAM_CACHE, else the dataset's own folder"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam demo [RECIPE] [OPTIONS]`; the recipe is "demo" unless another is named."""
    recipe, rest = named_recipe(arguments, "demo", default="demo")
    options = parse(DemoOptions(recipe, Path("runs") / recipe.name), rest, f"demo {recipe.name}")
    checks.check_recipe(options.recipe)
    from lightwam.cli.pipeline import demo

    demo(options.recipe, options.run, cache=options.cache)
