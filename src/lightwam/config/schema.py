"""Every setting, as frozen dataclasses; `checks.check_recipe` checks that they fit together.

A named experiment is a function in recipes.py that returns a complete `Recipe`. A run directory holds its recipe as
JSON, which `strict_json` reads. The docstrings of the fields are the help of the command line.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from lightwam.config.strict_json import added, renamed
from lightwam.errors import ConfigError

LATENTS = "latents"
"""subfolder of a dataset for cached latents and prompt embeddings"""
POOL = 2
"""latents a side that the video pass averages into one"""
NormKind = Literal["min_max", "z_score", "quantile", "identity"]


@dataclass(frozen=True)
class BackboneConfig:
    """The video diffusion transformer; the defaults are Wan2.1-T2V-1.3B with Light-WAM's taps."""

    width: int = 1536
    ffn_width: int = 8960
    num_heads: int = 12
    num_blocks: int = 30
    patch: tuple[int, int, int] = (1, 2, 2)
    latent_channels: int = 16
    text_dim: int = 4096
    time_code_dim: int = 256
    taps: tuple[int, ...] = (8, 16, 24)
    """indices of the blocks whose adapted output the action expert reads"""
    adapter_width: int = 256
    lora_rank: int = 64
    """0: no LoRA"""
    lora_alpha: float = 128.0
    frozen: bool = True
    """train LoRA, adapters and head only, as the paper does; False trains everything (a backbone from scratch)"""


@dataclass(frozen=True)
class ExpertConfig:
    """The action head, the paper's StateFusionActionExpert; the defaults are the paper's."""

    num_queries: int = 16
    num_pool_heads: int = 8
    layer_width: int = 4608
    trunk_width: int = 6144
    step_code_dim: int = 256
    state_frequencies: int = added(0)
    """of sines and cosines by which the expert reads the state itself; 0 in the paper: it does not (state_reader.py)"""


@dataclass(frozen=True)
class FlowConfig:
    """Flow matching of the future video."""

    shift: float = 5.0
    num_times: int = 1000


@dataclass(frozen=True)
class ModelConfig:
    """The sizes and loss weights of one Light-WAM."""

    backbone: BackboneConfig
    expert: ExpertConfig
    flow: FlowConfig
    state_dim: int
    """numbers in a robot's state; 0: the policy sees pictures and sentence only"""
    action_dim: int
    horizon: int = 32
    """actions in a chunk"""
    supervised_prefix: int = 32
    """the action loss covers these first steps of a chunk; a controller must not execute more"""
    action_loss_weight: float = 1.0
    """the paper's lambda"""
    video_loss_weight: float = 1.0
    """1 in the paper; 0 leaves out the video pass (an ablation)"""
    action_loss: Literal["mse", "l1"] = added("mse")
    """mean squared or absolute error of normalised actions; the paper's is mse"""
    foresight: int = added(0)
    """latent frames after the present that the action expert reads too, from noise, in the same pass; 0 in the paper"""


@dataclass(frozen=True)
class CameraPlace:
    """The place on the canvas, in pixels, of a camera's picture, which is cropped, then resized to height x width."""

    camera: str
    top: int
    left: int
    height: int
    width: int
    crop: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """top, left, bottom, right of the part of the picture to use, as fractions of its sides"""


@dataclass(frozen=True)
class CodecConfig:
    """The conversion between robot data and model arrays."""

    canvas: tuple[int, int]
    """height and width of the picture that the model sees, in pixels"""
    places: tuple[CameraPlace, ...]
    state_norm: NormKind = "min_max"
    action_norm: NormKind = "min_max"
    video_stride: int = 4
    """control steps from one video frame to the next"""
    delta_action_dims: tuple[int, ...] = ()
    """action dims in which 0 (robot units) means no motion; steps past an episode's end are padded with 0 there,
    with the last action elsewhere"""
    relative_action_dims: tuple[int, ...] = added(())
    """action dims that the model learns as target minus state at the chunk's start; the state must have the same number
    at the same index, in the same unit"""


@dataclass(frozen=True)
class DctConfig:
    """Weight-free latents: low frequencies of an 8x8 block DCT, luma_channels + 2 * chroma_channels of them."""

    luma_channels: int = 10
    chroma_channels: int = 3
    kind: Literal["dct"] = "dct"

    pretrained: ClassVar[bool] = False
    spatial_stride: ClassVar[int] = 8
    """pixels a latent"""
    temporal_stride: ClassVar[int] = 4
    """video frames a latent frame; the first frame has a latent frame of its own"""

    @property
    def channels(self) -> int:
        """Latent channels."""
        return self.luma_channels + 2 * self.chroma_channels


@dataclass(frozen=True)
class PcaConfig:
    """Latents fitted on the dataset, without pretrained weights: principal components of 8x8 blocks of four frames."""

    channels: int = 18
    motion_channels: int = 6
    """the last channels of a latent of four frames, which hold how these differ instead of finer detail"""
    kind: Literal["pca"] = "pca"

    pretrained: ClassVar[bool] = False
    spatial_stride: ClassVar[int] = 8
    temporal_stride: ClassVar[int] = 4


@dataclass(frozen=True)
class WanVaeConfig:
    """Wan2.1's video VAE, from the folder or Hub repo in the recipe's `weights`."""

    channels: int = 16
    kind: Literal["wan_vae"] = "wan_vae"

    pretrained: ClassVar[bool] = True
    spatial_stride: ClassVar[int] = 8
    temporal_stride: ClassVar[int] = 4


@dataclass(frozen=True)
class HashedTextConfig:
    """Weight-free text: every word is hashed to a fixed vector."""

    num_tokens: int = 16
    dim: int = 64
    kind: Literal["hashed"] = "hashed"
    truncate: bool = added(False)
    """use the first num_tokens words of a longer sentence; False refuses it"""

    pretrained: ClassVar[bool] = False
    min_tokens: ClassVar[int] = 1


@dataclass(frozen=True)
class Umt5Config:
    """Wan2.1's UMT5-XXL text encoder, from the folder or Hub repo in the recipe's `weights`."""

    num_tokens: int = 128
    dim: int = 4096
    kind: Literal["umt5"] = "umt5"
    truncate: bool = added(False)
    """use the first num_tokens - 1 tokens of a longer sentence and the end token, as Wan does; False refuses it"""

    pretrained: ClassVar[bool] = True

    @property
    def min_tokens(self) -> int:
        """The least `num_tokens`: a truncated sentence needs a token besides the end token."""
        return 2 if self.truncate else 1


@dataclass(frozen=True)
class SourceConfig:
    """A dataset to train on, or a part of it."""

    path: str
    """a folder with a dataset or with videos, or a Hub id OWNER/NAME, OWNER/NAME@REVISION"""
    weight: float = added(1.0)
    """share of the samples, relative to the weights of the other sources"""
    names: tuple[str, ...] = added(())
    """pairs FEATURE=NAME, if its features do not have LeRobot's names"""
    cameras: tuple[str, ...] = added(())
    """pairs CAMERA=NAME: cameras of the dataset that the codec has under another name; =NAME: it lacks this one, whose
    place stays black"""
    tasks: tuple[str, ...] = added(())
    """use only episodes with these sentences; empty: all"""
    episodes: tuple[int, ...] = added(())
    """use only these episodes; empty: all"""
    held_out: tuple[int, ...] = added(())
    """episodes that are never trained on; empty: as the recipe's `held_out` chooses"""
    actions: Literal["all", "none", "corrections"] = added("all")
    """steps whose actions are learnt: all, none (the video loss alone), or those marked as a person's corrections"""
    video: bool = added(True)
    """learn to predict its future video"""


@dataclass(frozen=True)
class HeldOutConfig:
    """Episodes that are never trained on, to measure the policy's error."""

    share: float = 0.0
    """of the episodes of each task, at least one of every task that has four or more; 0: none are held out"""
    seed: int = 0
    """chooses them"""


@dataclass(frozen=True)
class SimConfig:
    """A simulator with its tasks and cameras."""

    name: str
    """the adapter, for example metaworld"""
    tasks: tuple[str, ...]
    cameras: tuple[str, ...]
    height: int
    width: int
    max_steps: int
    """control steps until an episode counts as failed"""
    action_repeat: int = 1
    """simulator steps per control step"""
    protocol: str = added("")
    """named set of constants, for a benchmark that is evaluated under several: docs/libero.md, docs/robotwin.md"""


@dataclass(frozen=True)
class CollectConfig:
    """Demonstrations by scripted experts."""

    demos_per_task: int
    more_demos: tuple[tuple[str, int], ...] = ()
    """pairs of task and count: additional demonstrations of tasks whose goals vary more"""
    noise_std: float = 0.0
    """Gaussian noise added to executed actions, in action units; the expert's own action is recorded"""
    noise_probability: float = 1.0
    """fraction of draws of noise that are used; the others are 0"""
    noise_steps: int = added(1)
    """steps that a draw of noise lasts: with 1 a step's noise is soon undone, with more the robot leaves its path, and
    the demonstration shows how to return"""
    wander_steps: int = 0
    """at most this many unrecorded steps in a random direction before a demonstration begins, so that the hand's
    position does not reveal the goal"""
    extra_steps: int = 0
    """steps recorded after the first success, so that the policy learns to stay there"""
    demos_per_turn: int = renamed("turn", 1, added=True)
    """demonstrations recorded per task before switching to the next task; raise it if a simulator loads slowly"""
    first_seed: int = 0
    """lowest seed of a demonstration"""
    workers: int = 2

    def demos(self, task: str) -> int:
        """Return the number of demonstrations to record of `task`."""
        return self.demos_per_task + dict(self.more_demos).get(task, 0)


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    steps: int
    batch_size: int
    learning_rate: float = 1e-4
    muon_learning_rate: float = 0.0
    """peak rate of Muon, for the matrices in the backbone's blocks and adapters; 0: AdamW trains them too"""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-2
    warmup_steps: int = 1000
    final_learning_rate: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    """decay of the moving average of trained weights, which is then evaluated; 0: no average"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """of weights and activations; bfloat16 keeps float32 masters of the trained weights"""
    micro_batch: int = 0
    """samples in one forward and backward pass, to save memory; gradients are added up; 0: the batch in one pass"""
    checkpointing: bool = False
    """keep only the blocks' inputs for the backward pass and compute the rest again: less memory, slower"""
    compile: bool = added(False)
    """run the blocks as torch.compile makes them, which takes a minute or more at first; needs a compiler"""
    seed: int = 0
    log_every: int = 20
    save_every: int = 500
    video_share: float = added(1.0)
    """share of each batch's samples that teach the video loss; the others skip the video pass, which saves time"""
    shift_pixels: int = 0
    """augmentation: shift training pictures at random by at most this many pixels each way"""
    loggers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = renamed("listeners", ())
    """where to log besides the run's log.jsonl"""


@dataclass(frozen=True)
class EvalConfig:
    """Closed-loop evaluation."""

    trials: int
    """episodes per task"""
    replan: int
    """steps to execute of each chunk"""
    first_seed: int = 1_000_000
    """episode i of a task has seed first_seed + i, which demonstrations must not have"""
    workers: int = 2
    videos_per_task: int = 2
    disturb: Literal["none", "object", "camera"] = added("none")
    """at each reset, by the episode's seed: move the task's object, or turn the cameras"""


@dataclass(frozen=True)
class Recipe:
    """One named experiment, complete."""

    name: str
    model: ModelConfig
    codec: CodecConfig
    latents: DctConfig | PcaConfig | WanVaeConfig
    text: HashedTextConfig | Umt5Config
    sim: SimConfig | None
    """None: there is no simulator, the policy is of a robot whose data are given"""
    collect: CollectConfig | None
    """None: there is no scripted expert to record"""
    train: TrainConfig
    eval: EvalConfig
    prompt: str = "{task}"
    """the text encoder's input, with {task} in place of the task sentence"""
    weights: str = ""
    """pretrained Wan2.1: a folder (the official layout or diffusers') or a Hub repo id; empty: nothing is pretrained"""
    sources: tuple[SourceConfig, ...] = added(())
    """datasets to train on; empty: the one given by --dataset"""
    held_out: HeldOutConfig = added(HeldOutConfig())
    notes: str = field(default="", compare=False)

    @property
    def simulation(self) -> SimConfig:
        """The simulator; ConfigError for a recipe without one."""
        if self.sim is None:
            what, step = "the recipe must have a simulator", "add [sim] to the recipe, or do without closed loop"
            raise ConfigError(what, where=f"recipe {self.name}", got="no [sim]", next_step=step)
        return self.sim

    @property
    def demonstrations(self) -> CollectConfig:
        """The settings of scripted demonstrations; ConfigError for a recipe without them."""
        if self.collect is None:
            what, step = "the recipe must say how to record demonstrations", "add [collect] to the recipe"
            raise ConfigError(what, where=f"recipe {self.name}", got="no [collect]", next_step=step)
        return self.collect

    @property
    def num_frames(self) -> int:
        """Video frames in a training window."""
        return 1 + self.model.horizon // self.codec.video_stride

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """[C, T, h, w] of a window's clip at full resolution."""
        num_latent_frames = 1 + (self.num_frames - 1) // self.latents.temporal_stride
        height, width = (side // self.latents.spatial_stride for side in self.codec.canvas)
        return self.model.backbone.latent_channels, num_latent_frames, height, width

    @property
    def pooled_shape(self) -> tuple[int, int, int, int]:
        """[C, T, h, w] of a window's clip as the video pass sees it."""
        channels, frames, height, width = self.latent_shape
        return channels, frames, height // POOL, width // POOL


def with_simulator(recipe: Recipe, sim: SimConfig | None, settings: EvalConfig) -> Recipe:
    """Return the recipe with another simulator and evaluation; drops `more_demos` of tasks the simulator lacks."""
    collect = recipe.collect
    if collect is not None and sim is not None:
        more = tuple((task, count) for task, count in collect.more_demos if task in sim.tasks)
        collect = dataclasses.replace(collect, more_demos=more)
    return dataclasses.replace(recipe, sim=sim, eval=settings, collect=collect)
