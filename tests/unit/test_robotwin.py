"""RoboTwin's tasks through the protocol: RoboTwin's own states bit for bit, experts, sentences, nothing left behind."""

import importlib
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_here import InHere
from PIL import Image

from lightwam.config import recipes
from lightwam.config.robotwin_protocols import BOX_TASKS
from lightwam.config.robotwin_tasks import PHYSICS_HZ, STEP_LIMITS
from lightwam.config.schema import SimConfig
from lightwam.errors import SimulatorError
from lightwam.evaluation.evaluate import evaluate
from lightwam.sim import registry
from lightwam.sim.check import check_simulator
from lightwam.sim.robotwin import installation, planner, runtime, sentences
from lightwam.sim.robotwin import simulator as robotwin
from lightwam.sim.robotwin.lavapipe import DRIVER_FILE
from lightwam.sim.robotwin.progress import STAGES
from lightwam.sim.robotwin.simulator import ARMS, RobotwinSimulator
from lightwam.types import Observation

pytestmark = pytest.mark.sim
pytest.importorskip("sapien")
pytest.importorskip("robotwin")

CONFIG = replace(recipes.robotwin_blocks_small().simulation, height=48, width=64)
ACTIONS = np.random.default_rng(3).uniform(-0.15, 0.15, (10, 14)).astype(np.float32)
"""small motions about home, the grippers nearly closed"""


@pytest.fixture(scope="module", autouse=True)
def the_first_world() -> None:
    """Without a Vulkan driver there is nothing to test here; `make vulkan` unpacks one."""
    if not DRIVER_FILE.is_file():
        try:
            runtime.task_class("handover_block")
        except SimulatorError as error:
            pytest.skip(str(error))


@pytest.fixture
def blocks() -> Iterator[RobotwinSimulator]:
    simulator = make("stack_blocks_two")
    yield simulator
    simulator.close()


def make(task: str, config: SimConfig = CONFIG, **changes: Any) -> RobotwinSimulator:
    simulator = registry.make_simulator(replace(config, **changes), task)
    assert isinstance(simulator, RobotwinSimulator)
    return simulator


def poses(env: Any) -> list[np.ndarray]:
    """Every number of a world: joints, their speeds, and where each thing is."""
    robot = env.robot.left_entity
    things = [actor for actor in env.scene.get_all_actors() if actor.get_name() not in ("table", "wall", "ground", "")]
    assert things
    return [robot.get_qpos(), robot.get_qvel(), *(np.r_[thing.get_pose().p, thing.get_pose().q] for thing in things)]


def test_the_simulator_check_passes() -> None:
    assert [str(finding) for finding in check_simulator(replace(CONFIG, action_repeat=8), "stack_blocks_two")] == []


def test_names_rate_robot_and_constants(blocks: RobotwinSimulator) -> None:
    sides = ("left", "right")
    names = [f"{side}_{joint}" for side in sides for joint in (*(f"joint{i}" for i in range(1, 7)), "gripper")]
    assert list(blocks.state_names) == list(blocks.action_names) == names
    assert blocks.fps == pytest.approx(250 / 15 / 4)
    constants = blocks.constants
    assert constants["robot"] == blocks.robot == "robotwin-stand-in"
    assert (constants["drawing"], constants["stride"]) == ("without shadows", 4)
    assert make("stack_blocks_two", protocol="plain").constants["drawing"] == "shadow maps of 512"
    assert make("stack_blocks_two", protocol="plain/ray-traced").constants["drawing"].startswith("32 samples")


def test_shadows_can_be_left_out_and_change_nothing_else() -> None:
    seen = {}
    for words in ("plain", "plain/no-shadows"):
        simulator = make("stack_blocks_two", protocol=words)
        simulator.reset(4)
        seen[words] = simulator.observe(), poses(simulator.world.env)
        drawing = simulator.constants["drawing"]
        simulator.close()
    assert drawing == "without shadows"
    (shaded, before), (bright, after) = seen.values()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert np.array_equal(shaded.state, bright.state)
    a, b = (np.stack(list(one.frames.values())).astype(int) for one in (shaded, bright))
    assert (b >= a - 1).all() and (b > a + 20).any(), "some places are brighter, none is darker"


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=() if t == "handover_block" else pytest.mark.slow) for t in BOX_TASKS]
)
def test_states_equal_robotwins_own_bit_for_bit(task: str) -> None:
    """RoboTwin's loop with its updates of the renderer, its pictures and its generator, against ours without them."""
    seed, simulator = 100_003, make(task, height=240, width=320, protocol="plain")
    simulator.reset(seed)
    before = np.random.get_state()
    try:
        with runtime.making("rasterised", 240, 320):
            env = runtime.task_class(task)()
            env.setup_demo(now_ep_num=0, seed=seed, **runtime.arguments("demo_clean", task, eval_mode=True))
            assert env.step_lim == STEP_LIMITS[task]
        pictures = simulator.observe().frames
        with runtime.quiet():
            seen = env.get_obs()["observation"]
        assert all(np.array_equal(seen[camera]["rgb"], pictures[camera]) for camera in CONFIG.cameras)
        for action in ACTIONS:
            with runtime.quiet():
                env.take_action(action.astype(np.float64), action_type="qpos")
            np.random.uniform(size=3)  # others draw numbers too
            simulator.step(action)
            for ours, theirs in zip(poses(simulator.world.env), poses(env), strict=True):
                assert np.array_equal(ours, theirs)
        assert np.abs(env.robot.left_entity.get_qpos()).max() > 0.1
        with runtime.quiet():
            env.close_env()
    finally:
        np.random.set_state(before)
        simulator.close()


def test_the_state_is_the_last_command_and_absurd_targets_are_cut(blocks: RobotwinSimulator) -> None:
    blocks.reset(0)
    assert np.array_equal(blocks.observe().state, [0, 0, 0, 0, 0, 0, 1] * 2)
    blocks.step(ACTIONS[0])
    state = blocks.observe().state
    # the motion's last point is the target
    assert np.allclose(state[ARMS], ACTIONS[0][ARMS], atol=1e-6)
    assert np.allclose(state[[6, 13]], ACTIONS[0][[6, 13]].clip(0, 1), atol=1e-6)
    wild = ACTIONS[0].copy()
    wild[2] = 1e12
    blocks.step(wild)
    assert blocks.observe().state[2] == pytest.approx(2 * np.pi)


def test_the_arms_move_on_after_a_success(blocks: RobotwinSimulator) -> None:
    """RoboTwin's own `take_action` does nothing once `eval_success` is set."""
    blocks.reset(0)
    blocks.world.env.eval_success = True
    blocks.step(ACTIONS[0])
    np.testing.assert_allclose(blocks.observe().state[ARMS], ACTIONS[0][ARMS], atol=1e-6)


@pytest.mark.parametrize(("distance", "seconds"), [(0.5, 2 * 0.5**0.5), (2.0, 3.0)])
def test_a_motion_is_the_fastest_from_rest_to_rest(distance: float, seconds: float) -> None:
    """At 1 rad/s and 1 rad/s^2: below 1 rad speeding up and slowing down, above it full speed between."""
    path = np.array([np.zeros(6), [distance, *np.zeros(5)]])
    at, position, velocity, acceleration, duration = planner.time_path(path)
    assert duration == pytest.approx(seconds, rel=1e-2)
    assert len(at) == len(position) == int(duration * PHYSICS_HZ)
    assert np.abs(velocity).max() <= 1 + 1e-6 and np.abs(acceleration).max() <= 1 + 1e-6
    np.testing.assert_allclose(position[[0, -1]], path, atol=1e-3)


def test_nothing_of_a_process_changes(blocks: RobotwinSimulator, capfd: pytest.CaptureFixture[str]) -> None:
    np.random.seed(5)
    expected = np.random.uniform()
    np.random.seed(5)
    state = torch.get_rng_state()
    blocks.reset(1)
    blocks.step(ACTIONS[0])
    blocks.observe()
    assert np.random.uniform() == expected
    assert capfd.readouterr().out == ""
    assert not {"curobo", "mplib", "pytorch3d", "open3d"} & set(sys.modules)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_stream_goes_on_where_it_was_and_leaves_the_others_alone() -> None:
    stream, drawn = runtime.RandomStream(), []
    expected = np.random.RandomState(1).uniform(size=2).tolist(), [random.Random(1).random()]
    with stream():
        np.random.seed(1)
        random.seed(1)
        drawn.append(np.random.uniform())
    np.random.seed(5)
    random.seed(5)
    mine = np.random.get_state()[1].tolist(), random.getstate()
    with stream():
        drawn.append(np.random.uniform())
        assert [random.random()] == expected[1]
    assert drawn == expected[0]
    assert (np.random.get_state()[1].tolist(), random.getstate()) == mine


def test_a_process_has_one_world(blocks: RobotwinSimulator) -> None:
    blocks.reset(0)
    other = make("handover_block")
    other.reset(0)
    with pytest.raises(SimulatorError, match="not in an episode"):
        blocks.observe()
    assert robotwin._open == [other]
    other.close()
    assert robotwin._open == []


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=() if t == "blocks_ranking_size" else pytest.mark.slow) for t in BOX_TASKS]
)
def test_robotwins_script_solves_the_task(task: str) -> None:
    simulator = make(task)
    simulator.reset(100_001)
    start = simulator.world.command()
    expert = registry.make_expert(CONFIG, simulator)
    assert np.array_equal(simulator.world.command(), start)  # it was performed elsewhere
    reached: list[str] = []
    for _ in range(CONFIG.max_steps):
        solved = simulator.step(expert.action()).success
        reached += [stage for stage, seen in simulator.progress.items() if seen and stage not in reached]
        if solved:
            break
    assert solved
    assert reached == list(STAGES), "in this order"
    simulator.reset(100_001)
    assert not any(simulator.progress.values())
    simulator.close()


class ReplayedExpert:
    """A policy that knows the scripts' paths: it tells an episode by its first picture."""

    recipe, n_obs_steps = replace(recipes.robotwin_blocks_small(), sim=CONFIG), 1

    def __init__(self, task: str, seeds: range) -> None:
        self.paths: dict[bytes, list[np.ndarray]] = {}
        self.episodes: dict[int | None, list[np.ndarray]] = {}
        simulator = make(task)
        for seed in seeds:
            simulator.reset(seed)
            seen, expert = simulator.observe(), registry.make_expert(CONFIG, simulator)
            actions = [expert.action() for _ in range(CONFIG.max_steps)]
            self.paths[seen.frames["head_camera"].tobytes()] = actions
        simulator.close()

    def identity(self) -> dict[str, str]:
        return {"policy": "replayed expert"}

    def check_evaluation(self, *_: object) -> None:
        pass

    def act_batch(self, observations: Sequence[Observation]) -> np.ndarray:
        chunks = []
        for seen in observations:
            if seen.step == 0:
                self.episodes[seen.episode] = self.paths[seen.frames["head_camera"].tobytes()]
            assert seen.step is not None
            path = self.episodes[seen.episode]
            chunks.append(np.stack([path[min(seen.step + i, len(path) - 1)] for i in range(8)]))
        return np.stack(chunks)


@pytest.mark.slow
@pytest.mark.parametrize("task", BOX_TASKS)
def test_the_replayed_script_scores_what_the_script_scores(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the interface of policies: seeds that the script solves, observations in, chunks out."""
    monkeypatch.setenv("LIGHTWAM_CACHE", str(tmp_path))
    monkeypatch.setattr("lightwam.system.workers.Workers", InHere)
    policy = ReplayedExpert(task, range(100_000, 100_002))
    settings = replace(policy.recipe.eval, trials=2, workers=1, videos_per_task=0)
    result = evaluate(tmp_path, settings, sim=replace(CONFIG, tasks=(task,)), policy=policy, say=lambda line: None)
    assert result["successes"] == result["trials"] == 2
    assert result["tasks"][task]["progress"] == dict.fromkeys(STAGES, 2)


def test_sentences_are_the_episodes_own(blocks: RobotwinSimulator) -> None:
    blocks.reset(100_002)
    assert blocks.observe().instruction == sentences.TEMPLATES["stack_blocks_two"]
    words = blocks.world.words()
    drawn = {
        kind: [sentences.draw_sentence(blocks.task, kind, words, seed) for seed in range(20)]
        for kind in ("seen", "unseen")
    }
    for kind, lines in drawn.items():
        assert lines == [sentences.draw_sentence(blocks.task, kind, words, seed) for seed in range(20)]
        assert len(set(lines)) > 5
        assert all("red block" in line and "{" not in line for line in lines)
    assert not set(drawn["seen"]) & set(drawn["unseen"])
    with pytest.raises(SimulatorError, match="no sentence for this episode"):
        sentences.draw_sentence(blocks.task, "seen", {"{Z}": "sphere"}, 0)
    seen = make("stack_blocks_two", protocol="plain/unseen")
    seen.reset(100_002)
    assert seen.observe().instruction == sentences.draw_sentence(blocks.task, "unseen", words, 100_002)
    assert sentences.template("lift_pot") and "<" not in sentences.template("lift_pot")
    seen.close()


def test_a_world_that_falls_over_ends_unsolved(blocks: RobotwinSimulator) -> None:
    blocks.reset(0)
    blocks.world.stable = False
    outcome = blocks.step(ACTIONS[0])
    assert (outcome.success, outcome.ended) == (False, True)


def test_a_published_protocols_limit_ends_the_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robotwin, "STEP_LIMITS", {"stack_blocks_two": 2})
    simulator = make("stack_blocks_two", protocol="robotwin-2026-06/rasterised", action_repeat=1)
    simulator.reset(100_000)
    assert [simulator.step(ACTIONS[0]).ended for _ in range(2)] == [False, True]
    simulator.close()


def test_all_tasks_are_there_and_those_with_meshes_are_refused_without_assets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(installation.ASSETS, raising=False)
    limits = importlib.import_module("robotwin.config").load_task_config("_eval_step_limit")
    assert limits == dict(STEP_LIMITS)
    with pytest.raises(SimulatorError, match="needs RoboTwin's downloaded assets"):
        make("lift_pot")
    with pytest.raises(SimulatorError, match="demo_randomized needs"):
        make("stack_blocks_two", protocol="plain/randomized")


def write_assets(root: Path) -> None:
    """Stand-ins for RoboTwin's textures and clutter: plain colours, and boxes."""
    rng, assets = np.random.default_rng(0), root / "assets"
    for kind in ("seen", "unseen"):
        folder = assets / "background_texture" / kind
        folder.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (16, 16), tuple(rng.integers(0, 255, 3).tolist())).save(folder / f"{number}.png")
    box = '<origin xyz="0 0 0.02"/><geometry><box size="0.03 0.03 0.04"/></geometry>'
    inertial = '<mass value="0.05"/><inertia ixx="1e-4" iyy="1e-4" izz="1e-4" ixy="0" ixz="0" iyz="0"/>'
    link = f"<inertial>{inertial}</inertial><visual>{box}</visual><collision>{box}</collision>"
    names = [f"thing{number}" for number in range(4)]
    for name in names:
        folder = assets / "objects" / "objaverse" / name / "0"
        folder.mkdir(parents=True)
        urdf = f'<?xml version="1.0"?><robot name="thing"><link name="thing">{link}</link></robot>'
        (folder / "model.urdf").write_text(urdf, encoding="utf-8")
    numbers = {"z_max": 0.04, "radius": 0.025, "z_offset": 0.0}
    listed: dict[str, Any] = {key: {f"{name}_0": value for name in names} for key, value in numbers.items()}
    listed |= {"item_names": names, "list_of_items": {name: ["0"] for name in names}}
    (assets / "objects" / "objaverse" / "list.json").write_text(json.dumps(listed), encoding="utf-8")
    (assets / "objects" / "same.json").write_text("{}", encoding="utf-8")


def test_randomized_scenes_are_decided_by_the_seed_and_looking_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a light that changes at every physics step, which one episode of 50 has."""
    write_assets(tmp_path)
    monkeypatch.setenv(installation.ASSETS, str(tmp_path))
    arguments = runtime.arguments

    def wild(*given: Any, **named: Any) -> dict[str, Any]:
        found = arguments(*given, **named)
        found["domain_randomization"]["crazy_random_light_rate"] = 1
        return found

    monkeypatch.setattr(runtime, "arguments", wild)
    simulator = make("handover_block", protocol="plain/randomized")
    last = []
    for looks in (False, True):
        simulator.reset(7)
        first = simulator.observe()
        for action in ACTIONS[:2]:
            simulator.step(action)
            if looks:
                simulator.observe()
        last.append(simulator.observe())
    assert all(np.array_equal(last[0].frames[name], last[1].frames[name]) for name in CONFIG.cameras)
    assert np.abs(first.frames["head_camera"].astype(int) - last[0].frames["head_camera"]).mean() > 2
    env = simulator.world.env
    assert len(env.record_cluttered_objects) > 3 and env.table_z_bias < 0 and env.wall_texture.startswith("seen/")
    simulator.close()
