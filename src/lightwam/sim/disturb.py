"""Disturbances in the middle of an episode: a wrapped simulator that gives a watch something to notice.

Three things happen to robots and never in demonstrations: somebody moves the object of the task, somebody bumps into a
camera, or a camera's driver hangs and repeats one picture. Objects and cameras are moved by the adapter's
`Simulator.move_object` and `bump_camera`; frames of any simulator are frozen here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from lightwam.errors import SimulatorError
from lightwam.sim.simulator import Simulator, StepOutcome, not_reset
from lightwam.types import Observation

Kind = Literal["object", "camera", "frozen"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def kinds(simulator: Simulator) -> tuple[Kind, ...]:
    """Return the disturbances that are possible in `simulator`, in the order of KINDS."""
    return tuple(kind for kind in KINDS if kind in (*simulator.disturbances, "frozen"))


@dataclass(frozen=True)
class Disturbance:
    """What goes wrong, and when."""

    kind: Kind
    step: int
    """control steps after the reset; it happens after this step, before the next `observe`"""
    seed: int
    """decides size and direction"""


class Disturbed(Simulator):
    """A simulator with disturbances in its episodes; without any it equals what it wraps, bit for bit."""

    def __init__(self, simulator: Simulator, *disturbances: Disturbance) -> None:
        """`disturbances` happen in every episode, each at its step; SimulatorError as for `disturb`."""
        for disturbance in disturbances:
            check_kind(simulator, disturbance.kind)
        self.wrapped, self.planned = simulator, disturbances
        self.task, self.instruction, self.robot = simulator.task, simulator.instruction, simulator.robot
        self.cameras, self.fps, self.disturbances = simulator.cameras, simulator.fps, simulator.disturbances
        self.state_names, self.action_names = simulator.state_names, simulator.action_names
        self.size: float | None = None
        """what `move_object` or `bump_camera` returned; None before it happened, 0 for frozen frames"""
        self._steps: int | None = None
        self._frozen: Mapping[str, Any] | None = None

    @property
    def constants(self) -> dict[str, Any]:
        """Return the wrapped simulator's."""
        return self.wrapped.constants

    @property
    def progress(self) -> dict[str, bool]:
        """Return the wrapped simulator's."""
        return self.wrapped.progress

    def reset(self, seed: int) -> None:
        """Begin the episode."""
        self.wrapped.reset(seed)
        self._steps, self.size, self._frozen = 0, None, None
        self._disturb()

    def observe(self) -> Observation:
        """Return the observation; of frozen cameras the old pictures, with the true state."""
        seen = self.wrapped.observe()
        return seen if self._frozen is None else replace(seen, frames=self._frozen)

    def step(self, action: np.ndarray) -> StepOutcome:
        """Do one control step, and the disturbance if it is due."""
        if self._steps is None:
            raise not_reset(type(self.wrapped).__name__)
        outcome = self.wrapped.step(action)
        self._steps += 1
        self._disturb()
        return outcome

    def close(self) -> None:
        """Close the wrapped simulator."""
        self._steps, self._frozen = None, None
        self.wrapped.close()

    def disturb(self, kind: Kind, seed: int) -> None:
        """Disturb the running episode now, before the next `observe`; frames that are frozen go on.

        `seed` decides size and direction. SimulatorError when the simulator does not have the kind of disturbance.
        """
        check_kind(self.wrapped, kind)
        if kind == "frozen":
            self._frozen, self.size = None if self._frozen else self.wrapped.observe().frames, 0.0
            return
        move = self.wrapped.move_object if kind == "object" else self.wrapped.bump_camera
        self.size = move(np.random.default_rng(seed))

    def _disturb(self) -> None:
        for disturbance in self.planned:
            if disturbance.step == self._steps:
                self.disturb(disturbance.kind, disturbance.seed)


def check_kind(simulator: Simulator, kind: Kind) -> None:
    """Raise SimulatorError unless the disturbance is possible in `simulator`."""
    if kind not in (possible := kinds(simulator)):
        what, where = f"this simulator has no disturbance {kind!r}", type(simulator).__name__
        step = "write its method and name it in Simulator.disturbances"
        raise SimulatorError(what, where=where, expected=" or ".join(possible), next_step=step)


def turn_cameras(rotations: np.ndarray, degrees: float, rng: np.random.Generator) -> None:
    """Turn each camera in place about a random axis in its picture's plane: unit quaternions [cameras, 4], w first."""
    import mujoco

    half = np.deg2rad(degrees) / 2
    for rotation in rotations:
        angle = rng.uniform(0, 2 * np.pi)
        turn = np.array([np.cos(half), np.sin(half) * np.cos(angle), np.sin(half) * np.sin(angle), 0.0])
        mujoco.mju_mulQuat(rotation, rotation.copy(), turn)
