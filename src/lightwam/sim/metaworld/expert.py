"""Meta-World's own scripted policies as experts."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from lightwam.config.schema import SimConfig
from lightwam.errors import SimulatorError
from lightwam.sim.metaworld.simulator import MetaWorldSimulator
from lightwam.sim.simulator import Simulator

GAIN = {"reach": 3.0}
"""Task -> factor on the hand's motion. Meta-World's reaching is 2 to 5 times gentler than its other policies: so gentle
that its actions hardly differ between goals, and a policy that learns several tasks at once learns this one last."""

AIMS_WITH_FINGERS = ("reach",)
"""Tasks in which success is measured at the fingers, 4.5 cm below the hand, while Meta-World's policy brings the hand
to the goal: its demonstrations end millimetres from failing (at 5 cm), and so does a policy that copies them."""


class MetaWorldExpert:
    """The scripted policy of one task; it sees objects and goal, not pictures.

    Its raw actions reach 12.5 and the simulator clips them, so they are clipped here: what is stored is what was meant
    within the action's range.
    """

    def __init__(self, simulator: MetaWorldSimulator) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        policy: Any = ENV_POLICY_MAP[f"{simulator.task}-v3"]
        self._simulator, self._policy = simulator, policy()
        self._gain = np.array([GAIN.get(simulator.task, 1.0)] * 3 + [1.0])

    def action(self) -> Float32[np.ndarray, " 4"]:
        """Hand motion and gripper effort in [-1, 1]."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Constant\(s\) may be too high", UserWarning)
            action = self._policy.get_action(self._seen())
        return np.clip(self._gain * action, -1, 1).astype(np.float32)

    def _seen(self) -> Float64[np.ndarray, " 39"]:
        """The full observation, its goal (the last three numbers) moved to where the hand is to be."""
        seen = self._simulator.everything.copy()
        if self._simulator.task in AIMS_WITH_FINGERS:
            seen[-3:] += seen[:3] - self._simulator.fingers
        return seen


def make_expert(config: SimConfig, simulator: Simulator) -> MetaWorldExpert:
    """The expert of a `MetaWorldSimulator`."""
    if not isinstance(simulator, MetaWorldSimulator):
        raise SimulatorError("a Meta-World expert moves Meta-World's arm only", got=type(simulator).__name__)
    return MetaWorldExpert(simulator)
