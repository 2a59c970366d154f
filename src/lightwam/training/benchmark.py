"""Speed of training, plain step against packed, by part, at a recipe's own sizes with random data and weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from lightwam.config.checks import check_recipe
from lightwam.config.schema import DctConfig, Recipe
from lightwam.encoders.dct import DctLatents
from lightwam.encoders.frozen import encode_clip
from lightwam.engine.packed_step import packed_loss
from lightwam.policy.benchmark import PROMPT_TOKENS, random_model
from lightwam.system.cpu import fast_matmuls
from lightwam.system.devices import resolve_device
from lightwam.system.tables import table_lines
from lightwam.system.timing import conditions, conditions_line
from lightwam.training.optimizer import Optimizer
from lightwam.training.train import flow_draw
from lightwam.types import Batch, Latents, Losses, to_pixels

WARM_UP, REPETITIONS = 1, 8
LONG_STEP_S, FEW_REPETITIONS = 5.0, 4
"""steps that take more seconds than the first are repeated as often as the second says"""
PARTS = ("encode", "forward", "backward", "optimiser")


def bench_train(recipe: Recipe, *, device: str = "auto", say: Callable[[str], None] = print) -> dict[str, Any]:
    """Time complete training steps, plain and packed in turns; returns plain JSON values, see `table`.

    The batch is the recipe's, or its micro batch. A first step of each is not counted; medians are of 8 further steps
    of each, or of 4 if a step takes over 5 s (`say` reports each of those). Parts: encode (pictures to latents, unless
    they are cached), forward, backward, optimiser. The loader is left out: log.jsonl's `wait_share` says how long a run
    waits for it.
    """
    check_recipe(recipe)
    torch.manual_seed(0)
    target = resolve_device(device)
    size = recipe.train.micro_batch or recipe.train.batch_size
    model = random_model(recipe, target, getattr(torch, recipe.train.precision))
    optimizer = Optimizer({name: p for name, p in model.named_parameters() if p.requires_grad}, recipe.train)
    encode = _encoder(recipe, size, target)
    variants: dict[str, Callable[..., Losses]] = {
        "plain": model.loss,
        "packed": partial(packed_loss, model, checkpointing=recipe.train.checkpointing),
    }
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    number, num_steps = 0, WARM_UP + REPETITIONS
    while number < num_steps:
        for name in sorted(variants, reverse=number % 2 == 0):
            batch, encode_s = _batch(recipe, encode, size, target)
            rows[name].append(_step(recipe, optimizer, batch, encode_s, variants[name], number, target))
            if (seconds := sum(rows[name][-1][part] for part in PARTS)) > LONG_STEP_S:
                say(f"{name} step {number}: {seconds:.1f} s")
        if number == 0 and min(sum(row[part] for part in PARTS) for (row,) in rows.values()) > LONG_STEP_S:
            num_steps = WARM_UP + FEW_REPETITIONS
        number += 1
    return _result(recipe, {name: steps[WARM_UP:] for name, steps in rows.items()}, size, target)


def _encoder(recipe: Recipe, size: int, device: torch.device) -> Callable[[], Latents]:
    """Return a function to random pictures encoded by the DCT or, for a recipe that caches latents, random latents."""
    model, (height, width) = recipe.model, recipe.codec.canvas
    frames = 1 + model.horizon // recipe.codec.video_stride
    if isinstance(recipe.latents, DctConfig):
        channels = model.backbone.latent_channels
        dct = DctLatents(recipe.latents, [0.0] * channels, [1.0] * channels)
        pictures = torch.randint(0, 256, (size, frames, height, width, 3), dtype=torch.uint8)
        return lambda: encode_clip(dct, to_pixels(pictures))
    shape = (size, model.backbone.latent_channels)
    latents = Latents(
        torch.randn(*shape, 1, height // 8, width // 8, device=device),
        torch.randn(*shape, 1 + (frames - 1) // 4, height // 16, width // 16, device=device),
    )
    return lambda: latents


def _batch(recipe: Recipe, encode: Callable[[], Latents], size: int, device: torch.device) -> tuple[Batch, float]:
    """Return a random batch, and the seconds that its encoding took."""
    model, text = recipe.model, recipe.text
    began = time.perf_counter()
    video = encode()
    seconds = time.perf_counter() - began
    context = torch.randn(size, text.num_tokens, text.dim)
    context[:, min(PROMPT_TOKENS, text.num_tokens // 2) :] = 0
    batch = Batch(
        present=video.present,
        clip=video.clip,
        context=context,
        state=torch.randn(size, model.state_dim),
        action=torch.randn(size, model.horizon, model.action_dim),
        action_is_pad=torch.zeros(size, model.horizon, dtype=torch.bool),
        frame_is_pad=torch.zeros(size, 1 + 4 * (video.clip.shape[2] - 1), dtype=torch.bool),
    )
    return batch.to(device), seconds


def _step(
    recipe: Recipe,
    optimizer: Optimizer,
    batch: Batch,
    encode_s: float,
    loss: Callable[..., Losses],
    number: int,
    device: torch.device,
) -> dict[str, float]:
    u, noise = flow_draw(0, number, len(batch.state), batch.clip)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    marks = [_now(device)]
    with fast_matmuls(device, getattr(torch, recipe.train.precision)):
        total = loss(batch, u, noise).total
        marks.append(_now(device))
        total.backward()
        marks.append(_now(device))
    optimizer.clip(recipe.train.clip_norm)
    optimizer.step(0.01)
    marks.append(_now(device))
    seconds = (encode_s, *(after - before for before, after in pairwise(marks)))
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {**dict(zip(PARTS, seconds, strict=True)), "peak_bytes": float(peak)}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _result(recipe: Recipe, rows: dict[str, list[dict[str, float]]], size: int, device: torch.device) -> dict[str, Any]:
    step = {name: statistics.median(sum(row[part] for part in PARTS) for row in steps) for name, steps in rows.items()}
    result: dict[str, Any] = {
        "recipe": recipe.name,
        "batch_size": size,
        **conditions(device, getattr(torch, recipe.train.precision)),
        "checkpointing": recipe.train.checkpointing,
        "warm_up": WARM_UP,
        "repetitions": len(rows["plain"]),
        "plain_s": step["plain"],
        "packed_s": step["packed"],
        "ratio": step["packed"] / step["plain"],
        "samples_per_second": {name: size / seconds for name, seconds in step.items()},
        "parts_s": {
            name: {part: statistics.median(row[part] for row in steps) for part in PARTS}
            for name, steps in rows.items()
        },
    }
    if device.type == "cuda":
        result["peak_gib"] = {name: max(row["peak_bytes"] for row in steps) / 2**30 for name, steps in rows.items()}
    return result


def table(result: Mapping[str, Any]) -> str:
    """Return the result as text."""
    plain, packed = result["parts_s"]["plain"], result["parts_s"]["packed"]
    rows = [["", "plain", "packed", "of the step"]]
    for part in packed:
        rows.append([part, _ms(plain[part]), _ms(packed[part]), f"{packed[part] / result['packed_s']:.1%}"])
    rows.append(["step", _ms(result["plain_s"]), _ms(result["packed_s"])])
    lines = [
        f"{result['recipe']}: {result['samples_per_second']['packed']:.3g} samples/s packed, batch "
        f"{result['batch_size']}, {conditions_line(result)}",
        f"  one training step, the median of {result['repetitions']} after {result['warm_up']}, in turns",
        *table_lines(rows),
        f"  packed takes {result['ratio']:.3f} of the plain step's time",
    ]
    if "peak_gib" in result:
        peak = result["peak_gib"]
        lines.append(f"  peak memory  {peak['plain']:.1f} GiB plain, {peak['packed']:.1f} packed")
    return "\n".join(lines)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
