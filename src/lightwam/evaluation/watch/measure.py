"""Whether the watch works: calibrated on undisturbed unseen seeds, then tried on others, disturbed and not.

Simulators run in processes as in an evaluation, the policy drives. What each look leaves behind is a file, so an
interrupted measurement goes on, and scores are computed from the files alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from lightwam.config.checks import check_recipe
from lightwam.errors import CheckpointError
from lightwam.evaluation.episodes import open_episodes, task_files
from lightwam.evaluation.evaluate import describe
from lightwam.evaluation.rollouts import SimulatorWorker, StepJob, StepResult, Video
from lightwam.evaluation.watch.scores import WatchedEpisode, measure
from lightwam.evaluation.watch.surprise import Predictions, SurpriseWatch, calibrate, require_enough
from lightwam.policy.policy import Policy
from lightwam.policy.run_directory import write_json
from lightwam.sim import registry
from lightwam.sim.disturb import Disturbance, kinds
from lightwam.system.files import replace_file
from lightwam.system.machine import machine
from lightwam.system.progress import Progress
from lightwam.system.timing import time_interleaved
from lightwam.system.workers import (
    DeathCounter,
    PoolFactory,
    WorkerDied,
    Workers,
    interrupt_as_flag,
    require_main_guard,
)
from lightwam.types import Observation

FIRST_QUIET_SEED, FIRST_TRIAL_SEED = 2_000_000, 4_000_000
FOLDER = "watch"


@dataclass(frozen=True)
class WatchConfig:
    """How the watch is calibrated and tried; all counts are episodes of each task."""

    quiet: int = 20
    """undisturbed, for the calibration"""
    trials: int = 12
    """undisturbed, and again the same seeds with each disturbance, for the test"""
    false_alarms: float = 0.05
    """share of undisturbed episodes that may raise an alarm"""
    workers: int = 2
    """processes that simulate"""


@dataclass(frozen=True)
class Job:
    """An episode to be looked at."""

    task: str
    seed: int
    disturbance: Disturbance | None = None
    look: int = -1
    """the last one before the disturbance, also of its undisturbed twin; -1 in the calibration"""

    @property
    def name(self) -> str:
        """Its file's, within a task's."""
        return f"{self.disturbance.kind if self.disturbance else 'quiet'}-{self.seed}"


@dataclass
class _Episode:
    job: Job
    present: list[np.ndarray] = field(default_factory=list)
    expected: list[np.ndarray] = field(default_factory=list)
    canvases: list[UInt8[np.ndarray, "height width 3"]] = field(default_factory=list)
    states: list[Float32[np.ndarray, " P"]] = field(default_factory=list)
    actions: list[Float32[np.ndarray, "steps A"]] = field(default_factory=list)

    def shown(self, seen: StepResult) -> WatchedEpisode:
        """What is kept of it."""
        return WatchedEpisode(
            task=self.job.task,
            seed=self.job.seed,
            kind=self.job.disturbance.kind if self.job.disturbance else "quiet",
            look=self.job.look,
            disturbed_at=self.job.disturbance.step if self.job.disturbance else -1,
            steps=seen.steps,
            success=seen.success,
            present=np.stack(self.present),
            expected=np.stack(self.expected),
            states=np.stack(self.states),
            actions=np.stack(self.actions),
            pixels=np.array([_apart(a, b) for a, b in pairwise(self.canvases)]),
        )


def watch(
    run: Path,
    settings: WatchConfig = WatchConfig(),
    *,
    policy: Policy | None = None,
    pool_factory: PoolFactory | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Calibrate the run's watch into RUN/surprise.json, try it, and write RUN/watch/result.json; returns the latter.

    Episodes that are there are not run again. Where things cannot be moved, only frozen frames are tried.
    Raises ConfigError for too few episodes, CheckpointError when RUN/watch holds other settings', SimulatorError as an
    evaluation does, and KeyboardInterrupt after Ctrl-C with every finished episode kept.
    """
    if settings.workers and pool_factory is None:
        require_main_guard()  # before a policy is loaded
    policy = policy or Policy.load(run, device="auto")
    recipe, place = check_recipe(policy.recipe), run / FOLDER
    for warning in registry.version_warnings(recipe.sim.name):
        say(f"watch: {warning}")
    require_enough(settings.quiet * len(recipe.sim.tasks), settings.false_alarms)
    protocol = describe(recipe, policy, {}) | {
        "watch": {key: value for key, value in asdict(settings).items() if key in ("quiet", "trials")},
        "seeds": {"quiet": FIRST_QUIET_SEED, "trials": FIRST_TRIAL_SEED},
    }
    open_episodes(place, protocol)
    drive = _Drive(policy, place, settings.workers, say, pool_factory or Workers)
    tasks = recipe.sim.tasks
    quiet = drive.run("calibrate", [Job(task, FIRST_QUIET_SEED + i) for i in range(settings.quiet) for task in tasks])
    calibration = calibrate(
        [Predictions(one.present, one.expected) for one in quiet],
        {task: sum(one.task == task and len(one.present) > 1 for one in quiet) for task in tasks},
        executed=recipe.eval.replan, step=policy.step, false_alarms=settings.false_alarms,
    )  # fmt: skip
    tried = drive.run("try", trial_jobs(policy, settings.trials, quiet))
    result = measure(calibration, quiet, tried) | {
        "cost_ms": cost(SurpriseWatch(policy, calibration)),
        "computes": policy.computes,
        "machine": machine(),
        "protocol": protocol,
    }
    _keep_examples(drive, tried, result)
    calibration.write(run)
    write_json(place / "result.json", result)
    return result


def trial_jobs(policy: Policy, trials: int, quiet: Sequence[WatchedEpisode]) -> list[Job]:
    """For each task and seed one undisturbed episode and one of each kind, disturbed between the same two looks.

    The looks are drawn so that an episode of the task's median length still has one look after the disturbance.
    """
    recipe = policy.recipe
    replan, jobs = recipe.eval.replan, []
    for i in range(trials):
        for order, task in enumerate(recipe.sim.tasks):
            seed = FIRST_TRIAL_SEED + i
            rng = np.random.default_rng([seed, order])
            looks = float(np.median([len(one.present) for one in quiet if one.task == task]))
            look = int(rng.integers(0, max(1, round(looks) - 1)))
            during = int(rng.integers(1, replan + 1))
            jobs.append(Job(task, seed, look=look))
            for kind in kinds(registry.make_simulator(recipe.sim, task)):
                # a camera that hangs shows the picture of the look for ever
                step = look * replan + (0 if kind == "frozen" else during)
                jobs.append(Job(task, seed, Disturbance(kind, step, seed), look))
    return jobs


@dataclass
class _Drive:
    policy: Policy
    place: Path
    workers: int
    say: Callable[[str], None]
    pool_factory: PoolFactory

    def run(self, what: str, jobs: Sequence[Job]) -> list[WatchedEpisode]:
        """Every job's episode, from its file where there is one."""
        names = task_files(self.policy.recipe.sim.tasks)
        paths = {job: self.place / "looks" / names[job.task] / f"{job.name}.npz" for job in jobs}
        todo = [job for job in jobs if not paths[job].exists()]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the simulators have the other cores
        try:
            with Progress(what, len(jobs), done=len(jobs) - len(todo), unit="ep", say=self.say) as progress:
                for episode, seen in self.episodes(todo):
                    _save(paths[episode.job], episode.shown(seen))
                    progress.advance()
        finally:
            torch.set_num_threads(threads)
        return [_load(paths[job]) for job in jobs]

    def episodes(self, jobs: Sequence[Job]) -> Any:
        """Drives `jobs`, as many at once as there are workers; yields each with its end."""
        todo, running = list(jobs), dict[int, _Episode]()
        deaths = DeathCounter("watch", self.say)
        with (
            interrupt_as_flag() as interrupt,
            self.pool_factory(min(self.workers, len(todo)), SimulatorWorker(self.policy.recipe.sim)) as players,
        ):
            while todo or running:
                if interrupt.pressed:
                    self.say(f"watch: stopped; finished episodes are safe in {self.place}, the same command goes on")
                    raise KeyboardInterrupt
                for slot in [slot for slot in players.idle if slot not in running][: len(todo)]:
                    job = todo.pop(0)
                    running[slot] = _Episode(job)
                    players.submit(StepJob(slot, job.task, job.seed, None, job.disturbance), slot)
                waiting: dict[int, Observation] = {}
                for segment, answer in players.answers(timeout_seconds=0.2):
                    assert isinstance(segment, StepJob) and not isinstance(answer, Video)
                    if isinstance(answer, WorkerDied):
                        deaths.note(segment, answer)
                        todo.insert(0, running.pop(segment.slot).job)
                    elif answer.observation is None:
                        yield running.pop(segment.slot), answer
                    else:
                        waiting[segment.slot] = answer.observation
                for slot, chunk in self._answer(waiting, running).items():
                    job = running[slot].job
                    players.submit(StepJob(slot, job.task, job.seed, chunk), slot)

    def _answer(self, waiting: Mapping[int, Observation], running: Mapping[int, _Episode]) -> dict[int, np.ndarray]:
        if not waiting:
            return {}
        observations = list(waiting.values())
        chunks = self.policy.act_batch(observations)[:, : self.policy.recipe.eval.replan]
        present, expected = self.policy.predict_next(observations)
        for i, (slot, seen) in enumerate(waiting.items()):
            episode = running[slot]
            episode.present.append(present[i])
            episode.expected.append(expected[i])
            episode.canvases.append(self.policy.codec.canvas(seen.frames))
            episode.states.append(np.asarray(seen.state, np.float32))
            episode.actions.append(chunks[i])
        return dict(zip(waiting, chunks, strict=True))


def _keep_examples(drive: _Drive, tried: Sequence[WatchedEpisode], result: dict[str, Any]) -> None:
    """Runs one episode of each kind again for its pictures: the one whose score stands in the middle of its kind's."""
    examples = result["examples"]
    jobs = [
        Job(row["task"], row["seed"], Disturbance(row["kind"], row["disturbed_at"], row["seed"])) for row in examples
    ]
    canvases: dict[Job, Any] = {episode.job: np.stack(episode.canvases) for episode, _ in drive.episodes(jobs)}
    arrays: dict[str, Any] = {job.disturbance.kind: canvases[job] for job in jobs if job.disturbance}
    _write_arrays(drive.place / "examples.npz", arrays)


def cost(watch: SurpriseWatch) -> dict[str, Any]:
    """Milliseconds of one look, and of one `act` on the same observation, in turns, alone and on one thread."""
    policy = watch.policy
    recipe = policy.recipe
    simulator = registry.make_simulator(recipe.sim, recipe.sim.tasks[0])
    simulator.reset(FIRST_QUIET_SEED)
    observation, episode = simulator.observe(), watch.episode()
    simulator.close()
    episode.update(observation, 0)
    calls = {"act": lambda: policy.act(observation), "see": lambda: episode.update(observation, recipe.eval.replan)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return time_interleaved(calls, policy.device)
    finally:
        torch.set_num_threads(threads)


def _apart(one: UInt8[np.ndarray, "height width 3"], other: UInt8[np.ndarray, "height width 3"]) -> float:
    return float(np.abs(one.astype(np.float32) - other.astype(np.float32)).mean())


def _save(path: Path, shown: WatchedEpisode) -> None:
    _write_arrays(path, {name: np.asarray(value) for name, value in vars(shown).items()})


def _load(path: Path) -> WatchedEpisode:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return WatchedEpisode(**{name: value.item() if value.ndim == 0 else value for name, value in arrays.items()})
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise CheckpointError("the looks of an episode cannot be read", where=path, got=error,
                              next_step="delete the file: that episode is run again") from error  # fmt: skip


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with replace_file(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
