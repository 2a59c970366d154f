"""Episodes in closed loop: the jobs of simulator workers, and the order in which episodes are run."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from lightwam.config.schema import EvalConfig, SimConfig
from lightwam.data.lerobot.video import write_video
from lightwam.sim import registry
from lightwam.sim.disturb import Disturbance, Disturbed, check_kind
from lightwam.sim.simulator import Simulator
from lightwam.system.cpu import one_thread
from lightwam.system.files import explain_disk_errors
from lightwam.system.jobs import Finished, JobRunner, job_runner
from lightwam.system.workers import PoolFactory
from lightwam.types import Observation

VIDEO_HEIGHT = 240
"""of rollout videos, pixels; they are as wide as shows all that the first camera sees"""


@dataclass
class SimulatorWorker:
    """A worker that does one job at a time. It keeps its simulators, as making one is slow."""

    sim: SimConfig
    n_obs_steps: int = 1
    """control steps whose observations the policy acts on: the present and those before"""
    simulators: dict[tuple[str, bool], Simulator] = field(default_factory=dict)
    episode: Simulator | None = None
    """the one whose episode is running"""
    steps: int = 0
    """since its reset"""
    recent: deque[Observation] = field(default_factory=deque)
    """of the episode's last `n_obs_steps` control steps, as far as there were so many"""

    def __call__(self, job: EpisodeJob | StepJob | FilmJob) -> StepResult | bytes:
        """Do one job."""
        return job.run(self)

    def simulator(self, task: str, film: bool = False) -> Simulator:
        """Return a task's simulator; for films the one with its first camera alone, in VIDEO_HEIGHT."""
        if (task, film) not in self.simulators:
            sim = self.sim
            if film:
                width = 2 * round(VIDEO_HEIGHT * sim.width / sim.height / 2)  # even, as H.264 needs
                sim = replace(sim, cameras=sim.cameras[:1], height=VIDEO_HEIGHT, width=width)
            self.simulators[task, film] = registry.make_simulator(sim, task)
        return self.simulators[task, film]

    def begin(self, episode: Simulator, seed: int) -> Observation:
        """Reset `episode` and return its first observation."""
        self.episode, self.steps, self.recent = episode, 0, deque(maxlen=self.n_obs_steps)
        episode.reset(seed)
        self.observe()
        return self.observation()

    def observe(self) -> None:
        """Draw the present observation of the running episode."""
        assert self.episode is not None
        seen = replace(self.episode.observe(), step=self.steps)
        if self.n_obs_steps > 1:  # some simulators draw into the same array again
            seen = replace(seen, frames={camera: frame.copy() for camera, frame in seen.frames.items()})
        self.recent.append(seen)

    def observation(self) -> Observation:
        """Return the present observation with its history; the episode's first stands for those before it."""
        *earlier, present = self.recent
        missing = self.n_obs_steps - len(self.recent)
        return replace(present, history=(*missing * [self.recent[0]], *earlier))


@dataclass(frozen=True)
class StepResult:
    """The state of an episode after a job."""

    observation: Observation | None
    """None when the episode is over"""
    steps: int
    """control steps since the reset"""
    success: bool
    progress: Mapping[str, bool] = field(default_factory=dict)
    """the simulator's, when the episode is over"""


@dataclass(frozen=True)
class EpisodeJob:
    """An episode to run; as a job, its reset."""

    task: str
    seed: int
    disturbance: Disturbance | None = None

    def __str__(self) -> str:
        return f"task {self.task!r}, seed {self.seed}"

    def run(self, worker: SimulatorWorker) -> StepResult:
        """Reset the simulator."""
        simulator = worker.simulator(self.task)
        episode = Disturbed(simulator, self.disturbance) if self.disturbance else simulator
        return StepResult(worker.begin(episode, self.seed), 0, False)


def at_reset(settings: EvalConfig, seed: int) -> Disturbance | None:
    """Return what `eval.disturb` does to the episode of a seed."""
    return None if settings.disturb == "none" else Disturbance(settings.disturb, 0, seed)


def record_of(settings: EvalConfig, simulator: Simulator) -> dict[str, str]:
    """Return `eval.disturb` for a protocol: nothing for none, as in the folders from before there was the setting.

    SimulatorError if the simulator does not have the disturbance.
    """
    if settings.disturb == "none":
        return {}
    check_kind(simulator, settings.disturb)
    return {"disturb": settings.disturb}


@dataclass(frozen=True)
class StepJob:
    """Actions to execute in the worker's running episode, until it is over."""

    episode: EpisodeJob
    actions: Float32[np.ndarray, "steps A"]

    def __str__(self) -> str:
        return str(self.episode)

    def run(self, worker: SimulatorWorker) -> StepResult:
        """Execute them; pictures are drawn at the last `n_obs_steps` steps only."""
        simulator = worker.episode
        assert simulator is not None, "no episode was begun"
        for left, action in zip(reversed(range(len(self.actions))), self.actions, strict=True):
            outcome = simulator.step(action)
            worker.steps += 1
            if outcome.success or outcome.ended or worker.steps >= worker.sim.max_steps:
                return StepResult(None, worker.steps, outcome.success, simulator.progress)
            if left < worker.n_obs_steps:
                worker.observe()
        return StepResult(worker.observation(), worker.steps, False)


@dataclass(frozen=True)
class FilmJob:
    """A finished episode to film by executing its actions again."""

    task: str
    seed: int
    actions: Float32[np.ndarray, "steps A"]
    disturbances: tuple[Disturbance, ...] = ()

    def __str__(self) -> str:
        return f"film of task {self.task!r}, seed {self.seed}"

    def run(self, worker: SimulatorWorker) -> bytes:
        """Return the MP4 file; the parent writes it, as the worker may be on another machine."""
        simulator = Disturbed(worker.simulator(self.task, film=True), *self.disturbances)
        camera = simulator.cameras[0]
        simulator.reset(self.seed)
        pictures = [simulator.observe().frames[camera]]
        for action in self.actions:
            simulator.step(action)
            pictures.append(simulator.observe().frames[camera])
        with explain_disk_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "film.mp4"
            write_video(path, np.stack(pictures), max(1, round(simulator.fps)))
            return path.read_bytes()


@contextmanager
def simulator_jobs(
    what: str,
    sim: SimConfig,
    num_workers: int,
    pool_factory: PoolFactory | None,
    folder: Path,
    say: Callable[[str], None],
    n_obs_steps: int = 1,
) -> Iterator[JobRunner]:
    """Open simulators for the command `what`; after Ctrl-C, say that the finished episodes are in `folder`.

    `n_obs_steps` is that of `SimulatorWorker`.
    """
    # on this machine the simulators have the other cores
    with nullcontext() if pool_factory else one_thread():
        try:
            with job_runner(what, SimulatorWorker(sim, n_obs_steps), num_workers, pool_factory, say) as jobs:
                yield jobs
        except KeyboardInterrupt:
            say(f"{what}: stopped; finished episodes are safe in {folder}, the same command resumes")
            raise


Waiting = list[tuple[EpisodeJob, StepResult]]
"""episodes that wait for actions, each with what was last observed"""


def run_episodes(
    jobs: JobRunner, todo: list[EpisodeJob], act: Callable[[Waiting], Float32[np.ndarray, "B steps A"]]
) -> Iterator[Finished[EpisodeJob]]:
    """Run the episodes `todo` in closed loop, as many at once as there are workers; yield each when it is over.

    `act` returns the next actions of all episodes that wait for some, so that a policy can answer them in one batch.
    An episode whose worker dies begins again. A worker stays with its task as long as it can, and then takes one that
    no other has: some simulators take seconds to load a task.
    """
    last_task: dict[int, str] = {}

    def choose(slot: int, running: Collection[EpisodeJob]) -> int:
        tasks = {episode.task for episode in running}
        ranks = [(episode.task != last_task.get(slot), episode.task in tasks) for episode in todo]
        index = ranks.index(min(ranks))
        last_task[slot] = todo[index].task
        return index

    def next_steps(waiting: Waiting) -> list[StepJob]:
        return [StepJob(episode, actions) for (episode, _), actions in zip(waiting, act(waiting), strict=True)]

    return jobs.run(todo, choose=choose, is_over=lambda result: result.observation is None, next_steps=next_steps)
