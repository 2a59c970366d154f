"""Every setting there is, as frozen dataclasses; whether they fit together is for `checks.check` to say.

A named experiment is a function in recipes.py that returns a whole `Recipe`. A run directory holds its recipe as JSON;
reading it back is strict both ways: an unknown key, a missing key or a value of another type is refused by name. Only a
field that was `added` later may be missing, so that older runs can still be loaded.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from lightwam.errors import ConfigError, did_you_mean

LATENTS = "latents"
"""the folder of a dataset for what pretrained encoders made of it"""
NormKind = Literal["min_max", "z_score", "quantile", "identity"]


def added(default: Any) -> Any:
    """Declare a field that older recipes lack; they are read with `default`, which gives the behaviour they had."""
    return field(default=default, metadata={"added": True})


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
    """numbers in a robot's state; 0: no state, the policy sees only the pictures and the sentence"""
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

    @property
    def channels(self) -> int:
        """Latent channels."""
        return self.luma_channels + 2 * self.chroma_channels


@dataclass(frozen=True)
class WanVaeConfig:
    """Wan2.1's video VAE, from the folder or Hub repo that the recipe's `weights` names."""

    channels: int = 16
    kind: Literal["wan_vae"] = "wan_vae"


@dataclass(frozen=True)
class HashedTextConfig:
    """Weight-free text: words hashed to fixed vectors, one state a token."""

    num_tokens: int = 16
    dim: int = 64
    kind: Literal["hashed"] = "hashed"
    truncate: bool = added(False)
    """read the first num_tokens words of a longer sentence; False refuses it"""


@dataclass(frozen=True)
class Umt5Config:
    """UMT5-XXL's encoder, as Wan2.1 has it, from the folder or Hub repo that the recipe's `weights` names."""

    num_tokens: int = 128
    dim: int = 4096
    kind: Literal["umt5"] = "umt5"
    truncate: bool = added(False)
    """read the first num_tokens - 1 tokens of a longer sentence and the end token, as Wan does; False refuses it"""


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
    protocol: str = added("")
    """the adapter's named set of constants, where a benchmark is evaluated under several; LIBERO: docs/libero.md"""


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
    turn: int = added(1)
    """so many demonstrations of a task before the next one's turn: more where a simulator takes seconds to load"""
    first_seed: int = 0
    """demonstrations use seeds from here up"""
    workers: int = 2

    def demos(self, task: str) -> int:
        """Demonstrations wanted of `task`."""
        return self.demos_per_task + dict(self.more_demos).get(task, 0)


@dataclass(frozen=True)
class ControlSettings:
    """Settings of `lightwam bench control`."""

    trials: int = 5
    """unseen seeds of every task"""
    latencies_ms: tuple[float, ...] = (0.0, 100.0, 250.0)
    """from observation to answer"""
    rates_hz: tuple[float, ...] = ()
    """control steps a second, at which latencies are counted; the simulator's own by default"""
    replan: int | None = None
    """steps between two requests; the run's own by default"""
    blend: int = 2
    """steps of a cross-fade"""
    decay: float = 0.01
    """of temporal ensembling: the i-th oldest chunk weighs exp(-decay i)"""
    patience: float = 3.0
    """limit of an episode in multiples of the recipe's step limit, as waiting costs steps"""


@dataclass(frozen=True)
class ConvertConfig:
    """How demonstrations of LIBERO that others published are read."""

    orientation: Literal["auto", "upright", "upside-down"] = "auto"
    """how the source's pictures lie; auto: upside-down in LIBERO's own files, upright in LeRobot datasets"""
    gripper: Literal["auto", "zero-one", "minus-one-one"] = "auto"
    """the source's actions: 1 open and 0 closed, or the simulator's -1 open and 1 closed; auto: told by their values"""
    keep_no_ops: bool = False
    """keep steps that neither move nor change the gripper"""
    keep_failures: bool = False
    """keep demonstrations that never succeed"""


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
    """of the model's weights and activations; bfloat16 keeps float32 masters of what is trained"""
    micro_batch: int = 0
    """0: the whole batch at once; else this many samples at a time, their gradients added up (less memory)"""
    checkpointing: bool = False
    """keep each block's input alone for the backward pass and compute the rest twice (less memory, slower)"""
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
    latents: DctConfig | WanVaeConfig
    text: HashedTextConfig | Umt5Config
    sim: SimConfig
    collect: CollectConfig
    train: TrainConfig
    eval: EvalConfig
    prompt: str = "{task}"
    """how a task sentence becomes the prompt; the paper: A video recorded from a robot's point of view executing the
    following instruction: {task}"""
    weights: str = ""
    """pretrained Wan2.1: a folder (the official layout or diffusers') or a Hub repo id; "": nothing is pretrained"""
    notes: str = field(default="", compare=False)


def adapted(recipe: Recipe, sim: SimConfig, settings: EvalConfig) -> Recipe:
    """The recipe of an evaluation in another world; what is said of demonstrations of tasks not in it is left out."""
    more = tuple((task, count) for task, count in recipe.collect.more_demos if task in sim.tasks)
    return dataclasses.replace(
        recipe, sim=sim, eval=settings, collect=dataclasses.replace(recipe.collect, more_demos=more)
    )


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
        kinds = {_kind_of(option): option for option in arguments}
        if isinstance(data, dict):
            if "kind" not in data:
                raise ConfigError("config keys are missing", where=where, got=sorted(data), expected=["kind"])
            if data["kind"] not in list(kinds):
                raise ConfigError("unknown kind", where=f"{where}.kind", got=repr(data["kind"]), expected=sorted(kinds))
            return _parse(kinds[data["kind"]], data, where)
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
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
    names = [f.name for f in fields]
    for key in data:
        if key not in names:
            raise ConfigError("unknown config key", where=where, got=repr(key), next_step=did_you_mean(str(key), names))
    data = {f.name: to_dict(f.default) for f in fields if f.metadata.get("added")} | data
    missing = [name for name in names if name not in data]
    if missing:
        raise ConfigError("config keys are missing", where=where, got=sorted(data), expected=missing)
    return kind(**{name: _parse(hints[name], data[name], f"{where}.{name}") for name in names})
