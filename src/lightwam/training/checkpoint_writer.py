"""Checkpoints written by a thread while training goes on."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map_only

from lightwam.policy import run_directory
from lightwam.policy.run_directory import Checkpoint
from lightwam.training.distributed import World


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time; in the main process only.

    An error of a write, such as CheckpointError for a full disk, is raised by the next call of any method.
    """

    def __init__(self, run: Path, world: World) -> None:
        self.run, self.world = run, world
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[Path] | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Begin to write a checkpoint, after the one before is written. Its tensors may change afterwards."""
        self.wait()
        if not self.world.is_main:
            return
        if self.world.device.type == "cpu":  # else they were copied from the GPU
            parts = {name: _cloned(getattr(checkpoint, name)) for name in ("model", "ema", "training")}
            checkpoint = replace(checkpoint, **parts)
        self._pending = self._thread.submit(run_directory.save, self.run, checkpoint)

    def check(self) -> None:
        """Raise the error of a write that has failed; do not wait for one that is under way."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the write that is under way."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self, *, raises: bool = True) -> None:
        """Wait for the last write and end the thread; with `raises=False` its error is dropped for an earlier one."""
        try:
            with contextlib.nullcontext() if raises else contextlib.suppress(Exception):
                self.wait()
        finally:
            self._thread.shutdown()


def _cloned(tree: Any) -> Any:
    return tree_map_only(Tensor, lambda value: value.clone(), tree)
