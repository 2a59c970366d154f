"""Timing calls in turns, counting their multiply-adds, and the least time this machine could need for them."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightwam.system.cpu import matmul_dtype
from lightwam.system.machine import machine

WARM_UP, REPETITIONS = 10, 300
SECONDS, FEWEST = 20.0, 5
"""time for each call's repetitions; of slow calls FEWEST are made even if they take longer"""
LONG_S = 2.0
"""each call that takes longer is reported"""
LARGE = {"cuda": (8192, 2**28), "cpu": (1024, 2**25)}
"""side of a large product, and numbers of a block that no cache holds"""
CPU = torch.device("cpu")
Call = Callable[[], Any]
T = TypeVar("T")


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


def in_turns(calls: Mapping[str, Callable[[int], T]], numbers: range) -> dict[str, list[T]]:
    """Call each with every number, the order reversed from one number to the next; return what each returned."""
    results: dict[str, list[T]] = {name: [] for name in calls}
    for number in numbers:
        for name in list(calls)[:: -1 if number % 2 else 1]:
            results[name].append(calls[name](number))
    return results


@torch.inference_mode()
def time_interleaved(
    calls: Mapping[str, Call],
    device: torch.device,
    say: Callable[[str], None] = lambda line: None,
    *,
    limit_s: float | None = None,
) -> dict[str, dict[str, float]]:
    """Return milliseconds of each call: percentiles over the repetitions, and their standard deviation.

    `limit_s` is the time for each call's repetitions, SECONDS by default.
    """
    limit = SECONDS if limit_s is None else limit_s

    def timed(name: str, number: int) -> float:
        took = seconds(calls[name], device)
        if took > LONG_S:
            say(f"{name} call {number}: {took:.1f} s")
        return took

    timers = {name: partial(timed, name) for name in calls}
    # on a GPU the first call starts libraries, loads kernels and captures a graph: it tells nothing of the next ones
    slowest = max(took for _, took in in_turns(timers, range(2)).values())
    warm_up = 2 + min(WARM_UP, int(limit / 4 / slowest))
    repetitions = min(REPETITIONS, max(FEWEST, int(limit / slowest)))
    times = in_turns(timers, range(2, warm_up + repetitions))
    counts = {"repetitions": repetitions, "warm_up": warm_up}
    rows = {name: [1000 * took for took in turns[warm_up - 2 :]] for name, turns in times.items()}
    return {name: percentiles(row, "_ms") | {"std_ms": float(np.std(row))} | counts for name, row in rows.items()}


def seconds(call: Call, device: torch.device = CPU) -> float:
    """Time one call in seconds, until its work on the device is done."""
    began = now(device)
    call()
    return now(device) - began


def now(device: torch.device) -> float:
    """Return the clock's seconds once all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.inference_mode()
def count_gmac(call: Call) -> float:
    """Count the multiply-adds of all matrix products in a call, in billions; misses what a CUDA graph replays."""
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN_TO_TORCH) as counter:
        call()
    return counter.get_total_flops() / 2e9


UNKNOWN_TO_TORCH: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: (
        2 * math.prod(q) * k[-2] + 2 * math.prod(q[:-1]) * k[-2] * v[-1]
    ),
}
"""CPU operators that torch's counter does not know -> functions that count their operations from shapes"""
if torch.backends.mkldnn.is_available():
    UNKNOWN_TO_TORCH[torch.ops.mkldnn._linear_pointwise] = lambda x, weight, *_, **__: 2 * math.prod(x) * weight[0]
    UNKNOWN_TO_TORCH[torch.ops.onednn.qlinear_pointwise] = lambda x, *given, **_: 2 * math.prod(x) * given[2][1]


@torch.inference_mode()
def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measure what this machine can do: billions of multiply-adds a second in a large product, GB a second read.

    On a CPU the product runs both ways that layers do, as `@` and with weights in oneDNN's layout, and the faster
    counts: torch's `@` is MKL's, which uses half of the width of an AMD processor with AVX-512.
    """
    side, block_size = LARGE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    products: list[Call] = [lambda: a @ b]
    if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(b)
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], ""))
    product = min(seconds(call, device) for call in products for _ in range(10))
    block = torch.randn(block_size, device=device)
    reading = min(seconds(block.sum, device) for _ in range(10))
    return {"gmac_per_second": side**3 / product / 1e9, "gb_per_second": block.numel() * 4 / reading / 1e9}


def floor_ms(work: float, size: int, *measured: Mapping[str, float]) -> dict[str, float]:
    """Return the least time for `work` GMAC and for reading `size` bytes of weights once, by the best of `ceilings`."""
    best = {rate: max(each[rate] for each in measured) for rate in measured[0]}
    products_ms, weights_ms = 1e3 * work / best["gmac_per_second"], size / 1e6 / best["gb_per_second"]
    return best | {"products_ms": products_ms, "weights_ms": weights_ms}


def check_floor(floor: Mapping[str, float], measured_ms: float) -> None:
    """Raise RuntimeError if products took less time than is possible: then the ceiling was measured wrongly."""
    if (least := floor["products_ms"]) > measured_ms:
        rate = f"{floor['gmac_per_second']:.4g} GMAC/s"
        raise RuntimeError(f"the benchmark is wrong: {measured_ms:.4g} ms for products that need {least:.4g} at {rate}")


@torch.inference_mode()
def time_kernels(
    calls: Mapping[str, Call], device: torch.device, inner: int, limit_s: float
) -> dict[str, dict[str, float]]:
    """Return `time_interleaved` of calls that are too short to be timed singly; each is made `inner` times in a row.

    On a GPU these are one CUDA graph, so the time is the device's, not that of launching.
    """
    repeated = {name: _repeated(call, device, inner) for name, call in calls.items()}
    rows = time_interleaved(repeated, device, limit_s=limit_s)
    return {
        name: {key: value / inner if key.endswith("_ms") else value for key, value in row.items()} | {"inner": inner}
        for name, row in rows.items()
    }


def _repeated(call: Call, device: torch.device, inner: int) -> Call:
    def run() -> None:
        for _ in range(inner):
            call()

    if device.type != "cuda":
        return run
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        run()  # libraries choose their kernels and workspaces before the capture, on its stream
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            run()
    torch.cuda.current_stream(device).wait_stream(side)
    return graph.replay
