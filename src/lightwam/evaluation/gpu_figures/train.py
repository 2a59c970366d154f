"""Training: the plain and the packed step in turns, at several settings; host synchronisations; a profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from lightwam.config.schema import Recipe
from lightwam.evaluation.gpu_figures.profiling import heaviest
from lightwam.evaluation.gpu_figures.setup import Figure, Setup, without_kernels
from lightwam.training.benchmark import bench_train, host_syncs, passes

MICRO_BATCH = 16
"""the paper's; a recipe with smaller batches has its own"""


def figures(setup: Setup) -> Mapping[str, Figure]:
    """Return the section's figures by name."""
    size = min(MICRO_BATCH, setup.recipe.train.batch_size)
    few = max(1, size // 4)
    return {
        f"{size} samples": partial(_step, setup, size),
        f"{size} samples, without kernels": setup.on_gpu_only(partial(_without_kernels, setup, size)),
        f"{size} samples, compiled": setup.on_gpu_only(partial(_step, setup, size, compile=True)),
        f"{few} samples": partial(_step, setup, few),
        f"{size} samples, checkpointing": partial(_step, setup, size, checkpointing=True),
        "host synchronisations": setup.on_gpu_only(partial(_host_syncs, setup, size)),
        "profile": partial(_profile, setup, size),
    }


def _recipe(setup: Setup, size: int, **train: Any) -> Recipe:
    recipe = setup.recipe
    return replace(recipe, train=replace(recipe.train, batch_size=size, micro_batch=0, **train))


def _step(setup: Setup, size: int, **train: Any) -> dict[str, Any]:
    return bench_train(_recipe(setup, size, **train), device=setup.device.type, say=lambda line: None)


def _without_kernels(setup: Setup, size: int) -> dict[str, Any]:
    with without_kernels():
        return _step(setup, size)


def _host_syncs(setup: Setup, size: int) -> dict[str, Any]:
    calls = passes(_recipe(setup, size), setup.device)
    return {"batch_size": size, "host_syncs": {name: host_syncs(call) for name, call in calls.items()}}


def _profile(setup: Setup, size: int) -> dict[str, Any]:
    call = passes(_recipe(setup, size), setup.device)["packed"]
    return {"batch_size": size, **heaviest(call, setup.device, setup.out / "profile_train.txt")}
