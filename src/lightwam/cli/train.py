"""`lightwam train`: a policy from a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightwam.cli.options import AnyRecipe, Names, named_recipe, parse


@dataclass(frozen=True)
class TrainOptions:
    """Train a policy; a run that was stopped goes on from its newest checkpoint."""

    recipe: AnyRecipe
    data: Path
    """a LeRobot dataset, v3.0 or v2.1"""
    run: Path
    """the run directory: config, codec, log, checkpoints"""
    names: Names = ()
    cache: Path | None = None
    """folder for caches; default: $LIGHTWAM_CACHE, else the dataset's own folder"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one"""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """how the processes that torchrun started share the work: ddp (each holds everything) or fsdp (each a part)"""
    start_from: Path | None = None
    """a run (an adopted one, say) whose weights a new run begins with"""
    statistics: Literal["kept", "new"] = "kept"
    """with --start-from: keep that run's statistics of state, action and latents, or measure them on this dataset"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam train RECIPE [--data PATH] [--run PATH] [OPTIONS]`."""
    recipe, rest = named_recipe(arguments, "train")
    defaults = TrainOptions(recipe, Path("data") / recipe.name, Path("runs") / recipe.name)
    options = parse(defaults, rest, f"train {recipe.name}")
    from lightwam.data.lerobot.features import parse_names
    from lightwam.system.cpu import keep_memory
    from lightwam.training.caches import DatasetSource
    from lightwam.training.train import train

    keep_memory()
    source = DatasetSource(options.data, parse_names(options.names), options.cache)
    train(
        options.recipe,
        source,
        options.run,
        device=options.device,
        parallel=options.parallel,
        start_from=options.start_from,
        statistics=options.statistics,
    )
