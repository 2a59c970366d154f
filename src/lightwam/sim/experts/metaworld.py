"""Meta-World's own scripted policies as experts."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from jaxtyping import Float32

from lightwam.config import SimConfig
from lightwam.errors import SimulatorError
from lightwam.sim.base import Simulator
from lightwam.sim.metaworld import MetaWorldSimulator


class MetaWorldExpert:
    """The scripted policy of one task; it sees objects and goal, not pictures.

    Its raw actions reach 12.5 and the simulator clips them, so they are clipped here: what is stored is what was meant
    within the action's range.
    """

    def __init__(self, simulator: MetaWorldSimulator) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        policy: Any = ENV_POLICY_MAP[f"{simulator.task}-v3"]
        self._simulator, self._policy = simulator, policy()

    def action(self) -> Float32[np.ndarray, " 4"]:
        """Hand motion and gripper effort in [-1, 1]."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Constant\(s\) may be too high", UserWarning)
            action = self._policy.get_action(self._simulator.everything)
        return np.clip(action, -1, 1).astype(np.float32)


def make_expert(config: SimConfig, simulator: Simulator) -> MetaWorldExpert:
    """The expert of a `MetaWorldSimulator`."""
    if not isinstance(simulator, MetaWorldSimulator):
        raise SimulatorError("a Meta-World expert moves Meta-World's arm only", got=type(simulator).__name__)
    return MetaWorldExpert(simulator)
