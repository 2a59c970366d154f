"""`lightwam drive` with LeRobot's own SO-101: its config, names and units; only motors and cameras are pretended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot.datasets import LeRobotDataset
from lerobot.robots.so_follower import so_follower
from lerobot.teleoperators.so_leader import so_leader

from lightwam.data.lerobot.recorder import INTERVENTION, EpisodeRecorder
from lightwam.data.lerobot.writer import LeRobotWriter
from lightwam.errors import ConfigError
from lightwam.robot import BackgroundRequester, DriveSettings, RobotDevice, RobotProfile, Teleoperator, drive
from lightwam.robot.lerobot_devices import (
    make_lerobot_robot,
    make_lerobot_teleoperator,
    merged,
    nested_options,
    opencv_cameras,
)
from lightwam.robot.terminal import Unattended

JOINTS = tuple(f"{name}.pos" for name in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll"))
JOINTS += ("gripper.pos",)
FPS = 30.0
PROFILE = RobotProfile(
    fps=FPS,
    cameras={"front": (48, 64), "wrist": (48, 64)},
    state_names=JOINTS,
    action_names=JOINTS,
    motion_dims=(),
    state_low=(-100.0,) * 6,
    state_high=(100.0,) * 6,
    action_low=(-90.0,) * 6,
    action_high=(90.0,) * 6,
    action_step=(2.0,) * 6,
)


class Bus:
    """Motors that go where they are sent at once."""

    def __init__(self, port: str, motors: dict[str, Any], calibration: object) -> None:
        self.port, self.motors, self.is_connected, self.is_calibrated = port, motors, False, True
        self.at, self.goals, self.torque = dict.fromkeys(motors, 10.0), list[dict[str, float]](), True

    def connect(self) -> None:
        self.is_connected = True

    def disconnect(self, disable_torque: bool = True) -> None:
        self.is_connected, self.torque = False, not disable_torque

    @contextlib.contextmanager
    def torque_disabled(self) -> Iterator[None]:
        yield

    def configure_motors(self) -> None:
        pass

    def disable_torque(self) -> None:
        pass

    def write(self, name: str, motor: str, value: int) -> None:
        pass

    def sync_read(self, name: str, num_retry: int = 0) -> dict[str, float]:
        return dict(self.at)

    def sync_write(self, name: str, goals: dict[str, float]) -> None:
        self.at.update(goals)
        self.goals.append(dict(goals))


class Camera:
    """Noise, until the step of its config's `fails`."""

    fails = 10**9

    def __init__(self, config: Any) -> None:
        self.height, self.width, self.is_connected, self.reads = config.height, config.width, False, 0

    def connect(self) -> None:
        self.is_connected = True

    def disconnect(self) -> None:
        self.is_connected = False

    def read_latest(self) -> np.ndarray:
        self.reads += 1
        if self.reads > self.fails:
            raise TimeoutError("latest frame is too old: 512.0 ms (max allowed: 500 ms)")
        return np.random.default_rng(self.reads).integers(0, 256, (self.height, self.width, 3), np.uint8)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No motors, no cameras; calibrations are kept in a folder of the test."""
    monkeypatch.setattr(so_follower, "FeetechMotorsBus", Bus)
    monkeypatch.setattr(so_leader, "FeetechMotorsBus", Bus)
    monkeypatch.setattr(so_follower, "make_cameras_from_configs", lambda all: {n: Camera(c) for n, c in all.items()})


def follower(tmp_path: Path, *options: str) -> Any:
    cameras = opencv_cameras(("front=0", "wrist=/dev/video2"), dict(PROFILE.cameras), 30)  # type: ignore[arg-type]
    config = {"port": "/dev/ttyACM0", "id": "arm", "calibration_dir": str(tmp_path), "cameras": cameras}
    return make_lerobot_robot("so101_follower", merged(config, nested_options(options, "--robot-options")))


def go(robot: Any, **more: Any) -> Any:
    requester = BackgroundRequester(lambda seen: np.full((32, 6), 40.0, np.float32))
    settings = DriveSettings(seconds=0.5, replan=24, return_to_start=False)
    return drive(robot, requester, PROFILE, "put it there", settings, operator=Unattended(lambda line: None), **more)


def test_an_so101_is_made_from_the_options_of_the_command_line(pretended: None, tmp_path: Path) -> None:
    robot = follower(tmp_path, "use_degrees=false", "max_relative_target=5", "cameras.front.rotation=180")
    assert isinstance(robot, RobotDevice) and tuple(robot.action_features) == JOINTS
    assert robot.observation_features["front"] == (48, 64, 3)
    config = robot.config
    assert (config.port, config.id, config.use_degrees, config.max_relative_target) == ("/dev/ttyACM0", "arm", False, 5)
    assert config.cameras["front"].rotation == 180 and config.cameras["front"].index_or_path == 0
    assert str(config.cameras["wrist"].index_or_path) == "/dev/video2"
    old = make_lerobot_robot("so101_follower", {"port": "x", "calibration_dir": str(tmp_path)}, unit="-100..100")
    assert old.config.use_degrees is False
    leader = make_lerobot_teleoperator("so101_leader", {"port": "/dev/ttyACM1", "calibration_dir": str(tmp_path)})
    assert isinstance(leader, Teleoperator) and tuple(leader.action_features) == JOINTS


def test_an_so101_is_driven_within_the_limits_and_released(pretended: None, tmp_path: Path) -> None:
    robot = follower(tmp_path)
    result = go(robot)
    goals = [goal["elbow_flex"] for goal in robot.bus.goals]
    assert result.sent == len(goals) > 5 and max(np.diff(goals)) == 2 and goals[0] in (10.0, 12.0)
    assert not robot.bus.is_connected and not robot.bus.torque
    assert not any(camera.is_connected for camera in robot.cameras.values())


def test_lerobots_own_limit_counts_too(pretended: None, tmp_path: Path) -> None:
    robot = follower(tmp_path, "max_relative_target=1")
    go(robot)
    assert max(np.diff([goal["gripper"] for goal in robot.bus.goals])) == 1


def test_a_camera_that_lerobot_gives_up_stops_the_arm(
    pretended: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightwam.robot import RobotError

    monkeypatch.setattr(Camera, "fails", 6)
    robot = follower(tmp_path)
    with pytest.raises(RobotError, match="TimeoutError: latest frame is too old"):
        go(robot)
    assert 1 < len(robot.bus.goals) <= 6 and not robot.bus.is_connected


def test_lerobot_reads_the_recording_and_its_corrections(pretended: None, tmp_path: Path) -> None:
    robot, root = follower(tmp_path), tmp_path / "out"
    cameras = {name: (48, 64) for name in PROFILE.cameras}
    recorder = EpisodeRecorder(LeRobotWriter(root, 30, "so_follower", cameras, JOINTS, JOINTS, flags=(INTERVENTION,)))
    leader = make_lerobot_teleoperator("so101_leader", {"port": "/dev/ttyACM1", "calibration_dir": str(tmp_path)})

    class Person(Unattended):
        steps = 0

        def key(self) -> str:
            self.steps += 1
            return "t" if self.steps == 6 else ""

    requester = BackgroundRequester(lambda seen: np.full((32, 6), 40.0, np.float32))
    settings = DriveSettings(seconds=0.5, replan=24, return_to_start=False)
    person = Person(lambda line: None)
    rest = {"teleoperator": leader, "recorder": recorder, "operator": person}
    result = drive(robot, requester, PROFILE, "put it there", settings, **rest)  # type: ignore[arg-type]
    assert result.corrected > 3
    dataset = LeRobotDataset("local/out", root=root, video_backend="pyav")
    marked = [bool(dataset[i][INTERVENTION]) for i in range(len(dataset))]
    assert marked == [False] * (len(marked) - result.corrected) + [True] * result.corrected
    assert dataset[0]["task"] == "put it there" and dataset[0]["observation.images.front"].shape == (3, 48, 64)


def test_what_lerobot_refuses_is_said(pretended: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'so101_follower'"):
        make_lerobot_robot("so101_folower", {})
    with pytest.raises(ConfigError, match=r"Missing required field\(s\) `port`"):
        make_lerobot_robot("so101_follower", {})
    with pytest.raises(ConfigError, match=r"`colour` are not valid[\s\S]*expected: fields [\s\S]*use_degrees"):
        make_lerobot_robot("so101_follower", {"port": "x", "colour": 1})
