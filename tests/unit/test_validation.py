"""training/validation.py: held-out episodes are never trained on, measured at every checkpoint, and choose the best."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightwam.config.schema import HeldOutConfig, Recipe
from lightwam.data.cache.frames import FrameCache
from lightwam.data.held_out import episode_sentences, held_out_episodes
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.loader import WindowLoader
from lightwam.errors import CheckpointError
from lightwam.evaluation.open_loop import evaluate_open_loop
from lightwam.model.light_wam import LightWAM
from lightwam.policy import run_directory
from lightwam.policy.policy import Policy
from lightwam.training.dataset import open_training_data
from lightwam.training.optimizer import learning_rate
from lightwam.training.train import train
from lightwam.training.validation import Validation

NAMES = {"policy", "hold", "repeat", "first", "first_hold", "first_repeat", "windows"}


def quiet(line: str) -> None:
    """What is said is not of interest."""


def holding_out(recipe: Recipe, **settings: Any) -> Recipe:
    return replace(recipe, held_out=HeldOutConfig(0.3), train=replace(recipe.train, **settings))


def held_out_of(recipe: Recipe, dataset: Path) -> tuple[LeRobotDataset, tuple[int, ...]]:
    data = LeRobotDataset(dataset)
    return data, held_out_episodes(episode_sentences(data), recipe.held_out.share)


def bits(run: Path, step: int) -> dict[str, bytes]:
    saved = run_directory.load(run, step)
    tensors = {**saved.model, **{f"ema {name}": value for name, value in (saved.ema or {}).items()}}
    states = {f"{i} {k} {name}": value for i, part in enumerate(saved.training["optimizer"])
              for k, state in part["state"].items() for name, value in state.items()}  # fmt: skip
    return {name: value.numpy().tobytes() for name, value in (tensors | states).items()}


@pytest.fixture(scope="module")
def held(tiny_once: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A run with held-out episodes, the steps at which its windows began, and what was said; do not change it."""
    starts, said = set[int](), list[str]()
    gather = WindowLoader._gather
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            WindowLoader,
            "_gather",
            lambda self, start, *marks: (starts.update(start.tolist()), gather(self, start, *marks))[1],
        )
        recipe, run = (
            holding_out(tiny_once.recipe, steps=30, save_every=10, log_every=4),
            tmp_path_factory.mktemp("held"),
        )
        train(recipe, tiny_once.dataset, run, say=said.append)
    yield recipe, run, starts, said


def test_no_window_of_a_held_out_episode_is_drawn(tiny_once: Any, held: Any) -> None:
    recipe, _, starts, _ = held
    data, episodes = held_out_of(recipe, tiny_once.dataset)
    assert 0 < len(episodes) < data.num_episodes
    theirs = {step for episode in episodes for step in range(*data.episode_start[episode : episode + 2])}
    assert not starts & theirs
    assert len(starts) > 0.3 * (data.num_frames - len(theirs))


def test_the_error_at_a_checkpoint_is_that_of_its_policy(tiny_once: Any, held: Any) -> None:
    """As the open-loop evaluation measures it, by other code, from the dataset's videos."""
    _, run, _, said = held
    for step in (20, 30):
        errors = run_directory.held_out_errors(run)[step]
        assert errors.keys() == NAMES and errors["windows"] <= 256
        result = evaluate_open_loop(run, policy=Policy.load(run, step), say=quiet)
        assert result["windows"] == errors["windows"]
        for name in ("policy", "hold", "repeat"):
            assert errors[name] == pytest.approx(result["overall"][name], rel=1e-4)
            first = "first" if name == "policy" else f"first_{name}"
            assert errors[first] == pytest.approx(result["first_step"][name], rel=1e-4)
        assert any(line.startswith(f"step {step}: held out {errors['policy']:.4g} (hold still") for line in said)
    rows = {row["step"]: row for row in map(json.loads, (run / "log.jsonl").read_text().splitlines())}
    assert sorted(rows) == sorted({*range(4, 30, 4), 10, 20, 30})
    assert rows[20]["held_out"] == run_directory.held_out_errors(run)[20]["policy"]
    logged = {name for name in rows[20] if name.startswith("held_out")}
    assert logged == {"held_out", *(f"held_out_{name}" for name in NAMES - {"policy", "windows"})}
    assert "held_out" not in rows[4] and rows[10].keys() == rows[30].keys()


def test_measuring_changes_no_bit_and_resuming_measures_the_same(
    tiny_once: Any, held: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run, _, _ = held
    with monkeypatch.context() as patch:
        patch.setattr(Validation, "measure", lambda self, weights, device: None)
        train(recipe, tiny_once.dataset, tmp_path / "unmeasured", say=quiet)
    assert bits(tmp_path / "unmeasured", 30) == bits(run, 30)
    assert run_directory.held_out_errors(tmp_path / "unmeasured") == {}
    torch.manual_seed(99)
    train(recipe, tiny_once.dataset, tmp_path / "parts", stop_after=10, say=quiet)
    train(recipe, tiny_once.dataset, tmp_path / "parts", say=quiet)
    assert bits(tmp_path / "parts", 30) == bits(run, 30)
    assert run_directory.held_out_errors(tmp_path / "parts")[30] == run_directory.held_out_errors(run)[30]


def test_only_the_pictures_that_the_policy_sees_are_read(
    tiny_once: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, read, video = holding_out(tiny_once.recipe, steps=1), set[int](), FrameCache.video
    monkeypatch.setattr(FrameCache, "video", lambda self, frame: (read.add(frame.shape[1]), video(self, frame))[1])
    cache, encoder = open_training_data(recipe, tiny_once.dataset, tmp_path / "run", quiet)
    validation = Validation.open(recipe, tmp_path / "run", cache, encoder, cache.sampling)
    assert validation is not None
    read.clear()
    validation.measure(LightWAM(recipe.model).state_dict(), torch.device("cpu"))
    assert read == {1}


def test_the_best_checkpoint_is_kept_and_acts(tiny_once: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, run, said = holding_out(tiny_once.recipe, steps=10, save_every=2), tmp_path / "run", list[str]()
    errors = iter([3.0, 1.0, 2.0, 1.0, 5.0])
    monkeypatch.setattr(
        Validation, "measure", lambda self, weights, device: dict.fromkeys(NAMES, 9.0) | {"policy": next(errors)}
    )
    train(recipe, tiny_once.dataset, run, say=said.append)
    assert run_directory.steps(run) == [4, 8, 10]
    assert run_directory.best_step(run) == run_directory.default_step(run) == Policy.load(run).step == 4
    assert Policy.load(run, 10).step == 10
    assert said[-1] == "best on held-out episodes is step 4: 1 (the newest, step 10: 5); it acts by default"
    train(holding_out(tiny_once.recipe, steps=10, save_every=2), tiny_once.dataset, run, say=said.append)
    done = "done: all 10 steps are trained; a larger --train.steps goes on"
    assert done in said, "training resumes at the newest, not at the best"


def test_without_held_out_episodes_the_newest_acts(tiny_once: Any) -> None:
    assert run_directory.best_step(tiny_once.run) is run_directory.best_line(tiny_once.run) is None
    assert run_directory.default_step(tiny_once.run) == Policy.load(tiny_once.run).step == 6


def test_a_run_is_extended(tiny: Any) -> None:
    longer = replace(tiny.recipe, train=replace(tiny.recipe.train, steps=9))
    train(longer, tiny.dataset, tiny.run, say=quiet)
    assert run_directory.steps(tiny.run)[-1] == 9 and run_directory.read_recipe(tiny.run).train.steps == 9
    rows = [json.loads(line) for line in (tiny.run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 10))
    for row in rows:
        settings = tiny.recipe.train if row["step"] <= 6 else longer.train
        assert row["learning_rate"] == pytest.approx(learning_rate(row["step"] - 1, settings))
    with pytest.raises(CheckpointError, match=r"train.steps must not be lowered[\s\S]*got: 6\s+expected: at least 9"):
        train(tiny.recipe, tiny.dataset, tiny.run, say=quiet)
    assert np.isfinite(rows[-1]["loss"])
