"""Choosing a device by name, what its compiler needs, and running out of its memory."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lightwam.errors import ConfigError
from lightwam.system.cpu import matmul_dtype

DEVICE_WIDE = threading.Lock()
"""held while a CUDA graph is captured, and by what concerns the whole device, such as `torch.cuda.empty_cache`: in a
process torch allows one capture at a time, and forbids that to every thread meanwhile"""
BFLOAT16_FROM = (8, 0)
"""compute capability, that of Ampere, from which on GPUs have units for bfloat16"""


def resolve_device(name: str) -> torch.device:
    """Return this process's device for "auto" (a GPU if there is one), "cpu" or "cuda".

    ConfigError when this machine does not have it.
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        what = "device must be auto, cpu, or cuda on a machine with a GPU"
        raise ConfigError(what, got=name, next_step="--device cpu")
    if kind == "cpu":
        return torch.device("cpu")
    index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= count:
        step = f"torchrun --nproc-per-node {count}"
        raise ConfigError(f"processes must be at most {count}, one per GPU", got=index + 1, next_step=step)
    return torch.device("cuda", index)


def use_gpu(device: torch.device, dtype: torch.dtype) -> None:
    """Make a GPU the current one of this thread, where Triton's kernels start; warn if `dtype` is slow on it.

    Nothing happens for a CPU.
    """
    if device.type != "cuda":
        return
    torch.cuda.set_device(device)
    if dtype == torch.bfloat16 and (capability := torch.cuda.get_device_capability(device)) < BFLOAT16_FROM:
        name, (major, minor) = torch.cuda.get_device_name(device), capability
        got = f"{name} of compute capability {major}.{minor}, which has no units for it"
        warnings.warn(f"bfloat16 is slow on {got}; float32 is faster (precision)", RuntimeWarning, stacklevel=2)


def check_compiler(device: torch.device, dtype: torch.dtype) -> None:
    """Raise ConfigError where torch.compile cannot work: on a CPU it needs a C++ compiler, on a GPU Triton and a C one.

    Nor can it where a CPU without units for bfloat16 computes in float32 (`cpu.fast_matmuls`).
    """
    if matmul_dtype(device, dtype) != str(dtype).removeprefix("torch."):
        what, step = "torch.compile needs units for bfloat16 on a CPU", "train.precision float32"
        raise ConfigError(what, where="train.compile", got="bfloat16 on a CPU without", next_step=step)
    needed = {"CC": ("gcc", "clang")} if device.type == "cuda" else {"CXX": ("g++", "clang++")}
    for variable, names in needed.items():
        given = shlex.split(os.environ.get(variable, ""))[:1]
        if not any(map(shutil.which, given or names)):
            what, step = "torch.compile needs a compiler", f"apt-get install g++, or set {variable} to another one"
            raise ConfigError(what, where="train.compile", got=f"no {' or '.join(given or names)}", next_step=step)
    if device.type == "cuda" and not importlib.util.find_spec("triton"):
        what, step = "torch.compile needs Triton on a GPU", "pip install triton"
        raise ConfigError(what, where="train.compile", got="none", next_step=step)


@contextmanager
def oom_as_config_error(what: str, next_step: str) -> Iterator[None]:
    """Turn an out-of-memory error into a ConfigError that says what was running and what to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        got = str(error).splitlines()[0]
        raise ConfigError("the device ran out of memory", where=what, got=got, next_step=next_step) from error
