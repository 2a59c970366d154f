"""config/fit.py: the settings that follow from a robot, and settings of another robot that are not inherited."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightwam.config import recipes
from lightwam.config.checks import check_recipe
from lightwam.config.fit import (
    RobotData,
    chunk_of,
    fitted,
    height_of,
    inherited,
    place_cameras,
    placed,
    replan_of,
    steps_of,
    with_settings,
    with_steps,
)
from lightwam.config.schema import CameraPlace
from lightwam.config.sizes import SIZES
from lightwam.errors import ConfigError

SO101 = RobotData(30.0, {"front": (480, 640), "wrist": (480, 640)}, 6, 6, 9, False, (), (0, 1, 2, 3, 4))


@pytest.mark.parametrize(
    ("fps", "stride", "horizon"),
    [
        (30.0, 4, 32),
        (50.0, 7, 56),
        (15.0, 2, 16),
        (10.0, 1, 12),
        (20.0, 3, 24),
        (5.0, 1, 4),
        (1.0, 1, 4),
        (60.0, 8, 64),
    ],
)
def test_a_chunk_is_about_a_second(fps: float, stride: int, horizon: int) -> None:
    assert chunk_of(fps) == (stride, horizon)


def test_targets_are_followed_for_longer_than_motions() -> None:
    assert (replan_of(32, False), replan_of(32, True), replan_of(1, True)) == (8, 16, 1)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
def test_cameras_keep_their_aspect_and_do_not_overlap(count: int) -> None:
    sizes = {f"camera{i}": (480, 640) if i % 2 else (360, 640) for i in range(count)}
    canvas, places = place_cameras(sizes, 96)
    assert canvas[0] == (96 if count <= 3 else 192) and canvas[1] % 32 == 0
    assert {(p.height, p.width) for p in places} <= {(96, 128), (96, 176)} and [p.camera for p in places] == [*sizes]
    covered = {(y, x) for p in places for y in range(p.top, p.top + p.height) for x in range(p.left, p.left + p.width)}
    assert len(covered) == sum(p.height * p.width for p in places)
    assert max(y for y, _ in covered) < canvas[0] and max(x for _, x in covered) < canvas[1]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("fps", [5.0, 10.0, 30.0, 50.0])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_every_size_fits_any_robot(name: str, fps: float, count: int) -> None:
    size, cameras = SIZES[name], {f"camera{i}": (480, 640) for i in range(count)}
    base = size.recipe()
    robot = replace(SO101, fps=fps, cameras=cameras)
    recipe = check_recipe(fitted(base, robot, height_of(base, cameras, size.heights, size.max_tokens), "mine"))
    assert recipe.model.supervised_prefix == recipe.model.horizon and recipe.sim is None and recipe.name == "mine"


def test_the_settings_of_a_robot() -> None:
    recipe = fitted(SIZES["small"].recipe(), SO101, 96, "mine")
    assert (recipe.codec.canvas, recipe.codec.video_stride, recipe.eval.replan) == ((96, 256), 4, 8)
    assert (recipe.model.state_dim, recipe.model.action_dim, recipe.text.num_tokens) == (6, 6, 13)
    assert recipe.codec.relative_action_dims == (0, 1, 2, 3, 4) and recipe.codec.delta_action_dims == ()
    assert recipe.codec.action_norm == "z_score" and recipe.held_out.share > 0
    motions = replace(SO101, are_motions=True, motion_dims=(0, 1), relative_dims=())
    recipe = fitted(SIZES["small"].recipe(), motions, 96, "mine")
    assert (recipe.codec.action_norm, recipe.codec.delta_action_dims, recipe.eval.replan) == ("min_max", (0, 1), 16)
    assert fitted(SIZES["small"].recipe(), replace(SO101, outliers=True), 96, "mine").codec.action_norm == "quantile"


def test_many_cameras_are_smaller() -> None:
    base, four = SIZES["small"].recipe(), {name: (480, 640) for name in "abcd"}
    assert height_of(base, {"a": (480, 640)}, (96, 64), 160) == 96
    assert height_of(base, four, (96, 64), 160) == 64
    assert height_of(base, {str(i): (480, 640) for i in range(20)}, (96, 64), 160) == 64


def test_steps_follow_from_windows_and_time() -> None:
    assert steps_of(8000, 20, 64, None, 1.0) == 2500
    assert steps_of(8000, 20, 64, 3.0, 1.0) == 1200
    assert steps_of(50, 20, 64, None, 1.0) == 1000
    assert steps_of(50, 20, 64, 100.0, 1.0) == 36
    assert steps_of(50, 20, 64, 1e9, 1.0) == 1
    recipe = with_steps(SIZES["base"].recipe(), 400)
    assert (recipe.train.steps, recipe.train.warmup_steps, recipe.train.save_every) == (400, 20, 100)


def test_sizes_grow() -> None:
    pytest.importorskip("torch")
    from lightwam.training.footprint import num_parameters

    counts = [num_parameters(size.recipe().model)["all"]["total"] / 1e6 for size in SIZES.values()]
    assert [round(count, -1) for count in counts] == [0, 100, 1860]


# For other tools


def test_places_of_other_cameras_have_no_crop() -> None:
    codec = recipes.demo().codec
    assert placed(codec, ("corner", "corner4")) is codec
    assert placed(codec, ("a", "b", "c")).places == tuple(
        CameraPlace(n, 0, 64 * i, 64, 64) for i, n in enumerate("abc")
    )
    assert placed(codec, ("corner4",), (32, 48)).canvas == (32, 48)
    assert placed(codec, ("corner4",), (32, 48)).places == (CameraPlace("corner4", 0, 0, 32, 48),)


def test_settings_are_changed_by_dotted_names() -> None:
    recipe = with_settings(recipes.demo(), {"here": ("model.horizon", 16), "there": ("train.steps", 3)})
    assert (recipe.model.horizon, recipe.train.steps) == (16, 3)
    with pytest.raises(ConfigError, match=r"did you mean 'train\.steps'"):
        with_settings(recipes.demo(), {"here": ("train.step", 3)})


# What belongs to another robot


def test_the_prefix_follows_the_horizon_where_it_was_the_whole_chunk() -> None:
    demo = recipes.demo()
    longer = replace(demo, model=replace(demo.model, horizon=16))
    assert inherited(demo, longer, {"model.horizon"}).model.supervised_prefix == 16
    assert inherited(demo, longer, {"model.horizon", "model.supervised_prefix"}).model.supervised_prefix == 8
    libero = recipes.libero_10()
    assert inherited(libero, replace(libero, model=replace(libero.model, horizon=16)), set()).model == replace(
        libero.model, horizon=16
    )


def renamed(**cameras: str) -> tuple:
    demo = recipes.demo()
    places = tuple(replace(p, camera=cameras.get(p.camera, p.camera)) for p in demo.codec.places)
    return demo, replace(demo, codec=replace(demo.codec, places=places))


def test_a_crop_is_not_inherited_by_another_camera() -> None:
    demo, recipe = renamed(corner4="front")
    with pytest.raises(ConfigError, match="a crop must belong to its camera, corner4"):
        inherited(demo, recipe, {"codec.places.0.camera"})
    kept = inherited(demo, recipe, {"codec.places.0.camera", "codec.places.0.crop"})
    assert kept.codec.places[0].crop == demo.codec.places[0].crop


def test_a_crop_follows_its_camera() -> None:
    demo, recipe = renamed(corner4="corner", corner="corner4")
    swapped = inherited(demo, recipe, set()).codec.places
    assert [(p.camera, p.crop) for p in swapped] == [(p.camera, p.crop) for p in demo.codec.places[::-1]]


def test_dimensions_of_motion_are_not_inherited_by_another_robot() -> None:
    demo = recipes.demo()
    six = replace(demo, model=replace(demo.model, action_dim=6))
    with pytest.raises(ConfigError, match=r"codec.delta_action_dims must be set for a robot of 6 actions"):
        inherited(demo, six, {"model.action_dim"})
    assert inherited(demo, six, {"model.action_dim", "codec.delta_action_dims"}) == six
