"""Speed of training, plain step against packed, by part, at a recipe's own sizes with random data and weights."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import torch

from lightwam.config.checks import check_recipe
from lightwam.config.schema import Recipe, TrainConfig
from lightwam.encoders.frozen import encode_clips
from lightwam.engine.packed_step import packed_loss
from lightwam.policy.benchmark import random_context, random_latents, random_model
from lightwam.system.cpu import fast_matmuls
from lightwam.system.devices import resolve_device
from lightwam.system.tables import table_lines
from lightwam.system.timing import conditions, conditions_line, in_turns, now
from lightwam.training.batches import flow_draw
from lightwam.training.footprint import has_video, memory_bytes, num_parameters, num_with_video, step_tflop
from lightwam.training.optimizer import Optimizer
from lightwam.types import Batch, Latents, Losses

REPETITIONS, LONG_STEP_S, FEW_REPETITIONS = 8, 5.0, 4
"""steps of more than LONG_STEP_S seconds are repeated FEW_REPETITIONS times"""
TIMED_SAMPLES, SHARED = 16, 0.8
"""of `time_step`; n threads are n ** SHARED times as fast as one"""
CPU_TFLOP = 3.0
"""a larger step is not timed on a CPU"""
PARTS = ("encode", "forward", "backward", "optimiser")
Step = dict[str, float]
"""seconds of each part, their sum "step", and "peak_bytes" of the GPU's memory"""


def bench_train(recipe: Recipe, *, device: str = "auto", say: Callable[[str], None] = print) -> dict[str, Any]:
    """Time complete training steps, plain and packed in turns; returns plain JSON values, see `table`.

    The batch is the recipe's, or its micro batch. A first step of each is not counted; medians are of 8 further steps
    of each, or of 4 if a step takes over 5 s (`say` reports each of those). With train.compile the packed step is timed
    compiled too. Parts: encode (pictures to latents, unless they are cached), forward, backward, optimiser. The loader
    is left out: log.jsonl's `wait_share` says how long a run waits for it.
    """
    check_recipe(recipe)
    torch.manual_seed(0)
    target, train = resolve_device(device), recipe.train
    size, dtype = train.micro_batch or train.batch_size, getattr(torch, train.precision)
    model = random_model(recipe, target, dtype)
    optimizer = Optimizer({name: p for name, p in model.named_parameters() if p.requires_grad}, train)
    encode = _encoder(recipe, size, target)

    def step(name: str, loss: Callable[..., Losses], number: int) -> Step:
        began = now(target)
        latents = encode()
        row = {"encode": now(target) - began}
        row |= _step(optimizer, train, _random_batch(recipe, latents).to(target), loss, number)
        row["step"] = sum(row[part] for part in PARTS)
        if row["step"] > LONG_STEP_S:
            say(f"{name} step {number}: {row['step']:.1f} s")
        return row

    packed = partial(packed_loss, model, checkpointing=train.checkpointing)
    losses: dict[str, Callable[..., Losses]] = {"plain": model.loss, "packed": packed}
    if train.compile:
        losses["compiled"] = partial(packed, compiled=True)
    steps = {name: partial(step, name, loss) for name, loss in losses.items()}
    fastest = min(row["step"] for (row,) in in_turns(steps, range(1)).values())
    repetitions = FEW_REPETITIONS if fastest > LONG_STEP_S else REPETITIONS
    rows = in_turns(steps, range(1, 1 + repetitions))
    medians = {name: {part: median(row[part] for row in rows[name]) for part in (*PARTS, "step")} for name in rows}
    seconds = {name: parts.pop("step") for name, parts in medians.items()}
    peaks = {name: max(row["peak_bytes"] for row in rows[name]) / 2**30 for name in rows}
    return {
        "recipe": recipe.name,
        "batch_size": size,
        **conditions(target, dtype),
        "checkpointing": train.checkpointing,
        "warm_up": 1,
        "repetitions": repetitions,
        **{f"{name}_s": value for name, value in seconds.items()},
        "ratio": seconds["packed"] / seconds["plain"],
        **({"compiled_ratio": seconds["compiled"] / seconds["plain"]} if train.compile else {}),
        "samples_per_second": {name: size / value for name, value in seconds.items()},
        "parts_s": medians,
        **({"peak_gib": peaks} if target.type == "cuda" else {}),
    }


def time_step(recipe: Recipe, device: str = "auto") -> float:
    """Estimate the seconds of one packed training step here, from the faster of two after a first one.

    With random data and weights, and without the loader. On a CPU a few samples are timed on one thread, by the
    processor's time, so that other programs matter little, and the threads are taken to share the work: trust it to a
    third. On a GPU it is the time of a micro batch.
    """
    check_recipe(recipe)
    target, train, threads = resolve_device(device), recipe.train, torch.get_num_threads()
    size = train.micro_batch or train.batch_size
    clock: Callable[[], float] = partial(now, target)
    if target.type == "cpu":
        size, clock = min(size, TIMED_SAMPLES), time.process_time
    model = random_model(recipe, target, getattr(torch, train.precision))
    optimizer = Optimizer({name: p for name, p in model.named_parameters() if p.requires_grad}, train)
    encode = _encoder(recipe, size, target)
    loss = partial(packed_loss, model, checkpointing=train.checkpointing, compiled=train.compile)
    seconds = []
    torch.set_num_threads(1)
    try:
        for number in range(3):
            began = clock()
            _step(optimizer, train, _random_batch(recipe, encode()).to(target), loss, number)
            seconds.append(clock() - began)
    finally:
        torch.set_num_threads(threads)
    shared = threads**SHARED if target.type == "cpu" else 1.0
    return min(seconds[1:]) * train.batch_size / size / shared


def timed_step(recipe: Recipe, device: str = "auto") -> float | None:
    """Return `time_step`; None if a step would take a CPU over a minute, or more memory than there is."""
    target = resolve_device(device)
    if target.type == "cuda":
        memory = torch.cuda.get_device_properties(target).total_memory
    elif step_tflop(recipe) > CPU_TFLOP:
        return None
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = memory_bytes(num_parameters(recipe.model), recipe)["all"]
    return time_step(recipe, device) if needed < 0.8 * memory else None


def passes(recipe: Recipe, device: torch.device) -> dict[str, Callable[[], None]]:
    """Return a forward and backward pass of one micro batch, plain and packed, on the same random weights and data."""
    train = recipe.train
    size, dtype = train.micro_batch or train.batch_size, getattr(torch, train.precision)
    model = random_model(recipe, device, dtype)
    batch = _random_batch(recipe, _encoder(recipe, size, device)()).to(device)
    u, noise = flow_draw(0, 0, size, batch.clip)
    with_video = num_with_video(train, size)
    u, noise = u[:with_video], noise[:with_video]

    def run(loss: Callable[..., Losses]) -> None:
        model.zero_grad()
        with fast_matmuls(device, dtype):
            loss(batch, u, noise).total.backward()

    packed = partial(packed_loss, model, checkpointing=train.checkpointing)
    return {"plain": partial(run, model.loss), "packed": partial(run, packed)}


def host_syncs(call: Callable[[], None]) -> int:
    """Count how often the host waits for the GPU in a call, after a first call; the GPU must be there."""
    call()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in seen)  # not the notice of the mode


def _encoder(recipe: Recipe, size: int, device: torch.device) -> Callable[[], Latents]:
    """Return a function to random pictures encoded by the DCT or, for a recipe that caches latents, random latents."""
    if not recipe.latents.pretrained:
        dct = random_latents(recipe, device)
        shape, videos = (size, recipe.num_frames, *recipe.codec.canvas, 3), has_video(recipe.train, size)
        pictures = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        return lambda: encode_clips(dct, pictures, videos)
    channels, _, height, width = recipe.latent_shape
    present = torch.randn(size, channels, 1, height, width, device=device)
    latents = Latents(present, torch.randn(size, *recipe.pooled_shape, device=device))
    return lambda: latents


def _random_batch(recipe: Recipe, video: Latents) -> Batch:
    model, size = recipe.model, len(video.present)
    context = random_context(recipe, size)
    return Batch(
        present=video.present,
        clip=video.clip,
        context=context,
        state=torch.randn(size, model.state_dim),
        action=torch.randn(size, model.horizon, model.action_dim),
        action_is_pad=torch.zeros(size, model.horizon, dtype=torch.bool),
        frame_is_pad=torch.zeros(size, recipe.num_frames, dtype=torch.bool),
        is_token=context.any(dim=2),
    )


def _step(optimizer: Optimizer, train: TrainConfig, batch: Batch, loss: Callable[..., Losses], number: int) -> Step:
    device = batch.state.device
    u, noise = flow_draw(0, number, len(batch.state), batch.clip)
    with_video = num_with_video(train, len(u))
    u, noise = u[:with_video], noise[:with_video]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    marks = [now(device)]
    with fast_matmuls(device, getattr(torch, train.precision)):
        total = loss(batch, u, noise).total
        marks.append(now(device))
        total.backward()
        marks.append(now(device))
    optimizer.clip(train.clip_norm)
    optimizer.step(0.01)
    marks.append(now(device))
    seconds = (after - before for before, after in pairwise(marks))
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {**dict(zip(PARTS[1:], seconds, strict=True)), "peak_bytes": peak}


def table(result: Mapping[str, Any]) -> str:
    """Return the result as text."""
    steps = {name: {**parts, "step": result[f"{name}_s"]} for name, parts in result["parts_s"].items()}
    rows, packed = [["", *steps, "of the packed step"]], steps["packed"]
    for part, took in packed.items():
        share = f"{took / packed['step']:.1%}" if part != "step" else ""
        rows.append([part, *(f"{1000 * parts[part]:.1f} ms" for parts in steps.values()), share])
    lines = [
        f"{result['recipe']}: {result['samples_per_second']['packed']:.3g} samples/s packed, batch "
        f"{result['batch_size']}, {conditions_line(result)}",
        f"  one training step, the median of {result['repetitions']} after {result['warm_up']}, in turns",
        *table_lines(rows),
        f"  packed takes {result['ratio']:.3f} of the plain step's time",
    ]
    if "compiled_ratio" in result:
        lines.append(f"  compiled takes {result['compiled_ratio']:.3f} of the plain step's time")
    if "peak_gib" in result:
        peak = result["peak_gib"]
        lines.append(f"  peak memory  {peak['plain']:.1f} GiB plain, {peak['packed']:.1f} packed")
    return "\n".join(lines)
