"""Whether the watch works: calibrated on undisturbed unseen seeds, then tested on others, disturbed and not.

The policy acts in simulators as in an evaluation. What is recorded of each episode is a file, so an interrupted
measurement resumes, and scores are computed from the files alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from lightwam.config.checks import check_recipe
from lightwam.errors import CheckpointError
from lightwam.evaluation.episodes import claim_folder, task_files
from lightwam.evaluation.evaluate import describe
from lightwam.evaluation.result_files import read_arrays, write_arrays
from lightwam.evaluation.rollouts import EpisodeJob, StepResult, Waiting, run_episodes, simulator_jobs
from lightwam.evaluation.watch.scores import UNDISTURBED, WatchedEpisode, measure
from lightwam.evaluation.watch.settings import WatchConfig
from lightwam.evaluation.watch.surprise import SurpriseWatch, calibrate, require_enough
from lightwam.policy.policy import Policy
from lightwam.policy.run_directory import write_json
from lightwam.sim import registry
from lightwam.sim.disturb import Disturbance, kinds
from lightwam.system.cpu import one_thread
from lightwam.system.machine import machine
from lightwam.system.progress import Progress
from lightwam.system.timing import time_interleaved
from lightwam.system.workers import PoolFactory, require_main_guard

FIRST_CALIBRATION_SEED, FIRST_TRIAL_SEED = 2_000_000, 4_000_000


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
    recipe, folder = check_recipe(policy.recipe), run / "watch"
    for warning in registry.version_warnings(recipe.simulation.name):
        say(f"watch: {warning}")
    require_enough(settings.undisturbed * len(recipe.simulation.tasks), settings.false_alarms)
    protocol = describe(recipe, policy, {}) | {
        "watch": {"quiet": settings.undisturbed, "trials": settings.trials},
        "seeds": {"quiet": FIRST_CALIBRATION_SEED, "trials": FIRST_TRIAL_SEED},
    }
    claim_folder(folder, protocol)
    recorder = _Recorder(policy, folder, settings.workers, pool_factory, say)
    seeds = [FIRST_CALIBRATION_SEED + i for i in range(settings.undisturbed)]
    last_before = {EpisodeJob(task, seed): -1 for seed in seeds for task in recipe.simulation.tasks}
    undisturbed = recorder.record("calibrate", last_before)
    calibration = calibrate(
        [episode.predictions for episode in undisturbed],
        {task: sum(o.task == task and len(o.present) > 1 for o in undisturbed) for task in recipe.simulation.tasks},
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


def trial_jobs(policy: Policy, num_trials: int, undisturbed: Sequence[WatchedEpisode]) -> dict[EpisodeJob, int]:
    """Return for each task and seed an undisturbed episode and one of each kind of disturbance, at the same moment.

    The values are indices of the last observation before the disturbance, drawn so that an episode of the task's median
    length has another one after it.
    """
    recipe = policy.recipe
    replan, last_before = recipe.eval.replan, {}
    for seed in range(FIRST_TRIAL_SEED, FIRST_TRIAL_SEED + num_trials):
        for order, task in enumerate(recipe.simulation.tasks):
            rng = np.random.default_rng([seed, order])
            num_observations = float(
                np.median([len(episode.present) for episode in undisturbed if episode.task == task])
            )
            last = int(rng.integers(0, max(1, round(num_observations) - 1)))
            during = int(rng.integers(1, replan + 1))
            last_before[EpisodeJob(task, seed)] = last
            for kind in kinds(registry.make_simulator(recipe.simulation, task)):
                # a camera that hangs keeps the picture of that observation
                step = last * replan + (0 if kind == "frozen" else during)
                last_before[EpisodeJob(task, seed, Disturbance(kind, step, seed))] = last
    return last_before


def _kind(episode: EpisodeJob) -> str:
    return episode.disturbance.kind if episode.disturbance else UNDISTURBED


@dataclass
class _Recorder:
    policy: Policy
    folder: Path
    num_workers: int
    pool_factory: PoolFactory | None
    say: Callable[[str], None]
    running: dict[EpisodeJob, list[tuple[np.ndarray, ...]]] = field(default_factory=dict)
    """of each observation: present and expected latents, canvas, state and actions"""

    def record(self, what: str, last_before: Mapping[EpisodeJob, int]) -> list[WatchedEpisode]:
        """Return every episode, from its file if there is one; `last_before`: see `trial_jobs`."""
        folders = {
            task: self.folder / "looks" / name for task, name in task_files(self.policy.recipe.simulation.tasks).items()
        }
        paths = {episode: folders[episode.task] / f"{_kind(episode)}-{episode.seed}.npz" for episode in last_before}
        todo = [episode for episode in last_before if not paths[episode].exists()]
        with (
            Progress(what, len(last_before), done=len(last_before) - len(todo), unit="ep", say=self.say) as progress,
            closing(self._run(todo)) as recorded,
        ):
            for episode, end, (present, expected, canvases, states, actions) in recorded:
                pairs = pairwise(canvas.astype(np.float32) for canvas in canvases)
                watched = WatchedEpisode(
                    task=episode.task,
                    seed=episode.seed,
                    kind=_kind(episode),
                    look=last_before[episode],
                    disturbed_at=episode.disturbance.step if episode.disturbance else -1,
                    steps=end.steps,
                    success=end.success,
                    present=present,
                    expected=expected,
                    states=states,
                    actions=actions,
                    pixels=np.array([float(np.abs(before - after).mean()) for before, after in pairs]),
                )
                write_arrays(paths[episode], vars(watched))
                progress.advance()
        return [_load(path) for path in paths.values()]

    def record_examples(self, examples: Sequence[Mapping[str, Any]]) -> None:
        """Run the episodes of a result's "examples" again and save their canvases, by kind of disturbance."""
        jobs = [
            EpisodeJob(row["task"], row["seed"], Disturbance(row["kind"], row["disturbed_at"], row["seed"]))
            for row in examples
        ]
        with closing(self._run(list(jobs))) as recorded:
            canvases = {episode: arrays[2] for episode, _, arrays in recorded}
        write_arrays(self.folder / "examples.npz", {_kind(job): canvases[job] for job in jobs})

    def _run(self, todo: list[EpisodeJob]) -> Generator[tuple[EpisodeJob, StepResult, list[np.ndarray]]]:
        """Run episodes; yield each with its last answer and its recorded arrays, stacked over its observations."""
        if todo:
            sim, num_workers = self.policy.recipe.simulation, min(self.num_workers, len(todo))
            with simulator_jobs("watch", sim, num_workers, self.pool_factory, self.folder, self.say) as jobs:
                for finished in run_episodes(jobs, todo, self._act):
                    recorded = self.running.pop(finished.job)
                    yield finished.job, finished.answer, [np.stack(arrays) for arrays in zip(*recorded, strict=True)]

    def _act(self, waiting: Waiting) -> Float32[np.ndarray, "B replan A"]:
        observations = [result.observation for _, result in waiting if result.observation is not None]
        chunks = self.policy.act_batch(observations)[:, : self.policy.recipe.eval.replan]
        predictions = zip(*self.policy.predict_next(observations), strict=True)
        for (episode, result), seen, (present, expected), chunk in zip(
            waiting, observations, predictions, chunks, strict=True
        ):
            if result.steps == 0:  # the first observation, also after a worker died
                self.running[episode] = []
            canvas, state = self.policy.codec.canvas(seen.frames), np.asarray(seen.state, np.float32)
            self.running[episode].append((present, expected, canvas, state, chunk))
        return chunks


@one_thread()
def cost(watch: SurpriseWatch) -> dict[str, Any]:
    """Measure the milliseconds of `update` and of `act` on the same observation, in turns, alone and on one thread."""
    policy = watch.policy
    recipe = policy.recipe
    simulator = registry.make_simulator(recipe.simulation, recipe.simulation.tasks[0])
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
