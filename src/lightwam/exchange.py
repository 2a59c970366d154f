"""Runs and published checkpoints, one made from the other; no bit of a weight is lost either way."""

from __future__ import annotations

from pathlib import Path

import torch

from lightwam import checkpoint
from lightwam.checkpoint import Checkpoint
from lightwam.checks import check
from lightwam.codec import Codec
from lightwam.config import DctConfig, Recipe
from lightwam.data.lerobot import LeRobotDataset
from lightwam.encoders import measure_latents
from lightwam.errors import CheckpointError, ConfigError
from lightwam.model.light_wam import LightWAM
from lightwam.processing import cache_prompts, write_prompts
from lightwam.weights import published
from lightwam.weights.published import Published


def export(run: Path, to: Path, step: int | None = None, *, ema: bool = True) -> Path:
    """Write the weights of a run's checkpoint (the newest by default) as a published one; returns `to`.

    Tensors keep the dtypes that the run has them in. CheckpointError when the run is missing or damaged, or the disk is
    full.
    """
    recipe = checkpoint.read_recipe(run)
    saved = checkpoint.load(run, step, training=False)
    weights = checkpoint.run_weights(run, saved, ema=ema)
    precision = f"torch.{recipe.train.precision}"
    published.write(to, Published(weights, saved.step, precision), recipe.model)
    return to


def adopt(recipe: Recipe, file: Path, dataset: Path, run: Path) -> Path:
    """Make `run` from the published checkpoint `file`; returns it.

    The dataset gives what a published checkpoint lacks: the statistics of state and action, and the task sentences,
    whose states are cached. Raises CheckpointError when the file is of another model, or `run` exists already.
    """
    check(recipe)
    if isinstance(recipe.latents, DctConfig):
        raise ConfigError("published checkpoints read a VAE's latents", where="latents.kind", got="dct",
                          expected="wan_vae", next_step="lightwam adopt libero-10 --checkpoint ...")  # fmt: skip
    if run.exists() and any(run.iterdir()):
        raise CheckpointError("the run directory is not empty", where=run, next_step="choose another --run")
    found = published.read(file, recipe.model)
    data = LeRobotDataset(dataset)
    checkpoint.start_run(run, recipe)
    checkpoint.write_dataset(run, dataset, data.fingerprint())
    cache_prompts(recipe, data, "cpu")
    write_prompts(recipe, data, run)
    codec = Codec(recipe.codec, data.stats["observation.state"], data.stats["action"])
    checkpoint.write_processing(run, codec, measure_latents(recipe, torch.empty(0, 3, 8, 8)))
    with torch.device("meta"):
        model = LightWAM(recipe.model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = {name: value for name, value in found.state.items() if name not in trained}
    if frozen:
        checkpoint.write_tensors(run / checkpoint.FROZEN, frozen)
    weights = {name: found.state[name] for name in trained}
    checkpoint.save(run, Checkpoint(found.step, weights, None, {}))
    return run
