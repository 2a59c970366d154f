"""Closed loop: a policy acts in simulators on seeds that its training never saw, and its successes are counted.

Simulators run in worker processes (rollouts.py) and send observations; the policy answers all that wait, in one batch.
Every episode is a line of episodes.jsonl as soon as it is over, with everything measured in it, so an interrupted
evaluation resumes, and so does its clock. An episode whose worker dies begins again and ends the same way, because its
seed and its actions decide it. The actions are saved too: a video is made afterwards by executing them again, which is
exact, so filming slows no episode down.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from lightwam.config.checks import check_simulation
from lightwam.config.schema import EvalConfig, Recipe, SimConfig, with_simulator
from lightwam.config.strict_json import to_dict
from lightwam.errors import ConfigError
from lightwam.evaluation.episodes import EpisodeKey, open_episodes, read_episodes, task_files
from lightwam.evaluation.films import film
from lightwam.evaluation.rollouts import EpisodeJob, Waiting, at_reset, record_of, run_episodes, simulator_jobs
from lightwam.evaluation.seeds import evaluation_seeds
from lightwam.evaluation.statistics import success_rate
from lightwam.policy import run_directory
from lightwam.policy.policy import Policy
from lightwam.sim import registry
from lightwam.system.files import append_line, replace_file
from lightwam.system.jobs import Finished, JobRunner
from lightwam.system.machine import versions
from lightwam.system.progress import Progress, Say
from lightwam.system.timing import percentiles
from lightwam.system.workers import PoolFactory, require_main_guard
from lightwam.types import Observation

MEMBERS = ("recipe", "n_obs_steps", "identity", "check_evaluation", "act_batch")
"""of EvaluablePolicy"""


@runtime_checkable
class EvaluablePolicy(Protocol):
    """What can be evaluated: a `Policy`, a server's (remote_policy.py), or one of your own."""

    @property
    def recipe(self) -> Recipe:
        """Whose simulator and settings are used unless others are given."""
        ...

    @property
    def n_obs_steps(self) -> int:
        """Control steps that it acts on: 1 for the present alone, n for the n - 1 before as well (`history`)."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """Return plain values that tell it from other policies; the episodes of a folder share them."""
        ...

    def check_evaluation(self, sim: SimConfig, settings: EvalConfig) -> None:
        """Raise ConfigError if it cannot be evaluated with these settings."""
        ...

    def act_batch(self, observations: Sequence[Observation]) -> Float32[np.ndarray, "B H A"]:
        """Return a chunk of actions, in robot units, for each of several robots.

        Each observation has the `episode` and `step` of its robot. At step 0 an episode begins: a policy that keeps
        something between two calls keeps it by episode, and begins anew there.
        """
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
    say: Say = print,
) -> dict[str, Any]:
    """Evaluate a policy, write RUN/`folder`/result.json and return its content; finished episodes are not run again.

    An evaluation is extended by more `settings.trials`: only the missing episodes are run, and the result names the
    numbers of trials that it had before ("extended_from").

    `settings` and `sim` replace the recipe's. `policy` is `Policy.load(run, device="auto")` unless given: another step,
    the engine, or any `EvaluablePolicy`, for which `run` need not be a run. `sentences` gives tasks other instructions
    than their own, to test whether the policy reads them. Simulators run in processes of this machine unless
    `pool_factory` makes another pool. Versions of a simulator that its adapter was not tested with are reported to
    `say` and in the result's "warnings".

    The result's `latency_ms` covers every answer, alone or in a batch; `wall_seconds` adds up over attempts, of which a
    killed one counts up to the last episode that it finished.

    Raises ConfigError when more steps would be executed than were supervised (or than a chunk has), or in a script
    without a main guard, which every worker process would run again; CheckpointError when the folder holds an
    evaluation under other settings or a broken file; SimulatorError when an episode kills its worker again and again;
    whatever the policy raises; KeyboardInterrupt after Ctrl-C. All finished episodes are kept.
    """
    began, run = time.perf_counter(), Path(run)
    if pool_factory is None and (settings is None or settings.workers):
        require_main_guard()  # before a policy is loaded
    policy = policy or Policy.load(run, device="auto")
    require_members(policy)
    recipe = with_simulator(policy.recipe, sim or policy.recipe.simulation, settings or policy.recipe.eval)
    check_simulation(recipe.simulation, recipe.eval)
    policy.check_evaluation(recipe.simulation, recipe.eval)
    warnings = registry.version_warnings(recipe.simulation.name)
    for warning in warnings:
        say(f"eval: {warning}")
    protocol = describe(recipe, policy, sentences or {})
    seeds = evaluation_seeds(recipe, say, pool_factory)
    loop = ClosedLoop(policy, recipe, run / folder, sentences or {}, began, seeds)
    asked = {(episode.task, episode.seed) for episode in loop.episodes()} if "seeds" in protocol else None
    done, result_file = open_episodes(loop.folder, protocol, asked), loop.folder / "result.json"
    todo = [episode for episode in loop.episodes() if (episode.task, episode.seed) not in done]
    before, num_missing = run_directory.read_json(result_file) if result_file.exists() else {}, len(todo)
    if done and todo:
        say(f"eval: {len(done)} episodes are finished, {num_missing} are missing")
    loop.began -= max((row["wall_seconds"] for row in done.values()), default=0.0)
    num_workers = min(recipe.eval.workers, 1 + len(todo))
    observed = policy.n_obs_steps
    with simulator_jobs("eval", recipe.simulation, num_workers, pool_factory, loop.folder, say, observed) as jobs:
        loop.run(jobs, todo, done, say)
        film(jobs, recipe, loop.folder, say)
    episodes = list(read_episodes(loop.folder).values())
    infer_ms = [milliseconds for row in episodes for milliseconds in row["infer_ms"]]
    result = summary(episodes, recipe) | {"protocol": protocol, "latency_ms": percentiles(infer_ms) or None}
    result["wall_seconds"] = {"total": time.perf_counter() - loop.began}
    if before and not num_missing:
        result["wall_seconds"] = before["wall_seconds"]
    if extended_from := _extended_from(before, recipe.eval.trials):
        result["extended_from"] = extended_from
    result |= {"warnings": list(warnings)} if warnings else {}
    run_directory.write_json(result_file, result)
    return result


def require_members(policy: Any) -> None:
    """Raise ConfigError, naming what it lacks, unless a policy has the members of EvaluablePolicy."""
    if missing := [name for name in MEMBERS if name not in dir(policy)]:
        what, where = "a policy must have all members of EvaluablePolicy", type(policy).__name__
        raise ConfigError(what, where=where, got=f"no {', no '.join(missing)}")


@dataclass
class RunningEpisode:
    """What the policy has answered in an episode that is not over."""

    number: int
    """its `Observation.episode`"""
    instruction: str
    answers: list[tuple[np.ndarray, float]] = field(default_factory=list)
    """chunks, with their milliseconds"""


@dataclass
class ClosedLoop:
    """A policy that acts in simulators, and the folder that its episodes go to."""

    policy: EvaluablePolicy
    recipe: Recipe
    folder: Path
    sentences: Mapping[str, str]
    """task -> the instruction to give instead of its own"""
    began: float
    """when the evaluation's clock was at 0"""
    seeds: Mapping[str, Sequence[int]]
    """task -> the seeds of its episodes"""
    running: dict[EpisodeJob, RunningEpisode] = field(default_factory=dict)
    num_begun: int = field(default_factory=lambda: secrets.randbits(48))
    """number of the next episode; a server may have other clients, who count their own"""

    def episodes(self) -> list[EpisodeJob]:
        """Return all episodes of the evaluation, in the order in which they begin."""
        keys = ((task, seeds[i]) for i in range(self.recipe.eval.trials) for task, seeds in self.seeds.items())
        return [EpisodeJob(task, seed, at_reset(self.recipe.eval, seed)) for task, seed in keys]

    def run(
        self, jobs: JobRunner, todo: list[EpisodeJob], done: Mapping[EpisodeKey, Mapping[str, Any]], say: Say
    ) -> None:
        """Run the episodes `todo` and record each; `done` are those of earlier attempts."""
        outcomes = [done[key]["success"] for job in self.episodes() if (key := (job.task, job.seed)) in done]
        total = len(outcomes) + len(todo)
        with Progress("eval", total, done=len(outcomes), unit="ep", say=say) as progress:
            for finished in run_episodes(jobs, todo, self.act):
                self.record(finished)
                outcomes.append(finished.answer.success)
                progress.advance(f"{sum(outcomes)} of {len(outcomes)} succeeded")

    def act(self, waiting: Waiting) -> Float32[np.ndarray, "B replan A"]:
        """Return the policy's actions for all episodes that wait for some."""
        observations = []
        for episode, result in waiting:
            assert result.observation is not None
            if result.steps == 0:  # the first observation, also after a worker died
                told_sentence = self.sentences.get(episode.task, result.observation.instruction)
                self.running[episode] = RunningEpisode(self.num_begun, told_sentence)
                self.num_begun += 1
            told: dict[str, Any] = {"episode": self.running[episode].number}
            if episode.task in self.sentences:
                told["instruction"] = self.sentences[episode.task]
            history = tuple(replace(earlier, **told) for earlier in result.observation.history)
            observations.append(replace(result.observation, **told, history=history))
        asked_at, replan = time.perf_counter(), self.recipe.eval.replan
        chunks = self.policy.act_batch(observations)[:, :replan]
        infer_ms = 1000 * (time.perf_counter() - asked_at)
        if chunks.shape[1] < replan:
            most = f"at most {chunks.shape[1]}, the length of the policy's chunks"
            raise ConfigError("eval.replan must fit into a chunk", where="eval.replan", got=replan, expected=most)
        for (episode, _), chunk in zip(waiting, chunks, strict=True):
            self.running[episode].answers.append((chunk, round(infer_ms, 3)))
        return chunks

    def record(self, finished: Finished[EpisodeJob]) -> None:
        """Save a finished episode's actions, then its line of episodes.jsonl."""
        episode, result = finished.job, finished.answer
        told = self.running.pop(episode)
        chunks, infer_ms = zip(*told.answers, strict=True)
        name = task_files(self.recipe.simulation.tasks)[episode.task]
        with replace_file(self.folder / "actions" / f"{name}-{episode.seed}.npy") as draft, draft.open("wb") as file:
            np.save(file, np.concatenate(chunks)[: result.steps])
        row = {
            "task": episode.task,
            "seed": episode.seed,
            "success": result.success,
            "steps": result.steps,
            "steps_to_success": result.steps if result.success else None,
            "seconds": finished.seconds,
            "wall_seconds": time.perf_counter() - self.began,
            "infer_ms": infer_ms,
            "video": None,
            "instruction": told.instruction,
            **({"progress": dict(result.progress)} if result.progress else {}),
        }
        append_line(self.folder / "episodes.jsonl", json.dumps(row))


def describe(recipe: Recipe, policy: EvaluablePolicy, sentences: Mapping[str, str]) -> dict[str, Any]:
    """Return every constant that a success rate depends on: two results compare only if these agree."""
    sim, rule = recipe.simulation, registry.seed_rule(recipe.simulation.name)
    simulator = registry.make_simulator(sim, sim.tasks[0])
    counted = {} if rule is None else {"seeds": f"that the expert solves: {rule.depends_on(sim)}"}
    return {
        "sim": to_dict(sim),
        "constants": simulator.constants,
        "eval": {k: v for k, v in to_dict(recipe.eval).items() if k not in ("workers", "videos_per_task", "disturb")},
        **policy.identity(),
        "sentences": dict(sentences),
        "success": "at any control step",
        **counted,
        **record_of(recipe.eval, simulator),
        "versions": versions() | registry.installed_versions(sim.name),
    }


def _extended_from(before: Mapping[str, Any], trials: int) -> list[int]:
    """Return the numbers of trials that a folder's evaluation had when it was finished, before it got more."""
    if not before:
        return []
    had = int(before["protocol"]["eval"]["trials"])
    return [*before.get("extended_from", []), *([had] if had < trials else [])]


def summary(episodes: Sequence[Mapping[str, Any]], recipe: Recipe) -> dict[str, Any]:
    """Count successes, with Wilson's 95 % interval, in all and by task, and the episodes that reached each stage."""
    tasks = {}
    for task in recipe.simulation.tasks:
        rows = [row for row in episodes if row["task"] == task]
        outcomes = [row["success"] for row in rows]
        instruction = registry.make_simulator(recipe.simulation, task).instruction
        tasks[task] = success_rate(sum(outcomes), len(outcomes)) | {"instruction": instruction}
        stages = [row["progress"] for row in rows if row.get("progress")]
        if stages:
            tasks[task]["progress"] = {stage: sum(each[stage] for each in stages) for stage in stages[0]}
    return success_rate(sum(row["success"] for row in episodes), len(episodes)) | {"tasks": tasks}
