"""Making a run from a published checkpoint, and a published checkpoint from a run, without losing a bit of a weight."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from lightwam.config.checks import check_recipe
from lightwam.config.schema import Recipe
from lightwam.errors import CheckpointError, ConfigError
from lightwam.model.light_wam import LightWAM
from lightwam.policy import run_directory
from lightwam.policy.run_directory import Checkpoint
from lightwam.system.devices import resolve_device
from lightwam.system.files import explain_disk_errors
from lightwam.training import published
from lightwam.training.caches import DatasetCaches, DatasetSource, open_caches
from lightwam.training.dataset import begin_run, fit_codec
from lightwam.training.precompute import cache_prompts
from lightwam.training.published import Published


def export(run: Path | str, to: Path | str, step: int | None = None, *, ema: bool = True) -> Path:
    """Write the weights of a run's checkpoint (by default that of `default_step`) as a published one; return `to`.

    Tensors keep the run's dtypes. Raises CheckpointError when the run is missing or damaged, or the disk is full.
    """
    run, to = Path(run), Path(to)
    recipe = run_directory.read_recipe(run)
    saved = run_directory.load(run, step, training=False)
    weights = run_directory.run_weights(run, saved, ema=ema)
    published.write(to, Published(weights, saved.step, f"torch.{recipe.train.precision}"), recipe.model)
    return to


def adopt(
    recipe: Recipe, file: Path | str, dataset: Path | str | DatasetSource, run: Path | str, *, device: str = "auto"
) -> Path:
    """Make `run` from the published checkpoint `file`; return `run`, which is complete or absent.

    A published checkpoint lacks the statistics of state and action and the task sentences. They come from the dataset;
    the sentences are encoded (on `device`) and cached. Raises ConfigError when the recipe's latents are not a VAE's;
    CheckpointError when the file is of another model, or `run` exists already; DatasetError when the dataset or one of
    its sentences does not fit the recipe.
    """
    check_recipe(recipe)
    if not recipe.latents.pretrained:
        what, step = "latents.kind must be wan_vae, as of every published checkpoint", "lightwam adopt libero-10 ..."
        raise ConfigError(what, got=recipe.latents.kind, next_step=step)
    run = Path(run)
    if run.exists() and any(run.iterdir()):
        raise CheckpointError("the run directory is not empty", where=run, next_step="choose another --run")
    checkpoint, caches = published.read(file, recipe.model), open_caches(recipe, dataset)
    cache_prompts(caches, resolve_device(device))
    temporary = run.with_name(f".{run.name}.{os.getpid()}")
    try:
        _write(caches, checkpoint, temporary)
        with explain_disk_errors(run):
            run.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(run)  # `run` may be an empty folder
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return run


def _write(caches: DatasetCaches, checkpoint: Published, run: Path) -> None:
    recipe = caches.recipe
    run_directory.start_run(run, recipe)
    begin_run(caches, run, fit_codec(recipe, caches.data), caches.vae, caches.prompts())
    with torch.device("meta"):
        model = LightWAM(recipe.model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if frozen := {name: value for name, value in checkpoint.state.items() if name not in trained}:
        run_directory.write_tensors(run / run_directory.FROZEN, frozen)
    weights = {name: checkpoint.state[name] for name in trained}
    run_directory.save(run, Checkpoint(checkpoint.step, weights, None, {}))
