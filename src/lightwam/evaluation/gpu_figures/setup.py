"""What a section is given, and what it returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from lightwam.config.schema import Recipe
from lightwam.kernels import choice
from lightwam.policy.benchmark import acting_dtype

Figure = Callable[[], Mapping[str, Any]]
"""a measurement; returns JSON values"""


@dataclass(frozen=True)
class Setup:
    """What is measured, on what, and until when."""

    recipe: Recipe
    device: torch.device
    out: Path
    """folder of the figures, profiles and logs"""
    until: float
    """`time.perf_counter()` at which no further figure is begun"""

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """What a policy computes in on this device."""
        return acting_dtype(self.recipe, self.device)

    @property
    def seconds_left(self) -> float:
        """Seconds until `until`."""
        return self.until - time.perf_counter()

    def on_gpu_only(self, figure: Figure) -> Figure:
        """Return the figure, or on a CPU one that says that it needs a GPU."""
        return figure if self.on_gpu else skipped("it needs a GPU")


@contextmanager
def without_kernels() -> Iterator[None]:
    """Compute by plain torch what `lightwam.kernels` would, to compare the two in one process."""
    with mock.patch.object(choice, "on", lambda device: False):
        yield


def skipped(why: str) -> Figure:
    """Return a figure that says why there is none."""
    return lambda: {"skipped": why}


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name without "torch."."""
    return str(dtype).removeprefix("torch.")
