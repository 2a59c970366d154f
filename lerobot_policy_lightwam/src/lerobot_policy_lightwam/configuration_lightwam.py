"""Config of `--policy.type=lightwam`: the name of one of lightwam's recipes, and the settings that differ from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lerobot.configs import NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.optim import AdamWConfig
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig
from lerobot.utils.constants import OBS_IMAGES, OBS_PREFIX

from lightwam import ConfigError, Recipe
from lightwam.config.checks import check_recipe
from lightwam.config.recipes import RECIPES
from lightwam.config.schema import CameraPlace, CodecConfig, NormKind, with_simulator
from lightwam.config.strict_json import from_dict, to_dict
from lightwam.errors import did_you_mean

NORMS: dict[NormKind, NormalizationMode] = {
    "min_max": NormalizationMode.MIN_MAX,
    "z_score": NormalizationMode.MEAN_STD,
    "quantile": NormalizationMode.QUANTILES,
    "identity": NormalizationMode.IDENTITY,
}
SETTINGS = {
    "horizon": "model.horizon",
    "supervised_prefix": "model.supervised_prefix",
    "n_action_steps": "eval.replan",
    "video_stride": "codec.video_stride",
    "weights": "weights",
    "optimizer_lr": "train.learning_rate",
    "scheduler_warmup_steps": "train.warmup_steps",
}
"""field -> the recipe's setting; such a field is never None after initialisation"""


@PreTrainedConfig.register_subclass("lightwam")
@dataclass
class LightWAMConfig(PreTrainedConfig):
    """A recipe, adapted to the features of a dataset or an environment when the policy is created."""

    recipe: str = "demo"
    """one of `lightwam.recipe_names()`; it has the settings that are not set here"""
    overrides: dict[str, Any] = field(default_factory=dict)
    """further settings of the recipe by their dotted names, such as {"text.num_tokens": 32}"""
    horizon: int | None = None
    """actions in a chunk; a multiple of 4 * video_stride. None, here and below: the recipe's"""
    supervised_prefix: int | None = None
    """the first steps of a chunk that are trained; where a recipe trains all of them, this follows `horizon`"""
    n_action_steps: int | None = None
    """executed steps of a chunk before the next one is computed; at most supervised_prefix"""
    video_stride: int | None = None
    """steps from one frame of the future video to the next"""
    camera_size: tuple[int, int] | None = None
    """height and width, in pixels, of every camera on the canvas; the cameras are side by side"""
    weights: str | None = None
    """pretrained Wan2.1: a folder or a Hub repo id"""
    optimizer_lr: float | None = None
    scheduler_warmup_steps: int | None = None
    save_predicted_video: bool = False
    """imagine the future with every chunk; lerobot-eval then writes it as pred_episode_N.mp4"""
    num_imagine_steps: int = 10
    """Euler steps of an imagined video"""
    imagine_seed: int = 0
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=dict)
    """of STATE and ACTION; the recipe's by default"""

    settled: dict[str, Any] | None = None
    """the complete recipe of a created policy, so that a checkpoint does not change with the recipes. Not an option."""
    measured: dict[str, Any] | None = None
    """the DCT's statistics, or the identity of the VAE. Not an option."""
    facts: dict[str, Any] | None = None
    """what the run of a converted policy knows of its robot and data (`lightwam.data.facts`). Not an option."""
    action_feature_names: list[str] | None = None
    """names of the numbers in an action, by which lerobot-rollout checks the robot. Not an option."""
    relative: dict[str, Any] | None = None
    """the codec of a converted run with relative actions (`lightwam.data.codec`), which needs more than LeRobot's
    statistics. Not an option."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_amp:
            raise ConfigError("mixed precision is not supported", where="policy.use_amp", got=True, expected=False)
        recipe = self.wanted()
        for name, setting in SETTINGS.items():
            setattr(self, name, _value(recipe, setting))
        norms = {"VISUAL": "identity", "STATE": recipe.codec.state_norm, "ACTION": recipe.codec.action_norm}
        self.normalization_mapping = {kind: NORMS[norm] for kind, norm in norms.items()}

    def wanted(self) -> Recipe:
        """Return the recipe with the settings of this config, not yet adapted to cameras and robot."""
        base = self._base()
        settings = {f"policy.overrides {name}": (name, value) for name, value in self.overrides.items()}
        for name, setting in SETTINGS.items():
            if setting in self.overrides:
                where, step = f"policy.overrides {setting}", f"--policy.{name}={self.overrides[setting]}"
                raise ConfigError("this setting has a field of its own", where=where, next_step=step)
            if getattr(self, name) is not None:
                settings[f"policy.{name}"] = (setting, getattr(self, name))
        whole = base.model.supervised_prefix == base.model.horizon
        if whole and self.horizon is not None and self.supervised_prefix is None:
            settings["policy.horizon"] = ("model.horizon", self.horizon)
            settings["policy.supervised_prefix"] = ("model.supervised_prefix", self.horizon)
        return self._normalised(changed(base, settings))

    def _base(self) -> Recipe:
        if self.settled is not None:
            recipe = from_dict(Recipe, self.settled, "policy.settled")
            if recipe.name != self.recipe:
                what = "this policy was created from another recipe"
                raise ConfigError(what, where="policy.recipe", got=self.recipe, expected=recipe.name)
            return recipe
        if self.recipe not in RECIPES:
            step = did_you_mean(self.recipe, RECIPES)
            raise ConfigError("unknown recipe", where="policy.recipe", got=repr(self.recipe), next_step=step)
        return RECIPES[self.recipe]()

    def _normalised(self, recipe: Recipe) -> Recipe:
        """Return the recipe with the norms of `normalization_mapping`, if it has some."""
        kinds = {mode: kind for kind, mode in NORMS.items()}
        wanted = self.normalization_mapping
        for kind, mode in wanted.items():
            known = [NormalizationMode.IDENTITY] if kind == "VISUAL" else list(kinds)
            if kind not in ("VISUAL", "STATE", "ACTION") or mode not in known:
                where = f"policy.normalization_mapping {kind}"
                allowed = (
                    f"IDENTITY for VISUAL, which the policy scales; for STATE and ACTION {[m.value for m in kinds]}"
                )
                raise ConfigError("no such normalisation", where=where, got=mode.value, expected=allowed)
        state, action = (kinds[wanted[kind]] if kind in wanted else None for kind in ("STATE", "ACTION"))
        codec = recipe.codec
        return replace(
            recipe,
            codec=replace(codec, state_norm=state or codec.state_norm, action_norm=action or codec.action_norm),
        )

    def settle(self) -> Recipe:
        """Return the recipe adapted to the features, checked; the config keeps it as `settled`."""
        self.validate_features()
        recipe, cameras = self.wanted(), self.cameras
        if self.settled is None:
            recipe = self._fitted(recipe, tuple(cameras))
        self._check_fit(recipe)
        self.settled = to_dict(check_recipe(recipe))
        return recipe

    def _fitted(self, recipe: Recipe, cameras: tuple[str, ...]) -> Recipe:
        state, action = self.robot_state_feature, self.action_feature
        assert state is not None and action is not None
        codec = recipe.codec
        if not self.overrides.keys() & {"codec.canvas", "codec.places"}:
            codec = placed(codec, cameras, self.camera_size)
        # padded steps are left out of the loss, so it does not matter which actions mean "no motion"
        codec = replace(codec, delta_action_dims=())
        sim = replace(recipe.simulation, name="lerobot", tasks=("lerobot",), cameras=cameras, protocol="")
        model = replace(recipe.model, state_dim=state.shape[0], action_dim=action.shape[0])
        return replace(with_simulator(recipe, sim, recipe.eval), model=model, codec=codec)

    def _check_fit(self, recipe: Recipe) -> None:
        """ConfigError when the features are not those of the recipe, as when a checkpoint meets another robot."""
        if recipe.codec.relative_action_dims and self.relative is None:
            what, step = "relative actions cannot be trained by LeRobot", "lightwam train, then lightwam-to-lerobot"
            got = recipe.codec.relative_action_dims
            raise ConfigError(what, where="codec.relative_action_dims", got=got, next_step=step)
        state, action = self.robot_state_feature, self.action_feature
        assert state is not None and action is not None
        got = {"observation.state": state.shape[0], "action": action.shape[0]}
        expected = {"observation.state": recipe.model.state_dim, "action": recipe.model.action_dim}
        if got != expected:
            what = "the features must be those of the policy"
            raise ConfigError(what, where="policy.input_features", got=got, expected=expected)
        sizes = {(place.height, place.width) for place in recipe.codec.places}
        if self.camera_size is not None and sizes != {tuple(self.camera_size)}:
            what = "the cameras have their places already"
            raise ConfigError(what, where="policy.camera_size", got=self.camera_size, expected=sizes)
        placed_cameras = {place.camera for place in recipe.codec.places}
        if not placed_cameras <= self.cameras.keys():
            what, got = "a camera of the policy is not among the features", sorted(self.cameras)
            raise ConfigError(what, where="policy.input_features", got=got, expected=sorted(placed_cameras))

    @property
    def cameras(self) -> dict[str, str]:
        """Return camera -> feature, in the features' order; observation.images.top is the camera top."""
        keys = list(self.image_features)
        return {key.removeprefix(f"{OBS_IMAGES}.").removeprefix(OBS_PREFIX): key for key in keys}

    def validate_features(self) -> None:
        """Raise ConfigError if pictures, state or action are missing or of unsupported shapes."""
        state, action = self.robot_state_feature, self.action_feature
        for name, feature in (("observation.state", state), ("action", action)):
            if feature is None or len(feature.shape) != 1:
                what, shape = "Light-WAM needs a state and an action, both vectors", feature and feature.shape
                raise ConfigError(what, where=name, got=shape, expected="(dims,)")
        if not self.image_features or len(self.cameras) != len(self.image_features):
            what, got = "no camera, or two of one name", sorted(self.image_features)
            raise ConfigError(
                what, where="policy.input_features", got=got, expected=f"{OBS_IMAGES}.NAME, each name once"
            )
        for key, feature in self.image_features.items():
            if not is_rgb(feature):
                raise ConfigError("a camera is not RGB", where=key, got=feature.shape, expected="(3, height, width)")

    @property
    def observation_delta_indices(self) -> list[int]:
        """Return the frames of the video, the present first; the state has the same ones, and its first is used."""
        assert self.horizon is not None and self.video_stride is not None
        return list(range(0, self.horizon + 1, self.video_stride))

    @property
    def action_delta_indices(self) -> list[int]:
        """Return the steps of a chunk."""
        assert self.horizon is not None
        return list(range(self.horizon))

    @property
    def reward_delta_indices(self) -> None:
        """Return None: rewards are not used."""
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        """Return AdamW for all weights, with the recipe's rate, betas, decay and clipping."""
        train = self.wanted().train
        return AdamWConfig(
            lr=train.learning_rate, betas=train.betas, weight_decay=train.weight_decay, grad_clip_norm=train.clip_norm
        )

    def get_scheduler_preset(self) -> CosineAnnealingWithWarmupSchedulerConfig:
        """Return a warm-up, then a cosine to 0 at the last step."""
        return CosineAnnealingWithWarmupSchedulerConfig(num_warmup_steps=self.wanted().train.warmup_steps)


def is_rgb(feature: PolicyFeature) -> bool:
    """Return whether a feature is one RGB picture, channels first."""
    return len(feature.shape) == 3 and feature.shape[0] == 3


def placed(codec: CodecConfig, cameras: tuple[str, ...], size: tuple[int, int] | None) -> CodecConfig:
    """Return the codec with all cameras on its canvas: at the recipe's places if it has the same, else side by side."""
    if size is None and {place.camera for place in codec.places} == set(cameras):
        return codec
    height, width = size or (codec.places[0].height, codec.places[0].width)
    places = tuple(CameraPlace(camera, 0, i * width, height, width) for i, camera in enumerate(cameras))
    return replace(codec, canvas=(height, width * len(places)), places=places)


def changed(recipe: Recipe, settings: Mapping[str, tuple[str, Any]]) -> Recipe:
    """Return the recipe with the settings (origin -> dotted name, value); ConfigError for an unknown name."""
    data = to_dict(recipe)
    for where, (name, value) in settings.items():
        *sections, last = name.split(".")
        table = data
        for section in sections:
            table = table.get(section) if isinstance(table, dict) else None
        if not isinstance(table, dict) or last not in table:
            raise ConfigError("unknown setting", where=where, got=name, next_step=did_you_mean(name, _names(data)))
        table[last] = value
    return from_dict(Recipe, data, "policy")


def _names(data: Any, above: str = "") -> Iterator[str]:
    for name, value in data.items():
        yield above + name
        if isinstance(value, dict):
            yield from _names(value, f"{above}{name}.")


def _value(recipe: Recipe, setting: str) -> Any:
    value: Any = recipe
    for name in setting.split("."):
        value = getattr(value, name)
    return value
