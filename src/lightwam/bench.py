"""Speed of training, split by part, on this machine, at a recipe's own sizes with random data and weights."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lightwam.codec import Codec
from lightwam.config import Recipe, check
from lightwam.demo import machine
from lightwam.latents.dct import DctLatents
from lightwam.model.light_wam import LightWAM
from lightwam.optimizer import Optimizer
from lightwam.stats import RunningStats
from lightwam.text.hashed import HashedText
from lightwam.train import Processing, flow_draw
from lightwam.types import Windows

WARM_UP, REPETITIONS = 2, 8


def bench_train(recipe: Recipe, *, as_json: bool = False, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Time the parts of a training step (the median of 8 steps after 2) and print them; returns the same numbers.

    Parts: encode (pixels and latents), action (its forward pass), video (its forward pass), backward, optimiser. The
    loader is not in here: log.jsonl's `wait_share` says how long a real run waited for it.
    """
    check(recipe)
    torch.manual_seed(0)
    processing, windows = _processing(recipe), _windows(recipe)
    model = LightWAM(recipe.model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = Optimizer(trained, recipe.train)
    rows = [
        _step(recipe, processing, windows, model, optimizer, list(trained.values()), number)
        for number in range(WARM_UP + REPETITIONS)
    ][WARM_UP:]
    parts = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    step = statistics.median(sum(row.values()) for row in rows)
    result = {
        "recipe": recipe.name,
        "batch_size": recipe.train.batch_size,
        "precision": recipe.train.precision,
        "threads": torch.get_num_threads(),
        "warm_up": WARM_UP,
        "repetitions": REPETITIONS,
        "step_s": step,
        "samples_per_second": recipe.train.batch_size / step,
        "parts_s": parts,
        "machine": machine() | {"torch": torch.__version__, "python": platform.python_version()},
    }
    say(json.dumps(result, indent=2) if as_json else table(result))
    return result


def _step(
    recipe: Recipe,
    processing: Processing,
    windows: Windows,
    model: LightWAM,
    optimizer: Optimizer,
    trained: list[torch.nn.Parameter],
    number: int,
) -> dict[str, float]:
    marks = [time.perf_counter()]
    batch = processing.batch(windows)
    marks.append(time.perf_counter())
    u, noise = flow_draw(0, number, batch)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.train.precision == "bfloat16"):
        memory = model.dit.read(model.with_proprio(batch.context, batch.state))
        loss = recipe.model.action_loss_weight * model.action_loss(batch, memory)
        marks.append(time.perf_counter())
        if recipe.model.video_loss_weight:
            loss = loss + recipe.model.video_loss_weight * model.video_loss(batch, memory, u, noise)
    marks.append(time.perf_counter())
    loss.backward()
    marks.append(time.perf_counter())
    torch.nn.utils.clip_grad_norm_(trained, recipe.train.clip_norm)
    optimizer.step(0.01)
    marks.append(time.perf_counter())
    names = ("encode", "action forward", "video forward", "backward", "optimiser")
    return {name: after - before for name, before, after in zip(names, marks[:-1], marks[1:], strict=True)}


def _processing(recipe: Recipe) -> Processing:
    rng = np.random.default_rng(0)
    stats = []
    for dim in (recipe.model.state_dim, recipe.model.action_dim):
        running = RunningStats()
        running.update(rng.uniform(-1, 1, (64, dim)))
        stats.append(running.finish())
    codec = Codec(recipe.codec, *stats)
    channels = recipe.model.backbone.latent_channels
    latents = DctLatents(recipe.latents, [0.0] * channels, [1.0] * channels)
    return Processing(
        codec, latents, HashedText(recipe.text).encode([recipe.prompt.format(task="press the red button")])
    )


def _windows(recipe: Recipe) -> Windows:
    rng, size, model = np.random.default_rng(0), recipe.train.batch_size, recipe.model
    frames = 1 + model.horizon // recipe.codec.video_stride
    return Windows(
        frames=rng.integers(0, 256, (size, frames, *recipe.codec.canvas, 3), np.uint8),
        state=rng.normal(size=(size, model.state_dim)).astype(np.float32),
        action=rng.normal(size=(size, model.horizon, model.action_dim)).astype(np.float32),
        action_is_pad=np.zeros((size, model.horizon), bool),
        frame_is_pad=np.zeros((size, frames), bool),
        task=np.zeros(size, np.int64),
    )


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    shares = [
        f"  {name:15} {1000 * seconds:8.1f} ms  {seconds / result['step_s']:5.1%}"
        for name, seconds in result["parts_s"].items()
    ]
    return "\n".join(
        [
            f"{result['recipe']}: {result['samples_per_second']:.1f} samples/s, batch {result['batch_size']}, "
            f"{result['precision']}, {result['threads']} threads on {result['machine']['processor']}",
            f"  step            {1000 * result['step_s']:8.1f} ms  "
            f"(median of {result['repetitions']} after {result['warm_up']})",
            *shares,
        ]
    )
