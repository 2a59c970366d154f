"""Two processes train together under torchrun, with gloo on the CPU: as one would, and on from where one was."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightwam.config.schema import Recipe, SourceConfig
from lightwam.model.light_wam import dtype_of
from lightwam.policy import run_directory
from lightwam.training.precompute import make_cache
from lightwam.training.train import train

SCRIPT = """
import sys
from pathlib import Path
from lightwam.model.light_wam import dtype_of
from lightwam.policy import run_directory
from lightwam.training.train import train
recipe = run_directory.read_recipe(Path(sys.argv[1]))
stop = int(sys.argv[5]) if len(sys.argv) > 5 else None
dataset = Path(sys.argv[2]) if sys.argv[2] else None
train(recipe, dataset, Path(sys.argv[3]), stop_after=stop, device="cpu", parallel=sys.argv[4])
"""


def together(recipe: Recipe, dataset: Path | None, run: Path, parallel: str, stop_after: int | None = None) -> str:
    """Train in two processes, on the recipe's sources without a dataset; returns what they said."""
    plan = run.with_name(f"{run.name}-recipe")
    run_directory.start_run(plan, recipe)
    arguments = [str(plan), str(dataset or ""), str(run), parallel, *([] if stop_after is None else [str(stop_after)])]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = run.with_name("script.py")
    script.write_text(SCRIPT)
    done = subprocess.run(
        [*torchrun, str(script), *arguments], capture_output=True, text=True, timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def losses(run: Path) -> list[list[float]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [[row["loss"], row["loss_action"], row["loss_video"], row["grad_norm"]] for row in rows]


def difference(one: Path, other: Path) -> float:
    a, b = run_directory.load(one).model, run_directory.load(other).model
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("parallel", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_frozen_weights_and_masters_are_shared_too(
    paper_recipe: Recipe, tiny_once: Any, tmp_path: Path, parallel: str
) -> None:
    """LoRA over a frozen backbone in bfloat16, from a cache that two processes made."""
    data = tmp_path / "data"
    shutil.copytree(tiny_once.dataset, data)
    make_cache(paper_recipe, data, device="cpu", say=lambda line: None)
    recipe = replace(paper_recipe, train=replace(paper_recipe.train, steps=2, save_every=1))
    alone, both = tmp_path / "alone", tmp_path / "both"
    train(recipe, data, alone, device="cpu", say=lambda line: None)
    together(recipe, data, both, parallel, stop_after=1)
    together(recipe, data, both, parallel)
    torch.testing.assert_close(torch.tensor(losses(both)), torch.tensor(losses(alone)), rtol=0.03, atol=0.0)
    frozen = [run_directory.read_tensors(run / run_directory.FROZEN) for run in (alone, both)]
    assert frozen[0].keys() == frozen[1].keys()
    for name, value in frozen[0].items():
        assert value.dtype == dtype_of(name, torch.bfloat16)
        assert torch.equal(value, frozen[1][name])
    began, ended = (run_directory.load(both, step).model for step in (1, 2))
    assert all(value.dtype == torch.float32 for value in ended.values())
    assert all((ended[name] != began[name]).any() for name in ended if "lora_" in name)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_are_as_one(tiny: Any, tmp_path: Path, parallel: str) -> None:
    recipe = replace(
        tiny.recipe, train=replace(tiny.recipe.train, steps=4, muon_learning_rate=0.0, micro_batch=1, save_every=2)
    )
    alone, both, parts = tmp_path / "alone", tmp_path / "both", tmp_path / "parts"
    train(recipe, tiny.dataset, alone, device="cpu", say=lambda line: None)
    said = together(recipe, tiny.dataset, both, parallel)
    assert said.count("train 4/4") == 1, "one of them talks"
    torch.testing.assert_close(torch.tensor(losses(both)), torch.tensor(losses(alone)), rtol=1e-4, atol=1e-5)
    assert difference(alone, both) < 1e-4

    # stopped and gone on with, it is the same to the bit; and one process can go on with what two began
    together(recipe, tiny.dataset, parts, parallel, stop_after=2)
    begun = json.loads((parts / "checkpoints" / "step_00000002" / "meta.json").read_text())
    assert begun["step"] == 2
    together(recipe, tiny.dataset, parts, parallel)
    assert difference(both, parts) == 0.0
    assert losses(both) == losses(parts)
    (parts / "checkpoints" / "step_00000004").rename(tmp_path / "gone")
    train(recipe, tiny.dataset, parts, device="cpu", say=lambda line: None)
    assert difference(alone, parts) < 1e-4


def test_mixed_sources_in_two_processes_are_as_in_one(tiny: Any, tmp_path: Path) -> None:
    """Demonstrations and episodes whose actions are not learnt: stopped, resumed by two processes and by one."""
    sources = (
        SourceConfig(str(tiny.dataset), weight=2.0, episodes=(0, 1, 2)),
        SourceConfig(str(tiny.dataset), actions="none", episodes=(3, 4)),
    )
    settings = replace(tiny.recipe.train, steps=4, muon_learning_rate=0.0, micro_batch=1, save_every=2)
    recipe = replace(tiny.recipe, train=settings, sources=sources)
    alone, both, parts = tmp_path / "alone", tmp_path / "both", tmp_path / "parts"
    train(recipe, None, alone, device="cpu", say=lambda line: None)
    together(recipe, None, both, "ddp")
    torch.testing.assert_close(torch.tensor(losses(both)), torch.tensor(losses(alone)), rtol=1e-4, atol=1e-5)
    assert difference(alone, both) < 1e-4
    together(recipe, None, parts, "ddp", stop_after=2)
    together(recipe, None, parts, "ddp")
    assert difference(both, parts) == 0.0 and losses(both) == losses(parts)
    (parts / "checkpoints" / "step_00000004").rename(tmp_path / "gone")
    train(recipe, None, parts, device="cpu", say=lambda line: None)
    assert difference(alone, parts) < 1e-4
