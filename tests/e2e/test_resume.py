"""Killed in the middle and started again: the same bits as never killed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lightwam.config.schema import Recipe
from lightwam.policy import run_directory
from lightwam.training.train import train

STEPS = 120


def recipe_of(tiny: Any) -> Recipe:
    return replace(tiny.recipe, train=replace(tiny.recipe.train, steps=STEPS, save_every=10))


def command(recipe: Recipe, dataset: Path, run: Path) -> list[str]:
    """`lightwam train point`, told every setting of `recipe` that is not the point recipe's own."""
    settings = {
        "collect.demos-per-task": recipe.collect.demos_per_task, "collect.workers": recipe.collect.workers,
        "eval.trials": recipe.eval.trials, "eval.workers": recipe.eval.workers,
        **{f"train.{name.replace('_', '-')}": getattr(recipe.train, name) for name in (
            "steps", "batch_size", "warmup_steps", "log_every", "save_every", "ema_decay", "shift_pixels")},
    }  # fmt: skip
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "lightwam", "train", "point", "--dataset", str(dataset), "--run", str(run), *options]


def test_sigkill_in_the_middle_costs_nothing_but_time(tiny: Any, tmp_path: Path) -> None:
    recipe, run, whole = recipe_of(tiny), tmp_path / "killed", tmp_path / "whole"
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    words = command(recipe, tiny.dataset, run)
    process = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    # between two checkpoints, so that there is work to lose
    while process.poll() is None and max(logged(run), default=0) < 25:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    _, told = process.communicate()
    assert process.returncode == -signal.SIGKILL, told
    saved = run_directory.steps(run)
    assert 0 < saved[-1] < STEPS

    again = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"resuming at step {saved[-1]}" in again.stdout
    train(recipe, tiny.dataset, whole, say=lambda line: None)

    assert logged(run) == list(range(1, STEPS + 1))
    assert losses(run) == losses(whole)
    killed, unbroken = run_directory.load(run), run_directory.load(whole)
    assert killed.step == unbroken.step == STEPS
    assert killed.ema is not None
    assert unbroken.ema is not None
    for one, other in ((killed.model, unbroken.model), (killed.ema, unbroken.ema)):
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
    for one, other in zip(*(saved.training["optimizer"] for saved in (killed, unbroken)), strict=True):
        assert all(
            torch.equal(one["state"][i][name], state[name]) for i, state in other["state"].items() for name in state
        )
    assert (run / "recipe.json").read_bytes() == (whole / "recipe.json").read_bytes()


def logged(run: Path) -> list[int]:
    """The steps in the log; the last line may be half written."""
    if not (run / "log.jsonl").exists():
        return []
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
