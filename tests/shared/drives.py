"""Drives of the fake robot of two joints: its profile, chunks of one target, and a recorder that keeps all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from fake_robot import JOINTS, Chunks, FakeClock, FakePerson, FakeRobot

from lightwam.robot.drive_settings import DriveResult, DriveSettings
from lightwam.robot.driving import drive
from lightwam.robot.limits import RobotProfile

FPS, HORIZON = 10.0, 8
PROFILE = RobotProfile(
    fps=FPS,
    cameras={"front": (48, 64)},
    state_names=JOINTS,
    action_names=JOINTS,
    motion_dims=(),
    state_low=(-90.0, 0.0),
    state_high=(90.0, 100.0),
    action_low=(-80.0, 0.0),
    action_high=(80.0, 100.0),
    action_step=(2.0, 20.0),
    sentences=("put it there",),
)
SETTINGS = DriveSettings(seconds=2.95, replan=4, blend=0, return_to_start=False, patience_seconds=1.0)


class Tape:
    """A recorder that keeps what it is given."""

    def __init__(self) -> None:
        self.steps: list[tuple[np.ndarray, np.ndarray, bool]] = []
        self.saved: list[tuple[str, Mapping[str, Any]]] = []
        self.discarded = False

    def add(self, frames: Mapping[str, np.ndarray], state: np.ndarray, action: np.ndarray, *, corrected: bool) -> None:
        assert set(frames) == {"front"}
        self.steps.append((state, action, corrected))

    def save(self, task: str, extra: Mapping[str, Any]) -> str:
        self.saved.append((task, extra))
        return "saved"

    def discard(self) -> None:
        self.discarded = True


def toward(pose: tuple[float, float], chunk: int = HORIZON) -> Chunks:
    """Chunks whose every action is the target `pose`."""
    return Chunks(lambda seen: np.tile(np.array(pose, np.float32), (chunk, 1)))


def go(
    robot: FakeRobot,
    chunks: Chunks,
    settings: DriveSettings = SETTINGS,
    profile: RobotProfile = PROFILE,
    person: FakePerson | None = None,
    **more: Any,
) -> DriveResult:
    person = person or FakePerson()
    return drive(robot, chunks, profile, "put it there", settings, operator=person, clock=FakeClock(), **more)


def path(robot: FakeRobot, joint: str = JOINTS[0]) -> list[float]:
    return [sent[joint] for sent in robot.sent]


def failing(step: int, error: Exception) -> Callable[[int], None]:
    def fails(number: int) -> None:
        if number == step:
            raise error

    return fails
