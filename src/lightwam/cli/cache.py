"""`lightwam cache`: what training reads, encoded ahead of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightwam.cli.options import DatasetOptions, DeviceOptions, RecipeOptions, recipe_command


@dataclass(frozen=True, kw_only=True)
class MakeCacheOptions(DeviceOptions, DatasetOptions, RecipeOptions):
    """Encode a dataset once: VAE latents of every window and the prompts' token states, stored with the data.

    Resumes where it stopped. With several processes: torchrun --nproc-per-node 4 -m -- lightwam cache RECIPE ...
    For a recipe without pretrained encoders it decodes the pictures, which `lightwam train` would do by itself.
    """

    batch_size: int = 8
    """windows that are encoded at once; fewer need less memory"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam cache RECIPE [--dataset PATH] [--weights PATH] [OPTIONS]`."""
    options = recipe_command(MakeCacheOptions, arguments, "cache")
    from lightwam.training.precompute import make_cache

    make_cache(options.recipe, options.source(), batch_size=options.batch_size, device=options.device)
