"""The config: a recipe and what differs from it, kept whole with a checkpoint; what does not fit is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig

from lerobot_policy_lightwam import LightWAMConfig
from lightwam.config import recipes
from lightwam.config.fit import WHOLE
from lightwam.errors import ConfigError


def features(*cameras: str, state: int = 2, size: tuple[int, ...] = (3, 48, 64)) -> dict[str, PolicyFeature]:
    pictures = {f"observation.images.{camera}": PolicyFeature(FeatureType.VISUAL, size) for camera in cameras}
    return pictures | {"observation.state": PolicyFeature(FeatureType.STATE, (state,))}


def config(*cameras: str, action: int = 2, recipe: str = "point", state: int = 2, **settings: Any) -> LightWAMConfig:
    output = {"action": PolicyFeature(FeatureType.ACTION, (action,))}
    inputs = features(*(cameras or ("top",)), state=state)
    return LightWAMConfig(recipe=recipe, input_features=inputs, output_features=output, device="cpu", **settings)


def test_unset_fields_are_the_recipes() -> None:
    base, made = recipes.demo(), LightWAMConfig(recipe="demo", device="cpu")
    assert (made.horizon, made.n_action_steps, made.video_stride) == (8, base.eval.replan, base.codec.video_stride)
    assert made.optimizer_lr == made.get_optimizer_preset().lr == base.train.learning_rate
    assert made.get_scheduler_preset().num_warmup_steps == base.train.warmup_steps
    assert made.observation_delta_indices == [0, 2, 4, 6, 8] and made.action_delta_indices == list(range(8))


def test_the_recipe_is_fitted_to_the_features() -> None:
    made = config("left", "right", state=5, action=7).settle()
    assert (made.model.state_dim, made.model.action_dim) == (5, 7)
    assert made.codec.canvas == (32, 96) and made.sim is None, "48x64 pixels keep their aspect"
    assert [(place.camera, place.left, place.width) for place in made.codec.places] == [
        ("left", 0, 48),
        ("right", 48, 48),
    ]


def test_a_size_is_fitted_to_the_cameras_and_the_rate() -> None:
    """What `lightwam init` derives: nothing comes from another robot."""
    made = config("front", "wrist", recipe="small", state=6, action=6)
    assert (made.horizon, made.video_stride, made.n_action_steps) == (32, 4, 16)
    recipe = made.settle(30.0)
    assert recipe.codec.canvas == (96, 256) and all(place.crop == WHOLE for place in recipe.codec.places)
    with pytest.raises(ConfigError, match=r"--policy.horizon=56 --policy.video_stride=7"):
        config("front", recipe="small").settle(50.0)
    fast = config("front", recipe="small", horizon=56, video_stride=7)
    assert fast.settle(50.0).model.supervised_prefix == 56 and fast.n_action_steps == 28


def test_a_recipe_of_a_robot_with_another_rate_is_refused(tmp_path: Path) -> None:
    assert config(recipe="demo").settle(27.0).model.horizon == 8  # its own
    with pytest.raises(ConfigError, match="8 actions, a frame every 2, at 50 steps"):
        config(recipe="demo").settle(50.0)
    (tmp_path / "mine.toml").write_text('base = "small"\n[model]\nhorizon = 16\nsupervised_prefix = 16\n')
    made = config(recipe=str(tmp_path / "mine.toml"))
    assert made.settle(11.0).name == made.recipe == "mine", "a recipe file is written for its dataset"


def test_a_recipe_with_just_these_cameras_places_them_itself() -> None:
    made = config("corner", "corner4", recipe="demo", state=4, action=4).settle()
    assert made.codec.places == recipes.demo().codec.places
    beside = config("corner", "corner4", recipe="demo", state=4, action=4, camera_size=(64, 96)).settle()
    assert beside.codec.canvas == (64, 192) and beside.codec.places[1].crop == (0, 0, 1, 1)


def test_a_longer_horizon_extends_the_supervised_prefix() -> None:
    assert config(horizon=16).supervised_prefix == 16
    assert config(horizon=16, supervised_prefix=4).supervised_prefix == 4
    assert LightWAMConfig(recipe="libero-10", horizon=64, device="cpu").supervised_prefix == 10


def test_any_setting_can_be_overridden_by_its_name() -> None:
    made = config(overrides={"text.num_tokens": 20, "codec.canvas": [32, 32], "model.backbone.num_blocks": 3}).settle()
    assert made.text.num_tokens == 20 and made.model.backbone.num_blocks == 3


def test_a_config_is_saved_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the recipes say later does not matter to it."""
    made = config("left", "right", n_action_steps=3, overrides={"text.num_tokens": 20})
    recipe = made.settle()
    made.measured = {"mean": [0.1] * 8, "std": [1.0] * 8}
    made.save_pretrained(tmp_path)
    monkeypatch.setattr("lerobot_policy_lightwam.configuration_lightwam.read_recipe", None)
    again = PreTrainedConfig.from_pretrained(tmp_path)
    assert isinstance(again, LightWAMConfig) and again.settle() == recipe and again == made
    fewer = PreTrainedConfig.from_pretrained(tmp_path, cli_overrides=["--n_action_steps=2", "--device=cpu"])
    assert fewer.settle().eval.replan == 2
    assert json.loads((tmp_path / "config.json").read_text())["type"] == "lightwam"


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"recipe": "demoo"}, "did you mean 'demo'"),
        ({"overrides": {"text.num_token": 3}}, "text.num_tokens"),
        ({"overrides": {"model.horizon": 16}}, "--policy.horizon=16"),
        ({"overrides": {"text.num_tokens": "many"}}, "wrong type"),
        ({"use_amp": True}, "mixed precision"),
        ({"normalization_mapping": {"STATE": NormalizationMode.QUANTILE10}}, "STATE"),
        ({"normalization_mapping": {"VISUAL": NormalizationMode.MEAN_STD}}, "VISUAL"),
    ],
)
def test_invalid_settings_are_refused_at_once(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(**settings)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"n_action_steps": 9}, "eval.replan"),
        ({"horizon": 10}, "complete latent frames"),
        ({"camera_size": (30, 30)}, "pooled latents"),
        ({"input_features": features("top", size=(1, 48, 64))}, "not RGB"),
        ({"input_features": features()}, "no camera"),
        ({"input_features": {}}, "observation.state"),
        ({"output_features": {}}, "action"),
        ({"overrides": {"codec.places": [], "codec.canvas": [32, 32]}}, "codec.places must be"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_when_the_policy_is_made(settings: dict[str, Any], said: str) -> None:
    made = config()
    for name, value in settings.items():
        setattr(made, name, value)
    with pytest.raises(ConfigError, match=said):
        made.settle()


def test_a_checkpoint_keeps_its_robot_and_its_cameras() -> None:
    made = config("left", "right")
    made.settle()
    for settings, said in (
        ({"output_features": config(action=3).output_features}, "features"),
        ({"input_features": features("left", "wrist")}, "camera"),
        ({"camera_size": (64, 64)}, "places already"),
        ({"recipe": "demo"}, "another recipe"),
    ):
        other = replace(made, **settings) if "recipe" not in settings else None
        with pytest.raises(ConfigError, match=said):
            (other or LightWAMConfig(recipe="demo", settled=made.settled, device="cpu")).settle()
