"""Whether the settings of a recipe fit together: the door that every command goes through."""

from __future__ import annotations

import math
import string

from lightwam.config.libero_protocols import FIRST_STATE, NUM_STATES, protocol
from lightwam.config.schema import (
    CollectConfig,
    EvalConfig,
    ModelConfig,
    Recipe,
    SimConfig,
    TrainConfig,
    Umt5Config,
    WanVaeConfig,
)
from lightwam.errors import ConfigError


def _require(truth: bool, what: str, where: str, got: object, expected: object, next_step: str = "") -> None:
    if not truth:
        raise ConfigError(what, where=where, got=got, expected=expected, next_step=next_step)


def check_recipe(recipe: Recipe) -> Recipe:
    """The same recipe, when its parts fit together; else ConfigError naming the two settings that do not.

    Called at the door by every command that takes a recipe whole, so that nothing downstream has to doubt its config.
    """
    _check_model(recipe.model)
    _check_windows(recipe)
    _check_pictures(recipe)
    _check_train(recipe.train)
    check_simulation(recipe.sim, recipe.eval)
    _check_demonstrations(recipe.sim, recipe.collect, recipe.eval)
    pretrained = isinstance(recipe.latents, WanVaeConfig) or isinstance(recipe.text, Umt5Config)
    _require(bool(recipe.weights) or not pretrained, "no weights are named for the VAE or text encoder", "weights",
             repr(recipe.weights), "a folder or Hub repo id", "--weights /path/to/Wan2.1-T2V-1.3B")  # fmt: skip
    least = 2 if isinstance(recipe.text, Umt5Config) and recipe.text.truncate else 1
    _require(recipe.text.num_tokens >= least, "the text encoder must hold a word", "text.num_tokens",
             recipe.text.num_tokens, f">= {least}")  # fmt: skip
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
    _require(train.micro_batch >= 0 and (train.micro_batch == 0 or train.batch_size % train.micro_batch == 0),
             "micro batches do not divide the batch", "train.micro_batch", train.micro_batch,
             f"0, or a divisor of train.batch_size {train.batch_size}")  # fmt: skip
    for name, value in (("betas[0]", train.betas[0]), ("betas[1]", train.betas[1]), ("ema_decay", train.ema_decay)):
        _require(0 <= value < 1, "not a decay", f"train.{name}", value, "in [0, 1)")


def check_seed(name: str, seed: int) -> None:
    """Raise ConfigError for a negative seed, which no random number generator accepts."""
    _require(seed >= 0, "a seed must not be negative", name, seed, ">= 0")


def check_simulation(sim: SimConfig, evaluation: EvalConfig) -> None:
    """ConfigError where a simulator and an evaluation's settings do not fit together, whatever the policy."""
    counts = {f"sim.{name}": getattr(sim, name) for name in ("height", "width", "max_steps", "action_repeat")}
    counts |= {f"eval.{name}": getattr(evaluation, name) for name in ("trials", "replan", "workers")}
    for name, value in counts.items():
        _require(value >= 1, "a count must be positive", name, value, ">= 1")
    _require(evaluation.videos_per_task >= 0, "a count must not be negative", "eval.videos_per_task",
             evaluation.videos_per_task, ">= 0")  # fmt: skip
    _require(
        evaluation.first_seed >= 0, "a seed must not be negative", "eval.first_seed", evaluation.first_seed, ">= 0"
    )
    for name, words in (("tasks", sim.tasks), ("cameras", sim.cameras)):
        _require(0 < len(words) == len(set(words)), "names must be there, and each once", f"sim.{name}", words, "a set")
    if sim.name == "libero":
        _check_libero(sim, evaluation)


def _check_libero(sim: SimConfig, evaluation: EvalConfig) -> None:
    chosen = protocol(sim.protocol)
    drawn = chosen.picture == "plain" or (sim.height, sim.width) == (chosen.size, chosen.size)
    _require(drawn, "the protocol has pictures of another size", "sim.height, sim.width", (sim.height, sim.width),
             (chosen.size, chosen.size))  # fmt: skip
    _require(sim.action_repeat == 1, "LIBERO acts 20 times a second", "sim.action_repeat", sim.action_repeat, 1)
    _require(chosen.replan in (None, evaluation.replan), "the protocol executes another number of steps of a chunk",
             "eval.replan", evaluation.replan, f"{chosen.replan} (sim.protocol {sim.protocol})",
             f"--eval.replan {chosen.replan}")  # fmt: skip
    beyond = evaluation.first_seed + evaluation.trials - FIRST_STATE - NUM_STATES
    _require(beyond <= 0, "LIBERO has fewer initial states", "eval.trials", evaluation.trials,
             f"at most {evaluation.trials - beyond}: seeds from {FIRST_STATE} up are the {NUM_STATES} states of a task",
             f"lower eval.trials, or draw states by an eval.first_seed below {FIRST_STATE}")  # fmt: skip


def _check_demonstrations(sim: SimConfig, collect: CollectConfig, evaluation: EvalConfig) -> None:
    for name in ("demos_per_task", "demos_per_turn", "workers"):
        value = getattr(collect, name)
        _require(value >= 1, "a count must be positive", f"collect.{name}", value, ">= 1")
    check_seed("collect.first_seed", collect.first_seed)
    for name in ("extra_steps", "wander_steps"):
        value = getattr(collect, name)
        _require(value >= 0, "a count must not be negative", f"collect.{name}", value, ">= 0")
    _require(0 <= collect.noise_std < math.inf, "not a deviation", "collect.noise_std", collect.noise_std, ">= 0")
    _require(0 <= collect.noise_probability <= 1, "not a probability", "collect.noise_probability",
             collect.noise_probability, "in [0, 1]")  # fmt: skip
    for task, count in collect.more_demos:
        _require(task in sim.tasks and count >= 0, "not a task of the simulator's, or not a count",
                 "collect.more_demos", (task, count), f"one of {sim.tasks}, >= 0")  # fmt: skip
    # an expert may fail, so demonstrations use more seeds than there are demonstrations
    after = collect.first_seed + 100 * max(collect.demos(task) for task in sim.tasks)
    _require(evaluation.first_seed >= after or evaluation.first_seed + evaluation.trials <= collect.first_seed,
             "evaluation seeds are too near the demonstrations'", "eval.first_seed", evaluation.first_seed,
             f">= {after} (collect.first_seed + 100 * the most demonstrations of a task)")  # fmt: skip
    _require(sim.name != "libero" or after <= FIRST_STATE, "demonstrations would begin in the benchmark's own states",
             "collect.first_seed", collect.first_seed,
             f"seeds below {FIRST_STATE}, 100 for each demonstration of a task")  # fmt: skip


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
    for name, least in (("state_dim", 0), ("action_dim", 1), ("horizon", 1)):
        value = getattr(model, name)
        _require(value >= least, "a count is too small", f"model.{name}", value, f">= {least}")
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
    channels = recipe.latents.channels
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
