"""Config of `--policy.type=lightwam`: the name of one of lightwam's recipes, and the settings that differ from it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

from lerobot.configs import NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.optim import AdamWConfig
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig
from lerobot.utils.constants import OBS_IMAGES, OBS_PREFIX

from lightwam import ConfigError, Recipe
from lightwam.config.checks import check_recipe
from lightwam.config.fit import canvas_grain, chunk_of, height_of, place_cameras, placed, replan_of, with_settings
from lightwam.config.recipe_files import recipe as read_recipe
from lightwam.config.schema import CodecConfig, NormKind
from lightwam.config.sizes import SIZES
from lightwam.config.strict_json import from_dict, to_dict
from lightwam.sim.registry import control_rate

NORMS: dict[NormKind, NormalizationMode] = {
    "min_max": NormalizationMode.MIN_MAX,
    "z_score": NormalizationMode.MEAN_STD,
    "quantile": NormalizationMode.QUANTILES,
    "identity": NormalizationMode.IDENTITY,
}
USUAL_FPS = 30.0
"""of lerobot-record"""
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

    recipe: str = "small"
    """has the settings that are not set here: a size (small, base, paper), a recipe's name, a recipe file of `lightwam
    init`, or a run directory"""
    overrides: dict[str, Any] = field(default_factory=dict)
    """further settings of the recipe by their dotted names, such as {"text.num_tokens": 32}"""
    horizon: int | None = None
    """actions in a chunk; a multiple of 4 * video_stride. None, here and below: the recipe's, if the rate fits it"""
    supervised_prefix: int | None = None
    """the first steps of a chunk that are trained; where a recipe trains all of them, this follows `horizon`"""
    n_action_steps: int | None = None
    """executed steps of a chunk before the next one is computed; at most supervised_prefix. None: the recipe's share of
    the horizon"""
    video_stride: int | None = None
    """steps from one frame of the future video to the next"""
    camera_size: tuple[int, int] | None = None
    """height and width, in pixels, of every camera on the canvas; the cameras are side by side. None: the recipe's
    places for its own cameras, else places that keep each camera's aspect"""
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
        self._given = {name for name in SETTINGS if getattr(self, name) is not None}
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
        horizon, most = self.horizon or base.model.horizon, base.model.horizon
        if base.model.supervised_prefix == most and self.supervised_prefix is None:
            settings["policy.horizon, the whole chunk"] = ("model.supervised_prefix", horizon)
        if self.n_action_steps is None:
            replan = max(1, base.eval.replan * horizon // most)
            settings["policy.horizon, the share executed"] = ("eval.replan", replan)
        return self._normalised(with_settings(base, settings))

    def _base(self) -> Recipe:
        if self.settled is None and self.recipe in SIZES:
            return _of_size(SIZES[self.recipe].recipe())
        if self.settled is None:
            return read_recipe(self.recipe)
        recipe = from_dict(Recipe, self.settled, "policy.settled")
        if recipe.name != self.recipe:
            what = "this policy was created from another recipe"
            raise ConfigError(what, where="policy.recipe", got=self.recipe, expected=recipe.name)
        return recipe

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

    def settle(self, fps: float | None = None) -> Recipe:
        """Return the recipe adapted to the features, checked; the config keeps it as `settled`.

        `fps` is the rate of the dataset that a new policy will be trained on. ConfigError if the recipe's chunk is of a
        robot with another rate.
        """
        self.validate_features()
        recipe = self.wanted()
        if self.settled is None:
            if fps is not None:
                self._check_rate(recipe, fps)
            recipe = self._fitted(recipe)
            logging.info("lightwam: %s", summary(recipe, self.sizes, fps))
        self._check_fit(recipe)
        self.recipe, self.settled = recipe.name, to_dict(check_recipe(recipe))
        return recipe

    def _check_rate(self, recipe: Recipe, fps: float) -> None:
        """ConfigError for a chunk that nobody chose for this rate; a recipe file was written for its dataset."""
        stride, horizon = recipe.codec.video_stride, recipe.model.horizon
        own = None if recipe.sim is None else control_rate(recipe.sim)
        is_chosen = {"horizon", "video_stride"} & self._given or (recipe.sim is None and self.recipe not in SIZES)
        if is_chosen or (stride, horizon) == chunk_of(fps) or (own is not None and abs(own - fps) < 1):
            return
        what, where = "the chunk must be chosen for the dataset's rate", f"policy.recipe {self.recipe}"
        got = f"{horizon} actions, a frame every {stride}, at {fps:g} steps a second"
        stride, horizon = chunk_of(fps)
        step = f"--policy.horizon={horizon} --policy.video_stride={stride}: about a second"
        raise ConfigError(what, where=where, got=got, next_step=step)

    def _fitted(self, recipe: Recipe) -> Recipe:
        state, action = self.robot_state_feature, self.action_feature
        assert state is not None and action is not None
        codec = recipe.codec
        if not self.overrides.keys() & {"codec.canvas", "codec.places"}:
            codec = self._placed(recipe)
        # padded steps are left out of the loss, so it does not matter which actions mean "no motion"
        codec = replace(codec, delta_action_dims=())
        model = replace(recipe.model, state_dim=state.shape[0], action_dim=action.shape[0])
        return replace(recipe, model=model, codec=codec, sim=None, collect=None, sources=())

    def _placed(self, recipe: Recipe) -> CodecConfig:
        codec, sizes = recipe.codec, self.sizes
        if self.camera_size is not None or {place.camera for place in codec.places} == set(sizes):
            return placed(codec, tuple(sizes), self.camera_size)
        if codec.places:
            height = codec.places[0].height
        else:
            size = SIZES.get(self.recipe, SIZES["small"])
            height = height_of(recipe, sizes, size.heights, size.max_tokens)
        canvas, places = place_cameras(sizes, height, canvas_grain(recipe))
        return replace(codec, canvas=canvas, places=places)

    def _check_fit(self, recipe: Recipe) -> None:
        """ConfigError when the features are not those of the recipe, as when a checkpoint meets another robot."""
        if recipe.codec.relative_action_dims and self.relative is None:
            what, got = "relative actions cannot be trained by LeRobot", recipe.codec.relative_action_dims
            step = "lightwam train, then lightwam-to-lerobot; or overrides codec.relative_action_dims []"
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

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Return camera -> height and width of its pictures."""
        shapes = {camera: self.image_features[key].shape for camera, key in self.cameras.items()}
        return {camera: (shape[1], shape[2]) for camera, shape in shapes.items()}

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


def _of_size(size: Recipe) -> Recipe:
    """Return a size's recipe with chunks for LeRobot's usual rate, as a dataset's is not known before it is opened.

    Neither is whether actions are motions, so the share executed is the smaller of the two.
    """
    stride, horizon = chunk_of(USUAL_FPS)
    model = replace(size.model, horizon=horizon, supervised_prefix=horizon)
    settings = replace(size.eval, replan=replan_of(horizon, are_motions=True))
    return replace(size, model=model, codec=replace(size.codec, video_stride=stride), eval=settings)


def summary(recipe: Recipe, sizes: dict[str, tuple[int, int]], fps: float | None) -> str:
    """Return what a new policy sees and does, in a line."""
    cameras = []
    for place in recipe.codec.places:
        part = "" if place.crop == (0, 0, 1, 1) else f" cropped to {place.crop}"
        height, width = sizes[place.camera]
        cameras.append(f"{place.camera} {height}x{width}{part} as {place.height}x{place.width}")
    horizon, stride = recipe.model.horizon, recipe.codec.video_stride
    seconds = "" if fps is None else f", {horizon / fps:.2g} s"
    chunk = f"chunks of {horizon} actions{seconds}, {recipe.eval.replan} of them executed, a frame every {stride}"
    return f"recipe {recipe.name}: {', '.join(cameras)}; {chunk}"


def _value(recipe: Recipe, setting: str) -> Any:
    value: Any = recipe
    for name in setting.split("."):
        value = getattr(value, name)
    return value
