"""A worker's side of the closed loop: simulators that play what the policy chose, and film what was played before."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from lightwam.config.schema import SimConfig
from lightwam.data.lerobot.video import write_video
from lightwam.sim import registry
from lightwam.sim.disturb import Disturbance, Disturbed
from lightwam.sim.simulator import Simulator
from lightwam.system.files import explain_disk_errors
from lightwam.types import Observation

VIDEO_SIZE = 240
"""height and width of rollout videos, pixels"""


@dataclass(frozen=True)
class StepJob:
    """A worker's job: begin an episode, or go on with it."""

    slot: int
    task: str
    seed: int
    actions: Float32[np.ndarray, "steps A"] | None
    """None begins the episode"""
    disturbance: Disturbance | None = None
    """what goes wrong in it; read when it begins"""

    def __str__(self) -> str:
        return f"task {self.task!r}, seed {self.seed}"


@dataclass(frozen=True)
class StepResult:
    """A worker's answer."""

    observation: Observation | None
    """None when the episode is over"""
    steps: int
    """control steps since the reset"""
    success: bool


@dataclass(frozen=True)
class Video:
    """A worker's answer to `FilmJob`; the parent writes it, as the worker may be on another machine."""

    mp4: bytes


@dataclass(frozen=True)
class FilmJob:
    """A worker's job: play an episode's actions again and film it."""

    task: str
    seed: int
    actions: Float32[np.ndarray, "steps A"]

    def __str__(self) -> str:
        return f"film of task {self.task!r}, seed {self.seed}"


@dataclass
class SimulatorWorker:
    """Runs in a worker. Simulators are kept from episode to episode, as making one is slow."""

    sim: SimConfig
    simulators: dict[tuple[str, bool], Simulator] = field(default_factory=dict)
    steps: int = 0
    playing: Simulator | None = None

    def __call__(self, job: StepJob | FilmJob) -> StepResult | Video:
        """Do one job."""
        return self._film(job) if isinstance(job, FilmJob) else self._play(job)

    def _simulator(self, task: str, film: bool) -> Simulator:
        if (task, film) not in self.simulators:
            sim = self.sim
            if film:
                sim = replace(sim, cameras=sim.cameras[:1], height=VIDEO_SIZE, width=VIDEO_SIZE)
            self.simulators[task, film] = registry.make_simulator(sim, task)
        return self.simulators[task, film]

    def _play(self, job: StepJob) -> StepResult:
        if job.actions is None:
            inside = self._simulator(job.task, film=False)
            self.playing = Disturbed(inside, job.disturbance) if job.disturbance else inside
            self.playing.reset(job.seed)
            self.steps = 0
        simulator = self.playing
        assert simulator is not None, "no episode was begun"
        for action in job.actions if job.actions is not None else ():
            outcome = simulator.step(action)
            self.steps += 1
            if outcome.success or outcome.ended or self.steps >= self.sim.max_steps:
                return StepResult(None, self.steps, outcome.success)
        return StepResult(simulator.observe(), self.steps, False)

    def _film(self, job: FilmJob) -> Video:
        simulator = self._simulator(job.task, film=True)
        camera = simulator.cameras[0]
        simulator.reset(job.seed)
        pictures = [simulator.observe().frames[camera]]
        for action in job.actions:
            simulator.step(action)
            pictures.append(simulator.observe().frames[camera])
        with explain_disk_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "film.mp4"
            write_video(path, np.stack(pictures), max(1, round(simulator.fps)))
            return Video(path.read_bytes())
