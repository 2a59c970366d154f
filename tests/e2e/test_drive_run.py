"""`lightwam drive`: a trained run drives its own simulator, alone and through a server, and a robot of the user's."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_robot import Chunks, FakeClock, FakePerson, FakeRobot, PointArm
from serving import serving, stop

from lightwam.cli.main import main
from lightwam.config import recipes
from lightwam.data.lerobot.check import check_dataset
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.errors import ConfigError
from lightwam.policy import run_directory
from lightwam.policy.driving import DrivenPolicy, dataset_greeting, greeting, open_robot, succeeded, with_device_names
from lightwam.policy.policy import Policy
from lightwam.robot import DriveSettings, RobotDevice, RobotProfile, drive
from lightwam.robot.client import Client
from lightwam.robot.device import RenamedRobot
from lightwam.serving.serve import metadata, playable
from lightwam.serving.settings import Serving
from lightwam.sim.device import SimulatedRobot, simulated_robot
from lightwam.sim.point import STEP, PointSimulator
from lightwam.wire.robot_schemas import schemas_for

SENTENCE = "move to the red dot"
RENAMED = ("--rename", "x=x_axis", "y=y_axis", "top=camera")
ARM = ("--robot", "fake_robot:PointArm", "--task", SENTENCE, *RENAMED)


@pytest.fixture
def run(tiny_once: Any) -> Path:
    """The tiny run; look, do not touch."""
    return Path(tiny_once.run)


def drive_command(run: Path, *words: str) -> int:
    return main(["drive", str(run), "--device", "cpu", *words])


def test_a_run_drives_its_own_simulator_and_records_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--robot", "simulated", "--task", SENTENCE, "--seconds", "1.2", "--record", str(tmp_path / "out"))
    assert drive_command(run, *words) == 0
    assert drive_command(run, *words, "--seed", "1") == 0
    out = capsys.readouterr().out
    assert "the time is over" in out and "the simulated task was" in out and "episode 1 of" in out
    assert "velocity_x" in out and "a motion" in out, "the limits"
    dataset = LeRobotDataset(tmp_path / "out")
    assert (dataset.num_episodes, dataset.fps, dataset.robot_type) == (2, 10.0, "point")
    assert dataset.tasks == (SENTENCE,) and dataset.state_names == ("x", "y")
    assert check_dataset(tmp_path / "out").problems == ()
    length = dataset.episodes[0].length
    state, action = dataset.vectors.state[:length], dataset.vectors.action[: length - 1]
    moved = np.clip(state[:-1] + STEP * np.clip(action, -1, 1), -1, 1)
    assert length >= 5 and np.allclose(state[1:], moved, atol=1e-5), "what was sent is what happened"


def test_through_a_server_a_users_robot_gets_the_same_actions(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, closed = Policy.load(run, device="cpu"), list[Client]()
    monkeypatch.setattr(Client, "close", lambda client, close=Client.close: (closed.append(client), close(client)))
    words = (*ARM, "--seconds", "1.0", "--blend", "0", "--port", "/dev/ttyACM0")
    with serving(playable(policy), schemas_of=schemas_for((), policy.cameras, 2, 2, {})) as server:
        address = f"ws://127.0.0.1:{server.ports['openpi']}"
        assert main(["drive", str(run), *words, "--server", address]) == 0
    assert len(closed) == 1
    there = PointArm.made[-1]
    assert drive_command(run, *words, "--no-engine", "--robot-options", "speed=2", "colour.body=red") == 0
    here = PointArm.made[-1]
    assert here.port == "/dev/ttyACM0" and here.options == {"speed": 2, "colour": {"body": "red"}}
    assert here.log == there.log == ["connect", "disconnect"]
    moves = [next(move for move in arm.sent if any(move.values())) for arm in (here, there)]
    assert moves[0] == pytest.approx(moves[1], abs=1e-5)
    assert here.sent[-1] == {"velocity_x": 0.0, "velocity_y": 0.0}, "it stands still at the end"


def test_a_servers_greeting_is_enough(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No run directory is needed on the robot's computer."""
    policy = Policy.load(run, device="cpu")
    schemas = schemas_for((), policy.cameras, 2, 2, {})
    with serving(playable(policy), schemas_of=schemas, metadata=metadata(policy, Serving())) as server:
        address = f"ws://127.0.0.1:{server.ports['openpi']}"
        with Client(address) as client:
            assert DrivenPolicy.of_server(client) == replace(DrivenPolicy.of_run(run), sim=None)
        words = ("--robot", "simulated:point/red", "--task", SENTENCE, "--seconds", "0.5")
        assert main(["drive", address, *words, "--record", str(tmp_path / "out")]) == 0
        assert main(["drive", address, *words, "--server", address]) == 2
    assert "step 6 on ws://127.0.0.1" in capsys.readouterr().out
    assert LeRobotDataset(tmp_path / "out").robot_type == "point"
    with serving(playable(policy), schemas_of=schemas) as server:
        words = ("--robot", "simulated:point/red", "--task", SENTENCE)
        assert main(["drive", f"ws://127.0.0.1:{server.ports['openpi']}", *words]) == 2
    assert "the server must describe the robot of its policy" in capsys.readouterr().err


def test_a_server_that_dies_stops_the_robot(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy.load(run, device="cpu")
    with serving(playable(policy), schemas_of=schemas_for((), policy.cameras, 2, 2, {})) as server:
        read = PointArm.get_observation

        def dies(arm: PointArm) -> dict[str, Any]:
            if len(arm.sent) == 3:
                stop(server)
            return read(arm)

        monkeypatch.setattr(PointArm, "get_observation", dies)
        address = f"ws://127.0.0.1:{server.ports['openpi']}"
        words = ("--server", address, "--seconds", "60", "--patience-seconds", "0.5")
        assert main(["drive", str(run), *ARM, *words]) == 2
    assert "must not leave the robot without an action for 0.5 s" in (said := capsys.readouterr()).err
    assert "no answer from the policy server" in said.err
    arm = PointArm.made[-1]
    assert not arm.connected and arm.sent[-1] == {"velocity_x": 0.0, "velocity_y": 0.0}


def test_dry_shows_commands_of_a_users_robot_and_sends_none(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert drive_command(run, *ARM, "--seconds", "0.5", "--dry") == 0
    assert PointArm.made[-1].sent == [] and "would send  velocity_x" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--robot", "simulated"), "the task must be given as a sentence"),
        (("--robot", "simulated", "--task", "fly"), "the simulator must have a task of this sentence"),
        (("--robot", "simulated:point/purple", "--task", "x"), "unknown point task"),
        (("--robot", "no_such_module:Arm", "--task", "x"), "a robot cannot be imported"),
        (("--robot", "fake_robot:FakeLeader", "--task", "x"), "refuses the options"),
        (("--robot", "fake_robot:PointArm", "--task", "x"), "lacks a camera of the policy: top"),
        ((*ARM, "--rename", "x=y"), "which the robot does not have"),
        ((*ARM, "--rename", "z"), "--rename takes pairs"),
        ((*ARM, "--dry", "--record", "x"), "a dry drive records nothing"),
        ((*ARM, "--replan", "100"), "replan is out of range"),
        ((*ARM, "--camera", "front"), "--camera takes pairs"),
        ((*ARM, "--camera", "front=0"), "size of a camera"),
        ((*ARM, "--camera-size", "big", "--camera", "front=0"), "--camera-size must be WIDTHxHEIGHT"),
        ((*ARM, "--robot-options", "speed"), "--robot-options takes pairs"),
        ((*ARM, "--fps", "10.4", "--record", "x"), "must have an integer rate"),
        ((*ARM, "--fps", "9"), "got: 9 steps a second\n  expected: 10, within 5%\n  next: leave it out"),
        ((*ARM, "--fps", "0"), "the rate must be that of the policy's data"),
        ((*ARM, "--rename", "x=x_axis", "x=y_axis"), "--rename must give each name once"),
        ((*ARM, "--camera-size", "0x0", "--camera", "front=0"), "--camera-size must be WIDTHxHEIGHT"),
        ((*ARM, "--camera-size", "32x32", "--camera", "a=0", "--camera", "b=0"), "--camera must give each camera once"),
        ((*ARM, "--camera-size", "32x32", "--camera", "a=0", "--camera", "a=1"), "--camera must give each camera once"),
        ((*ARM, "--camera-fps", "60"), "--camera-fps must be left out\n  got: there is no --camera"),
        ((*ARM, "--teleop-port", "/dev/x"), "--teleop-port must be left out\n  got: there is no --teleop"),
        ((*ARM, "--seed", "1"), "--seed must be left out\n  got: the robot is not simulated"),
        ((*ARM, "--robot-schema", "yam"), "--robot-schema must be left out\n  got: no server computes"),
        ((*ARM, "--port", "/x", "--teleop", "so101_leader", "--teleop-port", "/x"), "must have different ports"),
        (("--robot", "simulated", "--port", "x"), "--port must be left out\n  got: a simulated robot has none of it"),
        ((*ARM, "--server", "ws://x"), "--device must be left out\n  got: the server computes"),
        (("--robot", "fake_robot:FakeClock", "--task", "x"), "fake_robot:FakeClock must have LeRobot's methods"),
        ((*ARM, "--teleop", "fake_robot:FakeRobot"), "got: no get_action"),
    ],
)
def test_what_cannot_be_driven_is_refused(
    run: Path,
    words: tuple[str, ...],
    what: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert drive_command(run, *words) == 2
    assert what in capsys.readouterr().err


def test_the_profile_is_that_of_the_data(tiny_once: Any) -> None:
    profile = DrivenPolicy.of_run(tiny_once.run).profile
    dataset = LeRobotDataset(tiny_once.dataset)
    action, starts = dataset.vectors.action, dataset.episode_start
    steps = [np.abs(np.diff(action[a:b], axis=0)) for a, b in pairwise(starts)]
    assert profile.action_step == pytest.approx(np.concatenate(steps).max(0))
    assert profile.action_low == pytest.approx(action.min(0)) and profile.fps == 10
    assert profile.state_high == pytest.approx(dataset.vectors.state.max(0))
    assert profile.cameras == {"top": (32, 32)} and profile.motion_dims == (0, 1)
    assert set(profile.sentences) == set(dataset.tasks)


def test_a_run_of_an_older_version_is_driven_by_what_its_simulator_knows(tiny: Any) -> None:
    (tiny.run / "facts.json").unlink()
    profile = DrivenPolicy.of_run(tiny.run).profile
    codec, _ = run_directory.read_processing(tiny.run)
    assert (profile.fps, profile.state_names, profile.cameras) == (10.0, ("x", "y"), {"top": None})
    assert profile.action_high == pytest.approx(codec.action.max) and np.isinf(profile.action_step).all()
    profile.check_steps()  # motions need none
    with pytest.raises(ConfigError, match="the largest step of a target must be known"):
        replace(profile, motion_dims=(0,)).check_steps()
    replace(profile, motion_dims=()).with_max_step(("5",)).check_steps()


def test_a_run_of_an_older_version_without_a_simulator_needs_its_rate(tiny: Any) -> None:
    (tiny.run / "facts.json").unlink()
    data = json.loads((tiny.run / "recipe.json").read_text(encoding="utf-8"))
    data["sim"]["name"] = "somebody.elses"
    (tiny.run / "recipe.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ConfigError, match="does not have its data's rate"):
        DrivenPolicy.of_run(tiny.run)
    profile = DrivenPolicy.of_run(tiny.run, 20.0).profile
    assert profile.action_names == ("0", "1")
    assert with_device_names(profile, PointArm()).state_names == ("x_axis", "y_axis"), "in the robot's order"
    assert with_device_names(profile, FakeRobot()).action_names == FakeRobot().joints


def test_a_simulator_has_the_interface_of_a_robot() -> None:
    """And the loop solves its task, if the policy does: here the scripted expert answers."""
    robot = simulated_robot(recipes.point().simulation, SENTENCE, seed=3)
    assert isinstance(robot, SimulatedRobot) and isinstance(robot, RobotDevice)
    simulator = robot.simulator
    assert isinstance(simulator, PointSimulator)

    def chunk(seen: dict[str, Any]) -> np.ndarray:
        goal = np.array(simulator.target, np.float32)
        return np.clip((goal - seen["state"]) / STEP, -1, 1)[None].repeat(2, 0).astype(np.float32)

    low, high, names = (-1.0, -1.0), (1.0, 1.0), (("x", "y"), ("velocity_x", "velocity_y"))
    profile = RobotProfile(10.0, {"top": (32, 32)}, *names, (0, 1), low, high, low, high, high)
    settings = DriveSettings(seconds=3.95, replan=1, blend=0, frozen_seconds=0.0)
    result = drive(robot, Chunks(chunk), profile, SENTENCE, settings, operator=FakePerson(), clock=FakeClock())
    assert robot.success and result.steps == 40 and not robot.is_connected
    assert robot.observation_features == {"x": float, "y": float, "top": (32, 32, 3)}


def test_a_run_on_data_alone_is_tried_in_a_simulator_by_its_name(tiny: Any) -> None:
    alone = replace(DrivenPolicy.of_run(tiny.run), sim=None)
    robot = open_robot("simulated:point/blue", {}, alone, "anything")
    assert isinstance(robot, SimulatedRobot) and robot.simulator.instruction == "move to the blue dot"
    assert robot.observation_features["top"] == (32, 32, 3)
    with pytest.raises(ConfigError, match="no simulator of its own"):
        open_robot("simulated", {}, alone, SENTENCE)
    faster = replace(alone, profile=replace(alone.profile, fps=30.0))
    with pytest.raises(
        ConfigError, match=r"where: simulator point\n  got: 10 steps a second\n  expected: 30, within 5%"
    ):
        open_robot("simulated:point/blue", {}, faster, "anything")


def test_a_server_of_another_robot_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = Policy.load(run, device="cpu")
    about = metadata(policy, Serving())
    about["robot"] = {**about["robot"], "action_names": ["left", "right"]}
    with serving(playable(policy), schemas_of=schemas_for((), policy.cameras, 2, 2, {}), metadata=about) as server:
        address = f"ws://127.0.0.1:{server.ports['openpi']}"
        assert main(["drive", str(run), *ARM, "--server", address]) == 2
    assert "the server's policy must be of the run's robot" in capsys.readouterr().err


def test_a_dataset_describes_the_robot_of_a_policy_that_was_trained_elsewhere(tiny_once: Any) -> None:
    """As a run that was trained on it does."""
    described = dataset_greeting(tiny_once.dataset, ("top",), 2, 2)
    assert described == greeting(Policy.load(tiny_once.run, device="cpu"))
    assert dataset_greeting(tiny_once.dataset, ("top",), 0, 2)["robot"]["state_names"] == []
    for cameras, state_dim, action_dim in ((("wrist",), 2, 2), (("top",), 3, 2), (("top",), 2, 7)):
        with pytest.raises(ConfigError, match="the dataset must be the policy's"):
            dataset_greeting(tiny_once.dataset, cameras, state_dim, action_dim)


def test_a_servers_policy_gets_the_history_that_it_asks_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy, seen = Policy.load(run, device="cpu"), list[Any]()

    def act(observations: Any) -> np.ndarray:
        seen.extend(observations)
        return playable(policy)(observations)

    for num_steps, code in ((3, 0), (1, 2)):
        with serving(act, schemas_of=schemas_for((), policy.cameras, 2, 2, {}, num_steps)) as server:
            address = f"ws://127.0.0.1:{server.ports['openpi']}"
            assert main(["drive", str(run), *ARM, "--seconds", "0.5", "--server", address]) == code
    assert len(seen) > 1 and seen[-1].step > 0 and {len(each.history) for each in seen} == {2}
    assert [each.step for each in seen[-1].history] == [max(0, seen[-1].step - 2), max(0, seen[-1].step - 1)]
    assert "n_obs_steps\n  got: 1: at every step" in capsys.readouterr().err


def test_a_simulated_robot_with_other_names_also_says_whether_it_succeeded() -> None:
    robot = simulated_robot(recipes.point().simulation, SENTENCE)
    assert succeeded(RenamedRobot(robot, {"a": "x"})) is False
