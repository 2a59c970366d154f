"""A dataset, opened for a recipe: its cache, and how windows from it become the model's batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lightwam.config.schema import LATENTS, DctConfig, HashedTextConfig, Recipe
from lightwam.data.cache.base import Cache, check_cameras
from lightwam.data.cache.encoder import ClipEncoder
from lightwam.data.cache.frames import FrameCache, frames_folder, temporary_frames
from lightwam.data.cache.latents import LatentCache, latents_folder
from lightwam.data.cache.location import cache_home, check_free_space, remove_leftovers
from lightwam.data.codec import Codec
from lightwam.data.lerobot.features import FeatureNames, parse_names
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.statistics import measure
from lightwam.encoders.dct import DctLatents
from lightwam.encoders.frozen import Prompts, Sentences, check_vae, encode_clip, open_latents, open_text, vae_identity
from lightwam.encoders.weight_files import Part, digest, locate
from lightwam.errors import CheckpointError, DatasetError, PromptError
from lightwam.policy import run_directory
from lightwam.policy.run_directory import Weights, open_processing
from lightwam.system.devices import oom_as_config_error
from lightwam.system.progress import Progress
from lightwam.training import distributed
from lightwam.training.distributed import World
from lightwam.training.start import Start, record_start
from lightwam.types import Batch, LatentCodec, Latents, Windows, to_pixels

FRAMES = "cache"
"""subfolder of a dataset for its decoded pictures"""
TEXT_PARTS: tuple[Part, ...] = ("text_encoder", "tokenizer")
FIT_FRAMES = 256
"""pictures, evenly spaced over the dataset, that the latents' statistics are measured on"""


@dataclass(frozen=True)
class Processing:
    """From the loader's windows to the model's batches."""

    codec: Codec
    latents: LatentCodec | None
    """None where the windows come from a cache of latents"""
    prompts: Float[Tensor, "tasks L E"]
    """text states of every task sentence of the dataset"""

    def batch(self, windows: Windows) -> Batch:
        """One batch of windows; pictures are encoded here."""
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
    dataset: Path,
    run: Path,
    say: Callable[[str], None] = print,
    *,
    names: FeatureNames | None = None,
    start: Start | None = None,
    cache: Path | None = None,
) -> tuple[Cache, Processing]:
    """Begin or resume `run` with a recipe and a dataset; returns the dataset's cache and its processing.

    Quick checks come first, before `run` is written and before anything is decoded. Pictures are decoded here if they
    are not yet; latents of a VAE must have been made by `lightwam cache`. `cache` is the folder for caches; by default
    $LIGHTWAM_CACHE, else the dataset's own folder. Statistics are measured once and stored in the run. Raises
    DatasetError when the dataset or one of its sentences does not fit the recipe, and when the cache is stale or cannot
    be written; CheckpointError when the run holds another recipe, or began with another dataset or VAE.
    """
    pairs = run_directory.feature_names(run, () if names is None else names.pairs())
    data = LeRobotDataset(dataset, parse_names(pairs))
    check_data(recipe, data)
    if isinstance(recipe.text, HashedTextConfig):  # `lightwam cache` has checked the sentences for other encoders
        check_tasks(recipe, data, say)
    sources = DatasetCaches(recipe, data, cache_home(data.root, cache))
    begun = (run / "processing.json").exists()
    if begun:
        run_directory.check_dataset(run, dataset, sources.files)
    sources.check(prompts=not begun)
    kept = start if start is not None and start.statistics == "kept" else None
    if kept is not None and not isinstance(recipe.latents, DctConfig):
        check_vae(kept.measured, sources.vae, kept.run)
    run_directory.start_run(run, recipe)
    opened, vae = sources.open(say)
    if not recipe.model.state_dim:
        opened = replace(opened, state=opened.state[:, :0])
    if not begun:
        codec = fit_codec(recipe, data)
        record_start(run, start)
        if start is not None:
            say(start.line(codec))
        if kept is not None:
            codec, measured = kept.codec, kept.measured
        else:
            measured = _measure(recipe, opened, codec) if vae is None else vae
        begin_run(recipe, data, sources.files, run, codec, measured, sources.prompts())
    if vae is None:
        codec, latents = open_processing(run, recipe)
    else:
        (codec, measured), latents = run_directory.read_processing(run), None
        check_vae(measured, vae, run)
    known = run_directory.read_tensors(run / run_directory.PROMPTS)
    if not known and not isinstance(recipe.text, HashedTextConfig):
        raise CheckpointError("a file of the run is missing", where=run / run_directory.PROMPTS,
                              next_step="copy the run again")  # fmt: skip
    used = np.unique(opened.task_index)  # other sentences of the table need not fit the encoder
    states = Prompts(recipe, known).states([opened.tasks[task] for task in used])
    prompts = states.new_zeros(len(opened.tasks), *states.shape[1:])
    prompts[torch.from_numpy(used)] = states
    return opened, Processing(codec, latents, prompts)


def check_data(recipe: Recipe, data: LeRobotDataset) -> None:
    """Raise DatasetError when the dataset lacks a camera of the recipe, or its state or action has another width."""
    check_cameras(data, recipe.codec)
    check_sizes(recipe, data)


def check_tasks(recipe: Recipe, data: LeRobotDataset, say: Callable[[str], None] = print) -> None:
    """Raise DatasetError when a task sentence does not fit the recipe's text encoder; truncated ones go to `say`.

    Raises as `Sentences` does, too: UMT5 needs its tokenizer.
    """
    sentences = Sentences(recipe)
    for index in data.used_tasks:
        task = data.tasks[index]
        try:
            truncated = sentences.check(task)
        except PromptError as error:
            table = "the dataset's table of tasks"
            step = f"shorten it in {table}, or give --text.num-tokens or --text.truncate"
            next_step = step if task.strip() else f"describe the task in {table}"
            raise DatasetError("a task sentence must fit the text encoder",
                               where=f"{data.root} task {index}: {task[:200]!r}",
                               got=error.got, expected=error.expected, next_step=next_step) from error  # fmt: skip
        if truncated:
            say(truncated)


@dataclass(frozen=True)
class DatasetCaches:
    """One dataset's caches in the folder `home`: decoded pictures, or a VAE's latents and the prompts' token states."""

    recipe: Recipe
    data: LeRobotDataset
    home: Path

    @cached_property
    def files(self) -> dict[str, str]:
        """The dataset's fingerprint."""
        return self.data.fingerprint()

    @cached_property
    def frames(self) -> Path:
        """The folder of decoded pictures."""
        return frames_folder(self.home / FRAMES, self.data, self.recipe.codec, self.files)

    @cached_property
    def vae(self) -> dict[str, str]:
        """The identity of the VAE."""
        return vae_identity(self.recipe)

    @property
    def made_by(self) -> dict[str, str]:
        """The identity of the latents' encoder."""
        return {"kind": self.recipe.latents.kind, **self.vae}

    def latents(self, home: Path) -> Path:
        """The folder of latents."""
        horizon = self.recipe.model.horizon
        return latents_folder(home / LATENTS, self.data, self.recipe.codec, horizon, self.made_by, self.files)

    def check(self, prompts: bool) -> None:
        """Raise DatasetError when `open` could not write its cache, or a cache that it only reads is missing."""
        if isinstance(self.recipe.latents, DctConfig):
            FrameCache.check_writable(self.data, self.recipe.codec, self.frames, self.files)
        else:
            self._open_latents()
        if prompts:
            self.prompts()

    def open(self, say: Callable[[str], None]) -> tuple[FrameCache, None] | tuple[LatentCache, dict[str, str]]:
        """Open the decoded pictures, made again if missing or stale; or a VAE's latents, with the VAE's identity."""
        if not isinstance(self.recipe.latents, DctConfig):
            return self._open_latents(), self.vae
        for folder, name in ((self.home, FRAMES), (self.home / FRAMES, None)):
            remove_leftovers(folder, name, keep=temporary_frames(self.data, self.recipe.codec, self.frames, self.files))
        with Progress("decode", unit="frame", say=say) as progress:
            FrameCache.build(self.data, self.recipe.codec, self.frames, progress.update, self.files)
        return FrameCache.open(self.frames), None

    def prompts(self) -> Weights:
        """Read the prompts' states of a pretrained text encoder from the cache; DatasetError when one is missing."""
        if isinstance(self.recipe.text, HashedTextConfig):
            return {}
        expected = (self.recipe.text.num_tokens, self.recipe.text.dim)
        paths = [home / LATENTS / run_directory.PROMPTS for home in self._homes()]
        known: Weights = {}
        for path in reversed(paths):
            known |= {
                name: state for name, state in run_directory.read_tensors(path).items() if state.shape == expected
            }
        wanted = [
            self.recipe.prompt.format(task=task) for task in map(self.data.tasks.__getitem__, self.data.used_tasks)
        ]
        for prompt in wanted:
            if prompt not in known:
                raise DatasetError("a prompt has no token states of this recipe", where=paths[0], got=repr(prompt),
                                   expected=expected, next_step="make them: `lightwam cache`")  # fmt: skip
        return {prompt: known[prompt] for prompt in wanted}

    def _open_latents(self) -> LatentCache:
        """Open the latents in `home`, or else in the dataset's own folder: they took hours to make."""
        paths = [self.latents(home) for home in self._homes()]
        path = next((path for path in paths if (path / "cache.json").is_file()), paths[0])
        return LatentCache.open(path, self.data, self.recipe.codec, self.recipe.model.horizon, self.made_by)

    def _homes(self) -> list[Path]:
        return list(dict.fromkeys([self.home, self.data.root]))


def fit_codec(recipe: Recipe, data: LeRobotDataset) -> Codec:
    """Return the recipe's codec with the dataset's statistics; a model of `state_dim` 0 has none of the state."""
    state = data.stats["observation.state"] if recipe.model.state_dim else measure(data.vectors.state[:, :0])
    return Codec(recipe.codec, state, data.stats["action"])


def begin_run(
    recipe: Recipe,
    data: LeRobotDataset,
    fingerprint: Mapping[str, Any],
    run: Path,
    codec: Codec,
    measured: Any,
    prompts: Weights,
) -> None:
    """Write into a run all that it takes from its dataset; `measured` is what `open_latents` needs."""
    run_directory.write_dataset(run, data.root, data.num_episodes, fingerprint, data.names.pairs())
    if not isinstance(recipe.text, HashedTextConfig):
        run_directory.write_tensors(run / run_directory.PROMPTS, prompts)
    run_directory.write_processing(run, codec, measured)  # last: with it the run has begun


def make_cache(
    recipe: Recipe,
    dataset: Path,
    *,
    device: str = "auto",
    say: Callable[[str], None] = print,
    names: FeatureNames | None = None,
    cache: Path | None = None,
) -> None:
    """Make ahead what training reads: decoded pictures, or a VAE's latents and the prompts' token states.

    Goes on where it stopped. Under torchrun every process makes its share. `cache` as in `open_training_data`. Raises
    DatasetError when the dataset is broken or does not fit the recipe, or the cache cannot be written; CheckpointError
    when weights are missing.
    """
    data = LeRobotDataset(dataset, names)
    check_data(recipe, data)
    check_tasks(recipe, data, say)
    sources = DatasetCaches(recipe, data, cache_home(data.root, cache))
    if isinstance(recipe.latents, DctConfig):
        with distributed.process_group("cpu") as world, world.main_first():
            sources.open(say)
        return
    with (
        distributed.process_group(device) as world,
        oom_as_config_error(f"encoding on {world.device}", "a larger device, or --device cpu"),
    ):
        if world.is_main:
            cache_prompts(recipe, data, world.device, sources.home)
        _cache_latents(sources, world, say)
        world.barrier()


def _cache_latents(sources: DatasetCaches, world: World, say: Callable[[str], None]) -> None:
    recipe = sources.recipe
    latents = open_latents(recipe, sources.vae, recipe.weights, world.device)

    @torch.inference_mode()
    def encode(canvases: UInt8[np.ndarray, "B F height width 3"]) -> Latents:
        with torch.backends.cudnn.flags(allow_tf32=False):  # latents are kept: no rounding that can be spared
            made = encode_clip(latents, to_pixels(canvases).to(world.device))
        return Latents(made.present.cpu(), made.clip.cpu())

    encoder = ClipEncoder(encode, sources.made_by)
    horizon, path = recipe.model.horizon, sources.latents(sources.home)
    with Progress("encode", unit="window", say=say, silent=not world.is_main) as progress:
        LatentCache.build(sources.data, recipe.codec, horizon, encoder, path, progress.update, world.process)


def cache_prompts(recipe: Recipe, data: LeRobotDataset, device: torch.device | str, home: Path) -> None:
    """Encode the prompts of a dataset's tasks that are not cached under `home`; another encoder's are replaced."""
    path, text = home / LATENTS / run_directory.PROMPTS, recipe.text
    made_by = {"encoder": f"{text.kind} {text.num_tokens}x{text.dim}"}
    made_by |= {part: digest(locate(recipe.weights, part)) for part in TEXT_PARTS}
    known = run_directory.read_tensors(path) if run_directory.read_metadata(path) == made_by else {}
    wanted = [recipe.prompt.format(task=task) for task in map(data.tasks.__getitem__, data.used_tasks)]
    if missing := [prompt for prompt in wanted if prompt not in known]:
        check_free_space(path, 2 * len(wanted) * text.num_tokens * text.dim)
        states = open_text(recipe, device).encode(missing).to("cpu", torch.bfloat16)
        run_directory.write_tensors(path, known | dict(zip(missing, states, strict=True)), made_by)


def check_sizes(recipe: Recipe, data: LeRobotDataset) -> None:
    """Raise DatasetError when state or action does not have the model's width; with `state_dim` 0 no state is read."""
    for name, option, got, expected in (
        ("observation.state", "--model.state-dim", data.state_dim, recipe.model.state_dim),
        ("action", "--model.action-dim", data.action_dim, recipe.model.action_dim),
    ):
        if got != expected and (expected or name == "action"):  # a model without a state reads none
            raise DatasetError("the dataset does not fit the model", where=f"{data.root}: {name}",
                               got=got or "no such feature", expected=expected,
                               next_step=data.state_proposal() or f"train for this robot: {option} {got}")  # fmt: skip


def _measure(recipe: Recipe, cache: Cache, codec: Codec) -> dict[str, Any]:
    """The DCT's statistics over pictures of the dataset."""
    assert isinstance(recipe.latents, DctConfig) and isinstance(cache, FrameCache)
    chosen = torch.linspace(0, cache.num_steps - 1, min(FIT_FRAMES, cache.num_steps)).long().tolist()
    return dict(DctLatents.fit(recipe.latents, to_pixels(cache.frames[chosen][:, None])[:, :, 0]).to_dict())
