"""Devices by name, and running out of their memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lightwam.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """ "auto" (a GPU where there is one), "cpu" or "cuda" as this process's device; ConfigError when it is not here."""
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise ConfigError("no such device here", where="device", got=name,
                          expected="auto, cpu, or cuda on a machine that has it", next_step="--device cpu")  # fmt: skip
    if kind == "cpu":
        return torch.device("cpu")
    index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= count:
        raise ConfigError("more processes than GPUs", where="torchrun", got=f"process {index + 1} of this machine",
                          expected=f"at most {count}", next_step=f"--nproc-per-node {count}")  # fmt: skip
    return torch.device("cuda", index)


@contextmanager
def oom_as_config_error(what: str, next_step: str) -> Iterator[None]:
    """A device that runs out of memory inside raises ConfigError, saying during `what`, and what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError("the device ran out of memory", where=what, got=str(error).splitlines()[0],
                          expected="room for it", next_step=next_step) from error  # fmt: skip
