"""Speed of acting: the published code's work, this library's plain model and the engine, in turns, at true sizes."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lightwam.config.checks import check_recipe
from lightwam.config.schema import POOL, Recipe
from lightwam.data.codec import Codec
from lightwam.encoders.frozen import Prompts, open_latents
from lightwam.engine.engine import Engine
from lightwam.engine.folding import tensors
from lightwam.engine.graphs import Graph
from lightwam.errors import SimulatorError
from lightwam.model.light_wam import LightWAM
from lightwam.policy.actor import Actor, PlainActor
from lightwam.policy.policy import Policy
from lightwam.sim import registry
from lightwam.system.cpu import fast_matmuls
from lightwam.system.devices import resolve_device
from lightwam.system.tables import table_lines
from lightwam.system.timing import (
    Call,
    ceilings,
    check_floor,
    conditions,
    conditions_line,
    count_gmac,
    floor_ms,
    time_interleaved,
)
from lightwam.types import LatentCodec, Observation, to_pixels

VARIANTS = {
    "plain": "as the published code: every block, LoRA apart, the prompt encoded at every call, the library's VAE",
    "model": "LightWAM.act: stops after the last tap, a frame's own encoder",
    "engine": "folded once; on a CPU without bfloat16 units, in float32",
}
INT8 = "int8"
"""the variant that is an engine in 8 bits, and not exact"""
STAGES = ("latent to action", "canvas to action", "camera bytes to robot units")
"""each includes the one before"""
PARTS = ("cameras to canvas", "canvas to latent", "backbone", "action expert")
PROMPT_TOKENS = 40
"""of the random prompts; the rest is padding"""
INSTRUCTION = "a task"


def random_model(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> LightWAM:
    """Return a model of the recipe's sizes with random weights, initialised in place without a second copy.

    Matrices have the spread of torch's own initialisation, 1 / sqrt(3 n) over n inputs, so activations do not grow
    through the layers; LoRA's are a tenth of that, and vectors (biases, modulation) spread by 0.01.
    """
    with torch.device("meta"):
        model = LightWAM(recipe.model)
    model = model.place("meta", dtype).to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight") or ".norm" in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                spread = (3 * parameter[0].numel()) ** -0.5 if parameter.dim() > 1 else 0.01
                parameter.normal_(0.0, spread * (0.1 if ".up." in name and "lora" in name else 1.0))
    return model


def random_latents(recipe: Recipe, device: torch.device) -> LatentCodec:
    """Return the recipe's latents with unit statistics, or with a VAE of random weights on `device`."""
    if not recipe.latents.pretrained:
        channels = recipe.model.backbone.latent_channels
        return open_latents(recipe, {"mean": [0.0] * channels, "std": [1.0] * channels}, "random latents")
    from lightwam.encoders.wan_vae import WanVaeLatents, empty_vae

    vae = empty_vae({}, Path("random weights")).to_empty(device=device)
    for parameter in vae.parameters():
        parameter.data.normal_(0.0, 0.02)
    return WanVaeLatents(vae)


def random_context(recipe: Recipe, batch_size: int) -> Float[Tensor, "B L E"]:
    """Return random token states of prompts, about as long as the paper's with LIBERO's tasks are for UMT5."""
    num_tokens = recipe.text.num_tokens
    context = torch.randn(batch_size, num_tokens, recipe.text.dim)
    context[:, min(PROMPT_TOKENS, num_tokens // 2) :] = 0
    return context


def random_observation(recipe: Recipe, instruction: str = INSTRUCTION) -> Observation:
    """Return random pictures of the canvas's sizes, and a state of zeros."""
    random = np.random.default_rng(0)
    shapes = {place.camera: (place.height, place.width, 3) for place in recipe.codec.places}
    frames = {camera: random.integers(0, 256, shape, np.uint8) for camera, shape in shapes.items()}
    return Observation(frames, np.zeros(recipe.model.state_dim, np.float32), instruction)


def random_policy(recipe: Recipe, device: torch.device) -> Policy:
    """Return a policy by the plain model of the recipe's sizes in float32; its one known prompt is INSTRUCTION's."""
    check_recipe(recipe)
    prompts = Prompts(recipe, {recipe.prompt.format(task=INSTRUCTION): random_context(recipe, 1)[0]}, device)
    widths = recipe.model.state_dim, recipe.model.action_dim
    state, action = (np.random.default_rng(0).normal(size=(99, width)).astype(np.float32) for width in widths)
    model, latents = random_model(recipe, device, torch.float32), random_latents(recipe, device)
    codec = Codec.fit(recipe.codec, state, action, np.array([0, 99]), recipe.model.horizon)
    return Policy(recipe, codec, latents, prompts, PlainActor(model, latents, prompts.states), 0)


def acting_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """Return what a policy computes in: the precision of its training on a GPU, float32 on a CPU."""
    return getattr(torch, recipe.train.precision if device.type == "cuda" else "float32")


def random_engine(policy: Policy, dtype: torch.dtype) -> Policy:
    """Return a random policy by the engine, which keeps nothing of the plain model.

    Every sentence has the token states of INSTRUCTION, the only one that has any.
    """
    recipe, latents, prompts = policy.recipe, policy.latents, policy.prompts

    def states(sentences: Sequence[str]) -> Float[Tensor, "B L E"]:
        return prompts.states([INSTRUCTION] * len(sentences))

    engine = Engine(policy.model, latents, states, policy.device, dtype)
    return Policy(recipe, policy.codec, latents, prompts, engine, 0)


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
    if isinstance(subject, Recipe):
        policy = random_policy(subject, target)
        observations, pictures = [random_observation(subject)], "random pictures"
    else:
        policy = Policy.load(subject, device=device, precision="float32")
        observations, pictures = first_observations(policy)
    recipe = policy.recipe
    dtype = getattr(torch, precision) if precision else acting_dtype(recipe, target)
    with fast_matmuls(target, dtype):
        calls, differences, engines = variants(policy, observations, dtype, int8=int8)
        engine = engines["engine"]
        computes = engine.folded.placement.dtype
        before = ceilings(target, computes)
        stages = {stage: time_interleaved(calls[stage], target, say) for stage in STAGES}
        inputs = policy.inputs(observations[:1])
        eager: dict[str, Call] = {name: partial(each.act_eagerly, *inputs) for name, each in engines.items()}
        work = {name: count_gmac(eager.get(name, call)) for name, call in calls[STAGES[1]].items()}
        bound = floor_ms(work["engine"], size(engine), before, ceilings(target, computes))
        check_floor(bound, stages[STAGES[1]]["engine"]["p50_ms"])
        parts = parts_ms(policy, observations[0], engine, target)
    complete = stages[STAGES[-1]]
    result: dict[str, Any] = {
        "subject": recipe.name if isinstance(subject, Recipe) else str(subject),
        "batch_size": 1,
        "canvas": list(recipe.codec.canvas),
        **conditions(target, dtype),
        "ways": VARIANTS | {name: each.description for name, each in engines.items() if name == INT8},
        "stages": stages,
        **{f"{name}_ms": row["p50_ms"] for name, row in complete.items()},
        "ratio": complete["engine"]["p50_ms"] / complete["plain"]["p50_ms"],
        "max_abs_difference": differences["engine"],
        "max_abs_differences": differences,
        "compared_on": pictures,
        "parts_ms": {part: parts[part] for part in PARTS},
        "gmac": work,
        "floor_ms": bound,
        "weights_gib": {name: size(each) / 2**30 for name, each in engines.items()},
        "peak_memory_gib": None,
    }
    if target.type == "cuda" and not int8:  # with two engines on the device it would be that of both
        calls[STAGES[0]].clear()  # and with them a second graph's memory
        result["peak_memory_gib"] = peak_memory_gib(policy.model, calls[STAGES[1]]["engine"])
    return result


def first_observations(policy: Policy) -> tuple[list[Observation], str]:
    """Return each task's first observation of an evaluation, or a random one without the simulator; and which it is."""
    recipe, observations = policy.recipe, []
    try:
        for task in recipe.simulation.tasks:
            with contextlib.closing(registry.make_simulator(recipe.simulation, task)) as simulator:
                simulator.reset(recipe.eval.first_seed)
                observations.append(simulator.observe())
    except SimulatorError as error:  # measuring speed needs no simulator
        sentences = iter(policy.prompts.sentences())
        pictures = f"random pictures, as its simulator did not start: {' '.join(str(error).split())}"
        return [random_observation(recipe, next(sentences, "reach the goal"))], pictures
    return observations, f"the first pictures of {len(observations)} tasks, seed {recipe.eval.first_seed}"


class PublishedActor:
    """The plain model with the published code's work: all blocks and the head run, the VAE is diffusers' own."""

    plain: None = None
    description = "the published code's work"

    def __init__(self, inner: PlainActor, *, pretrained: bool) -> None:
        """`pretrained`: the latents are a VAE's."""
        self.inner, self.device = inner, inner.device
        self.encode = partial(library_encode, inner.latents) if pretrained else inner.latents.encode

    def act(
        self, canvas: UInt8[Tensor, "B height width 3"], instructions: Sequence[str], state: Float[Tensor, "B P"]
    ) -> Float[Tensor, "B H A"]:
        """Return one chunk a sample."""
        latent = self.encode(to_pixels(canvas[:, None]).to(self.device))
        context = self.inner.states(instructions).to(self.device)
        return published(self.inner.model, latent, context, state.to(self.device))

    def warm(self, *arguments: Any) -> None:
        """Nothing: a benchmark leaves out the first calls."""


def variants(
    policy: Policy, observations: Sequence[Observation], dtype: torch.dtype, *, int8: bool = False
) -> tuple[dict[str, dict[str, Call]], dict[str, float], dict[str, Engine]]:
    """Return calls by stage and variant with the first observation, the largest differences of normalised actions from
    float32 on all observations, and the engines. The policy's model is left in `dtype`."""
    plain, states = policy.plain, policy.prompts.states
    inputs = plain.encode(*policy.inputs(observations))
    with torch.inference_mode():
        exact = plain.model.act(*inputs)
    engines = {
        name: Engine(plain.model, plain.latents, states, plain.device, dtype, int8=name == INT8)
        for name in ("engine", *((INT8,) if int8 else ()))
    }
    model = plain.model.place(plain.device, dtype)
    with torch.inference_mode():
        actions = {"plain": published(model, *inputs), "model": model.act(*inputs)}
        for name, engine in engines.items():
            actions[name] = engine.act_eagerly(*policy.inputs(observations))  # whose frame encoder may differ as well
        differences = {name: float((chunks - exact).abs().max()) for name, chunks in actions.items()}
    return _calls(policy, observations[0], engines), differences, engines


def _calls(policy: Policy, observation: Observation, engines: dict[str, Engine]) -> dict[str, dict[str, Call]]:
    recipe, codec, latents, prompts, model = policy.recipe, policy.codec, policy.latents, policy.prompts, policy.model
    canvas, sentences, _ = inputs = policy.inputs([observation])
    latent, context, state = policy.plain.encode(*inputs)

    def actors(states: Callable[[Sequence[str]], Tensor]) -> dict[str, Actor]:
        plain = PlainActor(model, latents, states)
        return {"plain": PublishedActor(plain, pretrained=recipe.latents.pretrained), "model": plain, **engines}

    latent_calls: dict[str, Call] = {
        "plain": partial(published, model, latent, context, state),
        "model": partial(model.act, latent, context, state),
        **{name: _acting(engine, latent, state, observation.instruction) for name, engine in engines.items()},
    }
    cached, complete = actors(lambda _: context), actors(prompts.states)
    policies = {name: Policy(recipe, codec, latents, prompts, actor, 0) for name, actor in complete.items()}
    return {
        STAGES[0]: latent_calls,
        STAGES[1]: {name: partial(actor.act, canvas, sentences, state) for name, actor in cached.items()},
        STAGES[2]: {name: partial(each.act, observation) for name, each in policies.items()},
    }


def _acting(engine: Engine, latent: Tensor, state: Tensor, sentence: str) -> Call:
    """Return a call of the engine's model alone; on a GPU, as a graph of its own."""
    act = Graph(engine.act_on_latent) if engine.device.type == "cuda" else engine.act_on_latent
    return partial(act, latent, engine.context_kv((sentence,)), state)


@torch.inference_mode()
def parts_ms(policy: Policy, observation: Observation, engine: Engine, device: torch.device) -> dict[str, float]:
    """Return medians of `PARTS`; on a GPU without the graph, each kernel launched by itself.

    The backbone is what the engine's model takes beyond the action expert.
    """
    codec, config = policy.codec, policy.recipe.model.backbone
    canvas = torch.from_numpy(codec.canvas(observation.frames)[None, None]).to(device)
    _, height, width = (side // patch for side, patch in zip(policy.recipe.latent_shape[1:], config.patch, strict=True))
    count = height * width * (POOL**2 + policy.recipe.model.foresight) // POOL**2
    tokens = torch.randn(1, count, config.width, device=device).to(engine.folded.placement.dtype)
    expert, (latent, _, state) = engine.folded.expert, policy.plain.encode(*policy.inputs([observation]))
    context_kv = engine.context_kv((observation.instruction,))
    calls: dict[str, Call] = {
        "cameras to canvas": lambda: codec.canvas(observation.frames),
        "canvas to latent": lambda: engine.latents.encode(to_pixels(canvas)),
        "action expert": lambda: expert([expert.pool_tap(tap, tokens) for tap in range(len(config.taps))], state),
        "both": lambda: engine.act_on_latent(latent, context_kv, state),
    }
    parts = {part: row["p50_ms"] for part, row in time_interleaved(calls, device).items()}
    return parts | {"backbone": parts["both"] - parts["action expert"]}


def size(engine: Engine) -> int:
    """Return the bytes of the engine's folded weights."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(engine.folded))


@torch.inference_mode()
def published(
    model: LightWAM, latent: Float[Tensor, "B C 1 h w"], context: Float[Tensor, "B L E"], state: Float[Tensor, "B P"]
) -> Float[Tensor, "B H A"]:
    """Compute `model.act` with the published code's work: all blocks and the head run, and their output is dropped.

    That code has no foresight: a model with it stops at its last tap.
    """
    if model.config.foresight:
        return model.act(latent, context, state)
    context_kv = model.dit.encode_context(model.append_proprio(context, state))
    return model.expert(model.dit(latent, None, context_kv).taps, state)


def library_encode(wan: Any, pixels: Float[Tensor, "B 3 1 height width"]) -> Float[Tensor, "B C 1 h w"]:
    """Encode a frame by diffusers' VAE itself, that of the `WanVaeLatents`."""
    raw = wan.vae.encode(pixels.to(wan.vae.dtype)).latent_dist.mode()
    mean, std = (row.to(raw).view(1, -1, 1, 1, 1) for row in (wan.mean, wan.std))
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
    bound = result["floor_ms"]
    lines += [
        *(f"  {name}: {meaning}" for name, meaning in result["ways"].items()),
        f"  the engine's parts, ms: {_items(result['parts_ms'], '.4g')}",
        f"  canvas to action, GMAC: {_items(result['gmac'], '.4g')}",
        f"  this machine at its best: {bound['products_ms']:.4g} ms for the engine's products at "
        f"{bound['gmac_per_second']:.4g} GMAC/s, {bound['weights_ms']:.4g} ms to read its weights once at "
        f"{bound['gb_per_second']:.3g} GB/s",
        f"  largest difference from float32 (normalised actions): {_items(result['max_abs_differences'], '.2g')}",
        f"    on {result['compared_on']}",
        f"  weights, GiB: {_items(result['weights_gib'], '.3g')}",
    ]
    if result["peak_memory_gib"] is not None:
        lines.append(f"  peak memory of the engine {result['peak_memory_gib']:.2f} GiB")
    return "\n".join(lines)


def _items(numbers: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{name} {number:{form}}" for name, number in numbers.items())
