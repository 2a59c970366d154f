"""config/recipe_files.py: a recipe by its name, from a TOML file or of a run; what follows from options on it."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest

from lightwam.cli.options import RecipeOptions, recipe_command
from lightwam.cli.train import TrainOptions, begun
from lightwam.config.checks import check_recipe
from lightwam.config.recipe_files import read_recipe_file, recipe
from lightwam.config.recipes import demo, point
from lightwam.config.schema import Recipe, SourceConfig, Umt5Config
from lightwam.config.strict_json import from_dict, to_dict
from lightwam.errors import ConfigError

ARM = """
base = "point"

[[sources]]
path = "plates"
weight = 2
cameras = ["cam0=top"]

[[sources]]
path = "me/others@v1"
actions = "none"

[held_out]
share = 0.1

[codec]
canvas = [32, 64]
places = [{camera = "top", top = 0, left = 0, height = 32, width = 64}]

[eval]
replan = 6
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "arm.toml"
    path.write_text(text)
    return path


def test_a_file_has_the_bases_settings_and_its_own(tmp_path: Path) -> None:
    (tmp_path / "plates").mkdir()
    arm = check_recipe(read_recipe_file(write(tmp_path, ARM)))
    assert arm.name == "arm"
    assert arm.model == point().model
    assert arm.eval == replace(point().eval, replan=6)
    assert [source.path for source in arm.sources] == [str(tmp_path / "plates"), "me/others@v1"]
    assert arm.sources[0] == SourceConfig(str(tmp_path / "plates"), weight=2.0, cameras=("cam0=top",))
    assert arm.codec.places[0].crop == (0.0, 0.0, 1.0, 1.0), "a list replaces the base's"
    assert from_dict(Recipe, json.loads(json.dumps(to_dict(arm)))) == arm


def test_a_section_of_another_kind_begins_with_its_own_defaults(tmp_path: Path) -> None:
    text = 'base = "demo"\n[text]\nkind = "umt5"\nnum_tokens = 64\n'
    assert read_recipe_file(write(tmp_path, text)).text == Umt5Config(num_tokens=64)


def test_names_and_run_directories_are_recipes_too(tmp_path: Path) -> None:
    assert recipe("point") == point()
    (tmp_path / "recipe.json").write_text(json.dumps(to_dict(demo())))
    assert recipe(tmp_path) == demo()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must have the name of a recipe as its base"),
        ('base = "pointt"', "did you mean 'point'"),
        ("base = ", "must be TOML"),
        ('base = "point"\n[trian]\nsteps = 2', "unknown key.*trian.*did you mean 'train'"),
        ('base = "point"\n[train]\nsteps = "many"', r"train\.steps"),
        ('base = "point"\n[[sources]]\nweight = 1.0', r"keys are missing.*sources\[0\].*path"),
    ],
)
def test_a_broken_file_is_refused_with_the_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        read_recipe_file(write(tmp_path, text))


def test_a_missing_file_names_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lightwam init DATASET"):
        recipe(tmp_path / "arm.toml")


def test_a_recipe_without_a_simulator_fits_together_and_says_so_when_asked_for_one() -> None:
    alone = check_recipe(replace(point(), sim=None, collect=None))
    with pytest.raises(ConfigError, match="must have a simulator"):
        _ = alone.simulation
    with pytest.raises(ConfigError, match="record demonstrations"):
        _ = alone.demonstrations


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sources": (SourceConfig("a", weight=0.0),)}, r"sources\[0\]\.weight"),
        ({"sources": (SourceConfig("a", actions="none"),)}, "at least one with actions"),
        ({"sources": (SourceConfig("a"), SourceConfig("b", actions="none", video=False))}, r"sources\[1\]"),
        ({"codec": replace(point().codec, delta_action_dims=(), relative_action_dims=(2,))}, "relative_action_dims"),
        ({"codec": replace(point().codec, relative_action_dims=(0,))}, "none of codec.delta_action_dims"),
    ],
)
def test_sources_and_relative_actions_that_do_not_fit_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_recipe(dataclasses.replace(point(), **changes))  # type: ignore[arg-type]


def test_the_supervised_prefix_follows_the_horizon_where_it_was_all_of_it() -> None:
    model = recipe_command(RecipeOptions, ["point", "--model.horizon", "16"], "show").recipe.model
    assert (model.horizon, model.supervised_prefix) == (16, 16)
    model = recipe_command(
        RecipeOptions, ["point", "--model.horizon", "16", "--model.supervised-prefix", "8"], "show"
    ).recipe.model
    assert (model.horizon, model.supervised_prefix) == (16, 8)


def test_a_crop_is_not_inherited_by_another_camera() -> None:
    other = ["demo", "--codec.places.0.camera", "front", "--sim.cameras", "front", "corner"]
    with pytest.raises(
        ConfigError, match=r"(?s)a crop must belong to its camera, corner4.*--codec\.places\.0\.crop 0 0 1 1"
    ):
        recipe_command(RecipeOptions, other, "show")
    whole = [*other, "--codec.places.0.crop", "0", "0", "1", "1"]
    assert recipe_command(RecipeOptions, whole, "show").recipe.codec.places[0].camera == "front"


def test_train_goes_on_with_a_run_that_has_begun(tmp_path: Path) -> None:
    assert begun(["--run", str(tmp_path)]) is None, "not begun"
    (tmp_path / "recipe.json").write_text(json.dumps(to_dict(point())))
    assert begun(["--run", str(tmp_path)]) == begun(["--device", "cpu", f"--run={tmp_path}"]) == tmp_path
    assert begun(["point", "--run", str(tmp_path)]) is None, "a recipe is named"


def test_a_folder_that_happens_to_have_a_recipes_name_is_not_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "point").mkdir()
    monkeypatch.chdir(tmp_path)
    options = recipe_command(TrainOptions, ["point"], "train")
    assert (options.run, options.dataset) == (Path("runs/point"), Path("data/point"))
