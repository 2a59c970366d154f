"""The heaviest kernels of a call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from lightwam.system.files import write_file
from lightwam.system.timing import seconds

HEAVIEST, ROWS = 10, 40
"""kernels in the result, and in the text file"""


def heaviest(call: Callable[[], Any], device: torch.device, path: Path) -> dict[str, Any]:
    """Profile one call after two others; returns its kernels, their time and the heaviest ones.

    A longer table is written to `path`. On a CPU they are operators.
    """
    for _ in range(2):
        seconds(call, device)
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        seconds(call, device)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    averages = profiler.key_averages()
    write_file(path, averages.table(sort_by=key, row_limit=ROWS, max_name_column_width=100))
    kind = "CUDA" if on_gpu else "CPU"
    events = sorted((e for e in averages if e.device_type.name == kind), key=lambda e: getattr(e, key), reverse=True)
    rows = [{"name": e.key[:100], "calls": e.count, "ms": getattr(e, key) / 1000} for e in events]
    return {
        "kernels": sum(row["calls"] for row in rows),
        "kernels_ms": sum(row["ms"] for row in rows),
        "heaviest": rows[:HEAVIEST],
        "file": path.name,
    }
