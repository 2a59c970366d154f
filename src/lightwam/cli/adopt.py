"""`lightwam adopt`: a published Light-WAM checkpoint as a run, which evaluates and which another run may start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightwam.cli.options import DatasetOptions, DeviceOptions, RecipeOptions, recipe_command
from lightwam.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AdoptOptions(DeviceOptions, DatasetOptions, RecipeOptions):
    """Make a run directory of a published checkpoint; every tensor must fit the recipe's model.

    The dataset is the one it was trained on: it gives the statistics of state and action, and the task sentences.
    """

    checkpoint: Path | None = None
    """the published .pt file; required"""
    run: Path
    """the run directory to make"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam adopt RECIPE --checkpoint FILE.pt [--dataset PATH] [--run PATH]`."""
    options = recipe_command(AdoptOptions, arguments, "adopt")
    if options.checkpoint is None:
        raise ConfigError("lightwam adopt needs a checkpoint", where="--checkpoint", next_step="--checkpoint FILE.pt")
    from lightwam.training.adopt import adopt

    print(adopt(options.recipe, options.checkpoint, options.source(), options.run, device=options.device))
