"""The `Simulator` and `Expert` interfaces, what a step returns, and checks that adapters share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from lightwam.errors import SimulatorError, did_you_mean
from lightwam.types import Observation


@dataclass(frozen=True)
class StepOutcome:
    """What one control step led to."""

    success: bool
    """the task was solved at some moment of this step"""
    ended: bool = False
    """the simulator cannot go on; `reset` is the only next call"""


@dataclass(frozen=True)
class Trial:
    """One seed of one task: a worker's job, named in its errors."""

    task: str
    seed: int

    def __str__(self) -> str:
        return f"task {self.task!r}, seed {self.seed}"


@runtime_checkable
class Simulator(Protocol):
    """One task of one simulator. Units are the robot's own; pictures are drawn by `observe` and by nothing else.

    `reset(seed)` decides everything: the same seed and the same actions give the same pictures and states, bit for
    bit, in a new simulator and in a used one, whether or not anybody looked in between.
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

    @property
    def constants(self) -> dict[str, Any]:
        """What a success rate depends on beside `SimConfig`, as plain JSON values; a result names them."""
        return {}

    @property
    def state_dim(self) -> int:
        """P."""
        return len(self.state_names)

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.action_names)

    def reset(self, seed: int) -> None:
        """Begins the episode that `seed` names."""
        ...

    def observe(self) -> Observation:
        """What is seen now; draws the pictures. Refused (SimulatorError) before the first `reset`."""
        ...

    def step(self, action: Float32[np.ndarray, " A"]) -> StepOutcome:
        """One control step with an action in robot units; anything but A finite numbers raises SimulatorError."""
        ...

    def close(self) -> None:
        """Frees what the simulator holds and ends the episode; a second call does nothing."""
        ...


@runtime_checkable
class Expert(Protocol):
    """A scripted controller of one episode: made after `reset`, asked once a step."""

    def action(self) -> Float32[np.ndarray, " A"]:
        """What the expert does in the simulator's present state."""
        ...


def require_known(word: str, known: Iterable[str], kind: str) -> None:
    """Raises SimulatorError, with the nearest known words, unless `word` is one of `known`."""
    known = tuple(known)
    if word not in known:
        raise SimulatorError(f"unknown {kind}", got=repr(word), next_step=did_you_mean(word, known))


def finite_action(action: np.ndarray, dim: int, where: str) -> Float32[np.ndarray, " A"]:
    """`action` as float32 [dim]; SimulatorError when its shape is another or it holds a NaN or an infinity."""
    array = np.asarray(action, np.float32)
    if array.shape != (dim,):
        raise SimulatorError("an action of the wrong shape", where=where, got=array.shape, expected=(dim,))
    if not np.isfinite(array).all():
        raise SimulatorError("an action that is not finite", where=where, got=array.tolist(), expected="finite numbers")
    return array


def require_seed(seed: int, where: str) -> None:
    """Raise SimulatorError for a negative seed, which no random number generator accepts."""
    if seed < 0:
        raise SimulatorError("a seed must not be negative", where=where, got=seed, expected=">= 0")


def not_reset(where: str) -> SimulatorError:
    """The error of a simulator that is used before `reset`, or after `close`."""
    return SimulatorError("the simulator is not in an episode", where=where, next_step="call reset(seed) first")
