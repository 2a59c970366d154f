"""`lightwam train`: a policy from a dataset."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightwam.cli.options import DatasetOptions, DeviceOptions, RecipeOptions, recipe_command


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DeviceOptions, DatasetOptions, RecipeOptions):
    """Train a policy; a stopped run resumes from its newest checkpoint."""

    run: Path
    """the run directory: config, codec, log, checkpoints"""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """how torchrun's processes share the work: ddp (each holds everything) or fsdp (each holds a part)"""
    start_from: Path | None = None
    """a run, such as an adopted one, whose weights a new run begins with"""
    statistics: Literal["kept", "new"] = "kept"
    """with --start-from: keep that run's statistics of state, action and latents, or measure them on this dataset"""


def begun(arguments: Sequence[str]) -> Path | None:
    """Return the run directory of a command line without a recipe, if training has begun there."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    if not words or not words[0].startswith("-") or "--run" not in words[:-1]:
        return None
    run = Path(words[words.index("--run") + 1])
    return run if (run / "recipe.json").is_file() else None


def run(arguments: Sequence[str]) -> None:
    """`lightwam train RECIPE [--dataset PATH] [--run PATH] [OPTIONS]`, `lightwam train --run runs/demo` to go on."""
    if (run := begun(arguments)) is not None:
        arguments = [str(run), *arguments]
    options = recipe_command(TrainOptions, arguments, "train")
    from lightwam.system.cpu import keep_memory
    from lightwam.training.train import train

    keep_memory()
    train(
        options.recipe,
        options.source(),
        options.run,
        device=options.device,
        parallel=options.parallel,
        start_from=options.start_from,
        statistics=options.statistics,
    )
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes
        print(f"next: lightwam eval {shlex.quote(str(options.run))}")
