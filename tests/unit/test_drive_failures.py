"""Failures of a drive: whatever fails, the robot is held, the person is asked, and the first error is shown."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from drives import PROFILE, SETTINGS, Tape, failing, go, path, toward
from fake_robot import Chunks, FakeClock, FakeLeader, FakePerson, FakeRobot

from lightwam.errors import ConfigError, DatasetError
from lightwam.robot.device import RenamedRobot, RenamedTeleoperator
from lightwam.robot.driving import drive
from lightwam.robot.errors import RobotError
from lightwam.robot.limits import Limits
from lightwam.robot.terminal import StopSignals

FULL = OSError(28, "No space left on device")


class FullDisk(Tape):
    """A recorder whose disk is full, at a step or when it saves."""

    def __init__(self, step: int = 10**9) -> None:
        super().__init__()
        self.step = step

    def add(self, frames: Mapping[str, np.ndarray], state: np.ndarray, action: np.ndarray, *, corrected: bool) -> None:
        if len(self.steps) == self.step:
            raise FULL
        super().add(frames, state, action, corrected=corrected)

    def save(self, task: str, extra: Mapping[str, Any]) -> str:
        raise FULL


def test_a_full_disk_while_it_moves_stops_and_holds_the_robot() -> None:
    robot, person = FakeRobot(), FakePerson()
    with pytest.raises(DatasetError, match="No space left"):
        go(robot, toward((40.0, 50.0)), person=person, recorder=FullDisk(step=4))
    assert path(robot) == [2, 4, 6, 8, 10, 10], "held"
    assert len(person.released) == 1 and "No space left" in person.released[0] and not robot.connected


def test_a_full_disk_at_the_end_does_not_keep_the_robot_from_returning() -> None:
    robot, person = FakeRobot(), FakePerson()
    settings = replace(SETTINGS, return_to_start=True)
    with pytest.raises(DatasetError, match="No space left"):
        go(robot, toward((10.0, 50.0)), settings, person=person, recorder=FullDisk())
    assert robot.pose["shoulder.pos"] == pytest.approx(0, abs=1e-3)
    assert len(person.released) == 1 and not robot.connected


def test_a_full_disk_after_an_error_does_not_release_the_robot_unasked() -> None:
    robot, person = FakeRobot(fails=failing(7, TimeoutError("unplugged"))), FakePerson()
    with pytest.raises(RobotError, match="unplugged"):
        go(robot, toward((40.0, 50.0)), person=person, recorder=FullDisk())
    assert len(person.released) == 1 and any("No space left" in line for line in person.lines)


def test_after_an_error_the_person_is_told_where_the_recording_is() -> None:
    robot, person = FakeRobot(fails=failing(7, TimeoutError("unplugged"))), FakePerson()
    with pytest.raises(RobotError):
        go(robot, toward((40.0, 50.0)), person=person, recorder=Tape())
    assert "saved" in person.lines


def test_a_robot_that_answers_nonsense_is_not_released_unasked() -> None:
    robot, person = FakeRobot(), FakePerson()
    robot.send_action = lambda action: [1.0, 2.0]
    with pytest.raises(RobotError, match="must return the action that it sent, or None\n  got: list"):
        go(robot, toward((40.0, 50.0)), person=person)
    assert len(person.released) == 1 and not robot.connected


@pytest.mark.parametrize("change", [{"replan": 0}, {"blend": -1}])
def test_impossible_settings_are_refused_before_the_robot_is_connected(change: dict[str, int]) -> None:
    robot = FakeRobot()
    with pytest.raises(ConfigError):
        go(robot, toward((40.0, 50.0)), replace(SETTINGS, **change))
    assert robot.log == []


def test_a_recording_is_discarded_if_the_robot_cannot_be_connected() -> None:
    robot, tape = FakeRobot(), Tape()
    robot.connect = lambda: failing(0, OSError("no such port"))(0)
    with pytest.raises(RobotError, match="could not be connected"):
        go(robot, toward((40.0, 50.0)), recorder=tape)
    assert tape.discarded and robot.log == []


def test_the_way_back_is_limited_like_every_command() -> None:
    """It began outside of the data, and one joint never moved there."""
    profile = replace(PROFILE, action_step=(2.0, 0.0))
    robot, settings = FakeRobot((100.0, 50.0)), replace(SETTINGS, return_to_start=True, any_pose=True)
    go(robot, toward((60.0, 90.0)), settings, profile=profile)
    shoulder = path(robot)
    assert shoulder[-1] == pytest.approx(80), "the range's end, not the pose of 100"
    assert np.abs(np.diff(shoulder)).max() <= 2 + 1e-4 and set(path(robot, "gripper.pos")) == {50.0}
    assert len(shoulder) == 30 + 1 + 30, "no waiting for a joint that cannot move"


def test_the_way_back_moves_no_motion() -> None:
    """A base that drives must not drive on while an arm goes back."""
    low, high = (-1.0, 0.0), (1.0, 100.0)
    profile = replace(PROFILE, motion_dims=(0,), action_low=low, action_high=high, action_step=(1.0, 2.0))
    robot = FakeRobot()
    go(robot, toward((1.0, 60.0)), replace(SETTINGS, return_to_start=True), profile=profile)
    assert set(path(robot)[30:]) == {0.0} and robot.pose["gripper.pos"] == pytest.approx(50)


def test_a_pause_is_no_time_without_an_action() -> None:
    """The policy was late before the pause; afterwards it has its whole time again."""
    chunks = toward((40.0, 50.0))

    def chunk(seen: dict[str, Any]) -> np.ndarray | None:
        late = len(chunks.asked) == 2
        return None if late else np.tile(np.array([40.0, 50.0], np.float32), (8, 1))

    chunks.chunk, chunks.delay = chunk, 2
    result = go(FakeRobot(), chunks, person=FakePerson({7: " ", 25: " "}))
    assert result.reason == "the time is over"


def test_a_camera_of_another_shape_than_it_said_stops_the_robot() -> None:
    robot = FakeRobot()
    read = robot.get_observation
    robot.get_observation = lambda: read() | {"front": np.zeros((32, 32, 3), np.uint8)}  # type: ignore[method-assign]
    with pytest.raises(RobotError, match=r"RGB picture of its size\n  where: camera front"):
        go(robot, toward((40.0, 50.0)))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"action_low": (80.0, 0.0), "action_high": (-80.0, 100.0)}, "from low to high\n  where: shoulder.pos"),
        ({"state_low": (float("nan"), 0.0)}, "from low to high"),
        ({"action_step": (-2.0, 20.0)}, "0 or more"),
        ({"action_step": (2.0,)}, "must have a range"),
        ({"motion_dims": (2,)}, "dimensions of the action"),
        ({"fps": 0.0}, "rate must be a positive number"),
        ({"fps": float("nan")}, "rate must be a positive number"),
    ],
)
def test_impossible_ranges_are_refused_before_the_robot_is_connected(change: dict[str, Any], what: str) -> None:
    robot, profile = FakeRobot(), replace(PROFILE, **change)
    with pytest.raises(ConfigError, match=what):
        Limits(profile)
    with pytest.raises(ConfigError, match=what):
        go(robot, toward((40.0, 50.0)), profile=profile)
    assert robot.log == []


def test_limits_refuse_what_is_not_finite() -> None:
    for number in (np.nan, np.inf):
        with pytest.raises(RobotError, match=r"finite\n  where: gripper.pos"):
            Limits(PROFILE).apply(np.array([1, number], np.float32), np.zeros(2, np.float32))


def signalled(step: int, number: signal.Signals) -> FakeRobot:
    def fails(at: int) -> None:
        if at == step:
            os.kill(os.getpid(), number)

    return FakeRobot(fails=fails)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTSTP])
def test_a_lost_session_stops_the_robot_as_ctrl_c_does(number: signal.Signals) -> None:
    before, robot, person = signal.getsignal(number), signalled(5, number), FakePerson()
    result = go(robot, toward((40.0, 50.0)), person=person)
    assert result.reason == "stopped by a signal" and path(robot)[-2:] == [10, 10]
    assert len(person.released) == 1 and signal.getsignal(number) == before


def test_a_second_hangup_does_not_interrupt_but_a_second_ctrl_c_does() -> None:
    with StopSignals() as signals:
        signals.interrupts = False
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_nohup_keeps_its_meaning() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class SlowStart(Chunks):
    """The first answer does not come; at the third poll Ctrl-C does."""

    def events(self) -> list[Any]:
        if self.calls == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return super().events()


def test_ctrl_c_before_the_first_answer_disconnects() -> None:
    robot, tape, clock = FakeRobot(), Tape(), FakeClock()
    chunks = SlowStart(lambda seen: None)
    result = drive(robot, chunks, PROFILE, "x", SETTINGS, recorder=tape, operator=FakePerson(), clock=clock)
    assert result.reason == "stopped by a signal" and robot.sent == [] and clock.seconds < 101
    assert robot.log == ["connect", "disconnect"] and chunks.closed


def test_a_key_before_the_first_answer_stops() -> None:
    robot = FakeRobot()
    result = go(robot, Chunks(lambda seen: None), person=FakePerson({3: "q"}))
    assert result.reason == "stopped by a key" and robot.sent == [] and not robot.connected


def test_ctrl_c_while_the_leader_connects_disconnects_the_robot() -> None:
    robot, leader = FakeRobot(), FakeLeader((0.0, 50.0))
    leader.connect = lambda calibrate=True: os.kill(os.getpid(), signal.SIGINT)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        go(robot, toward((40.0, 50.0)), teleoperator=leader)
    assert robot.log == ["connect", "disconnect"]


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ({"a": "shoulder.pos", "b": "shoulder.pos"}, "name of the robot once\n  got: a=shoulder.pos, b=shoulder.pos"),
        ({"gripper.pos": "shoulder.pos"}, "one name\n  got: gripper.pos"),
        ({"shoulder.pos": "front"}, "one name\n  got: shoulder.pos"),
    ],
)
def test_two_things_are_not_renamed_to_one_name(names: dict[str, str], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        RenamedRobot(FakeRobot(), names)


def test_two_joints_of_a_leader_are_not_renamed_to_one_name() -> None:
    with pytest.raises(ConfigError, match="one name"):
        RenamedTeleoperator(FakeLeader((0.0, 0.0)), {"gripper.pos": "shoulder.pos"})
    swapped = {"gripper.pos": "shoulder.pos", "shoulder.pos": "gripper.pos"}
    assert RenamedTeleoperator(FakeLeader((1.0, 2.0)), swapped).get_action() == {
        "gripper.pos": 1.0,
        "shoulder.pos": 2.0,
    }


def test_a_policy_of_several_observations_gets_them() -> None:
    chunks = toward((40.0, 50.0))
    go(FakeRobot(), chunks, replace(SETTINGS, n_obs_steps=3))
    first, second = chunks.asked[0], chunks.asked[2]
    assert [seen["state"][0] for seen in first["history"]] == [0, 0] and first["step"] == 0
    assert second["step"] == 5 and second["episode"] == first["episode"]
    assert [seen["state"][0] for seen in (*second["history"], second)] == [4, 6, 8]
    assert {seen["instruction"] for seen in second["history"]} == {"put it there"}
    assert [int(seen["frames"]["front"][0, 0, 0]) for seen in second["history"]] == [4, 5]
    go(FakeRobot(), chunks, replace(SETTINGS, n_obs_steps=3))
    assert chunks.asked[-1]["episode"] != first["episode"], "another drive is another episode"
    chunks = toward((40.0, 50.0))
    go(FakeRobot(), chunks)
    assert set(chunks.asked[0]) == {"frames", "state", "instruction"}


def test_a_target_without_a_measured_position_is_named() -> None:
    profile = replace(PROFILE, state_names=("shoulder.pos",), state_low=(-90.0,), state_high=(90.0,))
    person = FakePerson()
    go(FakeRobot(), toward((10.0, 80.0)), profile=profile, person=person)
    assert any("no measured position of gripper.pos" in line for line in person.lines)
