"""Capturing graphs while another thread allocates and copies, as loading a newer checkpoint does."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from threading import Event, Thread
from typing import Any

import torch

from lightwam.evaluation.gpu_figures.act import BATCHES, engine_of
from lightwam.evaluation.gpu_figures.setup import Figure, Setup
from lightwam.policy.benchmark import random_engine, random_observation, random_policy
from lightwam.system.devices import DEVICE_WIDE

BUSY = 2**26
"""numbers that the other thread copies to the GPU at a time"""


def figures(setup: Setup) -> Mapping[str, Figure]:
    """Return the section's figures by name."""
    return {"beside a busy thread": setup.on_gpu_only(partial(_capture, setup))}


def _capture(setup: Setup) -> dict[str, Any]:
    """Let a fresh engine capture each size of batch; its actions must be those without a graph."""
    plain = random_policy(setup.recipe, setup.device)
    engine = engine_of(random_engine(plain, setup.dtype))
    plain.model.to("cpu")
    stop, trouble, differences = Event(), list[str](), {}

    def load() -> None:
        try:
            while not stop.is_set():
                torch.empty(BUSY, device=setup.device).copy_(torch.ones(BUSY))
                with DEVICE_WIDE:
                    torch.cuda.empty_cache()
        except Exception as error:
            trouble.append(f"the other thread: {error}"[:200])

    thread = Thread(target=load)
    thread.start()
    try:
        for size in BATCHES:
            inputs = plain.inputs([random_observation(setup.recipe)] * size)
            try:
                captured = engine.act(*inputs)
                differences[str(size)] = float((captured - engine.act_eagerly(*inputs)).abs().max())
            except RuntimeError as error:
                trouble.append(f"batch {size}: {error}"[:200])
    finally:
        stop.set()
        thread.join()
    return {"captured": len(differences), "of": len(BATCHES), "differences": differences, "trouble": trouble}
