"""Recipes by name, from a TOML file, or from a run directory.

A recipe file names a recipe or a size as its `base`, and has only the settings that differ from it:

    base = "small"

    [[sources]]
    path = "me/so101_plates"

    [model]
    horizon = 32

Tables are merged with the base's; a list, such as `codec.places`, replaces the base's.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightwam.config.recipes import RECIPES
from lightwam.config.schema import DctConfig, HashedTextConfig, PcaConfig, Recipe, Umt5Config, WanVaeConfig
from lightwam.config.sizes import SIZES
from lightwam.config.strict_json import from_dict, to_dict
from lightwam.errors import CheckpointError, ConfigError, did_you_mean

KINDS = {kind.kind: kind for kind in (DctConfig, PcaConfig, WanVaeConfig, HashedTextConfig, Umt5Config)}
"""sections that are one of several classes, by their `kind`"""


def recipe_names() -> tuple[str, ...]:
    """Return the names of all recipes."""
    return tuple(RECIPES)


def recipe(word: str | Path) -> Recipe:
    """Return a recipe by its name, from a recipe file (.toml), or of a run directory.

    ConfigError for an unknown name, with the nearest ones, and for a file that cannot be read as a recipe;
    CheckpointError for that of a run directory.
    """
    path = Path(word)
    if path.suffix == ".toml":
        return read_recipe_file(path)
    if (path / "recipe.json").is_file():
        return read_recipe(path)
    if str(word) in SIZES:
        what, step = "a size needs a robot's dataset to become a recipe", f"lightwam init DATASET --size {word}"
        raise ConfigError(what, got=repr(str(word)), next_step=step)
    if str(word) not in RECIPES:
        step = f"{did_you_mean(str(word), RECIPES)}; or a recipe file, or a run directory"
        raise ConfigError("unknown recipe", got=repr(str(word)), next_step=step)
    return RECIPES[str(word)]()


def read_recipe(run: Path) -> Recipe:
    """Read the recipe of a run directory; CheckpointError when it is missing or broken."""
    path = run / "recipe.json"
    if not path.is_file():
        step = "train first (`lightwam train --help`), or name another directory"
        raise CheckpointError("this is not a run directory", where=run, got="no recipe.json", next_step=step)
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        what, got = "a file of the run is not JSON", error if path.stat().st_size else "an empty file"
        raise CheckpointError(what, where=path, got=got, next_step="copy the run again") from error
    return from_dict(Recipe, data, str(path), CheckpointError)


def read_recipe_file(path: Path | str) -> Recipe:
    """Read a recipe file; its name is the file's without `.toml`, unless it sets one.

    A source's relative path counts from the file's folder if there is such a folder. The recipe is not checked yet
    (`checks.check_recipe`). ConfigError naming the file and key for a missing file, broken TOML, an unknown base or
    key, and a value of another type.
    """
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        step = f"`lightwam init DATASET --to {path}` writes one"
        raise ConfigError("no such recipe file", where=path, next_step=step) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("a recipe file must be TOML", where=path, got=error) from error
    base = data.pop("base", None)
    bases = {name: size.recipe for name, size in SIZES.items()} | dict(RECIPES)
    if base not in bases:
        step = did_you_mean(str(base), bases) if base else f'add base = "{next(iter(bases))}"'
        raise ConfigError(
            "a recipe file must have the name of a recipe as its base", where=path, got=base, next_step=step
        )
    changed = merge(to_dict(bases[base]()), {"name": path.stem, "notes": ""} | data)
    merged = from_dict(Recipe, changed, str(path), defaults=True)
    sources = tuple(dataclasses.replace(each, path=_located(each.path, path.parent)) for each in merged.sources)
    return dataclasses.replace(merged, sources=sources)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with nested tables of `changes` merged into it; other values replace the base's.

    A section of another `kind` begins with that kind's defaults.
    """
    merged = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            kind = value.get("kind", old.get("kind"))
            if kind != old.get("kind") and kind in KINDS:
                old = to_dict(KINDS[kind]())
            value = merge(old, value)
        merged[key] = value
    return merged


def _located(path: str, folder: Path) -> str:
    inside = folder / Path(path).expanduser()
    return str(inside) if inside.exists() else path
