"""config/recipe_writer.py: files that say only what differs, and that are read back as the same recipe."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwam.config import recipes
from lightwam.config.recipe_files import read_recipe_file
from lightwam.config.recipe_writer import differences, recipe_file
from lightwam.config.schema import CameraPlace, Recipe, SourceConfig, Umt5Config
from lightwam.config.sizes import SIZES

PLACES = (CameraPlace("front", 0, 0, 96, 128), CameraPlace("wrist.left", 0, 128, 96, 128, (0.0, 0.1, 1.0, 0.9)))


def mine() -> Recipe:
    small = SIZES["small"].recipe()
    source = SourceConfig("me/plates", cameras=("observation.images.top=front",), tasks=('say "go" \\ now',))
    return replace(
        small,
        name="mine",
        codec=replace(small.codec, canvas=(96, 256), places=PLACES, relative_action_dims=(0, 1)),
        model=replace(small.model, state_dim=6, action_dim=6),
        train=replace(small.train, learning_rate=1e-5, loggers=("wandb",)),
        sources=(source, SourceConfig("me/drawer", weight=0.5, video=False)),
    )


def read(tmp_path: Path, text: str) -> Recipe:
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    return read_recipe_file(tmp_path / "mine.toml")


def test_a_file_is_read_back_as_the_recipe(tmp_path: Path) -> None:
    assert read(tmp_path, recipe_file(mine(), SIZES["small"].recipe())) == mine()


def test_a_section_of_another_kind_is_written_completely(tmp_path: Path) -> None:
    small, text = SIZES["small"].recipe(), Umt5Config(num_tokens=40, truncate=True)
    recipe = replace(mine(), text=text, weights="/models/wan")
    base = replace(small, text=replace(small.text, truncate=True))
    assert read(tmp_path, recipe_file(recipe, base)).text == text


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_can_be_written_from_any_base(name: str, tmp_path: Path) -> None:
    recipe = replace(recipes.RECIPES[name](), name="mine", notes="")
    for base in (recipes.demo(), recipes.RECIPES[name]()):
        assert read(tmp_path, recipe_file(recipe, base)) == recipe


def test_only_what_differs_is_written_with_its_comment() -> None:
    small = SIZES["small"].recipe()
    recipe = replace(small, name="mine", model=replace(small.model, horizon=32))
    text = recipe_file(
        recipe, small, "from the plates\ntwo lines", {"model.horizon": "about a second", "train.steps": "x"}
    )
    assert text.splitlines() == [
        "# from the plates", "# two lines", 'base = "small"', "", "[model]",
        f"{'horizon = 32':40}  # about a second",
    ]  # fmt: skip


def test_a_setting_may_be_written_in_any_case() -> None:
    small = SIZES["small"].recipe()
    text = recipe_file(small, small, always=("train.steps",))
    assert text == f'base = "small"\n\n[train]\nsteps = {small.train.steps}\n'


def test_rows_of_lists_have_no_default_settings() -> None:
    text = recipe_file(mine(), SIZES["small"].recipe())
    assert "actions" not in text.replace("action_dim", "").replace("relative_actions", "") and "episodes" not in text
    assert text.index("[[sources]]") < text.index("[model]")


@given(st.text(), st.text())
def test_any_text_survives(one: str, other: str) -> None:
    recipe = replace(SIZES["small"].recipe(), prompt=one, sources=(SourceConfig(other, cameras=(one, other)),))
    table = tomllib.loads(recipe_file(recipe, SIZES["small"].recipe(), "header"))
    assert table.get("prompt", "{task}") == one and table["sources"][0]["path"] == other
    assert table["sources"][0]["cameras"] == [one, other]


def test_nothing_differs_from_itself() -> None:
    assert differences({"a": {"b": 1}, "c": [1]}, {"a": {"b": 1}, "c": [1]}) == {}
