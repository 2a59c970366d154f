"""How often scripted experts solve their tasks: what demonstrations can be had, before they are collected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightwam.config.schema import Recipe, SimConfig
from lightwam.errors import SetupError, SimulatorError
from lightwam.evaluation.statistics import wilson
from lightwam.sim import registry
from lightwam.sim.simulator import Simulator, Trial
from lightwam.system.progress import Progress
from lightwam.system.workers import DeathCounter, PoolFactory, WorkerDied, Workers, interrupt_as_flag


@dataclass(frozen=True)
class Ending:
    """A worker's answer."""

    success: bool
    steps: int
    refused: str = ""
    """why there is no expert"""


@dataclass
class Experts:
    """Runs in a worker; keeps the simulator of its last task."""

    sim: SimConfig
    simulators: dict[str, Simulator] = field(default_factory=dict)

    def __call__(self, trial: Trial) -> Ending:
        """One episode, undisturbed and unseen."""
        if trial.task not in self.simulators:
            for other in self.simulators.values():
                other.close()
            self.simulators = {trial.task: registry.make_simulator(self.sim, trial.task)}
        simulator = self.simulators[trial.task]
        simulator.reset(trial.seed)
        try:
            expert = registry.make_expert(self.sim, simulator)
        except SetupError:
            raise
        except SimulatorError as error:
            return Ending(False, 0, error.what)
        for step in range(self.sim.max_steps):
            outcome = simulator.step(expert.action())
            if outcome.success or outcome.ended:
                return Ending(outcome.success, step + 1)
        return Ending(False, self.sim.max_steps)


def check_experts(
    recipe: Recipe,
    say: Callable[[str], None] = print,
    show: Callable[[str, dict[str, Any]], None] | None = None,
    pool_factory: PoolFactory | None = None,
) -> dict[str, dict[str, Any]]:
    """Task -> successes, trials, Wilson's 95 % interval, mean steps to success, and seeds that failed.

    On the seeds that evaluation would use, `recipe.eval.trials` a task, in `recipe.eval.workers` processes. A task that
    has no expert has "refused" instead. `show` is given each task's row as soon as it is whole, so that an end before
    the end loses little. Raises KeyboardInterrupt after Ctrl-C, and SimulatorError when the simulator cannot run.
    """
    for warning in registry.version_warnings(recipe.sim.name):
        say(f"check: {warning}")
    first, trials = recipe.eval.first_seed, recipe.eval.trials
    todo = [Trial(task, first + i) for task in recipe.sim.tasks for i in range(trials)]
    running: set[Trial] = set()
    ends: dict[Trial, Ending] = {}
    rows: dict[str, dict[str, Any]] = {}
    deaths, total = DeathCounter("check", say), len(todo)
    with (
        interrupt_as_flag() as interrupt,
        Progress("check", total, unit="ep", say=say) as progress,
        (pool_factory or Workers)(min(recipe.eval.workers, total), Experts(recipe.sim)) as workers,
    ):
        while todo or running:
            if interrupt.pressed:
                raise KeyboardInterrupt
            for slot in workers.idle[: len(todo)]:
                running.add(todo[0])
                workers.submit(todo.pop(0), slot)
            for trial, answer in workers.answers(timeout_seconds=0.2):
                running.discard(trial)
                if isinstance(answer, WorkerDied):
                    deaths.note(trial, answer)
                    todo.insert(0, trial)
                else:
                    ends[trial] = answer
                    if answer.refused:
                        todo = [other for other in todo if other.task != trial.task]
                        progress.total = len(ends) + len(todo) + len(running)
                    progress.advance(f"{sum(end.success for end in ends.values())} of {len(ends)} succeeded")
                    if all(other.task != trial.task for other in (*todo, *running)):
                        rows[trial.task] = _row({t.seed: end for t, end in ends.items() if t.task == trial.task})
                        if show is not None:
                            show(trial.task, rows[trial.task])
    return {task: rows[task] for task in recipe.sim.tasks}


def _row(ends: Mapping[int, Ending]) -> dict[str, Any]:
    if refused := next((end.refused for end in ends.values() if end.refused), ""):
        return {"refused": refused}
    steps = [end.steps for end in ends.values() if end.success]
    return {
        "successes": len(steps),
        "trials": len(ends),
        "interval_95": wilson(len(steps), len(ends)),
        "steps": sum(steps) / len(steps) if steps else None,
        "failed": sorted(seed for seed, end in ends.items() if not end.success),
    }
