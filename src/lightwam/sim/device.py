"""A simulator with the interface of a LeRobot robot, so that whatever drives a robot can be tried without one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lightwam.config.schema import SimConfig
from lightwam.errors import SimulatorError
from lightwam.sim.registry import make_simulator
from lightwam.sim.simulator import Simulator


class SimulatedRobot:
    """One episode of a simulator, as a robot: `connect` begins it, and each `send_action` is a control step.

    It has the interface `lightwam.robot.RobotDevice`. An action that repeats is also a step: the simulator has no time
    of its own. After a success, or the end that a simulator cannot go beyond, it stays where it is.
    """

    def __init__(self, simulator: Simulator, size: tuple[int, int], seed: int = 0) -> None:
        """`size`: height and width of its pictures."""
        self.simulator, self._size, self._seed = simulator, size, seed
        self.success, self.ended, self._connected = False, False, False

    @property
    def observation_features(self) -> dict[str, Any]:
        """Numbers of the state and pictures of the cameras, by name."""
        cameras = dict.fromkeys(self.simulator.cameras, (*self._size, 3))
        return dict.fromkeys(self.simulator.state_names, float) | cameras

    @property
    def action_features(self) -> dict[str, Any]:
        """Numbers of the action, by name."""
        return dict.fromkeys(self.simulator.action_names, float)

    @property
    def is_connected(self) -> bool:
        """Whether the episode has begun and is not closed."""
        return self._connected

    def connect(self) -> None:
        """Begin the episode of the seed."""
        self.simulator.reset(self._seed)
        self.success, self.ended, self._connected = False, False, True

    def get_observation(self) -> dict[str, Any]:
        """Return the state's numbers and the pictures by name."""
        seen = self.simulator.observe()
        return dict(zip(self.simulator.state_names, seen.state.tolist(), strict=True)) | dict(seen.frames)

    def send_action(self, action: Mapping[str, float]) -> dict[str, float]:
        """Do one control step; return the action."""
        if not self.ended:
            names = self.simulator.action_names
            outcome = self.simulator.step(np.array([action[name] for name in names], np.float32))
            self.success, self.ended = self.success or outcome.success, outcome.ended
        return dict(action)

    def disconnect(self) -> None:
        """End the episode and free the simulator."""
        self._connected = False
        self.simulator.close()


def simulated_robot(config: SimConfig, task: str, seed: int = 0) -> SimulatedRobot:
    """Make the simulator of a recipe as a robot, on the task of this name or this sentence.

    SimulatorError if no task of the recipe has it; the errors of `make_simulator`.
    """
    if task in config.tasks:
        return SimulatedRobot(make_simulator(config, task), (config.height, config.width), seed)
    sentences = []
    for name in config.tasks:
        simulator = make_simulator(config, name)
        if simulator.instruction == task:
            return SimulatedRobot(simulator, (config.height, config.width), seed)
        sentences.append(f"{name}: {simulator.instruction}")
        simulator.close()
    what = "the simulator must have a task of this sentence"
    raise SimulatorError(what, got=repr(task), expected="; ".join(sentences), next_step="or name it: simulated:TASK")
