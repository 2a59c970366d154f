"""Whether the watch works: calibrated on undisturbed unseen seeds, then tested on others, disturbed and not.

The policy acts in simulators as in an evaluation. What is recorded of each episode is a file, so an interrupted
measurement resumes, and scores are computed from the files alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from lightwam.config.checks import check_recipe
from lightwam.errors import CheckpointError
from lightwam.evaluation.episodes import open_episodes, task_files
from lightwam.evaluation.evaluate import describe
from lightwam.evaluation.result_files import read_arrays, write_arrays
from lightwam.evaluation.rollouts import EpisodeJob, SimulatorWorker, StepResult, Waiting, run_episodes
from lightwam.evaluation.watch.scores import UNDISTURBED, WatchedEpisode, measure
from lightwam.evaluation.watch.settings import WatchConfig
from lightwam.evaluation.watch.surprise import SurpriseWatch, calibrate, require_enough
from lightwam.policy.policy import Policy
from lightwam.policy.run_directory import write_json
from lightwam.sim import registry
from lightwam.sim.disturb import Disturbance, kinds
from lightwam.system.cpu import one_thread
from lightwam.system.jobs import job_runner
from lightwam.system.machine import machine
from lightwam.system.progress import Progress
from lightwam.system.timing import time_interleaved
from lightwam.system.workers import PoolFactory, require_main_guard

FIRST_CALIBRATION_SEED, FIRST_TRIAL_SEED = 2_000_000, 4_000_000
FOLDER = "watch"


@dataclass(frozen=True)
class WatchJob:
    """An episode to record."""

    episode: EpisodeJob
    look: int = -1
    """index of the last observation before the disturbance, also of its undisturbed twin; -1 in the calibration"""

    @property
    def kind(self) -> str:
        """The disturbance's, or UNDISTURBED."""
        return self.episode.disturbance.kind if self.episode.disturbance else UNDISTURBED


def watch(
    run: Path | str,
    settings: WatchConfig | None = None,
    *,
    policy: Policy | None = None,
    pool_factory: PoolFactory | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Calibrate the run's watch into RUN/surprise.json, test it, write RUN/watch/result.json and return its content.

    Recorded episodes are not run again. Simulators run in processes of this machine unless `pool_factory` makes another
    pool. Where a simulator cannot move things, only frozen frames are tested. Raises ConfigError for too few episodes,
    CheckpointError when RUN/watch holds a measurement under other settings, SimulatorError as `evaluate` does, and
    KeyboardInterrupt after Ctrl-C, with all finished episodes kept.
    """
    run, settings = Path(run), settings or WatchConfig()
    if settings.workers and pool_factory is None:
        require_main_guard()  # before a policy is loaded
    policy = policy or Policy.load(run, device="auto")
    recipe, folder = check_recipe(policy.recipe), run / FOLDER
    for warning in registry.version_warnings(recipe.sim.name):
        say(f"watch: {warning}")
    require_enough(settings.undisturbed * len(recipe.sim.tasks), settings.false_alarms)
    protocol = describe(recipe, policy, {}) | {
        "watch": {"quiet": settings.undisturbed, "trials": settings.trials},
        "seeds": {"quiet": FIRST_CALIBRATION_SEED, "trials": FIRST_TRIAL_SEED},
    }
    open_episodes(folder, protocol)
    recorder = _Recorder(policy, folder, settings.workers, pool_factory, say)
    seeds = [FIRST_CALIBRATION_SEED + i for i in range(settings.undisturbed)]
    jobs = [WatchJob(EpisodeJob(task, seed)) for seed in seeds for task in recipe.sim.tasks]
    undisturbed = recorder.record("calibrate", jobs)
    calibration = calibrate(
        [episode.predictions for episode in undisturbed],
        {task: sum(o.task == task and len(o.present) > 1 for o in undisturbed) for task in recipe.sim.tasks},
        executed=recipe.eval.replan,
        step=policy.step,
        false_alarms=settings.false_alarms,
    )
    trials = recorder.record("test", trial_jobs(policy, settings.trials, undisturbed))
    result = measure(calibration, undisturbed, trials) | {
        "cost_ms": cost(SurpriseWatch(policy, calibration)),
        "computes": policy.computes,
        "machine": machine(),
        "protocol": protocol,
    }
    recorder.record_examples(result["examples"])
    calibration.write(run)
    write_json(folder / "result.json", result)
    return result


def trial_jobs(policy: Policy, num_trials: int, undisturbed: Sequence[WatchedEpisode]) -> list[WatchJob]:
    """Return for each task and seed an undisturbed episode and one of each kind, disturbed between the same two looks.

    The moment is drawn so that an episode of the task's median length has another look after the disturbance.
    """
    recipe = policy.recipe
    replan, jobs = recipe.eval.replan, []
    for seed in range(FIRST_TRIAL_SEED, FIRST_TRIAL_SEED + num_trials):
        for order, task in enumerate(recipe.sim.tasks):
            rng = np.random.default_rng([seed, order])
            num_looks = float(np.median([len(episode.present) for episode in undisturbed if episode.task == task]))
            look = int(rng.integers(0, max(1, round(num_looks) - 1)))
            during = int(rng.integers(1, replan + 1))
            jobs.append(WatchJob(EpisodeJob(task, seed), look))
            for kind in kinds(registry.make_simulator(recipe.sim, task)):
                # a camera that hangs keeps the picture of the look
                step = look * replan + (0 if kind == "frozen" else during)
                jobs.append(WatchJob(EpisodeJob(task, seed, Disturbance(kind, step, seed)), look))
    return jobs


@dataclass
class _Recording:
    present: list[np.ndarray] = field(default_factory=list)
    expected: list[np.ndarray] = field(default_factory=list)
    canvases: list[UInt8[np.ndarray, "height width 3"]] = field(default_factory=list)
    states: list[Float32[np.ndarray, " P"]] = field(default_factory=list)
    actions: list[Float32[np.ndarray, "steps A"]] = field(default_factory=list)

    def watched(self, job: WatchJob, end: StepResult) -> WatchedEpisode:
        """Return what is kept of the episode, which ended with `end`."""
        disturbance = job.episode.disturbance
        pairs = pairwise(canvas.astype(np.float32) for canvas in self.canvases)
        return WatchedEpisode(
            task=job.episode.task,
            seed=job.episode.seed,
            kind=job.kind,
            look=job.look,
            disturbed_at=disturbance.step if disturbance else -1,
            steps=end.steps,
            success=end.success,
            present=np.stack(self.present),
            expected=np.stack(self.expected),
            states=np.stack(self.states),
            actions=np.stack(self.actions),
            pixels=np.array([float(np.abs(before - after).mean()) for before, after in pairs]),
        )


@dataclass
class _Recorder:
    policy: Policy
    folder: Path
    num_workers: int
    pool_factory: PoolFactory | None
    say: Callable[[str], None]
    running: dict[EpisodeJob, _Recording] = field(default_factory=dict)

    def record(self, what: str, jobs: Sequence[WatchJob]) -> list[WatchedEpisode]:
        """Return every job's episode, from its file if there is one."""
        names = task_files(self.policy.recipe.sim.tasks)
        paths = {
            job: self.folder / "looks" / names[job.episode.task] / f"{job.kind}-{job.episode.seed}.npz" for job in jobs
        }
        todo = {job.episode: job for job in jobs if not paths[job].exists()}
        with Progress(what, len(jobs), done=len(jobs) - len(todo), unit="ep", say=self.say) as progress:

            def save(episode: EpisodeJob, recording: _Recording, end: StepResult) -> None:
                job = todo[episode]
                write_arrays(paths[job], vars(recording.watched(job, end)))
                progress.advance()

            self._run(list(todo), save)
        return [_load(paths[job]) for job in jobs]

    def record_examples(self, examples: Sequence[Mapping[str, Any]]) -> None:
        """Run the episodes of a result's "examples" again and save their canvases, by kind of disturbance."""
        kinds = {
            EpisodeJob(row["task"], row["seed"], Disturbance(row["kind"], row["disturbed_at"], row["seed"])): row[
                "kind"
            ]
            for row in examples
        }
        canvases: dict[str, Any] = dict.fromkeys(kinds.values())

        def keep(episode: EpisodeJob, recording: _Recording, end: StepResult) -> None:
            canvases[kinds[episode]] = np.stack(recording.canvases)

        self._run(list(kinds), keep)
        write_arrays(self.folder / "examples.npz", canvases)

    def _run(self, todo: list[EpisodeJob], finish: Callable[[EpisodeJob, _Recording, StepResult], None]) -> None:
        if not todo:
            return
        worker, num_workers = SimulatorWorker(self.policy.recipe.sim), min(self.num_workers, len(todo))
        try:
            with (
                nullcontext() if self.pool_factory else one_thread(),  # the simulators have the other cores
                job_runner("watch", worker, num_workers, self.pool_factory, self.say) as jobs,
            ):
                for finished in run_episodes(jobs, todo, self._act):
                    finish(finished.job, self.running.pop(finished.job), finished.answer)
        except KeyboardInterrupt:
            self.say(f"watch: stopped; finished episodes are safe in {self.folder}, the same command goes on")
            raise

    def _act(self, waiting: Waiting) -> Float32[np.ndarray, "B replan A"]:
        observations = [result.observation for _, result in waiting if result.observation is not None]
        chunks = self.policy.act_batch(observations)[:, : self.policy.recipe.eval.replan]
        predictions = zip(*self.policy.predict_next(observations), strict=True)
        for (episode, result), seen, (present, expected), chunk in zip(
            waiting, observations, predictions, chunks, strict=True
        ):
            if result.steps == 0:  # its first, also of one that begins again
                self.running[episode] = _Recording()
            recording = self.running[episode]
            recording.present.append(present)
            recording.expected.append(expected)
            recording.canvases.append(self.policy.codec.canvas(seen.frames))
            recording.states.append(np.asarray(seen.state, np.float32))
            recording.actions.append(chunk)
        return chunks


@one_thread()
def cost(watch: SurpriseWatch) -> dict[str, Any]:
    """Measure the milliseconds of `update` and of `act` on the same observation, in turns, alone and on one thread."""
    policy = watch.policy
    recipe = policy.recipe
    simulator = registry.make_simulator(recipe.sim, recipe.sim.tasks[0])
    simulator.reset(FIRST_CALIBRATION_SEED)
    observation, episode = simulator.observe(), watch.episode()
    simulator.close()
    episode.update(observation, 0)
    calls = {"act": lambda: policy.act(observation), "see": lambda: episode.update(observation, recipe.eval.replan)}
    return time_interleaved(calls, policy.device)


def _load(path: Path) -> WatchedEpisode:
    what, step = "a watched episode cannot be read", "delete the file: that episode is run again"
    arrays: dict[str, Any] = read_arrays(path, what, step)
    if arrays.keys() != {field.name for field in fields(WatchedEpisode)}:
        raise CheckpointError(what, where=path, got=sorted(arrays), next_step=step)
    return WatchedEpisode(**{name: value if value.ndim else value.item() for name, value in arrays.items()})
