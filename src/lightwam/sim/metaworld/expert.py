"""Meta-World's own scripted policies as experts."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from jaxtyping import Float32

from lightwam.config.schema import SimConfig
from lightwam.sim.metaworld.simulator import MetaWorldSimulator

GAIN = {"reach": 3.0}
"""task -> factor on the hand's motion. Meta-World's policy for reaching moves 2 to 5 times slower than its others: its
actions hardly differ between goals, and a policy that learns several tasks at once learns this one last."""

AIMS_WITH_FINGERS = ("reach",)
"""tasks whose success is measured at the fingers, 4.5 cm below the hand, while Meta-World's policy brings the hand to
the goal: its demonstrations, and a policy that learns from them, end millimetres from failing (at 5 cm)"""


class MetaWorldExpert:
    """The scripted policy of one task; it sees objects and goal, not pictures.

    Its raw actions reach 12.5; they are clipped here, as the simulator does, so that demonstrations hold valid actions.
    """

    def __init__(self, config: SimConfig, simulator: MetaWorldSimulator) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        policy: Any = ENV_POLICY_MAP[f"{simulator.task}-v3"]
        self._simulator, self._policy = simulator, policy()
        self._gain = np.array([GAIN.get(simulator.task, 1.0)] * 3 + [1.0])

    def action(self) -> Float32[np.ndarray, " 4"]:
        """Return hand motion and gripper effort in [-1, 1]."""
        observation = self._simulator.full_observation.copy()
        if self._simulator.task in AIMS_WITH_FINGERS:  # the goal, the last three numbers, becomes the hand's target
            observation[-3:] += observation[:3] - self._simulator.fingertips
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Constant\(s\) may be too high", UserWarning)
            action = self._policy.get_action(observation)
        return np.clip(self._gain * action, -1, 1).astype(np.float32)


make_expert = MetaWorldExpert
