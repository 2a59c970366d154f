"""An arm without hardware for lerobot-rollout, which goes where it is told and writes down what it was told.

`--robot.discover_packages_path=fake_arm` makes it a type of robot.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.robots import Robot, RobotConfig

JOINTS = ("shoulder_pan.pos", "elbow_flex.pos", "gripper.pos")
CAMERAS = {"front": (48, 64), "wrist": (32, 32)}
"""camera -> height and width"""


def picture(camera: str, number: int) -> np.ndarray:
    """The camera's picture of observation `number`."""
    return np.random.default_rng([number, len(camera)]).integers(0, 256, (*CAMERAS[camera], 3), np.uint8)


@RobotConfig.register_subclass("fake_arm")
@dataclass(kw_only=True)
class FakeArmConfig(RobotConfig):
    log: Path
    """a line for every action: number of the observation before it, the state in it, the action"""


class FakeArm(Robot):
    config_class, name = FakeArmConfig, "fake_arm"

    def __init__(self, config: FakeArmConfig) -> None:
        super().__init__(config)
        self.config, self._is_connected = config, False
        self._at, self._number = np.array([10.0, -20.0, 50.0], np.float32), -1

    @cached_property
    def observation_features(self) -> dict[str, Any]:
        return dict.fromkeys(JOINTS, float) | {camera: (*size, 3) for camera, size in CAMERAS.items()}

    @cached_property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(JOINTS, float)

    @property
    def is_connected(self) -> bool:
        return self._is_connected

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self, calibrate: bool = True) -> None:
        self._is_connected = True

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        self._number += 1
        state = dict(zip(JOINTS, self._at.tolist(), strict=True))
        return state | {camera: picture(camera, self._number) for camera in CAMERAS}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        target = [float(action[joint]) for joint in JOINTS]
        row = {"observation": self._number, "state": self._at.tolist(), "action": target}
        with self.config.log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._at += 0.3 * (np.array(target, np.float32) - self._at)
        return action

    def disconnect(self) -> None:
        self._is_connected = False
