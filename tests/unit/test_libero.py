"""LIBERO: the benchmark's own bits by less work, every published protocol, and experts that pick and place."""

import importlib.util
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightwam.config.libero_protocols import FIRST_STATE, FOUR, PROTOCOLS, SUITES
from lightwam.config.schema import SimConfig
from lightwam.errors import ConfigError, SetupError, SimulatorError
from lightwam.sim import registry
from lightwam.sim.check import check_simulator
from lightwam.sim.libero import conversion, files
from lightwam.sim.libero import simulator as libero
from lightwam.sim.libero.expert_fixtures import BACK_GAP, Fixtures
from lightwam.sim.libero.expert_scene import Scene
from lightwam.sim.libero.files import importing_robosuite
from lightwam.sim.libero.simulator import LiberoSimulator

pytestmark = [pytest.mark.sim, pytest.mark.filterwarnings("ignore")]  # of gym, numba and robosuite, about themselves
pytest.importorskip("libero")

RECORDED = Path(__file__).parents[1] / "data" / "libero_states.npz"
"""ten random actions, and the states of task 0 of four suites before and after each (`official`, light-wam's settling,
MuJoCo 3.3.0)"""
WHOLE = SimConfig("libero", ("libero_object/0",), ("agentview", "wrist"), 256, 256, 400, protocol="light-wam")
PLAIN = replace(WHOLE, height=96, width=128, protocol="plain")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """A world takes over a gigabyte."""
    yield
    for simulator in list(libero._loaded):
        simulator.close()


def actions() -> np.ndarray:
    """In LIBERO's units: the gripper is -1 or 1."""
    with np.load(RECORDED) as file:
        return np.asarray(file["actions"])


def official(task: str) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
    """States and observations of `actions` in LIBERO's own environment, driven as the published evaluations do."""
    libero.choose_gl()
    from libero.libero.envs.env_wrapper import ControlEnv

    suite, number = task.split("/")
    name = files.task_name(suite, int(number))
    env = ControlEnv(str(files.bddl_file(suite, name)), camera_heights=256, camera_widths=256)
    try:
        env.seed(42)
        env.reset()
        env.set_init_state(files.initial_states(suite, name)[0])
        for _ in range(30):
            env.step(libero.IDLE_ACTION)
        states, seen = [env.get_sim_state()], []
        for action in actions():
            seen.append(env.step(action)[0])
            states.append(env.get_sim_state())
        return np.stack(states), seen
    finally:
        env.close()


def ours(task: str) -> tuple[np.ndarray, list[Any]]:
    simulator = libero.make(replace(WHOLE, tasks=(task,)), task)
    simulator.reset(FIRST_STATE)
    states, seen = [simulator._env.get_sim_state()], []
    for action in actions():
        simulator.step(np.append(action[:6], (1 - action[6]) / 2).astype(np.float32))
        states.append(simulator._env.get_sim_state())
        seen.append(simulator.observe())
    return np.stack(states), seen


def same_as_official(task: str) -> None:
    (states, seen), (expected, raw) = ours(task), official(task)
    from robosuite.utils.transform_utils import quat2axisangle

    assert np.array_equal(states, expected)
    for one, other in zip(seen, raw, strict=True):
        for camera, name in libero.CAMERA_NAMES.items():
            assert np.array_equal(one.frames[camera], other[f"{name}_image"][::-1, ::-1])
        assert np.array_equal(one.state[:3], other["robot0_eef_pos"].astype(np.float32))
        angle = quat2axisangle(other["robot0_eef_quat"])
        np.testing.assert_allclose(one.state[3:6], angle, rtol=0, atol=1e-6)
        assert np.array_equal(one.state[6:], other["robot0_gripper_qpos"].astype(np.float32))


def test_states_and_pictures_are_bit_equal_to_the_benchmark() -> None:
    same_as_official("libero_object/0")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["libero_spatial/4", "libero_goal/7", "libero_10/2"])
def test_states_and_pictures_are_bit_equal_in_every_suite(task: str) -> None:
    same_as_official(task)


def test_random_positions_equal_liberos() -> None:
    """Of things that start on a fixture as well, in a world that was used before."""
    libero.choose_gl()
    from libero.libero.envs.env_wrapper import ControlEnv

    simulator = libero.make(PLAIN, "libero_spatial/7")
    simulator.reset(3)
    simulator.reset(7)
    ours = simulator.env.sim.get_state().qpos
    simulator.close()
    file = files.bddl_file("libero_spatial", files.task_name("libero_spatial", 7))
    env = ControlEnv(str(file), use_camera_obs=False, has_offscreen_renderer=False)
    try:
        env.seed(7)
        env.reset()
        for _ in range(simulator.protocol.settle_steps):
            env.step(libero.IDLE_ACTION)
        assert np.array_equal(ours, env.sim.get_state().qpos)
    finally:
        env.close()


def test_an_episode_depends_on_its_seed_alone() -> None:
    """Also where LIBERO draws how far a drawer is open, which it does once more at every reset."""
    simulator = libero.make(PLAIN, "libero_spatial/4")
    where = []
    for seed in (FIRST_STATE, 5, FIRST_STATE, 5):
        simulator.reset(seed)
        where.append(simulator.env.sim.model.body_pos.copy())
    assert np.array_equal(where[0], where[2]) and np.array_equal(where[1], where[3])
    assert not np.array_equal(where[0], where[1])


@pytest.mark.parametrize("suite", FOUR)
def test_states_equal_the_recorded_ones(suite: str) -> None:
    """Bit for bit on the machine that recorded them; another processor's libraries may round otherwise."""
    with np.load(RECORDED) as file:
        np.testing.assert_allclose(ours(f"{suite}/0")[0], file[suite], rtol=0, atol=1e-9)


def test_every_suite_has_its_tasks_and_instructions() -> None:
    from libero.libero.benchmark.libero_suite_task_map import libero_task_map

    for suite in (*FOUR, "libero_90"):
        assert SUITES[suite] == len(libero_task_map[suite])
    assert len(libero.TASKS) == len(set(libero.TASKS)) == 130 + 160 + 10_030
    for task in libero.TASKS[: 130 + 160]:
        simulator = libero.make(PLAIN, task)
        assert simulator.instruction == simulator.instruction.strip() and "_" not in simulator.instruction
        assert simulator._files.bddl.exists()
    assert libero.make(PLAIN, "libero_10/2").instruction == "turn on the stove and put the moka pot on it"
    assert libero.make(PLAIN, "libero_90/0").instruction == "close the top drawer of the cabinet"
    # LIBERO-PRO says the same in other words, or wants another thing
    assert libero.make(PLAIN, "libero_object_lan/0").instruction == "grab alphabet soup and put it into basket"
    assert "alphabet" not in libero.make(PLAIN, "libero_object_task/0").instruction
    assert libero.make(PLAIN, "libero_object_swap/0").instruction == libero.make(PLAIN, "libero_object/0").instruction


@pytest.mark.parametrize("suite", ["libero_goal_swap", "libero_10_object"])
def test_perturbed_suites_run(suite: str) -> None:
    simulator = libero.make(PLAIN, f"{suite}/4")
    simulator.reset(FIRST_STATE + 3)
    assert not simulator.step(np.zeros(7, np.float32)).success
    assert simulator._limit == (700 if "libero_10" in suite else 400)


def test_the_simulator_check_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed state beside drawn ones."""
    monkeypatch.setattr("lightwam.sim.check.SEEDS", (FIRST_STATE, 0, 1, 2))
    assert [str(finding) for finding in check_simulator(PLAIN, "libero_spatial/0", make_expert=None)] == []


def solved(task: str, steps: int) -> bool:
    simulator = registry.make_simulator(PLAIN, task)
    simulator.reset(FIRST_STATE + 7)
    expert = registry.make_expert(PLAIN, simulator)
    return any(simulator.step(expert.action()).success for _ in range(steps))


@pytest.mark.parametrize("task", ["libero_object/6", "libero_spatial/4", "libero_goal/0"])
def test_experts_solve_their_tasks(task: str) -> None:
    assert solved(task, 200)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["libero_goal/3", "libero_10/2", "libero_10/3", "libero_10/5", "libero_10/9"])
def test_experts_solve_their_tasks_of_many_parts(task: str) -> None:
    """A drawer to open and to shut, a knob, a pot by its handle, a book between others, a microwave."""
    assert solved(task, 400)


def test_a_task_without_an_expert_is_refused() -> None:
    simulator = registry.make_simulator(PLAIN, "libero_90/35")
    simulator.reset(0)
    with pytest.raises(SimulatorError, match=r"no expert for this task(.|\n)*open(.|\n)*microwave_1"):
        registry.make_expert(PLAIN, simulator)


def test_the_experts_geometry_of_doors_and_cavities() -> None:
    """Of the microwave, whose walls and door are in its file: to the left of the robot, its door hung toward it."""
    simulator = registry.make_simulator(PLAIN, "libero_10/9")
    simulator.reset(FIRST_STATE)
    scene = Scene(simulator)
    fixtures = Fixtures(scene)
    assert fixtures.has_door("microwave_1") and not fixtures.is_drawer("microwave_1")
    door, angle = fixtures.door("microwave_1"), fixtures.angle("microwave_1")
    along = np.array([np.cos(angle), np.sin(angle)])
    np.testing.assert_allclose(door.closing, [-np.sin(angle), np.cos(angle)], atol=1e-6)
    np.testing.assert_allclose((door.face[:2] - door.hinge) @ along, 0.1295, atol=1e-4)
    # the microwave's own frame is the world's, its hinge in the front, to the left
    corner = np.array([*door.hinge, door.top]) - [-0.1725, -0.088, 0.096 + 0.0925]
    cavity = fixtures.cavity("microwave_1_heating_region")
    assert cavity is not None and fixtures.cavity("microwave_1_top_side") is None
    np.testing.assert_allclose(cavity.inward, [0, 1], atol=1e-6)
    np.testing.assert_allclose(cavity.aside, [1, 0], atol=1e-6)
    np.testing.assert_allclose(cavity.back - corner, [-0.04, 0.0805 - BACK_GAP, 0.024], atol=1e-4)
    handle = scene.trailing_part("white_yellow_mug_1", cavity.inward) - scene.position("white_yellow_mug_1")
    np.testing.assert_allclose(handle, [0, -0.064, 0.056], atol=2e-3)


def test_a_process_holds_one_world() -> None:
    first, second = (libero.make(PLAIN, f"libero_object/{i}") for i in (0, 1))
    first.reset(0)
    second.reset(0)
    with pytest.raises(SimulatorError, match="not in an episode"):
        first.observe()
    second.observe()
    first.reset(0)
    first.observe()
    assert libero._loaded == [first]


def test_an_initial_state_beyond_the_50_is_refused() -> None:
    simulator = libero.make(PLAIN, "libero_object/0")
    with pytest.raises(SimulatorError, match="no such initial state"):
        simulator.reset(FIRST_STATE + 50)


def test_an_episode_ends_at_the_protocols_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = libero.make(PLAIN, "libero_object/0")
    monkeypatch.setattr(simulator, "_limit", 2)
    simulator.reset(0)
    assert [simulator.step(np.zeros(7, np.float32)).ended for _ in range(2)] == [False, True]


def test_numpys_global_generator_is_restored() -> None:
    np.random.seed(5)
    expected = np.random.uniform(size=2)
    np.random.seed(5)
    found = [np.random.uniform()]
    libero.make(PLAIN, "libero_object/0").reset(3)
    assert [*found, np.random.uniform()] == list(expected)


def test_initial_states_are_read_from_pickles_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """hf-libero has pickles in place of npz files."""
    monkeypatch.setattr("libero.libero.get_libero_path", lambda _: str(tmp_path))
    with pytest.raises(SetupError, match="not installed"):
        files.initial_states("libero_goal", "open_it")
    (tmp_path / "libero_goal").mkdir()
    states = np.random.default_rng(0).normal(size=(50, 7))
    torch.save(states, tmp_path / "libero_goal" / "open_it.pruned_init")
    assert np.array_equal(files.initial_states("libero_goal", "open_it"), states)


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'openpi'"):
        libero.make(replace(WHOLE, protocol="openpy"), "libero_object/0")


def test_protocols_are_the_published_ones() -> None:
    """benchmarks.md, constant by constant."""
    rows = {
        "light-wam": ([400, 400, 400, 700, 700], 30, 10, 42, "sign", 256),
        "openpi": ([220, 280, 300, 520, 400], 10, 5, 7, "linear", 224),
        "openvla-oft": ([220, 280, 300, 520, 400], 10, 8, 0, "sign", 224),
        "lerobot": ([280, 280, 300, 520, 400], 10, None, 0, "linear", 256),
    }
    for name, row in rows.items():
        one = PROTOCOLS[name]
        limits = [one.limit(suite) for suite in (*FOUR, "libero_90")]
        assert (limits, one.settle_steps, one.replan, one.env_seed, one.gripper, one.size) == row
        assert one.to_dict()["max_steps"]["libero_10"] == limits[3]
    assert PROTOCOLS["openpi"].limit("libero_10_swap") == 520


def test_the_gripper_is_converted() -> None:
    assert [conversion.to_libero_gripper(x, "sign") for x in (0.0, 0.4, 0.6, 1.0)] == [1, 1, -1, -1]
    assert [conversion.to_libero_gripper(x, "linear") for x in (0.0, 0.25, 1.0)] == [1, 0.5, -1]


def test_axis_and_angle() -> None:
    half = np.sqrt(0.5)
    np.testing.assert_allclose(conversion.axis_angle(np.array([half, 0, 0, half])), [np.pi / 2, 0, 0], atol=1e-12)
    np.testing.assert_allclose(conversion.axis_angle(np.array([0, half, 0, -half])), [0, 1.5 * np.pi, 0], atol=1e-12)
    np.testing.assert_array_equal(conversion.axis_angle(np.array([0, 0, 0, 1.0])), 0)


def test_picture_treatments_of_each_protocol() -> None:
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 256, 3))
    assert conversion.apply_treatment(ramp, "as drawn") is ramp
    small = conversion.apply_treatment(ramp, "resized")
    assert small.shape == (224, 224, 3) and abs(int(small[112, 5, 0]) - 128) <= 1 and small[-1, 0, 0] >= 254
    seen = conversion.apply_treatment(ramp, "as OpenVLA-OFT sees it")
    # of the ramp 0..255 the middle 0.949 is left: 6.5 to 248.5
    assert abs(int(seen[0, 9, 0]) - 7) <= 2 and abs(int(seen[-1, 9, 0]) - 248) <= 2


def test_crop_middle_enlarges_the_middle() -> None:
    picture = np.arange(5, dtype=np.uint8)[:, None, None] * np.full((1, 5, 3), 10, np.uint8)
    assert conversion.crop_middle(picture, 0.5)[:, 0, 0].tolist() == [10, 15, 20, 25, 30]
    assert np.array_equal(conversion.crop_middle(picture, 1.0), picture)


def test_a_libero_that_would_prompt_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """hf-libero asks for its folder on the first import; a worker would wait for nobody's answer, or end."""
    asking = tmp_path / "__init__.py"
    asking.write_text('where = input("Do you want to specify a custom path? ")')
    found = importlib.util.spec_from_file_location("libero.libero", asking)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    with pytest.raises(SimulatorError, match=r"has not been set up[\s\S]*answer it"):
        libero.make(PLAIN, "libero_object/0")
    (tmp_path / "config.yaml").touch()
    libero.make(PLAIN, "libero_object/0")


def test_names_are_known_without_a_world() -> None:
    simulator = registry.make_simulator(PLAIN, "libero_spatial/9")
    assert isinstance(simulator, LiberoSimulator) and libero._loaded == []
    assert (simulator.state_dim, simulator.action_dim, simulator.fps) == (8, 7, 20)
    with pytest.raises(SimulatorError, match="libero_object/3"):
        registry.make_simulator(PLAIN, "libero_object/33")


@pytest.mark.parametrize("kind", ["bddl_files", "init_states", "assets"])
def test_a_stale_libero_config_file_is_refused_by_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    file = tmp_path / "config.yaml"
    file.write_text(f"{kind}: {tmp_path / 'moved'}\n")
    told = rf"does not exist\s+where: {file}: {kind}\s+got: {tmp_path / 'moved'}[\s\S]*delete {file}"
    with pytest.raises(SetupError, match=told):
        libero.make(PLAIN, "libero_object/0").reset(FIRST_STATE)
    file.write_text("[1, 2")
    with pytest.raises(SetupError, match=rf"cannot be used\s+where: {file}[\s\S]*delete {file}"):
        libero.make(PLAIN, "libero_object/0").reset(FIRST_STATE)


def test_importing_robosuite_survives_its_log_and_its_device_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log is another user's, and it asserts that EGL's devices are CUDA's."""
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "1")
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    opener = logging.FileHandler
    with importing_robosuite():
        assert "MUJOCO_EGL_DEVICE_ID" not in os.environ and os.environ["MUJOCO_GL"] == "glx"
        assert isinstance(logging.FileHandler(str(tmp_path)), logging.NullHandler)  # a folder cannot be written to
        written = logging.FileHandler(str(tmp_path / "robosuite.log"))
        os.environ["MUJOCO_GL"] = "egl"  # as robosuite does
    assert isinstance(written, opener) and (tmp_path / "robosuite.log").exists()
    written.close()
    assert logging.FileHandler is opener
    assert (os.environ["MUJOCO_GL"], os.environ["MUJOCO_EGL_DEVICE_ID"]) == ("glfw", "1")
