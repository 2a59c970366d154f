"""The machine, the versions, and the commit."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lightwam.evaluation.gpu_figures.setup import Figure, Setup
from lightwam.kernels import choice
from lightwam.system.machine import versions
from lightwam.system.timing import conditions

COMMIT = "LIGHTWAM_COMMIT"
"""environment variable with the commit, for a machine that has the files without git"""


def figures(setup: Setup) -> Mapping[str, Figure]:
    """Return the section's figures by name."""
    return {"machine": partial(_machine, setup), "kernels": setup.on_gpu_only(partial(_kernels, setup))}


def _machine(setup: Setup) -> dict[str, Any]:
    about = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": os.environ.get(COMMIT) or _output("git", "rev-parse", "--short", "HEAD"),
        "recipe": setup.recipe.name,
        "canvas": list(setup.recipe.codec.canvas),
        **conditions(setup.device, setup.dtype),
        "versions": versions() | versions(("triton",)),
    }
    if setup.on_gpu:
        gpu = torch.cuda.get_device_properties(setup.device)
        about |= {
            "memory_gib": gpu.total_memory / 2**30,
            "multiprocessors": gpu.multi_processor_count,
            "capability": f"{gpu.major}.{gpu.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        }
    return about


def _kernels(setup: Setup) -> dict[str, Any]:
    """Compile all kernels, and tell whether they are used, or what is wrong with them."""
    return {"used": choice.on(setup.device), "wrong": choice.difference(setup.device)}


def _output(program: str, *arguments: str) -> str | None:
    """Return the first line that a program prints in this file's folder; None if it is missing or fails."""
    if shutil.which(program) is None:
        return None
    folder = Path(__file__).parent
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, encoding="utf-8")
    return done.stdout.strip().partition("\n")[0] if done.returncode == 0 else None
