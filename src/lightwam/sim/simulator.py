"""The `Simulator` base class, the `Expert` protocol, what a step returns, and checks that adapters share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from lightwam.errors import SimulatorError, did_you_mean
from lightwam.types import Observation


@dataclass(frozen=True)
class StepOutcome:
    """The outcome of one control step."""

    success: bool
    """the task was solved at some moment of this step"""
    ended: bool = False
    """the simulator cannot continue; `reset` is the only next call"""


@dataclass(frozen=True)
class Trial:
    """One seed of one task: a worker's job, named in its errors."""

    task: str
    seed: int

    def __str__(self) -> str:
        return f"task {self.task!r}, seed {self.seed}"


@dataclass(frozen=True)
class RobotUnits:
    """Names and units of a robot's state and action, in order, known without making its simulator."""

    state: Mapping[str, str]
    """name -> unit, with its range where it has one"""
    action: Mapping[str, str]
    steps_per_second: float
    """simulator steps in a second of simulated time; a control step is `SimConfig.action_repeat` of them"""


class Simulator(ABC):
    """One task of one simulator. States and actions are in the robot's own units; only `observe` draws pictures.

    `reset(seed)` decides everything: the same seed and the same actions give the same pictures and states, bit for
    bit, in a new simulator and in a used one, whether or not `observe` was called in between.
    """

    task: str
    instruction: str
    """the task as a sentence"""
    robot: str
    """LeRobot's robot_type"""
    cameras: tuple[str, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    fps: float
    """control steps in a second of simulated time"""
    disturbances: tuple[str, ...] = ()
    """which of "object" (`move_object`) and "camera" (`bump_camera`) this simulator has"""

    @property
    def constants(self) -> dict[str, Any]:
        """What a success rate depends on besides `SimConfig`, as plain JSON values; stored with every result."""
        return {}

    @property
    def progress(self) -> dict[str, bool]:
        """Which stages of the task this episode has reached so far, in their order; {} where a simulator has none."""
        return {}

    @property
    def state_dim(self) -> int:
        """P."""
        return len(self.state_names)

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.action_names)

    @abstractmethod
    def reset(self, seed: int) -> None:
        """Begin the episode of `seed`."""

    @abstractmethod
    def observe(self) -> Observation:
        """Draw the pictures and return them with the state; SimulatorError before the first `reset`."""

    @abstractmethod
    def step(self, action: Float32[np.ndarray, " A"]) -> StepOutcome:
        """Do one control step with an action in robot units; SimulatorError unless it is A finite numbers."""

    @abstractmethod
    def close(self) -> None:
        """Free what the simulator holds and end the episode; a second call does nothing."""

    def move_object(self, rng: np.random.Generator) -> float:
        """Move what the task is about a few centimetres, until the next `reset`; return the distance, world units."""
        raise SimulatorError("this simulator cannot move objects", where=type(self).__name__)

    def bump_camera(self, rng: np.random.Generator) -> float:
        """Turn every camera by a small angle, until the next `reset`; return the angle in degrees."""
        raise SimulatorError("this simulator cannot turn cameras", where=type(self).__name__)


@runtime_checkable
class Expert(Protocol):
    """A scripted controller of one episode: made after `reset`, asked once a control step."""

    def action(self) -> Float32[np.ndarray, " A"]:
        """Return the action for the simulator's present state."""
        ...


def check_known(word: str, known: Iterable[str], kind: str) -> None:
    """Raise SimulatorError, with the nearest known words, unless `word` is one of `known`."""
    known = tuple(known)
    if word not in known:
        raise SimulatorError(f"unknown {kind}", got=repr(word), next_step=did_you_mean(word, known))


def finite_action(action: np.ndarray, dim: int, where: str) -> Float32[np.ndarray, " A"]:
    """Return `action` as float32 [dim]; SimulatorError for another shape, a NaN or an infinity."""
    array = np.asarray(action, np.float32)
    if array.shape != (dim,):
        raise SimulatorError(f"an action must have shape {(dim,)}", where=where, got=array.shape)
    if not np.isfinite(array).all():
        raise SimulatorError("an action must be finite", where=where, got=array.tolist())
    return array


def check_seed(seed: int, where: str) -> None:
    """Raise SimulatorError for a negative seed, which no random number generator accepts."""
    if seed < 0:
        raise SimulatorError("a seed must not be negative", where=where, got=seed)


def not_reset(where: str) -> SimulatorError:
    """Return the error of a simulator that is used before `reset`, or after `close`."""
    return SimulatorError("the simulator is not in an episode", where=where, next_step="call reset(seed) first")
