"""A dataset, opened for a recipe: its cache, and how windows from it become the model's batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lightwam import checkpoint, distributed
from lightwam.codec import Codec, to_pixels
from lightwam.config import LATENTS, DctConfig, HashedTextConfig, Recipe
from lightwam.data.cache import FrameCache
from lightwam.data.cache_base import Cache, check_cameras
from lightwam.data.latent_cache import LatentCache
from lightwam.data.latent_encoder import ClipEncoder
from lightwam.data.lerobot import LeRobotDataset
from lightwam.distributed import World
from lightwam.encoders import (
    Prompts,
    check_vae,
    encode_clip,
    open_latents,
    open_processing,
    open_text,
    vae_identity,
)
from lightwam.errors import CheckpointError, DatasetError
from lightwam.latents.dct import DctLatents
from lightwam.progress import Progress
from lightwam.start import Start, note_start
from lightwam.types import Batch, LatentCodec, Latents, Windows
from lightwam.weights.files import Part, digest, locate

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
            video = encode_clip(self.latents, self.codec.pixels(video))
        return Batch(
            present=video.present,
            clip=video.clip,
            context=self.prompts[torch.from_numpy(windows.task)],
            state=torch.from_numpy(windows.state),
            action=torch.from_numpy(windows.action),
            action_is_pad=torch.from_numpy(windows.action_is_pad),
            frame_is_pad=torch.from_numpy(windows.frame_is_pad),
        )


def open_data(
    recipe: Recipe, dataset: Path, run: Path, say: Callable[[str], None] = print, start: Start | None = None
) -> tuple[Cache, Processing]:
    """The dataset's cache and its processing; statistics belong to the run, measured once or kept from its `start`.

    Pictures are decoded here when they are not yet; latents of a VAE must have been made by `lightwam cache`. Raises
    DatasetError when the dataset does not fit the model or the cache is stale, CheckpointError when the run began with
    another dataset or VAE.
    """
    data = LeRobotDataset(dataset)
    fingerprint, begun = data.fingerprint(), (run / "processing.json").exists()
    if begun:
        checkpoint.check_dataset(run, dataset, fingerprint)
    cache, vae = open_cache(data, recipe, say)
    check_sizes(recipe, dataset, cache.state.shape[1], cache.action.shape[1])
    if not begun:
        codec = codec_of(recipe, data)
        note_start(run, start)
        if start is not None:
            say(start.line(codec))
        if start is not None and start.statistics == "kept":
            codec, measured = start.codec, start.measured
            if vae is not None:
                check_vae(measured, vae, start.run)
        else:
            measured = _measure(recipe, cache, codec) if vae is None else vae
        begin_run(recipe, data, fingerprint, run, codec, measured)
    if vae is None:
        codec, latents = open_processing(run, recipe)
    else:
        (codec, measured), latents = checkpoint.read_processing(run), None
        check_vae(measured, vae, run)
    known = checkpoint.read_tensors(run / checkpoint.PROMPTS)
    if not known and not isinstance(recipe.text, HashedTextConfig):
        raise CheckpointError("a file of the run is missing", where=run / checkpoint.PROMPTS,
                              next_step="copy the run again")  # fmt: skip
    return cache, Processing(codec, latents, Prompts(recipe, known).states(cache.tasks))


def open_cache(
    data: LeRobotDataset, recipe: Recipe, say: Callable[[str], None]
) -> tuple[FrameCache, None] | tuple[LatentCache, dict[str, str]]:
    """The decoded pictures, made when there are none or stale ones; or a VAE's latents and which VAE it is."""
    if isinstance(recipe.latents, DctConfig):
        with ExitStack() as stack:
            tell = _progress(stack, "decode", "frame", say)
            return FrameCache.fresh(data, recipe.codec, data.root / "cache", tell), None
    vae = vae_identity(recipe)
    made_by = {"kind": recipe.latents.kind, **vae}
    return LatentCache.open(data.root / LATENTS, data, recipe.codec, recipe.model.horizon, made_by), vae


def codec_of(recipe: Recipe, data: LeRobotDataset) -> Codec:
    """The recipe's codec with the dataset's statistics."""
    return Codec(recipe.codec, data.stats["observation.state"], data.stats["action"])


def begin_run(
    recipe: Recipe, data: LeRobotDataset, fingerprint: Mapping[str, Any], run: Path, codec: Codec, measured: Any
) -> None:
    """Write into a run all that it takes from its dataset; `measured` is what `open_latents` needs."""
    checkpoint.write_dataset(run, data.root, data.num_episodes, fingerprint)
    write_prompts(recipe, data, run)
    checkpoint.write_processing(run, codec, measured)  # last: with it the run has begun


def make_cache(recipe: Recipe, dataset: Path, *, device: str = "auto", say: Callable[[str], None] = print) -> None:
    """Make ahead what training reads: decoded pictures, or a VAE's latents and the prompts' token states.

    Goes on where it stopped. Under torchrun every process makes its share. DatasetError when the dataset is broken or
    the disk is full, CheckpointError when weights are missing.
    """
    data = LeRobotDataset(dataset)
    if isinstance(recipe.latents, DctConfig):
        with distributed.world("cpu") as world, world.leader_first():
            open_cache(data, recipe, say)
        return
    check_cameras(data, recipe.codec)
    with (
        distributed.world(device) as world,
        distributed.memory_said(f"encoding on {world.device}", "a larger device, or --device cpu"),
    ):
        if world.leads:
            cache_prompts(recipe, data, world.device)
        _cache_latents(recipe, data, world, say)
        world.wait()


def _cache_latents(recipe: Recipe, data: LeRobotDataset, world: World, say: Callable[[str], None]) -> None:
    vae = vae_identity(recipe)
    latents = open_latents(recipe, vae, recipe.weights, world.device)

    @torch.inference_mode()
    def encode(canvases: UInt8[np.ndarray, "B F height width 3"]) -> Latents:
        with torch.backends.cudnn.flags(allow_tf32=False):  # latents are kept: no rounding that can be spared
            made = encode_clip(latents, to_pixels(canvases).to(world.device))
        return Latents(made.present.cpu(), made.clip.cpu())

    encoder = ClipEncoder(encode, {"kind": recipe.latents.kind, **vae})
    with ExitStack() as stack:
        tell = _progress(stack, "encode", "window", say, silent=not world.leads)
        path = data.root / LATENTS
        LatentCache.build(data, recipe.codec, recipe.model.horizon, encoder, path, tell, world.share)


def cache_prompts(recipe: Recipe, data: LeRobotDataset, device: torch.device | str) -> None:
    """Encode the prompts of a dataset's tasks that are not in its cache yet; another encoder's are made anew."""
    path, text = data.root / LATENTS / checkpoint.PROMPTS, recipe.text
    made_by = {"encoder": f"{text.kind} {text.num_tokens}x{text.dim}"}
    made_by |= {part: digest(locate(recipe.weights, part)) for part in TEXT_PARTS}
    known = checkpoint.read_tensors(path) if checkpoint.read_about(path) == made_by else {}
    wanted = [recipe.prompt.format(task=task) for task in data.tasks]
    if missing := [prompt for prompt in wanted if prompt not in known]:
        states = open_text(recipe, device).encode(missing).to("cpu", torch.bfloat16)
        checkpoint.write_tensors(path, known | dict(zip(missing, states, strict=True)), made_by)


def write_prompts(recipe: Recipe, data: LeRobotDataset, run: Path) -> None:
    """Copy the prompts' states from the dataset's cache into the run; DatasetError when one is not there."""
    if isinstance(recipe.text, HashedTextConfig):
        return
    path = data.root / LATENTS / checkpoint.PROMPTS
    known = checkpoint.read_tensors(path)
    wanted = [recipe.prompt.format(task=task) for task in data.tasks]
    for prompt in wanted:
        expected = (recipe.text.num_tokens, recipe.text.dim)
        got = tuple(known[prompt].shape) if prompt in known else "none"
        if got != expected:
            raise DatasetError("a prompt has no token states of this recipe", where=path, got=f"{got} for {prompt!r}",
                               expected=expected, next_step="make them: `lightwam cache`")  # fmt: skip
    checkpoint.write_tensors(run / checkpoint.PROMPTS, {prompt: known[prompt] for prompt in wanted})


def check_sizes(recipe: Recipe, dataset: Path, state_dim: int, action_dim: int) -> None:
    """DatasetError when state or action have not the model's widths."""
    for name, got, expected in (
        ("observation.state", state_dim, recipe.model.state_dim),
        ("action", action_dim, recipe.model.action_dim),
    ):
        if got != expected:
            raise DatasetError(
                "the dataset does not fit the model", where=f"{dataset}: {name}", got=got, expected=expected
            )


def _measure(recipe: Recipe, cache: Cache, codec: Codec) -> dict[str, Any]:
    """The DCT's statistics over pictures of the dataset."""
    assert isinstance(recipe.latents, DctConfig) and isinstance(cache, FrameCache)
    chosen = torch.linspace(0, cache.num_steps - 1, min(FIT_FRAMES, cache.num_steps)).long().tolist()
    return dict(DctLatents.fit(recipe.latents, codec.pixels(cache.frames[chosen][:, None])[:, :, 0]).to_dict())


def _progress(
    stack: ExitStack, name: str, unit: str, say: Callable[[str], None], silent: bool = False
) -> Callable[[int, int], None]:
    lines: list[Progress] = []

    def tell(done: int, total: int) -> None:
        if not lines:  # said only when there is something to do
            lines.append(stack.enter_context(Progress(name, total, unit=unit, say=say, silent=silent)))
        lines[0].advance(count=done - lines[0].done)

    return tell
