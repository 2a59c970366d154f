"""Meta-World through the protocol: exact resets, upright pictures, experts that succeed."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from lightwam.config.schema import SimConfig
from lightwam.errors import SimulatorError
from lightwam.sim import registry
from lightwam.sim.check import check_simulator
from lightwam.sim.metaworld import simulator as metaworld
from lightwam.sim.mujoco_renderer import simplify_meshes

pytestmark = pytest.mark.sim
pytest.importorskip("metaworld")

CONFIG = SimConfig("metaworld", tasks=("reach",), cameras=("corner4",), height=48, width=64, max_steps=150)
DEMO_TASKS = ("reach", "button-press-topdown", "drawer-open", "window-open")


def test_all_50_tasks_have_different_instructions() -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert sorted(f"{task}-v3" for task in metaworld.TASKS) == sorted(ALL_V3_ENVIRONMENTS)
    assert len(set(metaworld.INSTRUCTIONS.values())) == len(metaworld.TASKS) == 50


@pytest.mark.parametrize("task", ["reach", "drawer-open"])
def test_the_simulator_check_passes(task: str) -> None:
    config = replace(CONFIG, cameras=("corner4", "gripperPOV"), action_repeat=2)
    assert [str(finding) for finding in check_simulator(config, task)] == []


@pytest.mark.parametrize("task", DEMO_TASKS)
@pytest.mark.parametrize("repeat", [1, 2, 3])
def test_experts_solve_the_demo_tasks(task: str, repeat: int) -> None:
    config = replace(CONFIG, action_repeat=repeat)
    simulator = registry.make_simulator(config, task)
    for seed in (0, 1):
        simulator.reset(seed)
        expert = registry.make_expert(config, simulator)
        assert any(simulator.step(expert.action()).success for _ in range(110 // repeat))
    simulator.close()


def test_the_expert_of_reach_brings_the_fingers_to_the_goal_not_the_hand() -> None:
    config = replace(CONFIG, action_repeat=3)
    simulator = registry.make_simulator(config, "reach")
    assert isinstance(simulator, metaworld.MetaWorldSimulator)
    for seed in (0, 1):
        simulator.reset(seed)
        expert = registry.make_expert(config, simulator)
        for _ in range(25):
            simulator.step(expert.action())
        assert np.linalg.norm(simulator.fingertips - simulator.full_observation[-3:]) < 0.01  # success: 0.05
    simulator.close()


def test_state_and_rate_are_meta_worlds() -> None:
    simulator = metaworld.MetaWorldSimulator(replace(CONFIG, action_repeat=2), "reach")
    simulator.reset(0)
    assert simulator.fps == pytest.approx(1 / (2 * simulator._env.dt))
    before = simulator.observe().state
    assert before.dtype == np.float32 and np.allclose(before[:3], simulator._env.get_endeff_pos())
    for _ in range(10):
        simulator.step(np.array([1, 0, 0, 1], np.float32))
    after = simulator.observe().state
    assert after[0] - before[0] > 0.05 and after[3] < before[3]  # the hand went right, the gripper closed
    simulator.close()


def test_actions_beyond_the_range_are_clipped() -> None:
    states = []
    for scale in (1, 9):
        simulator = registry.make_simulator(CONFIG, "reach")
        simulator.reset(0)
        for _ in range(5):
            simulator.step(scale * np.array([1, -1, 1, -1], np.float32))
        states.append(simulator.observe().state)
        simulator.close()
    assert np.array_equal(*states)


@pytest.mark.parametrize("camera", metaworld.CAMERAS)
def test_every_camera_draws_at_any_size(camera: str) -> None:
    simulator = registry.make_simulator(replace(CONFIG, cameras=(camera,), height=40, width=56), "drawer-open")
    simulator.reset(0)
    picture = simulator.observe().frames[camera]
    assert picture.shape == (40, 56, 3) and picture.std() > 5
    simulator.close()


def test_pictures_are_upright() -> None:
    """The goal's ball is put higher, and it is higher in the picture; Meta-World mounts these cameras upside down."""
    import mujoco

    config = replace(CONFIG, cameras=("corner", "corner2", "corner3", "corner4"), height=96, width=96)
    simulator = metaworld.MetaWorldSimulator(config, "reach")
    simulator.reset(0)
    model, data = simulator._env.model, simulator._env.data
    rows: dict[str, list[float]] = {camera: [] for camera in config.cameras}
    for height in (0.05, 0.3):
        pictures = []
        for alpha in (0.0, 1.0):
            model.site("goal").pos, model.site("goal").rgba[3] = (0.1, 0.8, height), alpha
            mujoco.mj_forward(model, data)
            pictures.append(simulator.observe().frames)
        for camera in config.cameras:
            changed = (pictures[0][camera] != pictures[1][camera]).any(-1)
            rows[camera].append(float(np.nonzero(changed)[0].mean()))
    assert all(low > high + 5 for low, high in rows.values()), rows  # rows count downwards
    simulator.close()


def test_the_goal_of_reach_is_visible() -> None:
    simulator = metaworld.MetaWorldSimulator(replace(CONFIG, height=96, width=96, cameras=("corner",)), "reach")
    simulator.reset(0)
    there = simulator.observe().frames["corner"]
    simulator._env.model.site("goal").rgba[3] = 0
    gone = simulator.observe().frames["corner"]
    assert 0 < (there != gone).any(-1).sum() < 200
    simulator.close()


def test_the_first_picture_is_up_to_date() -> None:
    """Meta-World moves the goal after its last forward pass; without another, the ball is drawn where it was."""
    import mujoco

    simulator = metaworld.MetaWorldSimulator(replace(CONFIG, height=96, width=96, cameras=("corner",)), "reach")
    simulator.reset(2)
    first = simulator.observe().frames["corner"]
    mujoco.mj_forward(simulator._env.model, simulator._env.data)
    assert np.array_equal(first, simulator.observe().frames["corner"])
    simulator.close()


def test_simplified_meshes_change_few_pixels_and_no_physics() -> None:
    plain, simple = (
        metaworld.MetaWorldSimulator(replace(CONFIG, height=96, width=96), "drawer-open") for _ in range(2)
    )
    for simulator, mesh_detail in ((plain, 0.0), (simple, metaworld.MESH_DETAIL)):
        simulator.reset(0)
        simulator._renderer = metaworld.MujocoRenderer(simulator._env.model, 96, 96, mesh_detail)
    pictures = [simulator.observe().frames["corner4"].astype(int) for simulator in (plain, simple)]
    apart = np.abs(pictures[0] - pictures[1]).max(-1)
    assert 0 < apart.mean() < 2 and (apart > 16).mean() < 0.02
    model = simple._env.model
    faces = simplify_meshes(model, metaworld.MESH_DETAIL).mesh_facenum.sum()
    assert faces < model.mesh_facenum.sum() / 3
    assert np.array_equal(model.mesh_vert, plain._env.model.mesh_vert)
    plain.close()
    simple.close()


def test_importing_mujoco_early_and_not_closing_is_harmless() -> None:
    code = (  # mujoco first, as a user's own script may do
        "import mujoco; from lightwam.config.schema import SimConfig; from lightwam.sim import registry\n"
        "config = SimConfig('metaworld', ('reach',), ('corner4',), 24, 24, 9)\n"
        "s = registry.make_simulator(config, 'reach'); s.reset(0); s.observe()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("task", DEMO_TASKS)
def test_a_moved_object_and_a_bumped_camera_show_until_the_reset(task: str) -> None:
    simulator = registry.make_simulator(CONFIG, task)
    assert isinstance(simulator, metaworld.MetaWorldSimulator)
    simulator.reset(3)
    before, goal = simulator.observe().frames["corner4"], simulator._env._target_pos.copy()
    metres = simulator.move_object(np.random.default_rng(0))
    moved = simulator.observe().frames["corner4"]
    assert 0.04 <= metres <= 0.08
    assert np.linalg.norm(simulator._env._target_pos - goal) == pytest.approx(metres)
    assert (moved != before).any()
    degrees = simulator.bump_camera(np.random.default_rng(0))
    assert 1 <= degrees <= 3
    assert (simulator.observe().frames["corner4"] != moved).mean() > 0.3
    simulator.reset(3)
    assert np.array_equal(simulator.observe().frames["corner4"], before)
    assert np.array_equal(simulator._env._target_pos, goal)
    simulator.close()


def test_a_free_object_is_moved_by_its_joint_and_an_unknown_task_is_refused() -> None:
    simulator = registry.make_simulator(CONFIG, "push")
    assert isinstance(simulator, metaworld.MetaWorldSimulator)
    simulator.reset(1)
    before, goal = simulator._env.get_body_com("obj").copy(), simulator._env._target_pos.copy()
    metres = simulator.move_object(np.random.default_rng(5))
    assert np.linalg.norm(simulator._env.get_body_com("obj") - before) == pytest.approx(metres)
    assert np.array_equal(simulator._env._target_pos, goal)
    simulator.close()
    other = registry.make_simulator(CONFIG, "hammer")
    assert isinstance(other, metaworld.MetaWorldSimulator)
    other.reset(0)
    with pytest.raises(SimulatorError, match="objects can be moved only"):
        other.move_object(np.random.default_rng(0))
    other.close()
