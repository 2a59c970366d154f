"""training/checkpoint_writer.py: what is written is what the tensors were, and an error is not lost."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from lightwam.errors import CheckpointError
from lightwam.policy import run_directory
from lightwam.policy.run_directory import Checkpoint
from lightwam.training.checkpoint_writer import CheckpointWriter
from lightwam.training.distributed import World
from lightwam.types import Rank

MAIN, OTHER = World(torch.device("cpu")), World(torch.device("cpu"), Rank(1, 2))


def checkpoint_of(step: int) -> Checkpoint:
    weights = {"weight": torch.full((3,), float(step))}
    return Checkpoint(step, weights, None, {"optimizer": [{"moment": torch.full((3,), float(step))}], "seconds": 1.0})


def test_tensors_may_change_as_soon_as_save_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, save = threading.Event(), run_directory.save

    def slow(*arguments: Any) -> Path:
        assert go.wait(30)
        return save(*arguments)

    monkeypatch.setattr(run_directory, "save", slow)
    writer, given = CheckpointWriter(tmp_path, MAIN), checkpoint_of(3)
    writer.save(given)
    writer.check()  # does not wait
    assert run_directory.steps(tmp_path) == []
    given.model["weight"].zero_()
    given.training["optimizer"][0]["moment"].zero_()
    go.set()
    writer.close()
    saved = run_directory.load(tmp_path)
    assert saved.model["weight"].tolist() == [3, 3, 3]
    assert saved.training["optimizer"][0]["moment"].tolist() == [3, 3, 3]


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, OTHER)
    writer.save(checkpoint_of(1))
    writer.close()
    assert run_directory.steps(tmp_path) == []


def test_an_error_of_a_write_is_raised_later_unless_there_is_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Path:
        raise CheckpointError("the disk is full", where=tmp_path)

    monkeypatch.setattr(run_directory, "save", full)
    for late in ("check", "wait", "close"):
        writer = CheckpointWriter(tmp_path, MAIN)
        writer.save(checkpoint_of(1))
        assert writer._pending is not None
        writer._pending.exception()
        with pytest.raises(CheckpointError, match="disk is full"):
            getattr(writer, late)()
        writer.close()  # told once
    writer = CheckpointWriter(tmp_path, MAIN)
    writer.save(checkpoint_of(1))
    writer.close(raises=False)
