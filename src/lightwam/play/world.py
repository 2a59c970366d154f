"""The simulator's side of a session: jobs that its worker process does, on the worker of evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from lightwam.evaluation.rollouts import EpisodeJob, FilmJob, SimulatorWorker, StepJob
from lightwam.sim import disturb, registry
from lightwam.sim.disturb import Disturbed, Kind
from lightwam.sim.simulator import Simulator
from lightwam.types import Observation


@dataclass(frozen=True)
class World:
    """What a page says of a task's simulator."""

    instruction: str
    fps: float
    """control steps in a second of simulated time"""
    action_names: tuple[str, ...]
    disturbances: tuple[Kind, ...]


@dataclass(frozen=True)
class Seen:
    """What there is to see after a job."""

    observation: Observation
    steps: int
    """control steps since the reset"""
    success: bool = False
    is_over: bool = False
    progress: Mapping[str, bool] = field(default_factory=dict)
    larger: Mapping[str, UInt8[np.ndarray, "height width 3"]] = field(default_factory=dict)
    """camera -> its picture for people, where larger ones were asked for"""

    @property
    def pictures(self) -> Mapping[str, UInt8[np.ndarray, "height width 3"]]:
        """What pages show."""
        return self.larger or self.observation.frames


@dataclass
class PlayWorker:
    """A worker with one running episode, whose simulator can be disturbed.

    Larger pictures are drawn by a second simulator, which gets the same seed, actions and disturbances.
    """

    rollouts: SimulatorWorker
    view_height: int = 0
    """of larger pictures; 0: none"""
    views: dict[str, Simulator] = field(default_factory=dict)
    """by task, as making one is slow"""
    episode: Disturbed | None = None
    view: Disturbed | None = None

    def __call__(self, job: WorldJob) -> Any:
        """Do one job."""
        return job.run(self)

    def begin(self, task: str, seed: int) -> Observation:
        """Begin an episode, also in the simulator of the larger pictures."""
        self.episode = Disturbed(self.rollouts.simulator(task))
        observation = self.rollouts.begin(self.episode, seed)
        if self.view_height:
            sim = self.rollouts.sim
            if task not in self.views:
                width = round(self.view_height * sim.width / sim.height)
                self.views[task] = registry.make_simulator(replace(sim, height=self.view_height, width=width), task)
            self.view = Disturbed(self.views[task])
            self.view.reset(seed)
        return observation

    def larger(self) -> Mapping[str, UInt8[np.ndarray, "height width 3"]]:
        """Draw the larger pictures."""
        return self.view.observe().frames if self.view else {}


@runtime_checkable
class WorldJob(Protocol):
    """A job of a `PlayWorker`."""

    def run(self, worker: PlayWorker) -> Any:
        """Do it."""
        ...


@dataclass(frozen=True)
class ResetJob:
    """An episode to begin."""

    episode: EpisodeJob

    def __str__(self) -> str:
        return str(self.episode)

    def run(self, worker: PlayWorker) -> tuple[World, Seen]:
        """Reset the task's simulator, which is made if this is its first episode."""
        observation, simulator = worker.begin(self.episode.task, self.episode.seed), worker.episode
        assert simulator is not None
        about = World(simulator.instruction, simulator.fps, simulator.action_names, disturb.kinds(simulator))
        return about, Seen(observation, 0, larger=worker.larger())


@dataclass(frozen=True)
class OneStepJob:
    """A control step, which evaluations do several of at a time, and the pictures after it."""

    episode: EpisodeJob
    action: Float32[np.ndarray, " A"]

    def __str__(self) -> str:
        return str(self.episode)

    def run(self, worker: PlayWorker) -> Seen:
        """Execute the action; the pictures are drawn also when the episode is over."""
        result = StepJob(self.episode, self.action[None]).run(worker.rollouts)
        assert worker.episode is not None
        if worker.view:
            worker.view.step(self.action)
        observation, progress, is_over = result.observation, worker.episode.progress, result.observation is None
        if observation is None:
            worker.rollouts.observe()
            observation = worker.rollouts.observation()
        return Seen(observation, result.steps, result.success, is_over, progress, worker.larger())


@dataclass(frozen=True)
class DisturbJob:
    """A disturbance to make now."""

    episode: EpisodeJob
    kind: Kind
    seed: int

    def __str__(self) -> str:
        return str(self.episode)

    def run(self, worker: PlayWorker) -> Seen:
        """Disturb the running episode and draw its pictures again."""
        assert worker.episode is not None, "no episode was begun"
        worker.episode.disturb(self.kind, self.seed)
        if worker.view:
            worker.view.disturb(self.kind, self.seed)
        worker.rollouts.observe()
        observation, progress = worker.rollouts.observation(), worker.episode.progress
        return Seen(observation, worker.rollouts.steps, progress=progress, larger=worker.larger())


@dataclass(frozen=True)
class PlayFilmJob:
    """An episode to film by executing it again, in another simulator than the one that is played in."""

    film: FilmJob

    def __str__(self) -> str:
        return str(self.film)

    def run(self, worker: PlayWorker) -> bytes:
        """Return the MP4 file."""
        return self.film.run(worker.rollouts)


@dataclass(frozen=True)
class IdleJob:
    """Nothing to do: only a living process answers."""

    def run(self, worker: PlayWorker) -> None:
        """Do nothing."""
