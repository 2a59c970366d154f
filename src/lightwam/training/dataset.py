"""Datasets, opened for a recipe: their caches, and the conversion of their windows to the model's batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightwam.config.schema import Recipe
from lightwam.data.cache.base import Cache, check_cameras
from lightwam.data.cache.location import cache_home
from lightwam.data.codec import Codec
from lightwam.data.lerobot.features import parse_names
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.statistics import measure
from lightwam.encoders.frozen import Prompts, check_vae, encode_clip, open_latents
from lightwam.encoders.prompt_check import PromptCheck
from lightwam.errors import CheckpointError, DatasetError, PromptError
from lightwam.policy import run_directory
from lightwam.policy.run_directory import Weights
from lightwam.training import dataset_record
from lightwam.training.caches import DatasetCaches, DatasetSource
from lightwam.training.start import Start, record_start
from lightwam.types import Batch, LatentCodec, Latents, Windows, to_pixels


@dataclass(frozen=True)
class Processing:
    """The conversion of the loader's windows to the model's batches."""

    codec: Codec
    latents: LatentCodec | None
    """None if the windows come from a cache of latents"""
    prompts: Float[Tensor, "tasks L E"]
    """text states of every task sentence of the dataset"""

    def batch(self, windows: Windows) -> Batch:
        """Convert windows to a batch; pictures are encoded here."""
        video = windows.video
        if not isinstance(video, Latents):
            assert self.latents is not None
            video = encode_clip(self.latents, to_pixels(video))
        return Batch(
            present=video.present,
            clip=video.clip,
            context=self.prompts[torch.from_numpy(windows.task)],
            state=torch.from_numpy(windows.state),
            action=torch.from_numpy(windows.action),
            action_is_pad=torch.from_numpy(windows.action_is_pad),
            frame_is_pad=torch.from_numpy(windows.frame_is_pad),
        )


def open_training_data(
    recipe: Recipe,
    dataset: Path | str | DatasetSource,
    run: Path,
    say: Callable[[str], None] = print,
    start: Start | None = None,
) -> tuple[Cache, Processing]:
    """Begin or resume `run` with a recipe and a dataset; return the dataset's cache and its processing.

    Quick checks come first, before `run` is written and before anything is decoded. Missing pictures are decoded here;
    latents of a VAE must have been made by `lightwam cache`. Statistics are measured once and stored in the run. Raises
    DatasetError when the dataset or one of its sentences does not fit the recipe, and when the cache is stale or cannot
    be written; CheckpointError when the run holds another recipe, or began with another dataset or VAE.
    """
    source = DatasetSource.of(dataset)
    pairs = dataset_record.feature_names(run, () if source.names is None else source.names.pairs())
    data = LeRobotDataset(source.path, parse_names(pairs))
    check_data(recipe, data)
    if not recipe.text.pretrained:  # else `lightwam cache` has checked the sentences
        check_tasks(recipe, data, say)
    caches = DatasetCaches(recipe, data, cache_home(data.root, source.cache))
    resumed = (run / "processing.json").exists()
    if resumed:
        dataset_record.check_dataset(run, source.path, caches.files)
    caches.check(prompts=not resumed)
    if start is not None and start.statistics == "kept" and recipe.latents.pretrained:
        check_vae(start.measured, caches.vae, start.run)
    run_directory.start_run(run, recipe)
    cache = caches.open(say)
    if not recipe.model.state_dim:
        cache = replace(cache, state=cache.state[:, :0])
    codec, measured, known = _resume(caches, run) if resumed else _begin(caches, cache, run, start, say)
    where = f"{run / 'processing.json'} latents"
    latents = None if recipe.latents.pretrained else open_latents(recipe, measured, where)
    used = np.unique(cache.task_index)  # unused sentences of the table need not fit the encoder
    states = Prompts(recipe, known).states([cache.tasks[task] for task in used])
    prompts = states.new_zeros(len(cache.tasks), *states.shape[1:])
    prompts[torch.from_numpy(used)] = states
    return cache, Processing(codec, latents, prompts)


def _resume(caches: DatasetCaches, run: Path) -> tuple[Codec, Any, Weights]:
    """Read the codec, the latents' statistics and the prompts' states of a run."""
    codec, measured = run_directory.read_processing(run)
    if caches.recipe.latents.pretrained:
        check_vae(measured, caches.vae, run)
    path = run / run_directory.PROMPTS
    prompts = run_directory.read_tensors(path)
    if caches.recipe.text.pretrained and not prompts:
        raise CheckpointError("a file of the run is missing", where=path, next_step="copy the run again")
    return codec, measured, prompts


def _begin(
    caches: DatasetCaches, cache: Cache, run: Path, start: Start | None, say: Callable[[str], None]
) -> tuple[Codec, Any, Weights]:
    """Measure, or take from `start`, what `_resume` will read, and write it into the run."""
    codec = fit_codec(caches.recipe, caches.data)
    record_start(run, start)
    if start is not None:
        say(start.line(codec))
    if start is not None and start.statistics == "kept":
        codec, measured = start.codec, start.measured
    else:
        measured = caches.measure(cache)
    prompts = caches.prompts()
    begin_run(caches, run, codec, measured, prompts)
    return codec, measured, prompts


def begin_run(caches: DatasetCaches, run: Path, codec: Codec, measured: Any, prompts: Weights) -> None:
    """Write into a run all that it needs of its dataset; `measured` is what `open_latents` takes."""
    data = caches.data
    dataset_record.write_dataset(run, data.root, data.num_episodes, caches.files, data.names.pairs())
    if prompts:
        run_directory.write_tensors(run / run_directory.PROMPTS, prompts)
    run_directory.write_processing(run, codec, measured)  # last: with this file the run has begun


def check_data(recipe: Recipe, data: LeRobotDataset) -> None:
    """Raise DatasetError when the dataset lacks a camera of the recipe, or its state or action has another width."""
    check_cameras(data, recipe.codec)
    for name, option, got, expected in (
        ("observation.state", "--model.state-dim", data.state_dim, recipe.model.state_dim),
        ("action", "--model.action-dim", data.action_dim, recipe.model.action_dim),
    ):
        if got != expected and (expected or name == "action"):  # a model without a state ignores the dataset's
            where, got_text = f"{data.root}: {name}", got or "no such feature"
            step = data.state_proposal() or f"train for this robot: {option} {got}"
            raise DatasetError(
                "the dataset must have the model's widths", where=where, got=got_text, expected=expected, next_step=step
            )


def check_tasks(recipe: Recipe, data: LeRobotDataset, say: Callable[[str], None] = print) -> None:
    """Raise DatasetError when a task sentence does not fit the recipe's text encoder; report truncated ones to `say`.

    Raises also what `PromptCheck` raises: UMT5 needs its tokenizer.
    """
    sentences, table = PromptCheck(recipe), "the dataset's table of tasks"
    shorten = f"shorten it in {table}, or give --text.num-tokens or --text.truncate"
    for index in data.used_tasks:
        task = data.tasks[index]
        try:
            truncated = sentences.check(task)
        except PromptError as error:
            what, where = "a task sentence must fit the text encoder", f"{data.root} task {index}: {task[:200]!r}"
            step = shorten if task.strip() else f"describe the task in {table}"
            raise DatasetError(what, where=where, got=error.got, expected=error.expected, next_step=step) from error
        if truncated:
            say(truncated)


def fit_codec(recipe: Recipe, data: LeRobotDataset) -> Codec:
    """Return the recipe's codec with the dataset's statistics; those of the state are empty with `state_dim` 0."""
    state = data.stats["observation.state"] if recipe.model.state_dim else measure(data.vectors.state[:, :0])
    return Codec(recipe.codec, state, data.stats["action"])
