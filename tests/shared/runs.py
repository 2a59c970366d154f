"""What a run holds, to compare two of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lightwam.policy import run_directory


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of nested tables and lists by its path; tensors as bytes."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{path}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, item in enumerate(value) for k, v in flat(item, f"{path}/{i}").items()}
    return {path: value.numpy().tobytes() if isinstance(value, torch.Tensor) else value}


def bits(run: Path, step: int | None = None) -> dict[str, Any]:
    """Weights, average, optimiser and loader of a run, but not the clock."""
    saved = run_directory.load(run, step)
    return flat({"model": saved.model, "ema": saved.ema or {}, "training": {**saved.training, "seconds": 0}})
