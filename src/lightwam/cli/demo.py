"""`lightwam demo`: demonstrations, training, closed loop and report in one go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightwam.cli.options import CacheOptions, RecipeOptions, recipe_command


@dataclass(frozen=True, kw_only=True)
class DemoOptions(CacheOptions, RecipeOptions):
    """Collect demonstrations, train on them, evaluate in closed loop on unseen seeds, and write a report."""

    run: Path
    """directory of everything: dataset, checkpoints, episodes, result.json, report.html"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam demo [RECIPE] [OPTIONS]`; the recipe is "demo" by default."""
    options = recipe_command(DemoOptions, arguments, "demo", default="demo")
    from lightwam.cli.pipeline import demo

    demo(options.recipe, options.run, cache=options.cache)
