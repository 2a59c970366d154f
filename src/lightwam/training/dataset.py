"""A run's dataset: opened for training, converted to the model's batches, and recorded in the run's dataset.json.

The record has path, size and hash of every file: a run uses no other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightwam.config.schema import Recipe
from lightwam.data.cache.base import Cache
from lightwam.data.codec import Codec
from lightwam.data.lerobot.features import parse_names
from lightwam.data.lerobot.hub import hub_id
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.encoders.frozen import Prompts, check_vae, encode_clips, open_latents
from lightwam.errors import CheckpointError, first_few
from lightwam.policy import run_directory
from lightwam.policy.run_directory import Weights, changes, read_table, write_json
from lightwam.system.progress import Say
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
from lightwam.types import Batch, LatentCodec, Latents, Windows

KEYS, OPTIONAL_KEYS = ("fingerprint", "path"), ("episodes", "names", "hub", "others")
"""keys of dataset.json; older runs lack "episodes", runs whose features have LeRobot's names lack "names", and those on
a folder lack "hub": {"id": OWNER/NAME or OWNER/NAME@REVISION, as asked for, "commit": the commit that was used}. Of a
recipe with several sources, "others" has the same of the second and the following ones."""


@dataclass(frozen=True)
class BatchEncoder:
    """Encodes the loader's windows as the model's batches."""

    codec: Codec
    latents: LatentCodec | None
    """None if the windows come from a cache of latents"""
    prompts: Float[Tensor, "tasks L E"]
    """text states of every task sentence of the dataset"""

    def encode(self, windows: Windows, has_video: Bool[np.ndarray, " B"] | None = None) -> Batch:
        """Encode the loader's windows as the model's input: pictures to latents, task indices to text states.

        `has_video` is the loader's: clips of the other samples are 0. None: all samples have a video pass.
        """
        video = windows.video
        if not isinstance(video, Latents):
            assert self.latents is not None
            video = encode_clips(self.latents, video, has_video)
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
        names = feature_names(run, () if asked.names is None else asked.names.pairs())
        asked = replace(asked, names=parse_names(names) if names else asked.names)
    wanted = [
        replace(source, commit=source.commit or hub_commit(run, str(source.path), number))
        for number, source in enumerate(DatasetSource.all_of(asked, recipe))
    ]
    # `lightwam cache` has checked the sentences for a pretrained encoder
    sources = open_sources(recipe, wanted, say, sentences=not recipe.text.pretrained)
    caches = sources[0].caches
    resumed = (run / "processing.json").exists()
    for number, source in enumerate(sources):
        if resumed:
            check_dataset(run, source.caches.data.root, source.caches.files, number)
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
    return cache, BatchEncoder(codec, latents, prompts)


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
    records = [_record(source.caches) for source in sources]
    write_json(run / "dataset.json", records[0] | ({"others": records[1:]} if len(records) > 1 else {}))
    run_directory.write_facts(run, source_facts(sources))
    if prompts:
        run_directory.write_tensors(run / run_directory.PROMPTS, prompts)
    run_directory.write_processing(run, codec, measured)  # last: with this file the run has begun


def fit_codec(recipe: Recipe, data: LeRobotDataset) -> Codec:
    """Return the recipe's codec with the dataset's statistics; those of the state are empty with `state_dim` 0."""
    state = data.vectors.state if recipe.model.state_dim else data.vectors.state[:, :0]
    return Codec.fit(recipe.codec, state, data.vectors.action, data.episode_start, recipe.model.horizon)


def _record(caches: DatasetCaches) -> dict[str, Any]:
    """Return what a run keeps of a dataset: a value for each of KEYS and, where there is one, OPTIONAL_KEYS."""
    data, names = caches.data, caches.data.names.pairs()
    record = {"path": str(data.root.absolute()), "episodes": data.num_episodes, "fingerprint": caches.files}
    if names:
        record["names"] = list(names)
    if fetched := hub_id(data.root):
        record["hub"] = {"id": caches.asked or fetched, "commit": fetched.partition("@")[2]}
    return record


def hub_commit(run: Path, asked: str, number: int = 0) -> str:
    """Return the commit that the run was begun with, if `asked` is the same Hub id or lacks a revision; else "".

    `asked` is source `number` of the recipe.
    """
    path = run / "dataset.json"
    records = read_records(run) if path.is_file() else []
    record = records[number].get("hub") if number < len(records) else None
    if not record or asked not in (record["id"], record["id"].partition("@")[0]):
        return ""
    return str(record["commit"])


def read_records(run: Path) -> list[dict[str, Any]]:
    """Read what a run keeps of its datasets (KEYS), in its recipe's order; CheckpointError for a broken file."""
    saved = read_table(run / "dataset.json", KEYS, OPTIONAL_KEYS)
    return [saved, *saved.get("others", ())]


def feature_names(run: Path, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the pairs FEATURE=NAME that the run uses: its own, or `asked` for a new run.

    CheckpointError when `asked` differs from the run's own.
    """
    path = run / "dataset.json"
    if not path.is_file():
        return tuple(asked)
    known = tuple(read_table(path, KEYS, OPTIONAL_KEYS).get("names", ()))
    if asked and tuple(asked) != known:
        what, got = "--names must be those the run was trained with", "--names " + " ".join(asked)
        step = "omit --names: the run keeps its own"
        expected = " ".join(known) or "LeRobot's own names"
        raise CheckpointError(what, where=path, got=got, expected=expected, next_step=step)
    return known


def check_dataset(run: Path, dataset: Path, fingerprint: Mapping[str, str], number: int = 0) -> None:
    """Raise CheckpointError unless the dataset is the one that the run began with; its path may have changed.

    `fingerprint`: size and hash of every file of the dataset, which is source `number` of the recipe.
    """
    records = read_records(run)
    saved = records[number] if number < len(records) else {"path": "no such source", "fingerprint": {}}
    if found := changes(saved["fingerprint"], dict(fingerprint)):
        what, got = "the run was trained on another dataset", f"{dataset.absolute()} ({first_few(found, 4, '; ')})"
        expected, step = f"{saved['path']}, as it was when the run began", "pass that dataset, or choose another --run"
        raise CheckpointError(what, where=run, got=got, expected=expected, next_step=step)
