"""Runs and published checkpoints, one made from the other; no bit of a weight is lost either way."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from lightwam.config.checks import check_recipe
from lightwam.config.schema import DctConfig, Recipe
from lightwam.data.cache.location import cache_home
from lightwam.data.lerobot.features import FeatureNames
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.errors import CheckpointError, ConfigError
from lightwam.model.light_wam import LightWAM
from lightwam.policy import run_directory
from lightwam.policy.run_directory import Checkpoint
from lightwam.system.devices import resolve_device
from lightwam.system.files import explain_disk_errors
from lightwam.training import published
from lightwam.training.dataset import DatasetCaches, begin_run, cache_prompts, check_data, check_tasks, fit_codec
from lightwam.training.published import Published


def export(run: Path, to: Path, step: int | None = None, *, ema: bool = True) -> Path:
    """Write the weights of a run's checkpoint (the newest by default) as a published one; returns `to`.

    Tensors keep the dtypes that the run has them in. CheckpointError when the run is missing or damaged, or the disk is
    full.
    """
    recipe = run_directory.read_recipe(run)
    saved = run_directory.load(run, step, training=False)
    weights = run_directory.run_weights(run, saved, ema=ema)
    precision = f"torch.{recipe.train.precision}"
    published.write(to, Published(weights, saved.step, precision), recipe.model)
    return to


def adopt(
    recipe: Recipe,
    file: Path,
    dataset: Path,
    run: Path,
    *,
    device: str = "auto",
    names: FeatureNames | None = None,
    cache: Path | None = None,
) -> Path:
    """Make `run` from the published checkpoint `file`; returns it.

    The dataset gives what a published checkpoint lacks: the statistics of state and action, and the task sentences,
    which are encoded (on `device`) and cached in `cache`, as for `open_training_data`. The run is
    complete or absent. Raises CheckpointError when the file is of another model, or `run` exists already, DatasetError
    when the dataset or one of its sentences does not fit the recipe.
    """
    check_recipe(recipe)
    if isinstance(recipe.latents, DctConfig):
        raise ConfigError("published checkpoints read a VAE's latents", where="latents.kind", got="dct",
                          expected="wan_vae", next_step="lightwam adopt libero-10 --checkpoint ...")  # fmt: skip
    if run.exists() and any(run.iterdir()):
        raise CheckpointError("the run directory is not empty", where=run, next_step="choose another --run")
    found, data = published.read(file, recipe.model), LeRobotDataset(dataset, names)
    check_data(recipe, data)
    check_tasks(recipe, data)
    sources = DatasetCaches(recipe, data, cache_home(data.root, cache))
    cache_prompts(recipe, data, resolve_device(device), sources.home)
    beside = run.with_name(f".{run.name}.{os.getpid()}")
    try:
        _write(sources, found, beside)
        with explain_disk_errors(run):
            run.parent.mkdir(parents=True, exist_ok=True)
            beside.replace(run)  # an empty folder may be there
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return run


def _write(sources: DatasetCaches, found: Published, run: Path) -> None:
    recipe, data = sources.recipe, sources.data
    run_directory.start_run(run, recipe)
    begin_run(recipe, data, sources.files, run, fit_codec(recipe, data), sources.vae, sources.prompts())
    with torch.device("meta"):
        model = LightWAM(recipe.model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if frozen := {name: value for name, value in found.state.items() if name not in trained}:
        run_directory.write_tensors(run / run_directory.FROZEN, frozen)
    weights = {name: found.state[name] for name in trained}
    run_directory.save(run, Checkpoint(found.step, weights, None, {}))
