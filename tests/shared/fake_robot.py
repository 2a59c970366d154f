"""A robot with LeRobot's interface, a teleoperator, a person who presses keys, and a clock that does not wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from lightwam.robot.background import ChunkReceived, Event

JOINTS = ("shoulder.pos", "gripper.pos")
SIZE = (24, 32)


class FakeClock:
    """Time passes when the loop sleeps."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += max(0.0, seconds)


class FakeRobot:
    """Goes where it is sent at once. `fails` is called with the number of the read and may raise."""

    def __init__(self, pose: Sequence[float] = (0.0, 50.0), fails: Callable[[int], None] = lambda step: None) -> None:
        self.pose, self.fails = dict(zip(JOINTS, pose, strict=True)), fails
        self.joints: tuple[str, ...] = JOINTS
        self.sizes = {"front": SIZE}
        self.frozen = False
        self.reads, self.sent, self.log = 0, list[dict[str, float]](), list[str]()
        self.connected = False

    @property
    def observation_features(self) -> dict[str, Any]:
        return dict.fromkeys(self.joints, float) | {name: (*size, 3) for name, size in self.sizes.items()}

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(self.joints, float)

    @property
    def is_connected(self) -> bool:
        return self.connected

    def connect(self, calibrate: bool = True) -> None:
        self.connected = True
        self.log.append("connect")

    def get_observation(self) -> dict[str, Any]:
        self.fails(self.reads)
        self.reads += not self.frozen
        pictures = {name: np.full((*size, 3), self.reads % 256, np.uint8) for name, size in self.sizes.items()}
        return dict(self.pose) | pictures

    def send_action(self, action: Mapping[str, float]) -> dict[str, float]:
        self.pose.update(action)
        self.sent.append(dict(action))
        return dict(action)

    def disconnect(self) -> None:
        self.connected = False
        self.log.append("disconnect")


class FakeLeader:
    """A leader arm that is held at one pose."""

    def __init__(self, pose: Sequence[float]) -> None:
        self.pose, self.connected = dict(zip(JOINTS, pose, strict=True)), False

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(JOINTS, float)

    @property
    def is_connected(self) -> bool:
        return self.connected

    def connect(self, calibrate: bool = True) -> None:
        self.connected = True

    def get_action(self) -> dict[str, float]:
        return dict(self.pose)

    def disconnect(self) -> None:
        self.connected = False


class FakePerson:
    """Presses a key at each of the steps in `keys` (number of the step -> key)."""

    def __init__(self, keys: Mapping[int, str] | None = None) -> None:
        self.keys, self.step = keys or {}, -1
        self.lines, self.released = list[str](), list[str]()

    def key(self) -> str:
        self.step += 1
        return self.keys.get(self.step, "")

    def say(self, line: str) -> None:
        self.lines.append(line)

    def wait_to_release(self, why: str) -> None:
        self.released.append(why)


class Chunks:
    """A requester that answers with `chunk(observation)`, after `delay` calls of `events`; None: no answer."""

    def __init__(self, chunk: Callable[[dict[str, Any]], np.ndarray | None]) -> None:
        self.chunk, self.asked, self.closed, self.delay = chunk, list[dict[str, Any]](), False, 0
        self.pending: list[tuple[int, Event]] = []
        self.calls = 0

    def ask(self, number: int, observation: Any) -> None:
        self.asked.append(observation)
        if (actions := self.chunk(observation)) is not None:
            self.send(ChunkReceived(number, actions, 0.01))

    def send(self, event: Event) -> None:
        self.pending.append((self.calls + self.delay, event))

    def events(self) -> list[Event]:
        due = [event for at, event in self.pending if at <= self.calls]
        self.pending = [(at, event) for at, event in self.pending if at > self.calls]
        self.calls += 1
        return due

    def close(self) -> None:
        self.closed = True


class PointArm(FakeRobot):
    """A robot of the user's for the policy of the point, with other names; it moves as the point does."""

    made: ClassVar[list[PointArm]] = []

    def __init__(self, port: str = "", **options: Any) -> None:
        super().__init__()
        self.joints, self.sizes = ("x_axis", "y_axis"), {"camera": (32, 32)}
        self.pose = {"x_axis": 0.1, "y_axis": -0.2}
        self.port, self.options = port, options
        self.made.append(self)

    @property
    def action_features(self) -> dict[str, Any]:
        return {"velocity_x": float, "velocity_y": float}

    def send_action(self, action: Mapping[str, float]) -> dict[str, float]:
        for joint, speed in zip(self.joints, action.values(), strict=True):
            self.pose[joint] = min(1.0, max(-1.0, self.pose[joint] + 0.1 * speed))
        self.sent.append(dict(action))
        return dict(action)
