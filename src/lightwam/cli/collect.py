"""`lightwam collect`: demonstrations by scripted experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightwam.cli.options import RayOptions, RecipeOptions, recipe_command


@dataclass(frozen=True, kw_only=True)
class CollectOptions(RayOptions, RecipeOptions):
    """Record demonstrations by scripted experts as a LeRobot v3.0 dataset; successes only."""

    dataset: Path
    """the dataset's directory; an unfinished dataset is resumed"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam collect RECIPE [--dataset PATH] [OPTIONS]`."""
    options = recipe_command(CollectOptions, arguments, "collect")
    from lightwam.data.collect import collect

    done = collect(options.recipe, options.dataset, pool_factory=options.pool_factory())
    print(f"{done.dataset}: {done.episodes} episodes, {done.frames} frames; {done.new_episodes} episodes are new")
