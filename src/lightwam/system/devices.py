"""Choosing a device by name, and running out of its memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lightwam.errors import ConfigError


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


@contextmanager
def oom_as_config_error(what: str, next_step: str) -> Iterator[None]:
    """Turn an out-of-memory error into a ConfigError that says what was running and what to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        got = str(error).splitlines()[0]
        raise ConfigError("the device ran out of memory", where=what, got=got, next_step=next_step) from error
