"""Timing calls in turns, counting their multiply-adds, and the least time this machine could need for them."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightwam.system.cpu import matmul_dtype
from lightwam.system.machine import machine

WARM_UP, REPETITIONS = 10, 300
SECONDS = 20.0
"""time for each call's repetitions; of slow calls FEWEST are made even if they take longer"""
FEWEST = 5
LONG_S = 2.0
"""each call that takes longer is reported"""
Call = Callable[[], Any]


def percentiles(values: Sequence[float], suffix: str = "") -> dict[str, float]:
    """Return the 50th, 95th and 99th percentile as p50, p95 and p99, each followed by `suffix`; {} without values."""
    return {f"p{q}{suffix}": float(np.percentile(values, q)) for q in (50, 95, 99)} if values else {}


def conditions(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return what a measurement depends on: precision, threads and machine."""
    about = machine() | {"torch": torch.__version__, "python": platform.python_version()}
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    return {
        "precision": str(dtype).removeprefix("torch."),
        "products": matmul_dtype(device, dtype),
        "threads": torch.get_num_threads(),
        "machine": about,
    }


def conditions_line(result: Mapping[str, Any]) -> str:
    """Return the `conditions` of a result as text."""
    on = result["machine"].get("gpu", f"{result['threads']} threads on {result['machine']['processor']}")
    products = "" if result["products"] == result["precision"] else f" (products in {result['products']})"
    return f"{result['precision']}{products}, {on}"


@torch.inference_mode()
def time_interleaved(
    calls: Mapping[str, Call], device: torch.device, say: Callable[[str], None] = lambda line: None
) -> dict[str, dict[str, float]]:
    """Return milliseconds of each call: percentiles over the repetitions, and their standard deviation."""
    first = {name: seconds(call, device) for name, call in calls.items()}
    slowest = max(first.values())
    warm_up = min(WARM_UP, int(SECONDS / 4 / slowest))
    repetitions = min(REPETITIONS, max(FEWEST, int(SECONDS / slowest)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-warm_up, repetitions):
        for name in sorted(calls, reverse=number % 2 == 0):
            took = seconds(calls[name], device)
            if took > LONG_S:
                say(f"{name} call {number}: {took:.1f} s")
            if number >= 0:
                times[name].append(1000 * took)
    return {
        name: {
            **percentiles(rows, "_ms"),
            "std_ms": float(np.std(rows)),
            "repetitions": len(rows),
            "warm_up": 1 + warm_up,
        }
        for name, rows in times.items()
    }


def seconds(call: Call, device: torch.device) -> float:
    """Time one call in seconds, until its work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


@torch.inference_mode()
def count_gmac(call: Call) -> float:
    """Count the multiply-adds of all matrix products in a call, in billions; misses what a CUDA graph replays."""
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN_TO_TORCH) as counter:
        call()
    return counter.get_total_flops() / 2e9


def _linear_flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def _attention_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(q) * k[-2] + 2 * math.prod(q[:-1]) * k[-2] * v[-1]


UNKNOWN_TO_TORCH: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    **({torch.ops.mkldnn._linear_pointwise: _linear_flops} if torch.backends.mkldnn.is_available() else {}),
}
"""CPU operators that torch's counter does not know -> functions that count their operations from shapes"""


@torch.inference_mode()
def roofline_ms(work: float, size: int, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measure this machine's bounds: `work` GMAC at the speed of a large product, `size` bytes of weights read once."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(side, side, device=device).to(dtype), torch.randn(side, side, device=device).to(dtype)
    product = min(seconds(lambda: a @ b, device) for _ in range(10))
    block = torch.randn(2**28 if device.type == "cuda" else 2**25, device=device)
    copying = min(seconds(lambda: block.sum(), device) for _ in range(10))
    rate, bandwidth = side**3 / product, block.numel() * 4 / copying
    return {
        "gmac_per_second": rate / 1e9,
        "gb_per_second": bandwidth / 1e9,
        "products_ms": 1000 * work * 1e9 / rate,
        "weights_ms": 1000 * size / bandwidth,
    }
