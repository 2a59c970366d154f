"""A recipe for a dataset (`lightwam init`): inspect it, choose a size for this machine, derive settings, say why."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from lightwam.config.checks import check_recipe
from lightwam.config.fit import RobotData, fitted, height_of, steps_of, with_steps
from lightwam.config.recipe_writer import recipe_file
from lightwam.config.schema import Recipe, SourceConfig
from lightwam.config.sizes import SIZES, Size
from lightwam.data.held_out import episode_sentences, held_out_episodes
from lightwam.data.inspection.dims import ActionKind
from lightwam.data.inspection.drawing import draw_canvases
from lightwam.data.inspection.inspect import Inspection, inspect_dataset
from lightwam.data.lerobot.features import FeatureNameError, parse_names
from lightwam.data.lerobot.hub import find_dataset, hub_id
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.encoders.hashed_text import words
from lightwam.errors import ConfigError, DatasetError, did_you_mean
from lightwam.system.devices import resolve_device
from lightwam.system.files import write_file
from lightwam.system.progress import OnProgress, Say, no_progress
from lightwam.training.benchmark import timed_step
from lightwam.training.footprint import CARDS, memory_bytes, num_parameters, num_tokens, step_seconds_on

SizeName = Literal["auto", "small", "base", "paper"]
NORM_WORDS = {"z_score": "mean and deviation", "min_max": "range", "quantile": "1 % to 99 %, as there are outliers"}
BASE_GB = 20
"""memory of a GPU from which `base` is chosen"""


@dataclass(frozen=True)
class Wishes:
    """What a user decides; None: derived."""

    size: SizeName = "auto"
    cameras: tuple[str, ...] = ()
    """those to use, in the canvas's order; empty: all"""
    height: int | None = None
    """of every camera on the canvas, in pixels"""
    actions: ActionKind | None = None
    relative: bool | None = None
    hours: float | None = None
    weights: str = ""


@dataclass(frozen=True)
class SizeEstimate:
    """Another size that a dataset could be trained with."""

    name: str
    parameters: int
    steps: int
    hours: float
    """on a GPU of 24 GB, calculated"""
    pretrained: bool
    """needs Wan2.1"""


@dataclass(frozen=True)
class NewRecipe:
    """A recipe for a dataset, and how it came about."""

    recipe: Recipe
    base: Recipe
    """the size that it began with"""
    data: LeRobotDataset
    fit: RobotData
    inspection: Inspection
    reasons: Mapping[str, str]
    """dotted name -> why it has its value"""
    held_out: tuple[int, ...]
    """episodes that are not trained on"""
    step_seconds: float | None
    """of one training step, timed here; None: not timed"""

    @property
    def hours(self) -> float | None:
        """Hours of training on this machine; None if a step was not timed."""
        return None if self.step_seconds is None else self.recipe.train.steps * self.step_seconds / 3600

    @property
    def parameters(self) -> int:
        """Number of weights of the model."""
        return num_parameters(self.recipe.model)["all"]["total"]

    @property
    def memory_bytes(self) -> int:
        """Bytes that a training step needs, estimated."""
        return memory_bytes(num_parameters(self.recipe.model), self.recipe)["all"]

    @property
    def num_tokens(self) -> int:
        """Tokens of the canvas."""
        return num_tokens(self.recipe)["action_pass"]

    def other_sizes(self) -> Iterator[SizeEstimate]:
        """Yield the other sizes for this dataset, with their time on a GPU, calculated."""
        for name, size in SIZES.items():
            if name != self.base.name:
                base = size.recipe()
                recipe = fitted(base, self.fit, _height(size, base, self.fit), self.recipe.name)
                seconds = step_seconds_on(CARDS[0], recipe)
                windows = _num_windows(self.data, self.held_out)
                steps = steps_of(windows, size.epochs, recipe.train.batch_size, seconds, size.hours)
                parameters = num_parameters(recipe.model)["all"]["total"]
                yield SizeEstimate(name, parameters, steps, steps * seconds / 3600, bool(base.weights))

    def text(self, header: str) -> str:
        """Return the recipe file."""
        return recipe_file(self.recipe, self.base, header, self.reasons, always=("train.steps",))

    def picture(self) -> bytes:
        """Draw what the model sees; return a PNG."""
        recipe, about = self.recipe, self.data
        (height, width), token = recipe.codec.canvas, canvas_token(recipe)
        size = f"{height}x{width} pixels, {self.num_tokens} tokens"
        title = f"{recipe.name}: what the model sees in the first, middle and last frame: {size}"
        lines = []
        for shown in self.inspection.pictures.shown:
            rows, length = ", ".join(map(str, shown.rows)), about.episodes[shown.episode].length
            lines.append(f'episode {shown.episode}, rows {rows} of {length}: "{shown.sentence}"')
        return draw_canvases(recipe.codec, token, self.inspection.pictures.shown, title, lines)


def canvas_token(recipe: Recipe) -> int:
    """Return the pixels that a side of a token covers on the canvas."""
    return recipe.latents.spatial_stride * recipe.model.backbone.patch[1]


def new_recipe(
    data: LeRobotDataset,
    name: str,
    source: SourceConfig,
    wishes: Wishes | None = None,
    *,
    device: str = "auto",
    progress: OnProgress = no_progress,
) -> NewRecipe:
    """Return a recipe `name` for a dataset, checked; a step is timed on `device` if it is small enough for it.

    DatasetError when the dataset cannot be trained on: a broken file, no sentence; ConfigError when a wish cannot be
    fulfilled.
    """
    wishes = wishes or Wishes()
    cameras = _cameras(data, wishes.cameras)
    _check_sentences(data)
    inspection = inspect_dataset(data, tuple(cameras), wishes.actions, progress)
    size_name = _size(wishes.size, device)
    size = SIZES[size_name]
    base = size.recipe()
    fit = _fit_data(data, cameras, inspection, wishes)
    recipe = fitted(base, fit, wishes.height or _height(size, base, fit), name, (source,))
    if wishes.weights:
        recipe = replace(recipe, weights=wishes.weights)
    check_recipe(recipe)
    step_seconds = timed_step(recipe, device)
    limit = wishes.hours or size.hours
    seconds = step_seconds or (step_seconds_on(CARDS[0], recipe) if size_name != "small" else None)
    held_out = held_out_episodes(episode_sentences(data), recipe.held_out.share, recipe.held_out.seed)
    windows = _num_windows(data, held_out)
    steps = steps_of(windows, size.epochs, recipe.train.batch_size, seconds, limit)
    recipe = check_recipe(with_steps(recipe, steps))
    passes = steps * recipe.train.batch_size / windows
    words = f"{passes:.3g} passes over {windows:,} windows"
    words += "" if step_seconds is None else f", about {step_seconds:.2g} s a step here"
    words += f"; {size.epochs} would not fit {limit:g} h" if passes < 0.95 * size.epochs else ""
    reasons = _reasons(recipe, fit, inspection) | {"train.steps": words}
    return NewRecipe(recipe, base, data, fit, inspection, reasons, held_out, step_seconds)


def open_dataset(
    name: str, names: Sequence[str] = (), cameras: Sequence[str] = (), say: Say = print
) -> tuple[LeRobotDataset, tuple[str, ...]]:
    """Open a dataset, a folder or a Hub id; return it and the names of features that were guessed, if they had to be.

    Of a dataset on the Hub only the videos of `cameras` are fetched, if any are named. DatasetError when the dataset is
    broken, or its features cannot be guessed.
    """
    wanted = tuple(cameras) or None

    def opened(pairs: Sequence[str]) -> LeRobotDataset:
        known = parse_names(pairs) if pairs else None
        return LeRobotDataset(find_dataset(name, wanted, known, say=say), known)

    try:
        return opened(names), ()
    except FeatureNameError as error:
        if names or not error.names:
            raise
        guessed = error.names
    return opened(guessed), guessed


def source_of(name: str, data: LeRobotDataset, folder: Path) -> SourceConfig:
    """Return the source for a recipe file in `folder`: a local path from there, or a Hub id with its commit."""
    local = Path(name).expanduser()
    path = hub_id(data.root) or (name if local.is_absolute() else os.path.relpath(local, folder))
    return SourceConfig(path, names=data.names.pairs())


def write_new_recipe(made: NewRecipe, path: Path, picture: Path, header: str) -> None:
    """Write the recipe file and its picture."""
    write_file(picture, made.picture(), ConfigError)
    write_file(path, made.text(header), ConfigError)


def _check_sentences(data: LeRobotDataset) -> None:
    """Raise DatasetError, as training would, if an episode has no sentence."""
    if empty := [index for index in data.used_tasks if not data.tasks[index].strip()]:
        many = int(np.isin(data.vectors.task_index, empty).sum())
        what, got = "every episode must have a task sentence", f"{many} of {data.num_episodes} episodes without one"
        step = "describe the task in the dataset's table of tasks (meta/tasks)"
        raise DatasetError(what, where=f"{data.root} task {empty[0]}", got=got, next_step=step)


def _cameras(data: LeRobotDataset, wanted: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    for name in wanted:
        if name not in data.cameras:
            step = did_you_mean(name, data.cameras)
            raise ConfigError("a camera must be one of the dataset's", where="--cameras", got=name, next_step=step)
    return {name: data.cameras[name] for name in wanted or data.cameras}


def _size(wanted: SizeName, device: str) -> str:
    """Return the size for this machine, unless one is wanted."""
    if wanted != "auto":
        return wanted
    target = resolve_device(device)
    if target.type == "cuda" and torch.cuda.get_device_properties(target).total_memory >= BASE_GB * 1e9:
        return "base"
    return "small"


def _height(size: Size, base: Recipe, fit: RobotData) -> int:
    return height_of(base, fit.cameras, size.heights, size.max_tokens)


def _num_windows(data: LeRobotDataset, held_out: Sequence[int]) -> int:
    """Return the rows that a training sample can begin with."""
    return data.num_frames - sum(data.episodes[number].length for number in held_out)


def _fit_data(
    data: LeRobotDataset, cameras: Mapping[str, tuple[int, int]], inspection: Inspection, wishes: Wishes
) -> RobotData:
    relative = inspection.kind == "targets" if wishes.relative is None else wishes.relative
    usable = tuple(dim for dim in inspection.of_kind("target") if dim < data.state_dim)
    if wishes.relative and not usable:
        what, got = "relative actions must be targets that the state has at the same index", inspection.kind
        raise ConfigError(what, where="--relative", got=got, next_step="--relative no, or --actions targets")
    motions = inspection.of_kind("motion")
    if inspection.kind == "motions":
        motions = tuple(sorted({*motions, *_resting(data, inspection)}))
    return RobotData(
        fps=data.fps,
        cameras=cameras,
        state_dim=data.state_dim,
        action_dim=data.action_dim,
        sentence_tokens=max(len(words(sentence)) for sentence in inspection.sentences),
        are_motions=inspection.kind == "motions",
        motion_dims=motions,
        relative_dims=usable if relative else (),
        outliers=inspection.outliers,
    )


def _resting(data: LeRobotDataset, inspection: Inspection) -> tuple[int, ...]:
    """Return the still dimensions that are always 0: motions that never happen."""
    still = inspection.of_kind("still")
    return tuple(dim for dim in still if not np.any(data.vectors.action[:, dim]))


def _reasons(recipe: Recipe, fit: RobotData, inspection: Inspection) -> dict[str, str]:
    """Return why the settings have their values."""
    fps, horizon = fit.fps, recipe.model.horizon
    names = [dim.name for dim in inspection.dims]
    grain, (height, width), token = 4 * recipe.codec.video_stride, recipe.codec.canvas, canvas_token(recipe)
    return {
        "model.horizon": f"{horizon / fps:.2f} s: the multiple of {grain} steps nearest to 1 s at {fps:g} fps",
        "model.supervised_prefix": "all of it",
        "codec.canvas": f"{height // token * (width // token)} tokens of {token}x{token} pixels",
        "codec.places": "aspect kept; crop = [top, left, bottom, right] in 0..1 uses a part",
        "codec.video_stride": f"{fps / recipe.codec.video_stride:.3g} frames a second",
        "codec.action_norm": NORM_WORDS.get(recipe.codec.action_norm, ""),
        "codec.relative_action_dims": f"{_named(names, fit.relative_dims)}: target minus the state at the start",
        "codec.delta_action_dims": f"{_named(names, fit.motion_dims)}: 0 means no motion",
        "text.num_tokens": f"the longest sentence has {fit.sentence_tokens}",
        "eval.replan": f"steps of a chunk to execute: {recipe.eval.replan / fps:.2f} s",
        "held_out.share": "of each task's episodes, to measure the error on",
    }


def _named(names: Sequence[str], dims: Sequence[int]) -> str:
    """Return the names of dimensions, of many the first and the last."""
    listed = [names[dim] for dim in dims]
    return ", ".join(listed) if len(listed) < 4 else f"{listed[0]} … {listed[-1]}"
