"""How often experts succeed: counted on evaluation's seeds, refused tasks told, dead workers replaced."""

from dataclasses import replace
from typing import Any

import pytest
from in_here import InHere

from lightwam.config.schema import Recipe
from lightwam.errors import SimulatorError
from lightwam.evaluation.expert_check import ExpertWorker, check_experts
from lightwam.sim import registry
from lightwam.sim.simulator import Trial


@pytest.fixture
def in_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightwam.system.workers.Workers", InHere)


def quiet(line: str) -> None:
    """What is said is not of interest."""


def test_successes_are_counted_on_evaluations_seeds(
    tiny_recipe: Recipe, in_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    make = registry.make_expert

    def lazy(config: Any, simulator: Any) -> Any:
        expert = make(config, simulator)
        if simulator.task == "blue" and len(seeds) == 4:
            monkeypatch.setattr(expert, "action", lambda: 0 * make(config, simulator).action())
        return expert

    monkeypatch.setattr(registry, "make_expert", lazy)
    monkeypatch.setattr(ExpertWorker, "__call__", _noting(ExpertWorker.__call__, seeds))
    rows = check_experts(replace(tiny_recipe, eval=replace(tiny_recipe.eval, trials=3)), quiet)
    first = tiny_recipe.eval.first_seed
    assert seeds == [first, first + 1, first + 2] * 2
    assert rows["red"]["successes"] == rows["red"]["trials"] == 3 and rows["red"]["failed"] == []
    assert 0 < rows["red"]["steps"] < 40 and rows["red"]["interval_95"][1] == pytest.approx(1)
    assert rows["blue"]["successes"] == 2 and rows["blue"]["failed"] == [first + 1]


def _noting(call: Any, seeds: list[int]) -> Any:
    def noted(self: ExpertWorker, trial: Trial) -> Any:
        end = call(self, trial)
        seeds.append(trial.seed)
        return end

    return noted


def test_a_task_without_an_expert_is_refused(
    tiny_recipe: Recipe, in_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(config: Any, simulator: Any) -> Any:
        raise SimulatorError("no expert for this task", where=simulator.task)

    monkeypatch.setattr(registry, "make_expert", none)
    assert check_experts(tiny_recipe, quiet) == {
        task: {"refused": "no expert for this task"} for task in ("red", "blue")
    }


def test_progress_is_printed_before_an_error(
    tiny_recipe: Recipe, in_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, Any] = {}
    call = ExpertWorker.__call__

    def breaks(self: ExpertWorker, trial: Trial) -> Any:
        if trial.task == "blue":
            raise SimulatorError("broken")
        return call(self, trial)

    monkeypatch.setattr(ExpertWorker, "__call__", breaks)
    with pytest.raises(SimulatorError, match="broken"):
        check_experts(tiny_recipe, quiet, lambda task, row: shown.update({task: row["successes"]}))
    assert shown == {"red": 2}


def test_simulators_run_in_worker_processes(tiny_recipe: Recipe) -> None:
    said: list[str] = []
    rows = check_experts(replace(tiny_recipe, eval=replace(tiny_recipe.eval, workers=2)), said.append)
    assert {task: row["successes"] for task, row in rows.items()} == {"red": 2, "blue": 2}
    assert said[-1].startswith("check 4/4")
