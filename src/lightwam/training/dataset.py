"""A run's dataset: opened for training, and converted to the model's batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightwam.config.schema import Recipe
from lightwam.data.cache.base import Cache
from lightwam.data.codec import Codec
from lightwam.data.lerobot.features import parse_names
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.encoders.frozen import Prompts, check_vae, open_latents
from lightwam.errors import CheckpointError
from lightwam.policy import run_directory
from lightwam.policy.run_directory import Weights
from lightwam.system.progress import Say
from lightwam.training import dataset_record
from lightwam.training.batches import BatchEncoder
from lightwam.training.caches import DatasetCaches, DatasetSource
from lightwam.training.sources import (
    TrainingSource,
    fit_sources,
    join_caches,
    open_source_caches,
    open_sources,
    source_facts,
)
from lightwam.training.start import Start, record_start


def open_training_data(
    recipe: Recipe, dataset: Path | str | DatasetSource | None, run: Path, say: Say = print, start: Start | None = None
) -> tuple[Cache, BatchEncoder]:
    """Begin or resume `run` with a recipe and a dataset; return the dataset's cache and its batch encoder.

    `dataset` None: the recipe's own sources; the cache is theirs together, and says what is drawn of each.

    Quick checks come first, before `run` is written and before anything is decoded. Missing pictures are decoded here;
    latents of a VAE must have been made by `lightwam cache`. Statistics are measured once and stored in the run. Raises
    DatasetError when the dataset or one of its sentences does not fit the recipe, and when the cache is stale or cannot
    be written; CheckpointError when the run holds another recipe, or began with another dataset or VAE.
    """
    asked = dataset if isinstance(dataset, DatasetSource) else DatasetSource(None if dataset is None else Path(dataset))
    if len(recipe.sources) <= 1:
        names = dataset_record.feature_names(run, () if asked.names is None else asked.names.pairs())
        asked = replace(asked, names=parse_names(names) if names else asked.names)
    wanted = [
        replace(source, commit=source.commit or dataset_record.hub_commit(run, str(source.path), number))
        for number, source in enumerate(DatasetSource.all_of(asked, recipe))
    ]
    # `lightwam cache` has checked the sentences for a pretrained encoder
    sources = open_sources(recipe, wanted, say, sentences=not recipe.text.pretrained)
    caches = sources[0].caches
    resumed = (run / "processing.json").exists()
    for number, source in enumerate(sources):
        if resumed:
            dataset_record.check(run, source.caches.data.root, source.caches.files, number)
        source.caches.check(prompts=not resumed)
    if start is not None and start.statistics == "kept" and recipe.latents.pretrained:
        check_vae(start.measured, caches.vae, start.run)
    run_directory.start_run(run, recipe)
    opened = open_source_caches(recipe, sources, say)
    cache = join_caches(recipe, opened)
    if resumed:
        codec, measured, known = _resume(caches, run)
    else:
        whole = len(sources) == 1 and sources[0].is_whole
        fitted = fit_codec(recipe, caches.data) if whole else fit_sources(recipe, opened)
        codec, measured, known = _begin(sources, cache, fitted, run, start, say)
    where = f"{run / 'processing.json'} latents"
    latents = None if recipe.latents.pretrained else open_latents(recipe, measured, where)
    in_use = {source.caches.data.tasks[index] for source in sources for index in source.caches.tasks}
    used = [index for index, task in enumerate(cache.tasks) if task in in_use]  # others need not fit the encoder
    states = Prompts(recipe, known).states([cache.tasks[task] for task in used])
    prompts = states.new_zeros(len(cache.tasks), *states.shape[1:])
    prompts[used] = states
    return cache, BatchEncoder.of(codec, latents, prompts)


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
    sources: Sequence[TrainingSource], cache: Cache, codec: Codec, run: Path, start: Start | None, say: Say
) -> tuple[Codec, Any, Weights]:
    """Measure, or take from `start`, what `_resume` will read, and write it into the run."""
    record_start(run, start)
    if start is not None:
        say(start.line(codec))
    if start is not None and start.statistics == "kept":
        codec, measured = start.codec, start.measured
    else:
        measured = sources[0].caches.measure(cache)
    prompts = {name: states for source in sources for name, states in source.caches.prompts().items()}
    begin_run(sources, run, codec, measured, prompts)
    return codec, measured, prompts


def begin_run(sources: Sequence[TrainingSource], run: Path, codec: Codec, measured: Any, prompts: Weights) -> None:
    """Write into a run all that it needs of its datasets; `measured` is what `open_latents` takes."""
    dataset_record.write(run, [source.caches for source in sources])
    run_directory.write_facts(run, source_facts(sources))
    if prompts:
        run_directory.write_tensors(run / run_directory.PROMPTS, prompts)
    run_directory.write_processing(run, codec, measured)  # last: with this file the run has begun


def fit_codec(recipe: Recipe, data: LeRobotDataset) -> Codec:
    """Return the recipe's codec with the dataset's statistics; those of the state are empty with `state_dim` 0."""
    state = data.vectors.state if recipe.model.state_dim else data.vectors.state[:, :0]
    return Codec.fit(recipe.codec, state, data.vectors.action, data.episode_start, recipe.model.horizon)
