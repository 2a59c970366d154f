"""Driving a robot, on a clock that does not wait: limits, keys, failures, corrections, and checks before it moves."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from drives import HORIZON, PROFILE, SETTINGS, Tape, failing, go, path, toward
from fake_robot import JOINTS, Chunks, FakeClock, FakeLeader, FakePerson, FakeRobot

from lightwam.errors import ConfigError, LightwamError, WireError
from lightwam.robot.background import Disconnected
from lightwam.robot.clock import SimulatedClock
from lightwam.robot.device import RenamedRobot, RenamedTeleoperator
from lightwam.robot.drive_settings import DriveSettings
from lightwam.robot.driving import drive
from lightwam.robot.errors import ConnectionLost, RobotError
from lightwam.robot.limits import Limits


def test_a_target_is_approached_at_the_largest_step_of_the_data() -> None:
    robot = FakeRobot()
    result = go(robot, toward((10.0, 80.0)))
    assert path(robot)[:7] == [2, 4, 6, 8, 10, 10, 10]
    assert path(robot, "gripper.pos")[:3] == [70, 80, 80]
    assert result.limited == {"shoulder.pos": 4, "gripper.pos": 1}
    assert result.reason == "the time is over" and result.steps == 30 == result.sent - 1, "and one command to hold"
    assert robot.log == ["connect", "disconnect"]


def test_a_target_outside_the_data_is_never_sent() -> None:
    robot = FakeRobot((76.0, 50.0))
    result = go(robot, toward((500.0, 50.0)))
    assert max(path(robot)) == 80 and path(robot)[:3] == [78, 80, 80]
    assert result.limited["shoulder.pos"] == 30


def test_the_policy_sees_names_in_its_own_order_and_its_sentence() -> None:
    profile = replace(PROFILE, state_names=JOINTS[::-1], state_low=PROFILE.state_low[::-1])
    profile = replace(profile, state_high=PROFILE.state_high[::-1])
    chunks = toward((0.0, 50.0))
    go(FakeRobot((5.0, 50.0)), chunks, profile=profile)
    seen = chunks.asked[0]
    assert seen["state"].tolist() == [50.0, 5.0] and seen["instruction"] == "put it there"
    assert seen["frames"]["front"].shape == (24, 32, 3)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"cameras": {"front": (48, 64), "wrist": (48, 64)}}, "lacks a camera of the policy: wrist"),
        ({"cameras": {"front": (64, 64)}}, "ratio of sides"),
        ({"state_names": ("elbow.pos", "gripper.pos")}, "joint of the state of the policy: elbow.pos"),
        ({"action_names": ("shoulder.pos", "jaw.pos")}, "joint of the action of the policy: jaw.pos"),
        ({"action_names": ("gripper.pos",)}, "takes joints that the policy does not move"),
        ({"state_low": (20.0, 0.0)}, "pose must be one that the policy was trained on"),
    ],
)
def test_nothing_moves_if_the_robot_is_another_one(change: dict[str, Any], what: str) -> None:
    robot, person = FakeRobot(), FakePerson()
    with pytest.raises(RobotError, match=what):
        go(robot, toward((10.0, 80.0)), profile=replace(PROFILE, **change), person=person)
    assert robot.sent == [] and not robot.connected and person.released == []


def test_any_pose_comes_into_the_range_slowly() -> None:
    robot = FakeRobot((120.0, 50.0))
    with pytest.raises(RobotError, match=r"shoulder\.pos 120"):
        go(robot, toward((80.0, 50.0)))
    go(robot, toward((80.0, 50.0)), replace(SETTINGS, any_pose=True))
    assert path(robot)[:3] == [118, 116, 114]


def test_the_person_is_told_of_an_unknown_sentence_and_of_the_limits() -> None:
    person = FakePerson()
    drive(FakeRobot(), toward((0, 50)), PROFILE, "put it here", SETTINGS, operator=person, clock=FakeClock())
    told = "\n".join(person.lines)
    assert "not trained on this sentence; did you mean 'put it there'?" in told
    assert "shoulder.pos        -80 to        80  at most 2 a step, 20/s" in told


def test_dry_sends_nothing_and_shows_the_commands() -> None:
    robot, person, chunks = FakeRobot(), FakePerson(), toward((10.0, 80.0))
    result = go(robot, chunks, replace(SETTINGS, dry=True), person=person)
    assert robot.sent == [] and result.sent == 0 and result.steps == 30
    assert len(chunks.asked) > 3
    shown = [line for line in person.lines if "would send" in line]
    assert len(shown) == 3 and "shoulder.pos 0 -> 2" in shown[0] and "shoulder.pos 0 -> 10" in shown[-1]
    assert person.released == [] and robot.log == ["connect", "disconnect"]


@pytest.mark.parametrize("key", ["q", "\x1b"])
def test_a_key_stops_and_the_robot_is_held_until_it_may_be_released(key: str) -> None:
    robot, person, tape = FakeRobot(), FakePerson({5: key}), Tape()
    result = go(robot, toward((40.0, 50.0)), person=person, recorder=tape)
    assert result.reason == "stopped by a key" and result.steps == 5
    assert path(robot) == [2, 4, 6, 8, 10, 10], "the last target again"
    assert person.released == ["stopped by a key: 5 steps"] and not robot.connected
    assert len(tape.steps) == 5 and tape.saved[0][0] == "put it there"


def test_a_recording_may_be_discarded() -> None:
    tape = Tape()
    go(FakeRobot(), toward((40.0, 50.0)), person=FakePerson({5: "x"}), recorder=tape)
    assert tape.discarded and tape.saved == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_as_a_key_does(number: signal.Signals) -> None:
    def interrupt(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), number)

    before, robot = signal.getsignal(number), FakeRobot(fails=interrupt)
    result = go(robot, toward((40.0, 50.0)))
    assert result.reason == "stopped by a signal" and not robot.connected
    assert signal.getsignal(number) == before


def test_the_robot_goes_back_to_where_it_began_when_the_time_is_over() -> None:
    robot = FakeRobot()
    go(robot, toward((10.0, 80.0)), replace(SETTINGS, return_to_start=True))
    assert path(robot)[-31:] == pytest.approx(np.linspace(10, 0, 31), abs=1e-4) and robot.pose["gripper.pos"] == 50
    robot = FakeRobot()
    go(robot, toward((80.0, 50.0)), replace(SETTINGS, return_to_start=True, seconds=4.95))
    assert path(robot)[-41:] == pytest.approx(np.linspace(80, 0, 41), abs=1e-4), "no faster than the largest step"
    robot = FakeRobot()
    go(robot, toward((10.0, 80.0)), replace(SETTINGS, return_to_start=True), person=FakePerson({9: "q"}))
    assert robot.pose["shoulder.pos"] == 10, "not after a stop"
    robot = FakeRobot()
    go(robot, toward((10.0, 80.0)), replace(SETTINGS, return_to_start=True), person=FakePerson({40: "q"}))
    assert 0 < robot.pose["shoulder.pos"] < 10, "a key stops the way back"


def test_a_pause_holds_and_asks_anew() -> None:
    robot, chunks, tape = FakeRobot(), toward((40.0, 50.0)), Tape()
    go(robot, chunks, person=FakePerson({3: " ", 13: " "}), recorder=tape)
    assert path(robot)[2:14] == [6] * 11 + [8]
    assert len(tape.steps) == 20, "a pause is not recorded"
    assert [seen["state"][0] for seen in chunks.asked[2:4]] == [6.0, 14.0]


def test_a_takeover_is_recorded_and_marked() -> None:
    robot, tape, leader = FakeRobot(), Tape(), FakeLeader((-100.0, 50.0))
    person = FakePerson({3: "t", 8: "t"})
    result = go(robot, toward((40.0, 50.0)), person=person, recorder=tape, teleoperator=leader)
    assert [corrected for *_, corrected in tape.steps[:10]] == [False] * 3 + [True] * 5 + [False] * 2
    assert path(robot)[:10] == [2, 4, 6, 4, 2, 0, -2, -4, -2, 0], "no jump to the leader, nor back"
    assert result.corrected == 5 and tape.saved[0][1]["corrected_steps"] == 5
    assert not leader.connected


def test_a_person_may_leave_the_range_of_the_data() -> None:
    robot, leader = FakeRobot((78.0, 50.0)), FakeLeader((85.0, 50.0))
    go(robot, toward((80.0, 50.0)), person=FakePerson({2: "t", 12: "t"}), teleoperator=leader)
    assert max(path(robot)) == 85 and path(robot)[-1] == 80


def test_without_a_teleoperator_nobody_takes_over() -> None:
    person = FakePerson({3: "t"})
    assert go(FakeRobot(), toward((40.0, 50.0)), person=person).corrected == 0
    assert any("no teleoperator" in line for line in person.lines)


def test_a_lost_camera_stops_the_robot() -> None:
    error = TimeoutError("OpenCVCamera(2) latest frame is too old: 612.0 ms")
    robot, person, tape = FakeRobot(fails=failing(7, error)), FakePerson(), Tape()
    with pytest.raises(RobotError, match=r"could not be read\n  got: TimeoutError: OpenCVCamera\(2\)"):
        go(robot, toward((40.0, 50.0)), person=person, recorder=tape)
    assert path(robot)[-2:] == [12, 12], "held"
    assert len(person.released) == 1 and not robot.connected
    assert len(tape.steps) == 6 and "could not be read" in tape.saved[0][1]["ended"]


def test_a_frozen_camera_stops_the_robot() -> None:
    robot = FakeRobot()

    def fails(step: int) -> None:
        robot.frozen = step >= 5

    robot.fails = fails
    with pytest.raises(RobotError, match=r"must not freeze\n  where: camera front"):
        go(robot, toward((40.0, 50.0)), replace(SETTINGS, frozen_seconds=0.45))
    assert len(robot.sent) == 8 + 1, "half a second after the last new picture"
    frozen = FakeRobot()
    frozen.frozen = True
    assert go(frozen, toward((40.0, 50.0)), replace(SETTINGS, frozen_seconds=0.0)).steps == 30


def test_a_camera_that_returns_something_else_stops_the_robot() -> None:
    robot = FakeRobot()
    robot.sizes["front"] = (24, 32)
    read = robot.get_observation
    robot.get_observation = lambda: read() | {"front": np.zeros((24, 32), np.uint8)}  # type: ignore[method-assign]
    with pytest.raises(RobotError, match="must return an RGB picture"):
        go(robot, toward((40.0, 50.0)))


def test_a_joint_that_is_not_a_number_stops_the_robot() -> None:
    robot = FakeRobot()
    read = robot.get_observation
    broken = {"shoulder.pos": float("nan")}
    robot.get_observation = lambda: read() | (broken if robot.reads > 5 else {})  # type: ignore[method-assign]
    with pytest.raises(RobotError, match=r"state must be finite\n  where: shoulder.pos"):
        go(robot, toward((40.0, 50.0)))
    assert not robot.connected


def test_a_server_that_dies_stops_the_robot_after_its_chunk() -> None:
    chunks = toward((40.0, 50.0))

    def chunk(seen: dict[str, Any]) -> np.ndarray | None:
        if len(chunks.asked) <= 2:
            return np.tile(np.array([40.0, 50.0], np.float32), (HORIZON, 1))
        chunks.send(Disconnected(ConnectionLost("no answer from the policy server", where="ws://gpu:8000")))
        return None

    chunks.chunk = chunk
    robot, person = FakeRobot(), FakePerson()
    with pytest.raises(RobotError, match=r"without an action for 1 s\n  got: no answer from the policy server"):
        go(robot, chunks, person=person)
    assert path(robot)[:8] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert set(path(robot)[8:]) == {16}, "held at the last target"
    assert len(robot.sent) == 8 + 11 + 1 and len(person.released) == 1


def test_a_policy_that_is_always_late_stops_the_robot() -> None:
    """Its answers are older than `max_age_seconds` when they come."""
    chunks, robot = toward((40.0, 50.0)), FakeRobot()
    chunks.delay = 7  # steps
    with pytest.raises(RobotError, match="answers take 10 ms, 2 of them too late to be executed"):
        go(robot, chunks, replace(SETTINGS, max_age_seconds=0.5, patience_seconds=1.5))
    assert set(path(robot)) == {0.0}, "it stood still"
    robot, chunks = FakeRobot(), toward((40.0, 50.0))
    chunks.delay = 3
    assert go(robot, chunks, replace(SETTINGS, max_age_seconds=0.5)).player.held > 3, "late, but young enough"
    assert robot.pose["shoulder.pos"] == 40


def test_waiting_now_and_then_is_no_failure() -> None:
    """Each wait is shorter than the patience; together they are longer."""
    chunks = toward((40.0, 50.0))
    chunks.delay = 7
    result = go(FakeRobot(), chunks, replace(SETTINGS, seconds=4.95))
    assert result.player.held > 15 and result.steps == 50


def test_a_camera_may_use_its_buffer_again() -> None:
    """A picture is sent while the robot moves, and must not change meanwhile."""
    robot, chunks = FakeRobot(), toward((40.0, 50.0))
    read, buffer = robot.get_observation, np.zeros((24, 32, 3), np.uint8)

    def same_buffer() -> dict[str, Any]:
        seen = read()
        buffer[:] = seen["front"]
        return seen | {"front": buffer}

    robot.get_observation = same_buffer  # type: ignore[method-assign]
    go(robot, chunks)
    assert [int(seen["frames"]["front"][0, 0, 0]) for seen in chunks.asked][:4] == [1, 2, 6, 10]


def test_no_answer_at_the_start_is_an_error_before_anything_moves() -> None:
    robot = FakeRobot()
    with pytest.raises(RobotError, match="must answer within 2 s"):
        go(robot, Chunks(lambda seen: None), replace(SETTINGS, first_chunk_seconds=2.0))
    assert robot.sent == [] and not robot.connected


def test_a_chunk_of_another_robot_is_refused_before_anything_moves() -> None:
    robot = FakeRobot()
    with pytest.raises(WireError, match=r"\n  expected: numbers \(H, 2\)"):
        go(robot, Chunks(lambda seen: np.zeros((8, 7), np.float32)))
    assert robot.sent == []


def test_a_bug_of_the_policy_stops_the_robot_too() -> None:
    chunks = toward((40.0, 50.0))

    def chunk(seen: dict[str, Any]) -> np.ndarray | None:
        if len(chunks.asked) > 2:
            raise ZeroDivisionError("a bug")
        return np.tile(np.array([40.0, 50.0], np.float32), (HORIZON, 1))

    chunks.chunk = chunk
    robot, person = FakeRobot(), FakePerson()
    with pytest.raises(ZeroDivisionError):
        go(robot, chunks, person=person)
    assert person.released == ["a bug"] and not robot.connected


def test_motions_stop_at_zero() -> None:
    """A robot of motions stands still with zeros, and is told so at the end."""
    low, high = (-1.0, 0.0), (1.0, 100.0)
    profile = replace(PROFILE, motion_dims=(0,), action_low=low, action_high=high, action_step=(0.1, 20.0))
    robot = FakeRobot()
    go(robot, toward((3.0, 60.0)), profile=profile, person=FakePerson({4: " ", 8: "q"}))
    assert path(robot) == [1, 1, 1, 1, 0, 0, 0, 0, 0], "within the data's range, no limit on the step"
    assert path(robot, "gripper.pos")[-1] == 60


def test_what_the_robot_made_of_a_command_is_what_counts() -> None:
    robot, tape = FakeRobot(), Tape()
    robot.send_action = lambda action: {"shoulder.pos": 1.5}  # type: ignore[method-assign,assignment]
    go(robot, toward((40.0, 50.0)), recorder=tape)
    assert {float(action[0]) for _, action, _ in tape.steps} == {1.5}


def test_limits_per_joint() -> None:
    profile = PROFILE.with_max_step(("5", "gripper.pos=30"))
    assert profile.action_step == (5, 30)
    allowed, dims = Limits(profile).apply(np.array([9, 90], np.float32), np.array([0, 50], np.float32))
    assert allowed.tolist() == [5, 80] and dims == (0, 1)
    unknown = np.full(2, np.nan, np.float32)
    assert Limits(profile).apply(np.array([9, 90], np.float32), unknown)[0].tolist() == [9, 90]
    for word in ("0", "-1", "fast", "jaw.pos=3", "nan"):
        with pytest.raises(ConfigError, match="--max-step must be"):
            PROFILE.with_max_step((word,))


def test_a_slow_simulator_has_its_own_time() -> None:
    """Its steps take as long as they take, and none is late."""
    robot, person = FakeRobot(fails=lambda step: time.sleep(0.02)), FakePerson()
    profile = replace(PROFILE, fps=100.0)
    settings = replace(SETTINGS, seconds=0.195)
    result = drive(robot, toward((40.0, 50.0)), profile, "x", settings, operator=person, clock=SimulatedClock())
    assert result.steps == 20 and result.late_steps == 0
    late = drive(FakeRobot(fails=robot.fails), toward((40.0, 50.0)), profile, "x", settings, operator=person)
    assert late.steps < 15 and late.late_steps > 0


def test_names_of_the_robot_may_differ() -> None:
    """The policy, the recording and the leader have the dataset's names."""
    names = {"main_shoulder": "shoulder.pos", "laptop": "front"}
    profile = replace(
        PROFILE, state_names=("main_shoulder", "gripper.pos"), action_names=("main_shoulder", "gripper.pos")
    )
    profile = replace(profile, cameras={"laptop": (48, 64)})
    robot, chunks, leader = FakeRobot(), toward((10.0, 80.0)), FakeLeader((-5.0, 50.0))
    renamed = RenamedRobot(robot, names), RenamedTeleoperator(leader, names)
    rest = {"operator": FakePerson({3: "t"}), "clock": FakeClock(), "teleoperator": renamed[1]}
    result = drive(renamed[0], chunks, profile, "put it there", SETTINGS, **rest)
    assert path(robot)[:5] == [2, 4, 6, 4, 2] and robot.pose["shoulder.pos"] == -5
    assert list(chunks.asked[0]["frames"]) == ["laptop"] and result.limited["main_shoulder"] > 0
    with pytest.raises(ConfigError, match="--rename takes pairs"):
        RenamedRobot(robot, {"elbow": "x"})


@pytest.mark.parametrize("field", ["seconds", "patience_seconds", "max_age_seconds", "first_chunk_seconds"])
def test_settings_are_checked(field: str) -> None:
    with pytest.raises(LightwamError, match=field):
        DriveSettings(**{field: 0.0})
