"""`lightwam collect`: demonstrations by scripted experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightwam.cli.options import AnyRecipe, RayOptions, named_recipe, parse
from lightwam.config import checks


@dataclass(frozen=True)
class CollectOptions(RayOptions):
    """Record demonstrations by scripted experts as a LeRobot v3.0 dataset; successes only."""

    recipe: AnyRecipe
    data: Path
    """the dataset's directory; one that is begun already is gone on with"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam collect RECIPE [--data PATH] [OPTIONS]`."""
    recipe, rest = named_recipe(arguments, "collect")
    options = parse(CollectOptions(recipe, Path("data") / recipe.name), rest, f"collect {recipe.name}")
    checks.check_recipe(options.recipe)
    from lightwam.data.collect import collect

    done = collect(options.recipe, options.data, pool_factory=options.pool_factory())
    print(
        f"{done.dataset}: {done.episodes} episodes, {done.frames} frames; {done.new_episodes} of the episodes are new"
    )
