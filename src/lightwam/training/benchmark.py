"""Speed of training, plain step against packed, split by part, at a recipe's own sizes with random data and weights."""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from lightwam.config.checks import check_recipe
from lightwam.config.schema import DctConfig, Recipe
from lightwam.encoders.dct import DctLatents
from lightwam.encoders.frozen import encode_clip
from lightwam.engine.packed_step import packed_loss
from lightwam.policy.benchmark import PROMPT_TOKENS, random_model
from lightwam.system.cpu import fast_matmuls, matmul_dtype
from lightwam.system.devices import resolve_device
from lightwam.system.machine import machine
from lightwam.training.optimizer import Optimizer
from lightwam.training.train import flow_draw
from lightwam.types import Batch, Latents, Losses, to_pixels

WARM_UP, REPETITIONS = 1, 8
LONG_STEP_S, FEW_REPETITIONS = 5.0, 4
"""steps that take longer than so many seconds are repeated less often"""
PARTS = ("encode", "forward", "backward", "optimiser")


def bench_train(
    recipe: Recipe,
    *,
    device: str = "auto",
    as_json: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Time whole training steps, plain and packed in turns, and print them; returns the same numbers.

    The batch is the recipe's, a micro batch of it where it has one. A first step of each is not counted; medians are of
    8 more of each, of 4 where a step takes over 5 s. Parts: encode (pictures to latents, where they are not cached),
    forward, backward, optimiser. The loader is not in here: log.jsonl's `wait_share` says how long a run waited for it.
    """
    check_recipe(recipe)
    torch.manual_seed(0)
    place = resolve_device(device)
    size = recipe.train.micro_batch or recipe.train.batch_size
    model = random_model(recipe, place, getattr(torch, recipe.train.precision))
    optimizer = Optimizer({name: p for name, p in model.named_parameters() if p.requires_grad}, recipe.train)
    encode = _encoder(recipe, size, place)
    checkpointing = recipe.train.checkpointing
    ways: dict[str, Callable[..., Losses]] = {
        "plain": model.loss,
        "packed": lambda *given: packed_loss(model, *given, checkpointing=checkpointing),
    }
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    number, wanted = 0, WARM_UP + REPETITIONS
    while number < wanted:
        for name in sorted(ways, reverse=number % 2 == 0):
            batch = _batch(recipe, encode, size, place)
            rows[name].append(_step(recipe, optimizer, batch[0], batch[1], ways[name], number, place))
            if (seconds := sum(rows[name][-1][part] for part in PARTS)) > LONG_STEP_S:
                print(f"{name} step {number}: {seconds:.1f} s", file=sys.stderr, flush=True)
        if number == 0 and min(sum(row[part] for part in PARTS) for (row,) in rows.values()) > LONG_STEP_S:
            wanted = WARM_UP + FEW_REPETITIONS
        number += 1
    result = _result(recipe, {name: table[WARM_UP:] for name, table in rows.items()}, size, place)
    say(json.dumps(result, indent=2) if as_json else table(result))
    return result


def _encoder(recipe: Recipe, size: int, device: torch.device) -> Callable[[], Latents]:
    """Random pictures through the DCT, or, where latents are cached, random latents."""
    model, (height, width) = recipe.model, recipe.codec.canvas
    frames = 1 + model.horizon // recipe.codec.video_stride
    if isinstance(recipe.latents, DctConfig):
        channels = model.backbone.latent_channels
        dct = DctLatents(recipe.latents, [0.0] * channels, [1.0] * channels)
        pictures = torch.randint(0, 256, (size, frames, height, width, 3), dtype=torch.uint8)
        return lambda: encode_clip(dct, to_pixels(pictures))
    shape = (size, model.backbone.latent_channels)
    made = Latents(
        torch.randn(*shape, 1, height // 8, width // 8, device=device),
        torch.randn(*shape, 1 + (frames - 1) // 4, height // 16, width // 16, device=device),
    )
    return lambda: made


def _batch(recipe: Recipe, encode: Callable[[], Latents], size: int, device: torch.device) -> tuple[Batch, float]:
    """A random batch, and the seconds that encoding it took."""
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
    step = {name: statistics.median(sum(row[part] for part in PARTS) for row in table) for name, table in rows.items()}
    parts = {
        name: {part: statistics.median(row[part] for row in table) for part in PARTS} for name, table in rows.items()
    }
    result: dict[str, Any] = {
        "recipe": recipe.name,
        "batch_size": size,
        "precision": recipe.train.precision,
        "products": matmul_dtype(device, getattr(torch, recipe.train.precision)),
        "checkpointing": recipe.train.checkpointing,
        "threads": torch.get_num_threads(),
        "warm_up": WARM_UP,
        "repetitions": len(rows["plain"]),
        "plain_s": step["plain"],
        "packed_s": step["packed"],
        "ratio": step["packed"] / step["plain"],
        "samples_per_second": {name: size / seconds for name, seconds in step.items()},
        "parts_s": parts,
        "machine": machine() | {"torch": torch.__version__, "python": platform.python_version()},
    }
    if device.type == "cuda":
        result["machine"] |= {"gpu": torch.cuda.get_device_name(device)}
        result["peak_gib"] = {name: max(row["peak_bytes"] for row in table) / 2**30 for name, table in rows.items()}
    return result


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    machine_name = result["machine"].get("gpu", f"{result['threads']} threads on {result['machine']['processor']}")
    how = precision = result["precision"]
    if result["products"] != precision:
        how += f" (products in {result['products']})"
    lines = [
        f"{result['recipe']}: {result['samples_per_second']['packed']:.3g} samples/s packed, batch "
        f"{result['batch_size']}, {how}, {machine_name}",
        f"  one training step, the median of {result['repetitions']} after {result['warm_up']}, in turns",
        f"  {'':12}{'plain':>12}{'packed':>12}{'of the step':>13}",
    ]
    plain, packed = result["parts_s"]["plain"], result["parts_s"]["packed"]
    for part in packed:
        share = packed[part] / result["packed_s"]
        lines.append(f"  {part:12}{1000 * plain[part]:9.1f} ms{1000 * packed[part]:9.1f} ms{share:>12.1%}")
    lines.append(f"  {'step':12}{1000 * result['plain_s']:9.1f} ms{1000 * result['packed_s']:9.1f} ms")
    lines.append(f"  packed takes {result['ratio']:.3f} of the plain step's time")
    if "peak_gib" in result:
        lines.append(
            f"  peak memory  {result['peak_gib']['plain']:.1f} GiB plain, {result['peak_gib']['packed']:.1f} packed"
        )
    return "\n".join(lines)
