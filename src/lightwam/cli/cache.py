"""`lightwam cache`: what training reads, made ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightwam.cli.options import AnyRecipe, Names, named_recipe, parse


@dataclass(frozen=True)
class CacheOptions:
    """Encode a dataset once: VAE latents of every window and the prompts' token states, beside the data.

    Goes on where it stopped. Over several processes: torchrun --nproc-per-node 4 -m -- lightwam cache RECIPE ...
    A recipe without pretrained encoders gets its pictures decoded, which `lightwam train` would do by itself.
    """

    recipe: AnyRecipe
    data: Path
    """a LeRobot dataset, v3.0 or v2.1"""
    names: Names = ()
    cache: Path | None = None
    """folder for caches; default: $LIGHTWAM_CACHE, else the dataset's own folder"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam cache RECIPE [--data PATH] [--weights PATH] [OPTIONS]`."""
    recipe, rest = named_recipe(arguments, "cache")
    options = parse(CacheOptions(recipe, Path("data") / recipe.name), rest, f"cache {recipe.name}")
    from lightwam.data.lerobot.features import parse_names
    from lightwam.training.caches import DatasetSource
    from lightwam.training.precompute import make_cache

    source = DatasetSource(options.data, parse_names(options.names), options.cache)
    make_cache(options.recipe, source, device=options.device)
