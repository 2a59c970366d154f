"""`lightwam bench eval`: both ways run the same episodes to the same ends."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightwam.config.schema import EvalConfig, Recipe
from lightwam.evaluation import benchmark as module
from lightwam.evaluation.benchmark import bench_eval, halves, table


def test_both_ways_end_alike(tiny_recipe: Recipe) -> None:
    recipe = replace(tiny_recipe, eval=replace(tiny_recipe.eval, trials=3))
    result = bench_eval(recipe)
    assert json.loads(json.dumps(result)) == result, "plain JSON values"
    assert result["same_outcomes"] and result["episodes"] == 6
    assert all(len(rows) == 2 and min(rows) > 0 for rows in result["seconds"].values())
    assert result["ratio"] == result["eval_s"] / result["every_step_s"]
    assert "episodes end alike" in table(result)


def test_the_turns_share_the_trials() -> None:
    def seeds(trials: int) -> list[list[int]]:
        turns = halves(EvalConfig(trials=trials, first_seed=7, replan=1, videos_per_task=2))
        assert not any(turn.videos_per_task for turn in turns)
        return [list(range(turn.first_seed, turn.first_seed + turn.trials)) for turn in turns]

    assert seeds(1) == [[7]]
    assert seeds(2) == [[7], [8]]
    assert seeds(5) == [[7, 8, 9], [10, 11]]


def test_other_disconnects_are_reported(tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights hardly succeed either way: it is by the actions that a look at something else shows."""
    drawn = module.by_evaluate

    def elsewhere(policy: Any, settings: EvalConfig, run: Path) -> Any:
        ends = drawn(policy, replace(settings, first_seed=settings.first_seed + 1), run)
        return {replace(trial, seed=trial.seed - 1): end for trial, end in ends.items()}

    monkeypatch.setattr(module, "by_evaluate", elsewhere)
    result = bench_eval(replace(tiny_recipe, eval=replace(tiny_recipe.eval, trials=1)))
    assert not result["same_outcomes"] and "DO NOT END ALIKE" in table(result)
