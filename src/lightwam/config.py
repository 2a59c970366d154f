"""Every setting there is, as frozen dataclasses, with the checks that span more than one of them.

A named experiment is a function in recipes.py that returns a whole `Recipe`. A run directory holds its recipe as JSON;
reading it back is strict both ways: an unknown key, a missing key or a value of another type is refused by name.
"""

from __future__ import annotations

import dataclasses
import math
import string
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from lightwam.errors import ConfigError, did_you_mean

NormKind = Literal["min_max", "z_score", "quantile", "identity"]


@dataclass(frozen=True)
class BackboneConfig:
    """The video diffusion transformer (Wan2.1's); defaults are Wan2.1-T2V-1.3B with Light-WAM's taps."""

    width: int = 1536
    ffn_width: int = 8960
    num_heads: int = 12
    num_blocks: int = 30
    patch: tuple[int, int, int] = (1, 2, 2)
    latent_channels: int = 16
    text_dim: int = 4096
    time_code_dim: int = 256
    taps: tuple[int, ...] = (8, 16, 24)
    """blocks, counted from 0, whose adapted output the action expert reads"""
    adapter_width: int = 256
    lora_rank: int = 64
    """0: no LoRA"""
    lora_alpha: float = 128.0
    frozen: bool = True
    """train LoRA, adapters and head only (the paper); False trains everything (a backbone from scratch)"""


@dataclass(frozen=True)
class ExpertConfig:
    """StateFusionActionExpert; defaults are the paper's."""

    num_queries: int = 16
    num_pool_heads: int = 8
    layer_width: int = 4608
    trunk_width: int = 6144
    step_code_dim: int = 256


@dataclass(frozen=True)
class FlowConfig:
    """Flow matching of the future video."""

    shift: float = 5.0
    num_times: int = 1000


@dataclass(frozen=True)
class ModelConfig:
    """One Light-WAM."""

    backbone: BackboneConfig
    expert: ExpertConfig
    flow: FlowConfig
    state_dim: int
    action_dim: int
    horizon: int = 32
    """actions in a chunk"""
    supervised_prefix: int = 32
    """the first steps of a chunk that the action loss reads; a controller must not execute more"""
    action_loss_weight: float = 1.0
    """the paper's lambda"""
    video_loss_weight: float = 1.0
    """1 in the paper; 0 leaves out the video pass (an ablation)"""


@dataclass(frozen=True)
class CameraPlace:
    """Where one camera's picture, cropped and then resized to height x width, stands on the codec's canvas (pixels)."""

    camera: str
    top: int
    left: int
    height: int
    width: int
    crop: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """the part of the picture that is used: top, left, bottom, right, as shares of its sides"""


@dataclass(frozen=True)
class CodecConfig:
    """Robot data <-> model arrays."""

    canvas: tuple[int, int]
    """height, width of the picture that the model sees, in pixels"""
    places: tuple[CameraPlace, ...]
    state_norm: NormKind = "min_max"
    action_norm: NormKind = "min_max"
    video_stride: int = 4
    """control steps from one video frame to the next"""
    delta_action_dims: tuple[int, ...] = ()
    """action dims that mean 'no motion' at 0 in robot units: padded steps hold 0 there, else the last action"""


@dataclass(frozen=True)
class DctConfig:
    """Weight-free latents: low frequencies of an 8x8 block DCT, luma_channels + 2 * chroma_channels of them."""

    luma_channels: int = 10
    chroma_channels: int = 3
    kind: Literal["dct"] = "dct"


@dataclass(frozen=True)
class HashedTextConfig:
    """Weight-free text: words hashed to fixed vectors, one state a token."""

    num_tokens: int = 16
    dim: int = 64
    kind: Literal["hashed"] = "hashed"


@dataclass(frozen=True)
class SimConfig:
    """A simulator with its tasks and cameras."""

    name: str
    """adapter, for example "metaworld" """
    tasks: tuple[str, ...]
    cameras: tuple[str, ...]
    height: int
    width: int
    max_steps: int
    """control steps until an episode counts as failed"""
    action_repeat: int = 1
    """simulator steps for one control step"""


@dataclass(frozen=True)
class CollectConfig:
    """Demonstrations by scripted experts."""

    demos_per_task: int
    more_demos: tuple[tuple[str, int], ...] = ()
    """(task, count): demonstrations beyond that of tasks whose goals vary more"""
    noise_std: float = 0.0
    """Gaussian noise added to executed actions, in action units; the stored action is the expert's own"""
    noise_probability: float = 1.0
    """share of steps that are executed with noise"""
    wander_steps: int = 0
    """up to this many steps in a random direction before a demonstration begins, not recorded: where the hand is then
    says nothing of the goal, and the policy has to look for it"""
    extra_steps: int = 0
    """steps recorded after the first success, so that the policy learns to stay"""
    first_seed: int = 0
    """demonstrations use seeds from here up"""
    workers: int = 2

    def demos(self, task: str) -> int:
        """Demonstrations wanted of `task`."""
        return self.demos_per_task + dict(self.more_demos).get(task, 0)


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    steps: int
    batch_size: int
    learning_rate: float = 1e-4
    muon_learning_rate: float = 0.0
    """0: AdamW for all; else the peak rate of Muon for the matrices in the backbone's blocks and adapters"""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-2
    warmup_steps: int = 1000
    final_learning_rate: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    """0: no average; else the decay of the average of trained weights that is evaluated"""
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    log_every: int = 20
    save_every: int = 500
    shift_pixels: int = 0
    """training pictures are shifted at random by up to this many pixels each way (augmentation)"""
    listeners: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()


@dataclass(frozen=True)
class EvalConfig:
    """Closed-loop evaluation."""

    trials: int
    """episodes a task"""
    replan: int
    """steps executed of each chunk"""
    first_seed: int = 1_000_000
    """episode i of a task uses seed first_seed + i; training must not have seen it"""
    workers: int = 2
    videos_per_task: int = 2


@dataclass(frozen=True)
class Recipe:
    """One named experiment, whole."""

    name: str
    model: ModelConfig
    codec: CodecConfig
    latents: DctConfig
    text: HashedTextConfig
    sim: SimConfig
    collect: CollectConfig
    train: TrainConfig
    eval: EvalConfig
    prompt: str = "{task}"
    """how a task sentence becomes the prompt; the paper: A video recorded from a robot's point of view executing the
    following instruction: {task}"""
    notes: str = field(default="", compare=False)


Config = TypeVar("Config")


def to_dict(config: Any) -> Any:
    """A config as plain JSON values, key order as declared."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    return [to_dict(item) for item in config] if isinstance(config, (list, tuple)) else config


def from_dict(kind: type[Config], data: Any, where: str = "config") -> Config:
    """The config of type `kind` from JSON values; unknown, missing or mistyped keys raise ConfigError."""
    return typing.cast(Config, _parse(kind, data, where))


def _parse(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(typing.cast(type, kind), data, where)
    if origin is Literal:
        if data in arguments:
            return data
    elif origin is tuple:
        if isinstance(data, (list, tuple)):
            items = (arguments[0],) * len(data) if arguments[-1] is Ellipsis else arguments
            if len(items) == len(data):
                pairs = zip(items, data, strict=True)
                return tuple(_parse(item, value, f"{where}[{i}]") for i, (item, value) in enumerate(pairs))
    elif origin in (typing.Union, types.UnionType):
        for option in arguments:
            if dataclasses.is_dataclass(option) and isinstance(data, dict) and data.get("kind") == _kind_of(option):
                return _parse(option, data, where)
    elif kind is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        return float(data)
    elif isinstance(data, kind) and (kind is bool or not isinstance(data, bool)):
        return data
    expected = kind.__name__ if isinstance(kind, type) else kind
    raise ConfigError("a config value has the wrong type", where=where, got=repr(data), expected=expected)


def _kind_of(option: Any) -> Any:
    return next((f.default for f in dataclasses.fields(option) if f.name == "kind"), None)


def _parse_dataclass(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ConfigError("a config section is not a table", where=where, got=repr(data), expected=kind.__name__)
    hints, names = typing.get_type_hints(kind), [f.name for f in dataclasses.fields(kind)]
    for key in data:
        if key not in names:
            raise ConfigError("unknown config key", where=where, got=repr(key), next_step=did_you_mean(str(key), names))
    missing = [name for name in names if name not in data]
    if missing:
        raise ConfigError("config keys are missing", where=where, got=sorted(data), expected=missing)
    return kind(**{name: _parse(hints[name], data[name], f"{where}.{name}") for name in names})


def _require(truth: bool, what: str, where: str, got: object, expected: object, next_step: str = "") -> None:
    if not truth:
        raise ConfigError(what, where=where, got=got, expected=expected, next_step=next_step)


def check(recipe: Recipe) -> Recipe:
    """The same recipe, when its parts fit together; else ConfigError naming the two settings that do not.

    Called at the door by every command, so that nothing downstream has to doubt its config.
    """
    _check_model(recipe.model)
    _check_windows(recipe)
    _check_pictures(recipe)
    _check_train(recipe.train)
    _check_episodes(recipe)
    names = [name for _, name, _, _ in string.Formatter().parse(recipe.prompt) if name is not None]
    _require(names == ["task"], "the prompt must hold {task} once, and no other {...}", "prompt", repr(recipe.prompt),
             "'{task}', or words around it")  # fmt: skip
    return recipe


def _check_train(train: TrainConfig) -> None:
    for name in ("steps", "batch_size", "log_every", "save_every"):
        value = getattr(train, name)
        _require(value >= 1, "a count must be positive", f"train.{name}", value, ">= 1")
    for name in ("warmup_steps", "shift_pixels", "seed", "weight_decay", "final_learning_rate", "muon_learning_rate"):
        value = getattr(train, name)
        _require(0 <= value < math.inf, "a setting must not be negative", f"train.{name}", value, ">= 0")
    for name in ("learning_rate", "clip_norm"):
        value = getattr(train, name)
        _require(0 < value < math.inf, "a setting must be positive", f"train.{name}", value, "> 0")
    for name, value in (("betas[0]", train.betas[0]), ("betas[1]", train.betas[1]), ("ema_decay", train.ema_decay)):
        _require(0 <= value < 1, "not a decay", f"train.{name}", value, "in [0, 1)")


def _check_episodes(recipe: Recipe) -> None:
    sim, collect, evaluation = recipe.sim, recipe.collect, recipe.eval
    for where, section, names in (
        ("sim", sim, ("height", "width", "max_steps", "action_repeat")),
        ("collect", collect, ("demos_per_task", "workers")),
        ("eval", evaluation, ("trials", "workers")),
    ):
        for name in names:
            value = getattr(section, name)
            _require(value >= 1, "a count must be positive", f"{where}.{name}", value, ">= 1")
    for name in ("extra_steps", "wander_steps"):
        value = getattr(collect, name)
        _require(value >= 0, "a count must not be negative", f"collect.{name}", value, ">= 0")
    _require(evaluation.videos_per_task >= 0, "a count must not be negative", "eval.videos_per_task",
             evaluation.videos_per_task, ">= 0")  # fmt: skip
    for name, words in (("tasks", sim.tasks), ("cameras", sim.cameras)):
        _require(0 < len(words) == len(set(words)), "names must be there, and each once", f"sim.{name}", words, "a set")
    _require(0 <= collect.noise_std < math.inf, "not a deviation", "collect.noise_std", collect.noise_std, ">= 0")
    _require(0 <= collect.noise_probability <= 1, "not a probability", "collect.noise_probability",
             collect.noise_probability, "in [0, 1]")  # fmt: skip
    # an expert may fail, so demonstrations use more seeds than there are demonstrations
    for task, count in collect.more_demos:
        _require(task in sim.tasks and count >= 0, "not a task of the simulator's, or not a count",
                 "collect.more_demos", (task, count), f"one of {sim.tasks}, >= 0")  # fmt: skip
    after = collect.first_seed + 100 * max(collect.demos(task) for task in sim.tasks)
    _require(evaluation.first_seed >= after or evaluation.first_seed + evaluation.trials <= collect.first_seed,
             "evaluation seeds are too near the demonstrations'", "eval.first_seed", evaluation.first_seed,
             f">= {after} (collect.first_seed + 100 * the most demonstrations of a task)")  # fmt: skip


def _check_model(model: ModelConfig) -> None:
    backbone, expert = model.backbone, model.expert
    _require(backbone.width % backbone.num_heads == 0, "heads do not divide the width", "model.backbone.num_heads",
             backbone.num_heads, f"a divisor of width {backbone.width}")  # fmt: skip
    head = backbone.width // backbone.num_heads
    _require(head % 2 == 0 and (head // 3) % 2 == 0, "RoPE cannot split this head", "model.backbone.width / num_heads",
             head, "even, with an even third (24, 36, 48, 128, ...)")  # fmt: skip
    taps = backbone.taps
    _require(len(taps) > 0 and list(taps) == sorted(set(taps)) and taps[0] >= 0 and taps[-1] < backbone.num_blocks,
             "taps are not block indices in rising order", "model.backbone.taps", taps,
             f"within 0..{backbone.num_blocks - 1}")  # fmt: skip
    _require(backbone.width % expert.num_pool_heads == 0, "pooling heads do not divide the width",
             "model.expert.num_pool_heads", expert.num_pool_heads, f"a divisor of {backbone.width}")  # fmt: skip
    _require(1 <= model.supervised_prefix <= model.horizon, "the supervised prefix is not within the chunk",
             "model.supervised_prefix", model.supervised_prefix, f"1..{model.horizon}")  # fmt: skip
    for name in ("state_dim", "action_dim", "horizon"):
        value = getattr(model, name)
        _require(value >= 1, "a count must be positive", f"model.{name}", value, ">= 1")
    for name in ("video_loss_weight", "action_loss_weight"):
        value = getattr(model, name)
        _require(0 <= value < math.inf, "not a weight", f"model.{name}", value, ">= 0")
    _require(not (backbone.frozen and backbone.lora_rank == 0), "nothing of the backbone would be trained",
             "model.backbone", "frozen with lora_rank 0", "lora_rank > 0, or frozen = False")  # fmt: skip


def _check_windows(recipe: Recipe) -> None:
    model, stride, replan = recipe.model, recipe.codec.video_stride, recipe.eval.replan
    _require(stride >= 1 and model.horizon % (4 * stride) == 0, "the chunk does not hold whole latent frames",
             "model.horizon", model.horizon, f"a multiple of 4 * codec.video_stride = {4 * stride}")  # fmt: skip
    _require(1 <= replan <= model.supervised_prefix, "the controller would execute steps training never supervised",
             "eval.replan", replan, f"1..{model.supervised_prefix} (model.supervised_prefix)",
             "lower eval.replan, or raise model.supervised_prefix and train again")  # fmt: skip
    _require(recipe.text.dim == model.backbone.text_dim, "text widths differ", "text.dim", recipe.text.dim,
             f"{model.backbone.text_dim} (model.backbone.text_dim)")  # fmt: skip
    for dim in recipe.codec.delta_action_dims:
        _require(0 <= dim < model.action_dim, "no such action dim", "codec.delta_action_dims", dim,
                 f"0..{model.action_dim - 1}")  # fmt: skip
    channels = recipe.latents.luma_channels + 2 * recipe.latents.chroma_channels
    _require(channels == model.backbone.latent_channels, "latent channels differ", "latents", channels,
             f"{model.backbone.latent_channels} (model.backbone.latent_channels)")  # fmt: skip


def _check_pictures(recipe: Recipe) -> None:
    (height, width), patch = recipe.codec.canvas, recipe.model.backbone.patch
    for side, value, grain in (("height", height, 16 * patch[1]), ("width", width, 16 * patch[2])):
        _require(value > 0 and value % grain == 0, "the canvas does not split into pooled patches",
                 f"codec.canvas {side}", value, f"a multiple of {grain} pixels (8 a latent, 2 pooled)")  # fmt: skip
    _require(len(recipe.codec.places) > 0, "no camera on the canvas", "codec.places", "none", recipe.sim.cameras)
    for place in recipe.codec.places:
        _require(place.height >= 1 and place.width >= 1, "a camera's place is empty", f"codec.places {place.camera}",
                 f"{place.height}x{place.width}", "at least 1x1 pixels")  # fmt: skip
        inside = 0 <= place.top <= height - place.height and 0 <= place.left <= width - place.width
        _require(inside, "a camera lies outside the canvas", f"codec.places {place.camera}", place, recipe.codec.canvas)
        top, left, bottom, right = place.crop
        _require(0 <= top < bottom <= 1 and 0 <= left < right <= 1, "not a part of a picture",
                 f"codec.places {place.camera} crop", place.crop,
                 "0 <= top < bottom <= 1, 0 <= left < right <= 1")  # fmt: skip
        _require(place.camera in recipe.sim.cameras, "the codec places a camera that the simulator does not give",
                 "codec.places", place.camera, recipe.sim.cameras)  # fmt: skip
