"""The simulator's side of a session: jobs that its worker process does, on the worker of evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from lightwam.evaluation.rollouts import EpisodeJob, FilmJob, SimulatorWorker, StepJob
from lightwam.sim import disturb
from lightwam.sim.disturb import Disturbed, Kind
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


@dataclass
class PlayWorker:
    """A worker with one running episode, whose simulator can be disturbed."""

    rollouts: SimulatorWorker
    episode: Disturbed | None = None

    def __call__(self, job: WorldJob) -> Any:
        """Do one job."""
        return job.run(self)


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
        simulator = worker.rollouts.simulator(self.episode.task)
        worker.episode = Disturbed(simulator)
        seen = worker.rollouts.begin(worker.episode, self.episode.seed)
        about = World(simulator.instruction, simulator.fps, simulator.action_names, disturb.kinds(simulator))
        return about, Seen(seen, 0)


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
        if result.observation is not None:
            progress = worker.episode.progress
            return Seen(result.observation, result.steps, result.success, progress=progress)
        worker.rollouts.observe()
        return Seen(worker.rollouts.observation(), result.steps, result.success, True, result.progress)


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
        worker.rollouts.observe()
        return Seen(worker.rollouts.observation(), worker.rollouts.steps, progress=worker.episode.progress)


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
