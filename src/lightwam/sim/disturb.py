"""Something goes wrong in the middle of an episode: a simulator wrapped so that a watch has something to notice.

Three things happen on robots and are never in demonstrations: somebody moves what the task is about, somebody bumps
into a camera, and a camera's driver hangs and gives the same picture for ever. The wrapper knows when; how a thing is
moved is the adapter's own business (`Simulator.move_object`). Frames are frozen here, for any simulator.
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
    """control steps after the reset; it happens when so many are done, before anybody looks"""
    seed: int
    """of its size and direction"""


class Disturbed(Simulator):
    """A simulator with at most one disturbance an episode; else it is what it wraps, bit for bit."""

    def __init__(self, simulator: Simulator, disturbance: Disturbance | None) -> None:
        """SimulatorError when `simulator` does not have the kind of disturbance."""
        if disturbance is not None and disturbance.kind not in kinds(simulator):
            raise SimulatorError(
                f"this simulator has no disturbance {disturbance.kind!r}",
                where=type(simulator).__name__,
                next_step="write its method and name it in Simulator.disturbances, or use frozen frames only",
            )
        self.inside, self.disturbance = simulator, disturbance
        self.task, self.instruction, self.robot = simulator.task, simulator.instruction, simulator.robot
        self.cameras, self.fps = simulator.cameras, simulator.fps
        self.state_names, self.action_names = simulator.state_names, simulator.action_names
        self.size: float | None = None
        """how far, in what `move_object` or `bump_camera` counts; None before it happened, 0 for frozen frames"""
        self._steps: int | None = None
        self._frozen: Mapping[str, Any] | None = None

    @property
    def constants(self) -> dict[str, Any]:
        """Those of what is inside."""
        return self.inside.constants

    def reset(self, seed: int) -> None:
        """Begins the episode, undisturbed so far."""
        self.inside.reset(seed)
        self._steps, self.size, self._frozen = 0, None, None
        self._disturb()

    def observe(self) -> Observation:
        """What is seen; of frozen cameras the pictures of the moment they froze at, beside the true state."""
        seen = self.inside.observe()
        return seen if self._frozen is None else replace(seen, frames=self._frozen)

    def step(self, action: np.ndarray) -> StepOutcome:
        """One control step, and the disturbance when its time has come."""
        if self._steps is None:
            raise not_reset(type(self.inside).__name__)
        outcome = self.inside.step(action)
        self._steps += 1
        self._disturb()
        return outcome

    def close(self) -> None:
        """Closes what is inside."""
        self._steps, self._frozen = None, None
        self.inside.close()

    def _disturb(self) -> None:
        if self.disturbance is None or self._steps != self.disturbance.step:
            return
        rng = np.random.default_rng(self.disturbance.seed)
        if self.disturbance.kind == "frozen":
            self._frozen, self.size = self.inside.observe().frames, 0.0
            return
        move = self.inside.move_object if self.disturbance.kind == "object" else self.inside.bump_camera
        self.size = move(rng)
