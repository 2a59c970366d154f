"""Checks that the settings of a recipe fit together, made once at every entry point that takes a recipe."""

from __future__ import annotations

import math
import string

from lightwam.config.libero_protocols import FIRST_STATE, NUM_STATES, protocol
from lightwam.config.robotwin_protocols import PUBLISHED_SIZE, robotwin_protocol
from lightwam.config.schema import (
    POOL,
    CodecConfig,
    CollectConfig,
    EvalConfig,
    ModelConfig,
    Recipe,
    SimConfig,
    TrainConfig,
)
from lightwam.errors import ConfigError


def _require(truth: bool, name: str, got: object, expected: object, why: str = "", next_step: str = "") -> None:
    if not truth:
        reason = f": {why}" if why else ""
        raise ConfigError(f"{name} must be {expected}{reason}", got=got, next_step=next_step)


def _require_least(least: int, section: str, config: object, *names: str) -> None:
    """Raise ConfigError unless these settings of a section are finite and at least `least`."""
    for name in names:
        value = getattr(config, name)
        _require(least <= value < math.inf, f"{section}.{name}", value, f">= {least}")


def check_recipe(recipe: Recipe) -> Recipe:
    """Return the same recipe if its settings fit together; raise ConfigError naming the ones that do not."""
    _check_model(recipe.model)
    _check_windows(recipe)
    _check_canvas(recipe)
    _check_train(recipe.train)
    _check_evaluation(recipe.eval)
    if recipe.sim is not None:
        check_simulation(recipe.sim, recipe.eval)
        if recipe.collect is not None:
            _check_demonstrations(recipe.sim, recipe.collect, recipe.eval)
    _check_sources(recipe)
    pretrained = recipe.latents.pretrained or recipe.text.pretrained
    step = "--weights /path/to/Wan2.1-T2V-1.3B"
    why = "the VAE or text encoder is pretrained"
    _require(bool(recipe.weights) or not pretrained, "weights", "''", "a folder or Hub repo id", why, step)
    _require_least(recipe.text.min_tokens, "text", recipe.text, "num_tokens")
    names = [name for _, name, _, _ in string.Formatter().parse(recipe.prompt) if name is not None]
    why = "it must contain {task} once, and no other {...}"
    _require(names == ["task"], "prompt", repr(recipe.prompt), "'{task}', or words around it", why)
    return recipe


def _check_train(train: TrainConfig) -> None:
    _require_least(1, "train", train, "steps", "batch_size", "log_every", "save_every")
    _require_least(0, "train", train, "warmup_steps", "shift_pixels", "seed", "weight_decay")
    _require_least(0, "train", train, "final_learning_rate", "muon_learning_rate")
    for name in ("learning_rate", "clip_norm"):
        value = getattr(train, name)
        _require(0 < value < math.inf, f"train.{name}", value, "> 0")
    share, why = train.video_share, "for no video loss set model.video_loss_weight to 0"
    _require(0 < share <= 1, "train.video_share", share, "above 0 and at most 1", why)
    why = "the other samples' blocks are not computed again"
    _require(share == 1 or not train.checkpointing, "train.video_share", share, "1 with train.checkpointing", why)
    fits = train.micro_batch == 0 or (train.micro_batch > 0 and train.batch_size % train.micro_batch == 0)
    expected = f"0, or a divisor of train.batch_size {train.batch_size}"
    _require(fits, "train.micro_batch", train.micro_batch, expected)
    for name, value in (("betas[0]", train.betas[0]), ("betas[1]", train.betas[1]), ("ema_decay", train.ema_decay)):
        _require(0 <= value < 1, f"train.{name}", value, "in [0, 1)")


def check_seed(name: str, seed: int) -> None:
    """Raise ConfigError for a negative seed, which no random number generator accepts."""
    _require(seed >= 0, name, seed, ">= 0")


def check_simulation(sim: SimConfig, evaluation: EvalConfig) -> None:
    """Raise ConfigError when the settings of a simulator and of an evaluation do not fit together."""
    _require_least(1, "sim", sim, "height", "width", "max_steps", "action_repeat")
    _check_evaluation(evaluation)
    for name, words in (("tasks", sim.tasks), ("cameras", sim.cameras)):
        _require(0 < len(words) == len(set(words)), f"sim.{name}", words, "non-empty and unique")
    if sim.name == "libero":
        _check_libero(sim, evaluation)
    if sim.name == "robotwin":
        _check_robotwin(sim, evaluation)


def _check_evaluation(evaluation: EvalConfig) -> None:
    _require_least(1, "eval", evaluation, "trials", "replan", "workers")
    _require_least(0, "eval", evaluation, "videos_per_task", "first_seed")


def _check_sources(recipe: Recipe) -> None:
    _require(0 <= recipe.held_out.share < 1, "held_out.share", recipe.held_out.share, "in [0, 1)")
    _require_least(0, "held_out", recipe.held_out, "seed")
    for i, source in enumerate(recipe.sources):
        name = f"sources[{i}]"
        _require(bool(source.path), f"{name}.path", "''", "a folder or a Hub id")
        _require(0 < source.weight < math.inf, f"{name}.weight", source.weight, "> 0")
        _require(source.actions != "none" or source.video, name, "neither actions nor video", "used for something")
    all_videos, why = recipe.train.video_share == 1, "a sample without video pass would teach nothing"
    silent = any(source.actions == "none" for source in recipe.sources)
    _require(all_videos or not silent, "train.video_share", recipe.train.video_share, "1 with videos alone", why)
    learns = not recipe.sources or any(source.actions != "none" for source in recipe.sources)
    _require(learns, "sources", "none with actions", "at least one with actions")


def _check_libero(sim: SimConfig, evaluation: EvalConfig) -> None:
    constants = protocol(sim.protocol)
    sizes, why = (constants.size, constants.size), f"sim.protocol {sim.protocol} has pictures of this size"
    fits = constants.picture == "plain" or (sim.height, sim.width) == sizes
    _require(fits, "sim.height, sim.width", (sim.height, sim.width), sizes, why)
    _require(sim.action_repeat == 1, "sim.action_repeat", sim.action_repeat, 1, "LIBERO has 20 control steps a second")
    replan, step = constants.replan, f"--eval.replan {constants.replan}"
    why = f"sim.protocol {sim.protocol} executes this number of steps of a chunk"
    _require(replan in (None, evaluation.replan), "eval.replan", evaluation.replan, replan, why, step)
    most = FIRST_STATE + NUM_STATES - evaluation.first_seed
    why = f"seeds from {FIRST_STATE} up are the {NUM_STATES} initial states of a task"
    step = f"lower eval.trials, or choose an eval.first_seed below {FIRST_STATE} to draw states at random"
    _require(evaluation.trials <= most, "eval.trials", evaluation.trials, f"at most {most}", why, step)


def _check_robotwin(sim: SimConfig, evaluation: EvalConfig) -> None:
    constants = robotwin_protocol(sim.protocol)
    if not constants.published:
        return
    why = f"sim.protocol {sim.protocol} has pictures of this size"
    fits = (sim.height, sim.width) == PUBLISHED_SIZE
    _require(fits, "sim.height, sim.width", (sim.height, sim.width), PUBLISHED_SIZE, why)
    why, step = f"sim.protocol {sim.protocol} executes every single action", "--sim.action-repeat 1"
    _require(sim.action_repeat == 1, "sim.action_repeat", sim.action_repeat, 1, why, step)
    replan, step = constants.replan, f"--eval.replan {constants.replan}"
    why = f"sim.protocol {sim.protocol} executes this number of steps of a chunk"
    _require(replan in (None, evaluation.replan), "eval.replan", evaluation.replan, replan, why, step)


def _check_demonstrations(sim: SimConfig, collect: CollectConfig, evaluation: EvalConfig) -> None:
    _require_least(1, "collect", collect, "demos_per_task", "demos_per_turn", "noise_steps", "workers")
    _require_least(0, "collect", collect, "noise_std", "wander_steps", "extra_steps", "first_seed")
    _require(0 <= collect.noise_probability <= 1, "collect.noise_probability", collect.noise_probability, "in [0, 1]")
    expected = f"a task of {sim.tasks} and a count >= 0"
    for task, count in collect.more_demos:
        _require(task in sim.tasks and count >= 0, "collect.more_demos", (task, count), expected)
    # an expert may fail, so demonstrations use more seeds than there are demonstrations
    after = collect.first_seed + 100 * max(collect.demos(task) for task in sim.tasks)
    first, why = evaluation.first_seed, "collect.first_seed + 100 * the most demonstrations of a task"
    apart = first >= after or first + evaluation.trials <= collect.first_seed
    _require(apart, "eval.first_seed", first, f">= {after}", why)
    why = f"seeds from {FIRST_STATE} up are the benchmark's own states, and each demonstration may take 100 seeds"
    _require(sim.name != "libero" or after <= FIRST_STATE, "collect.first_seed", collect.first_seed, "lower", why)


def _check_model(model: ModelConfig) -> None:
    backbone, expert = model.backbone, model.expert
    width, num_heads, num_pool_heads = backbone.width, backbone.num_heads, expert.num_pool_heads
    _require(width % num_heads == 0, "model.backbone.num_heads", num_heads, f"a divisor of the width {width}")
    head = width // num_heads
    expected, why = "even, with an even third", "RoPE splits a head into thirds (24, 36, 48, 128, ... fit)"
    _require(head % 2 == 0 and (head // 3) % 2 == 0, "model.backbone.width / num_heads", head, expected, why)
    taps = backbone.taps
    rising = len(taps) > 0 and list(taps) == sorted(set(taps)) and taps[0] >= 0 and taps[-1] < backbone.num_blocks
    _require(rising, "model.backbone.taps", taps, f"rising block indices within 0..{backbone.num_blocks - 1}")
    expected = f"a divisor of model.backbone.width {width}"
    _require(width % num_pool_heads == 0, "model.expert.num_pool_heads", num_pool_heads, expected)
    prefix = model.supervised_prefix
    _require(1 <= prefix <= model.horizon, "model.supervised_prefix", prefix, f"1..{model.horizon} (model.horizon)")
    _require_least(1, "model", model, "action_dim", "horizon")
    _require_least(0, "model", model, "state_dim", "video_loss_weight", "action_loss_weight")
    frequencies = expert.state_frequencies
    most, why = (16, "the highest has 2^15 periods in a state's range") if model.state_dim else (0, "there is no state")
    _require(0 <= frequencies <= most, "model.expert.state_frequencies", frequencies, f"0..{most}", why)
    trained, why = not backbone.frozen or backbone.lora_rank > 0, "else nothing of the backbone is trained"
    _require(trained, "model.backbone.lora_rank", 0, "> 0 with model.backbone.frozen", why)


def _check_windows(recipe: Recipe) -> None:
    model, stride, replan = recipe.model, recipe.codec.video_stride, recipe.eval.replan
    grain = recipe.latents.temporal_stride * stride
    why = "a chunk has a number of complete latent frames, of codec.video_stride each"
    _require(stride >= 1 and model.horizon % grain == 0, "model.horizon", model.horizon, f"a multiple of {grain}", why)
    later, why = model.horizon // grain, "a chunk has this number of later latent frames"
    _require(0 <= model.foresight <= later, "model.foresight", model.foresight, f"0..{later}", why)
    expected, why = f"1..{model.supervised_prefix} (model.supervised_prefix)", "later steps are never supervised"
    step = "lower eval.replan, or raise model.supervised_prefix and train again"
    _require(1 <= replan <= model.supervised_prefix, "eval.replan", replan, expected, why, step)
    text_dim, channels = model.backbone.text_dim, model.backbone.latent_channels
    _require(recipe.text.dim == text_dim, "text.dim", recipe.text.dim, f"{text_dim} (model.backbone.text_dim)")
    for dim in recipe.codec.delta_action_dims:
        _require(0 <= dim < model.action_dim, "codec.delta_action_dims", dim, f"within 0..{model.action_dim - 1}")
    _check_relative(recipe.codec, model)
    got, expected = recipe.latents.channels, f"{channels} (model.backbone.latent_channels)"
    _require(got == channels, "the channels of latents", got, expected)


def _check_relative(codec: CodecConfig, model: ModelConfig) -> None:
    name, relative = "codec.relative_action_dims", codec.relative_action_dims
    if not relative:
        return
    most, why = min(model.action_dim, model.state_dim) - 1, "an action is relative to the state of the same index"
    _require(model.state_dim > 0, name, relative, "empty with model.state_dim 0", why)
    _require(all(0 <= dim <= most for dim in relative), name, relative, f"within 0..{most}", why)
    _require(len(set(relative)) == len(relative), name, relative, "unique")
    why = "an action is a motion, or a target that is learnt relative to the state"
    _require(not {*relative} & {*codec.delta_action_dims}, name, relative, "none of codec.delta_action_dims", why)


def _check_canvas(recipe: Recipe) -> None:
    (height, width), patch = recipe.codec.canvas, recipe.model.backbone.patch
    pooled = recipe.latents.spatial_stride * POOL
    for side, value, grain in (("height", height, pooled * patch[1]), ("width", width, pooled * patch[2])):
        why = f"pooled latents, {pooled} pixels each, are split into patches"
        _require(value > 0 and value % grain == 0, f"codec.canvas {side}", value, f"a multiple of {grain} pixels", why)
    cameras, places = recipe.sim.cameras if recipe.sim else None, recipe.codec.places
    expected, step = f"places of cameras{f' of {cameras}' if cameras else ''}", "`lightwam init DATASET` derives them"
    _require(len(places) > 0, "codec.places", "none", expected, next_step=step)
    for place in recipe.codec.places:
        name, size = f"codec.places {place.camera}", f"{place.height}x{place.width}"
        _require(place.height >= 1 and place.width >= 1, name, size, "at least 1x1 pixels")
        inside = 0 <= place.top <= height - place.height and 0 <= place.left <= width - place.width
        _require(inside, name, place, f"inside the canvas {recipe.codec.canvas}")
        top, left, bottom, right = place.crop
        valid = 0 <= top < bottom <= 1 and 0 <= left < right <= 1
        _require(valid, f"{name} crop", place.crop, "0 <= top < bottom <= 1, 0 <= left < right <= 1")
        known = cameras is None or place.camera in cameras
        _require(known, "a camera in codec.places", place.camera, f"in sim.cameras {cameras}")
