"""Speed of acting: the published code's way, this library's plain model and the engine, in turns, at true sizes."""

from __future__ import annotations

import gc
import json
import platform
from collections.abc import Callable
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
from lightwam.system.cpu import fast_matmuls, matmul_dtype
from lightwam.system.devices import resolve_device
from lightwam.system.machine import machine
from lightwam.system.timing import Call, count_gmac, roofline_ms, time_interleaved
from lightwam.types import LatentCodec, Observation, to_pixels

WAYS = {
    "plain": "as the published code: every block, LoRA apart, the prompt read at every call, the library's VAE",
    "model": "LightWAM.act: stops after the last tap, a frame's own encoder",
    "engine": "folded once; on a CPU without bfloat16 units, in float32",
}
INT8 = {"int8": "the engine with weights in 8 bits, which is not exact"}
STAGES = ("latent to action", "canvas to action", "camera bytes to robot units")
"""each holds the one before"""
PARTS = ("cameras to canvas", "canvas to latent", "backbone", "action expert")


PROMPT_TOKENS = 40
"""of the random prompts, the rest is padding: what UMT5 makes of the paper's prompt and a LIBERO sentence, roughly"""


def random_model(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> LightWAM:
    """A model of the recipe's sizes with random weights, made in place: no second copy.

    Matrices have the spread of torch's own start, 1 / sqrt(3 n) over n inputs, so nothing grows through the layers;
    LoRA's updates are a tenth of what that would make them, and vectors (biases, modulation) spread by 0.01.
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
    """What is measured: a model with all that stands around it."""

    recipe: Recipe
    model: LightWAM
    """in float32, on the CPU"""
    latents: LatentCodec
    codec: Codec
    prompts: Prompts
    observations: list[Observation]
    """the first is timed; on all of them actions are compared"""
    seen: str
    """what they are"""


def bench_act(
    subject: Recipe | Path,
    *,
    device: str = "auto",
    precision: str | None = None,
    int8: bool = False,
    as_json: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Time one action chunk at batch 1, the three ways in turns, and print it; returns the same numbers.

    `subject` is a run, or a recipe, which gets random weights and a random VAE: times do not depend on them. Actions
    are compared on the first pictures of a run's tasks where its simulator is installed, else on random pictures.
    `int8` adds the engine with weights in 8 bits. `precision` is "float32" or "bfloat16", by default what `Policy.load`
    computes in on this device. The prompt is known. 300 calls of each way and stage after 10, fewer where that takes
    over 20 s, 5 at least.
    """
    place = resolve_device(device)
    torch.manual_seed(0)
    given = of_recipe(subject, place) if isinstance(subject, Recipe) else of_run(subject, place)
    default = given.recipe.train.precision if place.type == "cuda" else "float32"
    dtype = getattr(torch, precision or default)
    with fast_matmuls(place, dtype):
        calls, differences, engines = ways(given, place, dtype, int8=int8)
        engine = engines["engine"]
        stages = {stage: time_interleaved(calls[stage], place) for stage in STAGES}
        work = {way: count_gmac(call) for way, call in calls[STAGES[1]].items()}
        floor = roofline_ms(work["engine"], size(engine), place, engine.folded.placement.dtype)
        parts = parts_ms(given, engine, stages, place)
    whole = stages[STAGES[-1]]
    result: dict[str, Any] = {
        "subject": given.recipe.name if isinstance(subject, Recipe) else str(subject),
        "batch_size": 1,
        "canvas": list(given.recipe.codec.canvas),
        "precision": str(dtype).removeprefix("torch."),
        "products": matmul_dtype(place, dtype),
        "threads": torch.get_num_threads(),
        "ways": WAYS | (INT8 if int8 else {}),
        "stages": stages,
        **{f"{way}_ms": row["p50_ms"] for way, row in whole.items()},
        "ratio": whole["engine"]["p50_ms"] / whole["plain"]["p50_ms"],
        "max_abs_difference": differences["engine"],
        "max_abs_differences": differences,
        "compared_on": given.seen,
        "parts_ms": parts,
        "gmac": work,
        "floor_ms": floor,
        "weights_gib": {way: size(one) / 2**30 for way, one in engines.items()},
        "peak_memory_gib": None,
        "machine": machine() | {"torch": torch.__version__, "python": platform.python_version()},
    }
    if place.type == "cuda":
        result["machine"] |= {"gpu": torch.cuda.get_device_name(place)}
    if place.type == "cuda" and not int8:  # with two engines there it would be that of both
        result["peak_memory_gib"] = peak_memory_gib(given.model, calls[STAGES[1]]["engine"])
    say(json.dumps(result, indent=2) if as_json else table(result))
    return result


def of_run(run: Path, device: torch.device) -> Subject:
    """A trained run; CheckpointError when it is none."""
    recipe = run_directory.read_recipe(run)
    codec, latents = open_processing(run, recipe, device)
    model = LightWAM(recipe.model)
    run_directory.load_strict(model, run_directory.run_weights(run, run_directory.load(run, training=False)), run)
    known = run_directory.read_tensors(run / run_directory.PROMPTS)
    try:
        observations = first_observations(recipe)
        seen = f"the first pictures of {len(observations)} tasks, seed {recipe.eval.first_seed}"
    except SimulatorError as error:  # measuring speed needs no simulator
        before, after = recipe.prompt.split("{task}")
        sentence = next((prompt.removeprefix(before).removesuffix(after) for prompt in known), "reach the goal")
        observations = [random_observation(recipe, sentence)]
        seen = f"random pictures, as its simulator did not start: {' '.join(str(error).split())}"
    return Subject(recipe, model, latents, codec, Prompts(recipe, known, device), observations, seen)


def first_observations(recipe: Recipe) -> list[Observation]:
    """What each task begins with at the first seed of evaluation; SimulatorError where the simulator cannot run."""
    seen = []
    for task in recipe.sim.tasks:
        simulator = registry.make_simulator(recipe.sim, task)
        try:
            simulator.reset(recipe.eval.first_seed)
            seen.append(simulator.observe())
        finally:
            simulator.close()
    return seen


def random_observation(recipe: Recipe, instruction: str) -> Observation:
    """Random pictures of the canvas's sizes."""
    random = np.random.default_rng(0)
    places = {place.camera: (place.height, place.width, 3) for place in recipe.codec.places}
    frames = {camera: random.integers(0, 256, shape, np.uint8) for camera, shape in places.items()}
    return Observation(frames, np.zeros(recipe.model.state_dim, np.float32), instruction)


def of_recipe(recipe: Recipe, device: torch.device) -> Subject:
    """Random weights at the recipe's sizes."""
    check_recipe(recipe)
    model, text, instruction = recipe.model, recipe.text, "a task"
    states = torch.zeros(text.num_tokens, text.dim)
    states[: min(PROMPT_TOKENS, text.num_tokens // 2)].normal_()
    prompts = Prompts(recipe, {recipe.prompt.format(task=instruction): states}, device)
    codec = Codec(recipe.codec, *(measure(np.random.default_rng(0).normal(size=(99, width)).astype(np.float32))
                                  for width in (model.state_dim, model.action_dim)))  # fmt: skip
    return Subject(recipe, random_model(recipe, torch.device("cpu"), torch.float32), _random_latents(recipe, device),
                   codec, prompts, [random_observation(recipe, instruction)], "random pictures")  # fmt: skip


def _random_latents(recipe: Recipe, device: torch.device) -> LatentCodec:
    if isinstance(recipe.latents, DctConfig):
        channels = recipe.model.backbone.latent_channels
        return DctLatents(recipe.latents, [0.0] * channels, [1.0] * channels)
    from lightwam.encoders.wan_vae import WanVaeLatents, empty_vae

    vae = empty_vae({}, Path("random weights")).to_empty(device=device)
    for parameter in vae.parameters():
        parameter.data.normal_(0.0, 0.02)
    return WanVaeLatents(vae)


def ways(
    given: Subject, device: torch.device, dtype: torch.dtype, *, int8: bool = False
) -> tuple[dict[str, dict[str, Call]], dict[str, float], dict[str, Engine]]:
    """A call of every stage and way; how far their actions are from float32's, normalised; and the engines."""
    model, latents, codec, observation = given.model, given.latents, given.codec, given.observations[0]
    sentences = [one.instruction for one in given.observations]
    frames = np.stack([codec.canvas(one.frames) for one in given.observations])
    states = torch.from_numpy(codec.encode_state(np.stack([one.state for one in given.observations]))).to(device)
    contexts = given.prompts.states(sentences).to(device)
    found = latents.encode(to_pixels(frames[:, None]).to(device))
    with torch.inference_mode():
        exact = model.to(device).act(found, contexts, states)
    engines = {"engine": Engine(model, latents, given.prompts.states, device, dtype)}
    if int8:
        engines["int8"] = Engine(model, latents, given.prompts.states, device, dtype, int8=True)
    model = model.to(dtype)
    with torch.inference_mode():
        made = {"plain": published(model, found, contexts, states), "model": model.act(found, contexts, states)}
        made |= {way: one.folded.act(found, one.context_kv(tuple(sentences)), states) for way, one in engines.items()}
        differences = {way: float((actions - exact).abs().max()) for way, actions in made.items()}
    sentence, latent, context, state = sentences[0], found[:1], contexts[:1], states[:1]
    canvas = torch.from_numpy(frames[:1])
    rest = given.recipe, codec, latents, given.prompts
    actors: dict[str, Actor] = {"model": PlainActor(model, latents, given.prompts.states), **engines}
    policies = {way: Policy(*rest, actor, 0) for way, actor in actors.items()}

    def whole() -> np.ndarray:
        seen = to_pixels(codec.canvas(observation.frames)[None, None]).to(device)
        read = given.prompts.states([sentence]).to(device)
        robot = torch.from_numpy(codec.encode_state(observation.state[None])).to(device)
        return codec.decode_action(published(model, library_encode(latents, seen), read, robot).float().cpu().numpy())

    def pixels() -> Tensor:
        return to_pixels(canvas[:, None]).to(device)

    calls: dict[str, dict[str, Call]] = {
        STAGES[0]: {
            "plain": lambda: published(model, latent, context, state),
            "model": lambda: model.act(latent, context, state),
            **{way: _acting(one, latent, state, sentence) for way, one in engines.items()},
        },
        STAGES[1]: {
            "plain": lambda: published(model, library_encode(latents, pixels()), context, state),
            "model": lambda: model.act(latents.encode(pixels()), context, state),
            **{way: partial(one.act, canvas, [sentence], state) for way, one in engines.items()},
        },
        STAGES[2]: {"plain": whole, **{way: partial(policy.act, observation) for way, policy in policies.items()}},
    }
    return calls, differences, engines


def _acting(engine: Engine, latent: Tensor, state: Tensor, sentence: str) -> Call:
    """The engine's model alone; on a GPU, as a graph of its own."""
    context_kv, act = engine.context_kv((sentence,)), engine.folded.act
    if engine.device.type != "cuda":
        return lambda: act(latent, context_kv, state)
    graph = Graph(act)
    return lambda: graph(latent, context_kv, state)


@torch.inference_mode()
def parts_ms(
    given: Subject, engine: Engine, stages: dict[str, dict[str, dict[str, float]]], device: torch.device
) -> dict[str, float]:
    """Medians of the engine's `PARTS`; on a GPU of their kernels launched one by one, of which the graph makes one."""
    frames, latents, config = given.observations[0].frames, given.latents, given.recipe.model.backbone
    canvas = torch.from_numpy(given.codec.canvas(frames)[None, None]).to(device)
    latent = latents.encode(to_pixels(canvas))
    rows, columns = (size // patch for size, patch in zip(latent.shape[3:], config.patch[1:], strict=True))
    tokens = torch.randn(1, rows * columns, config.width, device=device).to(engine.folded.placement.dtype)
    expert = engine.folded.expert
    calls = {
        "cameras to canvas": lambda: given.codec.canvas(frames),
        "canvas to latent": lambda: latents.encode(to_pixels(canvas)),
        "action expert": lambda: expert([expert.pool_tap(tap, tokens) for tap in range(len(config.taps))]),
    }
    found = {part: row["p50_ms"] for part, row in time_interleaved(calls, device).items()}
    found["backbone"] = stages[STAGES[0]]["engine"]["p50_ms"] - found["action expert"]
    return {part: found[part] for part in PARTS}


def size(engine: Engine) -> int:
    """Bytes of all that the engine folded."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(engine.folded))


@torch.inference_mode()
def published(
    model: LightWAM, latent: Float[Tensor, "B C 1 h w"], context: Float[Tensor, "B L E"], state: Float[Tensor, "B P"]
) -> Float[Tensor, "B H A"]:
    """`model.act` with the published code's work: all blocks and the head run, and what they give is dropped."""
    context_kv = model.dit.encode_context(model.append_proprio(context, state))
    return model.expert(model.dit(latent, None, context_kv).taps)


def library_encode(latents: LatentCodec, pixels: Float[Tensor, "B 3 1 height width"]) -> Float[Tensor, "B C 1 h w"]:
    """A frame's latents by diffusers' VAE itself, where they are a VAE's."""
    if isinstance(latents, DctLatents):
        return latents.encode(pixels)
    published: Any = latents
    raw = published.vae.encode(pixels.to(published.vae.dtype)).latent_dist.mode()
    mean, std = (s.to(raw).view(1, -1, 1, 1, 1) for s in (published.mean, published.std))
    return (raw - mean) / std


def peak_memory_gib(model: LightWAM, call: Call) -> float:
    """What the engine holds of the GPU at most, graphs included, once the plain model has left it."""
    model.to("cpu")
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_reserved() / 2**30


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    place = result["machine"].get("gpu", f"{result['threads']} threads on {result['machine']['processor']}")
    how = result["precision"]
    if result["products"] != how:
        how += f" (products in {result['products']})"
    lines = [f"{result['subject']}: {result['engine_ms']:.4g} ms a chunk by the engine, batch 1, {how}, {place}"]
    for stage, rows in result["stages"].items():
        counts = rows["engine"]
        lines.append(f"  {stage}: {counts['repetitions']} calls after {counts['warm_up']}, in turns")
        lines.append(f"    {'ms':8}" + "".join(f"{name:>11}" for name in ("p50", "p95", "p99", "std", "of plain")))
        for way, row in rows.items():
            numbers = (*(row[f"{name}_ms"] for name in ("p50", "p95", "p99", "std")),)
            share = row["p50_ms"] / rows["plain"]["p50_ms"]
            lines.append(f"    {way:8}" + "".join(f"{number:11.2f}" for number in numbers) + f"{share:11.3f}")
    floor, work = result["floor_ms"], result["gmac"]
    lines += [
        *(f"  {way}: {meaning}" for way, meaning in result["ways"].items()),
        "  the engine's parts, ms: " + ", ".join(f"{part} {number:.4g}" for part, number in result["parts_ms"].items()),
        "  canvas to action, GMAC: " + ", ".join(f"{way} {number:.4g}" for way, number in work.items()),
        f"  this machine at its best: {floor['products_ms']:.4g} ms for the engine's products at "
        f"{floor['gmac_per_second']:.4g} GMAC/s, {floor['weights_ms']:.4g} ms to read its weights once at "
        f"{floor['gb_per_second']:.3g} GB/s",
        "  largest difference from float32 (normalised actions): "
        + ", ".join(f"{way} {number:.2g}" for way, number in result["max_abs_differences"].items()),
        f"    on {result['compared_on']}",
        "  weights, GiB: " + ", ".join(f"{way} {number:.3g}" for way, number in result["weights_gib"].items()),
    ]
    if result["peak_memory_gib"] is not None:
        lines.append(f"  peak memory of the engine {result['peak_memory_gib']:.2f} GiB")
    return "\n".join(lines)
