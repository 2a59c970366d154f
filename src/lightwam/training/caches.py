"""A dataset and its caches: where they are, whether they fit a recipe, and opening them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightwam.config.schema import LATENTS, Recipe, SourceConfig, WanVaeConfig
from lightwam.data.cache.base import Cache, check_cameras
from lightwam.data.cache.frames import FrameCache, frames_folder, is_current, temporary_frames
from lightwam.data.cache.latents import LatentCache, find_latent_caches, latents_folder
from lightwam.data.cache.location import cache_home, remove_leftovers
from lightwam.data.held_out import episode_sentences, episodes_in_use
from lightwam.data.lerobot.features import ACTION, STATE, FeatureNames, parse_names
from lightwam.data.lerobot.footage import footage_dataset, is_footage
from lightwam.data.lerobot.hub import find_dataset, hub_id
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.encoders.frozen import fit_latents, vae_identity
from lightwam.encoders.prompt_check import PromptCheck
from lightwam.errors import ConfigError, DatasetError, PromptError
from lightwam.policy import run_directory
from lightwam.policy.run_directory import Weights
from lightwam.system.progress import Progress, Say

FRAMES = "cache"
"""subfolder of a dataset for its decoded pictures"""
FIT_CLIPS = 256
"""clips, evenly spaced over the dataset, that latents without weights are fitted on"""


@dataclass(frozen=True)
class DatasetSource:
    """A LeRobot dataset, the names of its features if they are not LeRobot's, and the folder for its caches."""

    path: Path | None
    """a folder, or a Hub id as `find_dataset` takes it; None: the recipe's source"""
    names: FeatureNames | None = None
    """a run keeps the names it was begun with"""
    cache: Path | None = None
    """None: $LIGHTWAM_CACHE, else the user's cache folder; the dataset's own folder: inside it"""
    settings: SourceConfig | None = None
    """the part of the recipe that it is, if any"""
    commit: str = ""
    """of a Hub id: the commit that the run was begun with"""

    @property
    def folder(self) -> Path:
        """The dataset's folder, once `of` has found it."""
        assert self.path is not None
        return self.path

    @classmethod
    def of(cls, dataset: Path | str | DatasetSource | None, recipe: Recipe) -> DatasetSource:
        """Return `dataset`, or the source of the dataset at this path; None: the recipe's own, if that is one."""
        sources = cls.all_of(dataset, recipe)
        if len(sources) != 1:
            what, got = "one dataset must be given", f"{len(sources)} sources"
            raise ConfigError(what, where=f"recipe {recipe.name}", got=got, next_step="--dataset PATH")
        return sources[0]

    @classmethod
    def all_of(cls, dataset: Path | str | DatasetSource | None, recipe: Recipe) -> list[DatasetSource]:
        """Return the recipe's sources; `dataset` is another place of its only one, or the source of one without any."""
        asked = dataset if isinstance(dataset, DatasetSource) else cls(None if dataset is None else Path(dataset))
        if asked.settings is not None:
            return [asked]
        where, count = f"recipe {recipe.name}", len(recipe.sources)
        if not count and asked.path is None:
            what, step = "a dataset must be given", "--dataset PATH, or [[sources]] in the recipe"
            raise ConfigError(what, where=where, got="no sources", next_step=step)
        if count > 1 and (asked.path is not None or asked.names is not None):
            what, step = "--dataset and --names are for a single source", "change path and names in the recipe"
            raise ConfigError(what, where=where, got=f"{count} sources", next_step=step)
        if not count:
            return [asked]
        return [
            replace(
                asked,
                path=asked.path or Path(source.path),
                names=parse_names(source.names) if source.names and asked.names is None else asked.names,
                settings=source,
            )
            for source in recipe.sources
        ]


@dataclass(frozen=True)
class DatasetCaches:
    """One dataset's caches in the folder `home`: decoded pictures, or a VAE's latents and the prompts' token states."""

    recipe: Recipe
    data: LeRobotDataset
    home: Path
    asked: str = ""
    """the dataset as it was asked for: its path or Hub id"""
    settings: SourceConfig | None = None
    """the part of the recipe that it is, if any"""

    @cached_property
    def tasks(self) -> tuple[int, ...]:
        """The indices of the sentences that the episodes in use have."""
        return tasks_in_use(self.data, self.settings)

    @cached_property
    def files(self) -> dict[str, str]:
        """The dataset's fingerprint."""
        return self.data.fingerprint()

    @cached_property
    def frames(self) -> Path:
        """The folder of decoded pictures: a current one in the dataset, where earlier versions put it, or in `home`."""
        codec, files = self.recipe.codec, self.files
        folders = [frames_folder(home / FRAMES, self.data, codec, files) for home in self._homes]
        return next((folder for folder in folders if is_current(folder, self.data, codec, files)), folders[0])

    @cached_property
    def vae(self) -> dict[str, str]:
        """The identity of the VAE."""
        return vae_identity(self.recipe)

    @property
    def encoder_identity(self) -> dict[str, str]:
        """The identity of a pretrained encoder of latents."""
        return {"kind": self.recipe.latents.kind, **self.vae}

    def latents(self, home: Path) -> Path:
        """Return the folder of latents in `home`."""
        recipe, folder = self.recipe, home / LATENTS
        return latents_folder(folder, self.data, recipe.codec, recipe.model.horizon, self.encoder_identity, self.files)

    def check(self, prompts: bool) -> None:
        """Raise DatasetError when `open` could not write its cache, or a cache that it only reads is missing."""
        if self.recipe.latents.pretrained:
            self._open_latents()
        else:
            FrameCache.check_writable(self.data, self.recipe.codec, self.frames, self.files)
        if prompts:
            self.prompts()

    def open(self, say: Say) -> Cache:
        """Open a VAE's latents, or the decoded pictures, which are decoded again if missing or stale."""
        if self.recipe.latents.pretrained:
            return self._open_latents()
        keep = temporary_frames(self.data, self.recipe.codec, self.frames, self.files)
        if self.home == self.data.root:  # another folder may hold what a killed process decoded of another dataset
            for folder, name in ((self.home, FRAMES), (self.home / FRAMES, None)):
                remove_leftovers(folder, name, keep=keep)
        with Progress("decode", unit="frame", say=say) as progress:
            FrameCache.build(self.data, self.recipe.codec, self.frames, progress.update, self.files)
        return FrameCache.open(self.frames)

    def measure(self, cache: Cache) -> dict[str, Any]:
        """Return the VAE's identity, or what latents without weights measure on windows of `cache`."""
        latents, stride = self.recipe.latents, self.recipe.codec.video_stride
        if isinstance(latents, WanVaeConfig):
            return dict(self.vae)
        steps = np.concatenate([part.windows for part in cache.sampling.parts])
        rows = torch.linspace(0, len(steps) - 1, min(FIT_CLIPS, len(steps))).long().numpy()
        frames = steps[rows][:, None] + stride * np.arange(1 + latents.temporal_stride)
        last = np.repeat(cache.episode_start[1:] - 1, np.diff(cache.episode_start))[steps[rows]]
        clips = cache.video(np.minimum(frames, last[:, None]))
        assert isinstance(clips, np.ndarray)
        return fit_latents(latents, clips)

    def prompts(self) -> Weights:
        """Read the prompts' states of a pretrained text encoder from the cache; DatasetError when one is missing."""
        text = self.recipe.text
        if not text.pretrained:
            return {}
        expected = (text.num_tokens, text.dim)
        paths = [home / LATENTS / run_directory.PROMPTS for home in self._homes]
        known: Weights = {}
        for path in reversed(paths):
            states = run_directory.read_tensors(path)
            known |= {prompt: state for prompt, state in states.items() if state.shape == expected}
        for prompt in self.wanted_prompts:
            if prompt not in known:
                what, step = "a prompt has no token states of this recipe", "make them: `lightwam cache`"
                raise DatasetError(what, where=paths[0], got=repr(prompt), expected=expected, next_step=step)
        return {prompt: known[prompt] for prompt in self.wanted_prompts}

    @property
    def wanted_prompts(self) -> list[str]:
        """The prompts of the tasks of the episodes in use."""
        return [self.recipe.prompt.format(task=self.data.tasks[index]) for index in self.tasks]

    @property
    def _homes(self) -> list[Path]:
        """The folders to look for caches in: also the dataset's own, where earlier versions put them."""
        return list(dict.fromkeys([self.home, self.data.root]))

    def _open_latents(self) -> LatentCache:
        paths = [self.latents(home) for home in self._homes]
        path = next((path for path in paths if (path / "cache.json").is_file()), None)
        path = path or next((path for path in paths if find_latent_caches(path.parent)), paths[0])  # says what differs
        recipe = self.recipe
        return LatentCache.open(path, self.data, recipe.codec, recipe.model.horizon, self.encoder_identity)


def open_caches(
    recipe: Recipe, dataset: Path | str | DatasetSource | None, say: Say = print, *, sentences: bool = True
) -> DatasetCaches:
    """Return a dataset's caches; raise as `find_dataset`, `check_data` and, with `sentences`, `check_tasks`.

    A folder of videos is read by `footage_dataset`.
    """
    source, cameras = DatasetSource.of(dataset, recipe), {place.camera for place in recipe.codec.places}
    with_actions = source.settings is None or source.settings.actions != "none"
    root = find_dataset(source.folder, cameras, source.names, commit=source.commit, say=say)
    home = cache_home(root, source.cache)
    if is_footage(root):
        if with_actions:
            what, step = "a folder of videos has no actions", 'actions = "none" in its [[sources]]'
            raise DatasetError(what, where=root, next_step=step)
        root = footage_dataset(root, home)
    optional, used = (STATE,) if with_actions else (STATE, ACTION), cameras if hub_id(root) else None
    data = LeRobotDataset(root, source.names, optional=optional, used=used)
    check_data(recipe, data, with_actions, source.settings if recipe.sources else None)
    caches = DatasetCaches(recipe, data, home, str(source.path), source.settings)
    if sentences:
        check_tasks(recipe, data, say, caches.tasks)
    return caches


def tasks_in_use(data: LeRobotDataset, source: SourceConfig | None) -> tuple[int, ...]:
    """Return the indices of the sentences that the episodes which a source uses have; ConfigError if it has no such."""
    if source is None or not (source.tasks or source.episodes):
        return data.used_tasks
    used = [*episodes_in_use(episode_sentences(data), source)]
    number = np.repeat(np.arange(data.num_episodes), np.diff(data.episode_start))
    return tuple(np.unique(data.vectors.frame_task[np.isin(number, used)]).tolist())


def check_data(
    recipe: Recipe, data: LeRobotDataset, with_actions: bool = True, source: SourceConfig | None = None
) -> None:
    """Raise DatasetError when the dataset lacks a camera of the recipe, or its state or action has another width.

    `source`: the part of the recipe that the dataset is, if any.
    """
    check_cameras(data, recipe.codec, source)
    for name, option, got, expected in (
        ("observation.state", "--model.state-dim", data.state_dim, recipe.model.state_dim),
        ("action", "--model.action-dim", data.action_dim, recipe.model.action_dim),
    ):
        if with_actions and got != expected and (expected or name == "action"):  # a model may have no state
            what, where = "the dataset must have the model's widths", f"{data.root}: {name}"
            step = data.state_proposal() or f"train for this robot: {option} {got}"
            raise DatasetError(what, where=where, got=got or "no such feature", expected=expected, next_step=step)


def check_tasks(recipe: Recipe, data: LeRobotDataset, say: Say, tasks: Sequence[int]) -> None:
    """Raise DatasetError when a sentence does not fit the recipe's text encoder; report truncated ones to `say`.

    `tasks`: the indices of the sentences to check. Raises also what `PromptCheck` raises: UMT5 needs its tokenizer.
    """
    sentences, table = PromptCheck(recipe), "the dataset's table of tasks"
    shorten = f"shorten it in {table}, or give --text.num-tokens or --text.truncate"
    for index in tasks:
        task = data.tasks[index]
        try:
            truncated = sentences.check(task)
        except PromptError as error:
            what, where = "a task sentence must fit the text encoder", f"{data.root} task {index}: {task[:200]!r}"
            step = shorten if task.strip() else f"describe the task in {table}"
            raise DatasetError(what, where=where, got=error.got, expected=error.expected, next_step=step) from error
        if truncated:
            say(truncated)
