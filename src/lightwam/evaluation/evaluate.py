"""Closed loop: a policy drives simulators on seeds that its training never saw, and is counted.

Simulators run in processes of their own (rollouts.py) and send what they see; the policy answers whoever waits, in one
batch. Every episode is a line of episodes.jsonl as soon as it is over, with all that was measured on it, so an
interrupted evaluation goes on where it stopped, and so does its clock. An episode whose worker dies is begun again in
another, to the same end, as its seed and its actions decide it. The actions are kept too: a video is made afterwards
by playing them again, which is exact, so no episode is slowed down by being filmed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32

from lightwam.config.checks import check_simulation
from lightwam.config.schema import EvalConfig, Recipe, SimConfig, with_simulator
from lightwam.config.strict_json import to_dict
from lightwam.errors import ConfigError
from lightwam.evaluation.episodes import open_episodes, read_episodes, task_files
from lightwam.evaluation.rollouts import FilmJob, SimulatorWorker, StepJob, StepResult, Video
from lightwam.evaluation.statistics import wilson
from lightwam.policy import run_directory
from lightwam.policy.policy import Policy
from lightwam.sim import registry
from lightwam.system.files import append_line, explain_disk_errors, replace_file, write_file
from lightwam.system.machine import versions
from lightwam.system.progress import Progress
from lightwam.system.workers import (
    DeathCounter,
    PoolFactory,
    WorkerDied,
    WorkerPool,
    Workers,
    interrupt_as_flag,
    require_main_guard,
)
from lightwam.types import Observation

SimulatorPool = WorkerPool[StepJob | FilmJob, StepResult | Video]


@runtime_checkable
class EvaluablePolicy(Protocol):
    """What can be evaluated: a `Policy`, a server's (remote.py), or one of your own."""

    @property
    def recipe(self) -> Recipe:
        """Whose simulator and settings hold where no others are given."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """What a result says of it, plain values: episodes of one folder are of one candidate."""
        ...

    def check_evaluation(self, sim: SimConfig, settings: EvalConfig) -> None:
        """ConfigError where it cannot be evaluated so."""
        ...

    def act_batch(self, observations: Sequence[Observation]) -> Float32[np.ndarray, "B H A"]:
        """A chunk of actions in robot units for each of several robots."""
        ...


def evaluate(
    run: Path | str,
    settings: EvalConfig | None = None,
    *,
    sim: SimConfig | None = None,
    policy: EvaluablePolicy | None = None,
    folder: str = "eval",
    sentences: Mapping[str, str] | None = None,
    pool_factory: PoolFactory | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Evaluate a policy and write RUN/`folder`/result.json; returns what is in it.

    `settings` and `sim` replace the recipe's. `policy` is the run's, `Policy.load(run, device="auto")`, unless one is
    given: another step, the engine, or any `EvaluablePolicy`, for which `run` need be no run. `sentences` gives tasks
    another instruction than their own, to see whether the policy reads it. `pool_factory` runs the simulators elsewhere
    than in processes of this machine. Episodes that are there already are not run again. Raises ConfigError when more
    steps would be executed than were supervised (or than a chunk has), CheckpointError when the folder holds an
    evaluation under other settings or a broken file, SimulatorError when an episode ends its worker again and again,
    whatever the policy raises, and KeyboardInterrupt after Ctrl-C, with every finished episode kept. ConfigError in a
    script without `if __name__ == "__main__":`, because every worker process would run it again.

    A simulator version that its adapter was not tested with is reported to `say` and in the result's "warnings".

    `latency_ms` is of every answer of every episode, whether it was asked for alone or in a batch. `wall_seconds` adds
    up over attempts; of a killed one it counts up to the last episode that it finished.
    """
    began, run = time.perf_counter(), Path(run)
    if pool_factory is None and (settings is None or settings.workers):
        require_main_guard()  # before a policy is loaded
    policy = policy or Policy.load(run, device="auto")
    recipe = with_simulator(policy.recipe, sim or policy.recipe.sim, settings or policy.recipe.eval)
    check_simulation(recipe.sim, recipe.eval)
    policy.check_evaluation(recipe.sim, recipe.eval)
    warnings = registry.version_warnings(recipe.sim.name)
    for warning in warnings:
        say(f"eval: {warning}")
    place = run / folder
    protocol = describe(recipe, policy, sentences or {})
    done = open_episodes(place, protocol)
    wanted = [(task, recipe.eval.first_seed + i) for i in range(recipe.eval.trials) for task in recipe.sim.tasks]
    num_missing = sum(key not in done for key in wanted)
    whole = not num_missing and (place / "result.json").exists()  # its clock has stopped
    began -= max((row["wall_seconds"] for row in done.values()), default=0.0)
    threads = torch.get_num_threads()
    if pool_factory is None:
        torch.set_num_threads(1)  # the simulators have the other cores
    try:
        with (pool_factory or Workers)(
            min(recipe.eval.workers, 1 + num_missing), SimulatorWorker(recipe.sim)
        ) as players:
            drive = _Drive(policy, recipe, place, sentences or {}, players, began, DeathCounter("eval", say))
            stopped = drive.run(wanted, done, say)
            if not stopped:
                _film(recipe, place, players, drive.deaths, say)
    finally:
        torch.set_num_threads(threads)
    if stopped:
        say(f"eval: stopped; finished episodes are safe in {place}, the same command goes on")
        raise KeyboardInterrupt
    episodes = list(read_episodes(place).values())
    timed = percentiles([milliseconds for row in episodes for milliseconds in row["infer_ms"]])
    seconds = {"total": time.perf_counter() - began}
    if whole:
        seconds = run_directory.read_json(place / "result.json")["wall_seconds"]
    result = summary(episodes, recipe) | {"protocol": protocol, "latency_ms": timed, "wall_seconds": seconds}
    if warnings:
        result["warnings"] = list(warnings)
    run_directory.write_json(place / "result.json", result)
    return result


@dataclass
class _RunningEpisode:
    task: str
    seed: int
    began: float
    actions: list[np.ndarray] = field(default_factory=list)
    infer_ms: list[float] = field(default_factory=list)


@dataclass
class _Drive:
    """The closed loop: whoever plays, whoever waits for actions, and what is over."""

    policy: EvaluablePolicy
    recipe: Recipe
    place: Path
    sentences: Mapping[str, str]
    players: SimulatorPool
    began: float
    """when the evaluation's clock stood at 0"""
    deaths: DeathCounter
    running: dict[int, _RunningEpisode] = field(default_factory=dict)
    """by seat"""
    last: dict[int, str] = field(default_factory=dict)
    """the task that a seat played last"""

    def run(
        self,
        wanted: Sequence[tuple[str, int]],
        done: Mapping[tuple[str, int], Mapping[str, Any]],
        say: Callable[[str], None],
    ) -> bool:
        """Run every wanted episode that is not done; True when Ctrl-C came first."""
        todo = [key for key in wanted if key not in done]
        over = [done[key]["success"] for key in wanted if key in done]
        with (
            interrupt_as_flag() as interrupt,
            Progress("eval", len(wanted), done=len(over), unit="ep", say=say) as progress,
        ):
            self._begin(todo)
            while (todo or self.running) and not interrupt.pressed:
                waiting: list[tuple[int, Observation]] = []
                for job, answer in self.players.answers(timeout_seconds=0.2):
                    assert isinstance(job, StepJob) and not isinstance(answer, Video)
                    if isinstance(answer, WorkerDied):
                        self.deaths.note(job, answer)
                        episode = self.running.pop(job.slot)
                        todo.insert(0, (episode.task, episode.seed))
                    elif answer.observation is not None:
                        waiting.append((job.slot, answer.observation))
                    else:
                        self._finish(self.running.pop(job.slot), answer)
                        over.append(answer.success)
                        progress.advance(f"{sum(over)} of {len(over)} succeeded")
                self._begin(todo)  # before the others are answered: a reset takes long
                if waiting:
                    self._act(waiting)
        return interrupt.pressed and bool(todo or self.running)

    def _begin(self, todo: list[tuple[str, int]]) -> None:
        """An episode off `todo` for every seat that has none: of the task that it played last, or that nobody plays.

        Some simulators take seconds to load another task.
        """
        free = [slot for slot in self.players.idle if slot not in self.running]
        for slot in free[: len(todo)]:
            busy = {other.task for other in self.running.values()}
            rank = [(task != self.last.get(slot), task in busy) for task, _ in todo]
            task, seed = todo.pop(rank.index(min(rank)))
            self.last[slot] = task
            self.running[slot] = _RunningEpisode(task, seed, time.perf_counter())
            self.players.submit(StepJob(slot, task, seed, None), slot)

    def _act(self, waiting: Sequence[tuple[int, Observation]]) -> None:
        """Answer all who wait, in one batch."""
        asked = [
            replace(seen, instruction=self.sentences.get(self.running[slot].task, seen.instruction))
            for slot, seen in waiting
        ]
        asked_at, replan = time.perf_counter(), self.recipe.eval.replan
        chunks = self.policy.act_batch(asked)[:, :replan]
        infer_ms = 1000 * (time.perf_counter() - asked_at)
        if chunks.shape[1] < replan:
            raise ConfigError("the policy's chunks are shorter than what would be executed of them",
                              where="eval.replan", got=replan, expected=f"at most {chunks.shape[1]}")  # fmt: skip
        for (slot, _), chunk in zip(waiting, chunks, strict=True):
            episode = self.running[slot]
            episode.actions.extend(chunk)
            episode.infer_ms.append(round(infer_ms, 3))
            self.players.submit(StepJob(slot, episode.task, episode.seed, chunk), slot)

    def _finish(self, episode: _RunningEpisode, seen: StepResult) -> None:
        name = task_files(self.recipe.sim.tasks)[episode.task]
        actions = np.stack(episode.actions[: seen.steps])
        with replace_file(self.place / "actions" / f"{name}-{episode.seed}.npy") as beside, beside.open("wb") as file:
            np.save(file, actions)
        now = time.perf_counter()
        row = {
            "task": episode.task,
            "seed": episode.seed,
            "success": seen.success,
            "steps": seen.steps,
            "steps_to_success": seen.steps if seen.success else None,
            "seconds": now - episode.began,
            "wall_seconds": now - self.began,
            "infer_ms": episode.infer_ms,
            "video": None,
        }
        append_line(self.place / "episodes.jsonl", json.dumps(row))


def _film(
    recipe: Recipe, place: Path, players: SimulatorPool, deaths: DeathCounter, say: Callable[[str], None]
) -> None:
    """Videos of each task's first successes and first failures, `videos_per_task` of either."""
    episodes, names = read_episodes(place), task_files(recipe.sim.tasks)
    jobs: list[FilmJob] = []
    for task in recipe.sim.tasks:
        for success, outcome in ((True, "success"), (False, "failure")):
            seeds = sorted(seed for (name, seed), row in episodes.items() if name == task and row["success"] == success)
            for seed in seeds[: recipe.eval.videos_per_task]:
                stem = f"{names[task]}-{seed}"
                episodes[task, seed]["video"] = video = f"videos/{stem}-{outcome}.mp4"
                if not (place / video).exists():
                    jobs.append(FilmJob(task, seed, np.load(place / "actions" / f"{stem}.npy")))
    with explain_disk_errors(place / "videos"):
        (place / "videos").mkdir(exist_ok=True)
    num_left = len(jobs)
    if num_left:
        say(f"eval: filming {num_left} episodes")
    while num_left:
        for slot in players.idle[: len(jobs)]:
            players.submit(jobs.pop(0), slot)
        for job, answer in players.answers(timeout_seconds=0.2):
            assert isinstance(job, FilmJob) and not isinstance(answer, StepResult)
            if isinstance(answer, WorkerDied):
                deaths.note(job, answer)
                jobs.append(job)
            else:
                write_file(place / episodes[job.task, job.seed]["video"], answer.mp4)
                num_left -= 1
    write_file(place / "episodes.jsonl", "".join(json.dumps(row) + "\n" for row in episodes.values()))


def describe(recipe: Recipe, policy: EvaluablePolicy, sentences: Mapping[str, str]) -> dict[str, Any]:
    """Every constant that a success rate depends on: two results compare only if these agree."""
    return {
        "sim": to_dict(recipe.sim),
        "constants": registry.make_simulator(recipe.sim, recipe.sim.tasks[0]).constants,
        "eval": {
            key: value for key, value in to_dict(recipe.eval).items() if key not in ("workers", "videos_per_task")
        },
        **policy.identity(),
        "sentences": dict(sentences),
        "success": "at any control step",
        "versions": versions(),
    }


def summary(episodes: Sequence[Mapping[str, Any]], recipe: Recipe) -> dict[str, Any]:
    """Successes with Wilson's 95 % interval, in all and by task."""
    return _rate(episodes) | {
        "tasks": {
            task: _rate([row for row in episodes if row["task"] == task])
            | {"instruction": registry.make_simulator(recipe.sim, task).instruction}
            for task in recipe.sim.tasks
        }
    }


def _rate(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    won = sum(row["success"] for row in episodes)
    return {"successes": won, "trials": len(episodes), "interval_95": wilson(won, len(episodes))}


def percentiles(milliseconds: Sequence[float]) -> dict[str, float] | None:
    """p50, p95 and p99; None when nothing was timed (every episode was there already)."""
    if not milliseconds:
        return None
    values = np.percentile(milliseconds, (50, 95, 99))
    return {name: float(value) for name, value in zip(("p50", "p95", "p99"), values, strict=True)}
