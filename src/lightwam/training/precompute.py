"""Making caches ahead of training: decoded pictures, or latents and prompt states of pretrained encoders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from lightwam.config.checks import check_recipe
from lightwam.config.schema import LATENTS, Recipe
from lightwam.data.cache.encoder import WINDOWS_AT_ONCE, ClipEncoder, Encode
from lightwam.data.cache.latents import LatentCache
from lightwam.data.cache.location import check_free_space
from lightwam.encoders.frozen import encode_clip, open_latents, open_text
from lightwam.encoders.weight_files import digest, locate
from lightwam.errors import ConfigError
from lightwam.policy import run_directory
from lightwam.system.devices import oom_as_config_error
from lightwam.system.progress import Progress, Say
from lightwam.training import distributed
from lightwam.training.caches import DatasetCaches, DatasetSource
from lightwam.training.distributed import World
from lightwam.training.sources import open_sources
from lightwam.types import LatentCodec, Latents, to_pixels


def make_cache(
    recipe: Recipe,
    dataset: Path | str | DatasetSource | None,
    *,
    batch_size: int = WINDOWS_AT_ONCE,
    device: str = "auto",
    say: Say = print,
) -> None:
    """Make what training reads: decoded pictures, or a VAE's latents and the prompts' token states.

    `batch_size` windows are encoded at once. Resumes where it was stopped. Under torchrun every process makes its part.
    Raises ConfigError when the settings do not fit together; DatasetError when the dataset is broken or does not fit
    the recipe, or the cache cannot be written; CheckpointError when weights are missing.
    """
    check_recipe(recipe)
    if batch_size < 1:
        raise ConfigError("--batch-size must be >= 1", got=batch_size)
    sources = [source.caches for source in open_sources(recipe, DatasetSource.all_of(dataset, recipe), say)]
    if not recipe.latents.pretrained:
        with distributed.process_group("cpu") as world, world.main_first():
            for caches in sources:
                caches.open(say)
        return
    with (
        distributed.process_group(device) as world,
        oom_as_config_error(f"encoding on {world.device}", "a smaller --batch-size, a larger device, or --device cpu"),
    ):
        for caches in sources:
            if world.is_main:
                cache_prompts(caches, world.device)
            _cache_latents(caches, world, batch_size, say)
            world.barrier()


def _cache_latents(caches: DatasetCaches, world: World, batch_size: int, say: Say) -> None:
    recipe = caches.recipe
    latents = open_latents(recipe, caches.vae, recipe.weights, world.device)

    encoder = ClipEncoder(clip_encoder(latents, world.device), caches.encoder_identity, batch_size=batch_size)
    horizon, path = recipe.model.horizon, caches.latents(caches.home)
    with Progress("encode", unit="window", say=say, silent=not world.is_main) as progress:
        LatentCache.build(caches.data, recipe.codec, horizon, encoder, path, progress.update, world.process)


def clip_encoder(latents: LatentCodec, device: torch.device) -> Encode:
    """Return the function from canvases to latents that caches are made with."""

    @torch.inference_mode()
    def encode(canvases: UInt8[np.ndarray, "B F height width 3"]) -> Latents:
        # TF32's error, 3e-4, is a fifth of what storing in bfloat16 costs; `flags` would switch cuDNN off by default
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
            encoded = encode_clip(latents, to_pixels(torch.from_numpy(canvases).to(device)))
        return Latents(encoded.present.cpu(), encoded.clip.cpu())

    return encode


def cache_prompts(caches: DatasetCaches, device: torch.device | str) -> None:
    """Encode the dataset's prompts that are not cached yet; those of another encoder are replaced."""
    recipe, path, wanted = caches.recipe, caches.home / LATENTS / run_directory.PROMPTS, caches.wanted_prompts
    text = recipe.text
    encoder = {"encoder": f"{text.kind} {text.num_tokens}x{text.dim}"}
    encoder["text_encoder"] = digest(locate(recipe.weights, "text_encoder"))
    encoder["tokenizer"] = digest(locate(recipe.weights, "tokenizer"))
    known = run_directory.read_tensors(path) if run_directory.read_metadata(path) == encoder else {}
    if missing := [prompt for prompt in wanted if prompt not in known]:
        check_free_space(path, 2 * len(wanted) * text.num_tokens * text.dim)
        states = open_text(recipe, device).encode(missing).to("cpu", torch.bfloat16)
        run_directory.write_tensors(path, known | dict(zip(missing, states, strict=True)), encoder)
