"""Speed of acting: the published code's work, this library's plain model and the engine, in turns, at true sizes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightwam.config.checks import check_recipe
from lightwam.config.schema import DctConfig, Recipe
from lightwam.data.codec import Codec
from lightwam.data.statistics import measure
from lightwam.encoders.dct import DctLatents
from lightwam.encoders.frozen import Prompts
from lightwam.engine.engine import Engine, Graph
from lightwam.engine.folding import tensors
from lightwam.errors import SimulatorError
from lightwam.model.light_wam import LightWAM
from lightwam.policy import run_directory
from lightwam.policy.actor import Actor, PlainActor
from lightwam.policy.policy import Policy
from lightwam.policy.run_directory import open_processing
from lightwam.sim import registry
from lightwam.system.cpu import fast_matmuls
from lightwam.system.devices import resolve_device
from lightwam.system.tables import table_lines
from lightwam.system.timing import Call, conditions, conditions_line, count_gmac, roofline_ms, time_interleaved
from lightwam.types import LatentCodec, Observation, to_pixels

VARIANTS = {
    "plain": "as the published code: every block, LoRA apart, the prompt encoded at every call, the library's VAE",
    "model": "LightWAM.act: stops after the last tap, a frame's own encoder",
    "engine": "folded once; on a CPU without bfloat16 units, in float32",
}
INT8 = {"int8": "the engine with weights in 8 bits, which is not exact"}
STAGES = ("latent to action", "canvas to action", "camera bytes to robot units")
"""each includes the one before"""
PARTS = ("cameras to canvas", "canvas to latent", "backbone", "action expert")
PROMPT_TOKENS = 40
"""of the random prompts, the rest is padding: about as many as UMT5 needs for the paper's prompt and LIBERO's tasks"""


def random_model(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> LightWAM:
    """Return a model of the recipe's sizes with random weights, initialised in place without a second copy.

    Matrices have the spread of torch's own initialisation, 1 / sqrt(3 n) over n inputs, so activations do not grow
    through the layers; LoRA's are a tenth of that, and vectors (biases, modulation) spread by 0.01.
    """
    with torch.device("meta"):
        model = LightWAM(recipe.model)
    model = model.to(dtype).to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight") or ".norm" in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                spread = (3 * parameter[0].numel()) ** -0.5 if parameter.dim() > 1 else 0.01
                parameter.normal_(0.0, spread * (0.1 if ".up." in name and "lora" in name else 1.0))
    return model


@dataclass(frozen=True)
class Subject:
    """The policy that is measured."""

    recipe: Recipe
    model: LightWAM
    """in float32, on the CPU"""
    latents: LatentCodec
    codec: Codec
    prompts: Prompts
    observations: list[Observation]
    """the first is timed; actions are compared on all of them"""
    pictures: str
    """description of the observations"""


def bench_act(
    subject: Recipe | Path,
    *,
    device: str = "auto",
    precision: str | None = None,
    int8: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Time one action chunk at batch 1 by each of `VARIANTS`, in turns; returns plain JSON values, see `table`.

    `subject` is a run, or a recipe, which gets random weights and a random VAE: times do not depend on them. Actions
    are compared on the first pictures of a run's tasks if its simulator is installed, else on random pictures. `int8`
    adds the engine with weights in 8 bits. `precision` is "float32" or "bfloat16", by default what `Policy.load`
    computes in on this device. The prompt is cached. 300 calls of each variant and stage after 10; if that took over
    20 s fewer, but at least 5. `say` reports each call of over 2 s.
    """
    target = resolve_device(device)
    torch.manual_seed(0)
    setup = of_recipe(subject, target) if isinstance(subject, Recipe) else of_run(subject, target)
    default = setup.recipe.train.precision if target.type == "cuda" else "float32"
    dtype = getattr(torch, precision or default)
    with fast_matmuls(target, dtype):
        calls, differences, engines = variants(setup, target, dtype, int8=int8)
        engine = engines["engine"]
        stages = {stage: time_interleaved(calls[stage], target, say) for stage in STAGES}
        work = {name: count_gmac(call) for name, call in calls[STAGES[1]].items()}
        floor = roofline_ms(work["engine"], size(engine), target, engine.folded.placement.dtype)
        parts = parts_ms(setup, engine, stages, target)
    complete = stages[STAGES[-1]]
    result: dict[str, Any] = {
        "subject": setup.recipe.name if isinstance(subject, Recipe) else str(subject),
        "batch_size": 1,
        "canvas": list(setup.recipe.codec.canvas),
        **conditions(target, dtype),
        "ways": VARIANTS | (INT8 if int8 else {}),
        "stages": stages,
        **{f"{name}_ms": row["p50_ms"] for name, row in complete.items()},
        "ratio": complete["engine"]["p50_ms"] / complete["plain"]["p50_ms"],
        "max_abs_difference": differences["engine"],
        "max_abs_differences": differences,
        "compared_on": setup.pictures,
        "parts_ms": parts,
        "gmac": work,
        "floor_ms": floor,
        "weights_gib": {name: size(one) / 2**30 for name, one in engines.items()},
        "peak_memory_gib": None,
    }
    if target.type == "cuda" and not int8:  # with two engines on the device it would be that of both
        result["peak_memory_gib"] = peak_memory_gib(setup.model, calls[STAGES[1]]["engine"])
    return result


def of_run(run: Path, device: torch.device) -> Subject:
    """Return a trained run to measure; CheckpointError if the directory holds none."""
    recipe = run_directory.read_recipe(run)
    codec, latents = open_processing(run, recipe, device)
    model = LightWAM(recipe.model)
    run_directory.load_strict(model, run_directory.run_weights(run, run_directory.load(run, training=False)), run)
    known = run_directory.read_tensors(run / run_directory.PROMPTS)
    try:
        observations = first_observations(recipe)
        pictures = f"the first pictures of {len(observations)} tasks, seed {recipe.eval.first_seed}"
    except SimulatorError as error:  # measuring speed needs no simulator
        before, after = recipe.prompt.split("{task}")
        sentence = next((prompt.removeprefix(before).removesuffix(after) for prompt in known), "reach the goal")
        observations = [random_observation(recipe, sentence)]
        pictures = f"random pictures, as its simulator did not start: {' '.join(str(error).split())}"
    return Subject(recipe, model, latents, codec, Prompts(recipe, known, device), observations, pictures)


def first_observations(recipe: Recipe) -> list[Observation]:
    """Return each task's first observation at the first seed of evaluation; SimulatorError if it cannot run."""
    observations = []
    for task in recipe.sim.tasks:
        simulator = registry.make_simulator(recipe.sim, task)
        try:
            simulator.reset(recipe.eval.first_seed)
            observations.append(simulator.observe())
        finally:
            simulator.close()
    return observations


def random_observation(recipe: Recipe, instruction: str) -> Observation:
    """Return random pictures of the canvas's sizes, and a state of zeros."""
    random = np.random.default_rng(0)
    shapes = {place.camera: (place.height, place.width, 3) for place in recipe.codec.places}
    frames = {camera: random.integers(0, 256, shape, np.uint8) for camera, shape in shapes.items()}
    return Observation(frames, np.zeros(recipe.model.state_dim, np.float32), instruction)


def of_recipe(recipe: Recipe, device: torch.device) -> Subject:
    """Return random weights of the recipe's sizes to measure."""
    check_recipe(recipe)
    model, text, instruction = recipe.model, recipe.text, "a task"
    states = torch.zeros(text.num_tokens, text.dim)
    states[: min(PROMPT_TOKENS, text.num_tokens // 2)].normal_()
    prompts = Prompts(recipe, {recipe.prompt.format(task=instruction): states}, device)
    vectors = [np.random.default_rng(0).normal(size=(99, width)) for width in (model.state_dim, model.action_dim)]
    codec = Codec(recipe.codec, *(measure(rows.astype(np.float32)) for rows in vectors))
    weights, latents = random_model(recipe, torch.device("cpu"), torch.float32), _random_latents(recipe, device)
    return Subject(
        recipe, weights, latents, codec, prompts, [random_observation(recipe, instruction)], "random pictures"
    )


def _random_latents(recipe: Recipe, device: torch.device) -> LatentCodec:
    if isinstance(recipe.latents, DctConfig):
        channels = recipe.model.backbone.latent_channels
        return DctLatents(recipe.latents, [0.0] * channels, [1.0] * channels)
    from lightwam.encoders.wan_vae import WanVaeLatents, empty_vae

    vae = empty_vae({}, Path("random weights")).to_empty(device=device)
    for parameter in vae.parameters():
        parameter.data.normal_(0.0, 0.02)
    return WanVaeLatents(vae)


def variants(
    setup: Subject, device: torch.device, dtype: torch.dtype, *, int8: bool = False
) -> tuple[dict[str, dict[str, Call]], dict[str, float], dict[str, Engine]]:
    """Return a call of every stage and variant; the largest difference of its normalised actions; and the engines."""
    codec, latents, prompts, model = setup.codec, setup.latents, setup.prompts, setup.model
    sentences = [observation.instruction for observation in setup.observations]
    frames = np.stack([codec.canvas(observation.frames) for observation in setup.observations])
    states = np.stack([observation.state for observation in setup.observations])
    inputs = (
        latents.encode(to_pixels(frames[:, None]).to(device)),
        prompts.states(sentences).to(device),
        torch.from_numpy(codec.encode_state(states)).to(device),
    )
    with torch.inference_mode():
        exact = model.to(device).act(*inputs)
    engines = {"engine": Engine(model, latents, prompts.states, device, dtype)}
    if int8:
        engines["int8"] = Engine(model, latents, prompts.states, device, dtype, int8=True)
    model = model.to(dtype)
    with torch.inference_mode():
        actions = {"plain": published(model, *inputs), "model": model.act(*inputs)}
        for name, engine in engines.items():
            actions[name] = engine.folded.act(inputs[0], engine.context_kv(tuple(sentences)), inputs[2])
        differences = {name: float((chunks - exact).abs().max()) for name, chunks in actions.items()}
    return _calls(setup, model, tuple(rows[:1] for rows in inputs), engines, device), differences, engines


def _calls(
    setup: Subject, model: LightWAM, inputs: tuple[Tensor, ...], engines: dict[str, Engine], device: torch.device
) -> dict[str, dict[str, Call]]:
    """Return the calls of every stage with the first observation; `inputs` are its latents, context and state."""
    codec, latents, prompts, observation = setup.codec, setup.latents, setup.prompts, setup.observations[0]
    latent, context, state = inputs
    sentence, canvas = observation.instruction, torch.from_numpy(codec.canvas(observation.frames)[None])
    actors: dict[str, Actor] = {"model": PlainActor(model, latents, prompts.states), **engines}
    policies = {name: Policy(setup.recipe, codec, latents, prompts, actor, 0) for name, actor in actors.items()}

    def complete() -> np.ndarray:
        seen = to_pixels(codec.canvas(observation.frames)[None, None]).to(device)
        states = prompts.states([sentence]).to(device)
        robot = torch.from_numpy(codec.encode_state(observation.state[None])).to(device)
        return codec.decode_action(published(model, library_encode(latents, seen), states, robot).float().cpu().numpy())

    def pixels() -> Tensor:
        return to_pixels(canvas[:, None]).to(device)

    return {
        STAGES[0]: {
            "plain": lambda: published(model, latent, context, state),
            "model": lambda: model.act(latent, context, state),
            **{name: _acting(engine, latent, state, sentence) for name, engine in engines.items()},
        },
        STAGES[1]: {
            "plain": lambda: published(model, library_encode(latents, pixels()), context, state),
            "model": lambda: model.act(latents.encode(pixels()), context, state),
            **{name: partial(engine.act, canvas, [sentence], state) for name, engine in engines.items()},
        },
        STAGES[2]: {"plain": complete, **{name: partial(policy.act, observation) for name, policy in policies.items()}},
    }


def _acting(engine: Engine, latent: Tensor, state: Tensor, sentence: str) -> Call:
    """Return a call of the engine's model alone; on a GPU, as a graph of its own."""
    context_kv, act = engine.context_kv((sentence,)), engine.folded.act
    if engine.device.type != "cuda":
        return lambda: act(latent, context_kv, state)
    graph = Graph(act)
    return lambda: graph(latent, context_kv, state)


@torch.inference_mode()
def parts_ms(
    setup: Subject, engine: Engine, stages: dict[str, dict[str, dict[str, float]]], device: torch.device
) -> dict[str, float]:
    """Return medians of the engine's `PARTS`; on a GPU without the graph, each kernel launched by itself."""
    frames, latents, config = setup.observations[0].frames, setup.latents, setup.recipe.model.backbone
    canvas = torch.from_numpy(setup.codec.canvas(frames)[None, None]).to(device)
    latent = latents.encode(to_pixels(canvas))
    rows, columns = (size // patch for size, patch in zip(latent.shape[3:], config.patch[1:], strict=True))
    tokens = torch.randn(1, rows * columns, config.width, device=device).to(engine.folded.placement.dtype)
    expert = engine.folded.expert
    calls = {
        "cameras to canvas": lambda: setup.codec.canvas(frames),
        "canvas to latent": lambda: latents.encode(to_pixels(canvas)),
        "action expert": lambda: expert([expert.pool_tap(tap, tokens) for tap in range(len(config.taps))]),
    }
    medians = {part: row["p50_ms"] for part, row in time_interleaved(calls, device).items()}
    medians["backbone"] = stages[STAGES[0]]["engine"]["p50_ms"] - medians["action expert"]
    return {part: medians[part] for part in PARTS}


def size(engine: Engine) -> int:
    """Return the bytes of the engine's folded weights."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(engine.folded))


@torch.inference_mode()
def published(
    model: LightWAM, latent: Float[Tensor, "B C 1 h w"], context: Float[Tensor, "B L E"], state: Float[Tensor, "B P"]
) -> Float[Tensor, "B H A"]:
    """Compute `model.act` with the published code's work: all blocks and the head run, and their output is dropped."""
    context_kv = model.dit.encode_context(model.append_proprio(context, state))
    return model.expert(model.dit(latent, None, context_kv).taps)


def library_encode(latents: LatentCodec, pixels: Float[Tensor, "B 3 1 height width"]) -> Float[Tensor, "B C 1 h w"]:
    """Encode a frame by diffusers' VAE itself if the recipe uses a VAE."""
    if isinstance(latents, DctLatents):
        return latents.encode(pixels)
    published: Any = latents
    raw = published.vae.encode(pixels.to(published.vae.dtype)).latent_dist.mode()
    mean, std = (s.to(raw).view(1, -1, 1, 1, 1) for s in (published.mean, published.std))
    return (raw - mean) / std


def peak_memory_gib(model: LightWAM, call: Call) -> float:
    """Return the engine's peak GPU memory, graphs included, with the plain model moved to the CPU."""
    model.to("cpu")
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_reserved() / 2**30


def table(result: Mapping[str, Any]) -> str:
    """Return the result as text."""
    lines = [
        f"{result['subject']}: {result['engine_ms']:.4g} ms a chunk by the engine, batch 1, {conditions_line(result)}"
    ]
    columns = ("p50", "p95", "p99", "std")
    for stage, variants in result["stages"].items():
        counts, plain = variants["engine"], variants["plain"]["p50_ms"]
        lines.append(f"  {stage}: {counts['repetitions']} calls after {counts['warm_up']}, in turns")
        rows = [["ms", *columns, "of plain"]]
        for name, row in variants.items():
            rows.append([name, *(f"{row[f'{column}_ms']:.2f}" for column in columns), f"{row['p50_ms'] / plain:.3f}"])
        lines += table_lines(rows, indent=4)
    floor = result["floor_ms"]
    lines += [
        *(f"  {name}: {meaning}" for name, meaning in result["ways"].items()),
        f"  the engine's parts, ms: {_items(result['parts_ms'], '.4g')}",
        f"  canvas to action, GMAC: {_items(result['gmac'], '.4g')}",
        f"  this machine at its best: {floor['products_ms']:.4g} ms for the engine's products at "
        f"{floor['gmac_per_second']:.4g} GMAC/s, {floor['weights_ms']:.4g} ms to read its weights once at "
        f"{floor['gb_per_second']:.3g} GB/s",
        f"  largest difference from float32 (normalised actions): {_items(result['max_abs_differences'], '.2g')}",
        f"    on {result['compared_on']}",
        f"  weights, GiB: {_items(result['weights_gib'], '.3g')}",
    ]
    if result["peak_memory_gib"] is not None:
        lines.append(f"  peak memory of the engine {result['peak_memory_gib']:.2f} GiB")
    return "\n".join(lines)


def _items(numbers: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{name} {number:{form}}" for name, number in numbers.items())
