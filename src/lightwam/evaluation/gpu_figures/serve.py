"""A server of the engine, and robots that ask it over its socket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightwam.evaluation.gpu_figures.setup import Figure, Setup, dtype_name
from lightwam.serving.benchmark import bench_robots

ROBOTS = (1, 2, 4, 8)


def figures(setup: Setup) -> Mapping[str, Figure]:
    """Return the section's figures by name."""

    def robots() -> dict[str, Any]:
        return {"dtype": dtype_name(setup.dtype), "robots": bench_robots(setup.recipe, ROBOTS, setup.device)}

    return {"robots": robots}
