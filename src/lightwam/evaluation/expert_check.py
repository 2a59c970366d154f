"""How often scripted experts solve their tasks: whether demonstrations can be collected, before hours are spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightwam.config.schema import Recipe, SimConfig
from lightwam.errors import SetupError, SimulatorError
from lightwam.evaluation.statistics import success_rate
from lightwam.sim import registry
from lightwam.sim.simulator import Simulator, Trial
from lightwam.system.jobs import job_runner
from lightwam.system.progress import Progress
from lightwam.system.workers import PoolFactory


@dataclass(frozen=True)
class ExpertResult:
    """How an expert's episode ended."""

    success: bool
    steps: int
    refused: str = ""
    """why there is no expert"""


@dataclass
class ExpertWorker:
    """A worker that runs an expert's episode, undisturbed; it keeps the simulator of its last task."""

    sim: SimConfig
    simulators: dict[str, Simulator] = field(default_factory=dict)

    def __call__(self, trial: Trial) -> ExpertResult:
        """Run one episode."""
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
            return ExpertResult(False, 0, error.what)
        for step in range(self.sim.max_steps):
            outcome = simulator.step(expert.action())
            if outcome.success or outcome.ended:
                return ExpertResult(outcome.success, step + 1)
        return ExpertResult(False, self.sim.max_steps)


def check_experts(
    recipe: Recipe,
    say: Callable[[str], None] = print,
    show: Callable[[str, dict[str, Any]], None] | None = None,
    pool_factory: PoolFactory | None = None,
) -> dict[str, dict[str, Any]]:
    """Return task -> successes, trials, Wilson's 95 % interval, mean steps to success, and seeds that failed.

    Runs the seeds that an evaluation would use, `recipe.eval.trials` a task, in `recipe.eval.workers` processes of
    this machine unless `pool_factory` makes another pool. A task without an expert has "refused" instead. `show` gets
    each task's row as soon as it is complete, so that little is lost when the check is stopped. Raises
    KeyboardInterrupt after Ctrl-C, and SimulatorError when the simulator cannot run.
    """
    for warning in registry.version_warnings(recipe.simulation.name):
        say(f"check: {warning}")
    seeds = [recipe.eval.first_seed + i for i in range(recipe.eval.trials)]
    todo = [Trial(task, seed) for task in recipe.simulation.tasks for seed in seeds]
    unfinished = {task: set(seeds) for task in recipe.simulation.tasks}
    results: dict[Trial, ExpertResult] = {}
    rows: dict[str, dict[str, Any]] = {}
    num_workers = min(recipe.eval.workers, len(todo))
    with (
        Progress("check", len(todo), unit="ep", say=say) as progress,
        job_runner("check", ExpertWorker(recipe.simulation), num_workers, pool_factory, say) as jobs,
    ):
        for episode in jobs.run(todo):
            task, seed = episode.job.task, episode.job.seed
            results[episode.job] = episode.answer
            unfinished[task].remove(seed)
            if episode.answer.refused:
                unfinished[task] -= {other.seed for other in todo if other.task == task}
                todo[:] = [other for other in todo if other.task != task]
                progress.total = len(results) + sum(map(len, unfinished.values()))
            progress.advance(f"{sum(result.success for result in results.values())} of {len(results)} succeeded")
            if not unfinished[task]:
                rows[task] = _row({trial.seed: result for trial, result in results.items() if trial.task == task})
                if show is not None:
                    show(task, rows[task])
    return {task: rows[task] for task in recipe.simulation.tasks}


def _row(results: Mapping[int, ExpertResult]) -> dict[str, Any]:
    if refused := next((result.refused for result in results.values() if result.refused), ""):
        return {"refused": refused}
    steps = [result.steps for result in results.values() if result.success]
    return success_rate(len(steps), len(results)) | {
        "steps": sum(steps) / len(steps) if steps else None,
        "failed": sorted(seed for seed, result in results.items() if not result.success),
    }
