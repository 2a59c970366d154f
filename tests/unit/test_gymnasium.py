"""Gymnasium environments as simulators: a tiny one without Gymnasium itself, and gym-aloha where it is installed."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lightwam.config.schema import SimConfig
from lightwam.errors import SimulatorError
from lightwam.sim import registry
from lightwam.sim.check import check_simulator
from lightwam.sim.gymnasium import GymnasiumStep, from_gymnasium
from lightwam.sim.simulator import RobotUnits, Simulator

CONFIG = SimConfig("tiny", tasks=("right",), cameras=("top", "side"), height=24, width=32, max_steps=40)
LOW, HIGH = np.full((2, 1), -0.5, np.float32), np.full((2, 1), 0.5, np.float32)
PAGE = Path(__file__).parents[2] / "docs" / "simulators.md"


class Env:
    """A point on a square, to be pushed to the right end; no more than what `from_gymnasium` uses."""

    action_space = SimpleNamespace(shape=(2, 1), dtype=np.dtype(np.float32), low=LOW, high=HIGH)

    def __init__(self) -> None:
        self.observation_space = SimpleNamespace(sample=lambda: {"pixels": {}, "position": np.zeros((2, 1))})
        self.metadata = {"render_fps": 20}
        self.position = np.zeros((2, 1))
        self.buffer = np.zeros((48, 64, 3), np.uint8)
        self.actions: list[np.ndarray] = []
        self.renders = self.closes = 0

    def reset(self, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        self.position = np.random.default_rng(seed).uniform(-0.4, 0.4, (2, 1))
        return self.observation(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        assert action.shape == (2, 1) and action.dtype == np.float32
        self.actions.append(action)
        self.position = self.position + 0.1 * action
        there = np.bool_(self.position[0, 0] > 0.5)
        return self.observation(), float(self.position[0, 0]), there, np.bool_(False), {"is_success": there}

    def observation(self) -> dict[str, Any]:
        self.buffer[:] = self.render()  # one buffer that is written again and again, as some environments do
        return {"pixels": {"top": self.buffer}, "position": self.position}

    def render(self) -> np.ndarray:
        self.renders += 1
        rows = np.clip((1 - self.position[1, 0]) * 24 - np.arange(48), 0, 10)[:, None]
        columns = np.clip((1 + self.position[0, 0]) * 32 - np.arange(64), 0, 10)[None]
        return np.repeat((rows * columns)[..., None], 3, axis=2).astype(np.uint8)

    def close(self) -> None:
        self.closes += 1


def make(config: SimConfig = CONFIG, task: str = "right", env: Callable[[], Any] = Env, **changes: Any) -> Simulator:
    settings = {
        "instruction": "push to the right",
        "robot": "pusher",
        "cameras": {"top": "pixels/top", "side": lambda env: env.render()},
        "state": "position",
    }
    return from_gymnasium(env, config, task, **(settings | changes))


@pytest.mark.parametrize("repeat", [1, 3])
def test_a_gymnasium_environment_keeps_every_promise(repeat: int) -> None:
    config = SimConfig(**{**vars(CONFIG), "action_repeat": repeat})
    assert [str(finding) for finding in check_simulator(config, "right", make, None)] == []
    assert make(config).fps == 20 / repeat


def test_names_come_from_units_or_are_numbered() -> None:
    assert (make().state_names, make().action_names) == (("state_0", "state_1"), ("action_0", "action_1"))
    named = make(units=RobotUnits({"x": "m", "y": "m"}, {"push_x": "N", "push_y": "N"}, 50.0))
    assert (named.state_names, named.action_names, named.fps) == (("x", "y"), ("push_x", "push_y"), 50)
    with pytest.raises(SimulatorError, match=r"must name every number[\s\S]*\(1, 2\) names[\s\S]*\(2, 2\)"):
        make(units=RobotUnits({"x": "m"}, {"push_x": "N", "push_y": "N"}, 50.0)).reset(0)


def test_the_environment_is_made_when_it_is_first_needed() -> None:
    made: list[Env] = []
    simulator = make(env=lambda: made.append(Env()) or made[-1])
    assert (simulator.instruction, simulator.cameras) == ("push to the right", ("top", "side")) and not made
    assert simulator.action_dim == 2 and len(made) == 1


def test_actions_are_flat_outside_and_clipped_to_the_box() -> None:
    env = Env()
    simulator = make(env=lambda: env)
    simulator.reset(0)
    simulator.step(np.array([0.25, -9], np.float32))
    assert env.actions[0].tolist() == [[0.25], [-0.5]]


def test_success_ends_the_repeats_and_the_episode() -> None:
    env = Env()
    simulator = make(SimConfig(**{**vars(CONFIG), "action_repeat": 100}), env=lambda: env)
    simulator.reset(0)
    outcome = simulator.step(np.array([1, 0], np.float32))
    assert outcome.success is True and outcome.ended is True and len(env.actions) < 100
    assert simulator.observe().state[0] > 0.5


def test_success_can_be_a_function_of_the_step() -> None:
    seen: list[GymnasiumStep] = []
    simulator = make(success=lambda step: bool(seen.append(step)) or step.reward > -1)
    simulator.reset(0)
    assert simulator.step(np.zeros(2, np.float32)).success
    assert not seen[0].terminated and seen[0].info == {"is_success": np.bool_(False)}


def test_a_second_observe_draws_nothing() -> None:
    env = Env()
    simulator = make(env=lambda: env)
    simulator.reset(0)
    first = simulator.observe()
    assert env.renders == 2  # one of the environment's own reset, one for the camera that is rendered
    assert simulator.observe() is first and env.renders == 2
    simulator.step(np.ones(2, np.float32))
    assert simulator.observe() is not first


def test_pictures_keep_their_size_where_it_fits_and_are_averaged_where_not() -> None:
    same = make(SimConfig(**{**vars(CONFIG), "height": 48, "width": 64}))
    small = make()
    for simulator in (same, small):
        simulator.reset(3)
    drawn, shrunk = same.observe().frames["side"], small.observe().frames["top"]
    means = drawn.reshape(24, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(shrunk.astype(float) - means)[2:-2, 2:-2].mean() < 2 and drawn.std() > 10


def test_close_closes_once_and_reset_makes_a_new_environment() -> None:
    made: list[Env] = []
    simulator = make(env=lambda: made.append(Env()) or made[-1])
    simulator.reset(0)
    simulator.close()
    simulator.close()
    assert made[0].closes == 1
    simulator.reset(0)
    assert len(made) == 2


def discrete() -> Env:
    env = Env()
    env.action_space = SimpleNamespace(shape=(), dtype=np.dtype(np.int64), low=0, high=1)
    return env


def timeless() -> Env:
    env = Env()
    env.metadata = {}
    return env


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cameras": {"top": "pixels/top"}}, r"unknown camera of task 'right'[\s\S]*'side'"),
        ({"state": "agent_pos"}, r"must have 'agent_pos'[\s\S]*pixels.*position"),
        ({"env": discrete}, "must be a Box of floats"),
        ({"env": timeless}, r"no render_fps[\s\S]*units=RobotUnits"),
    ],
)
def test_environments_that_cannot_be_simulators_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SimulatorError, match=words):
        assert make(**changes).state_dim


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cameras": {"top": "pixels/top/left", "side": "pixels/top"}}, r"must have 'pixels/top/left'[\s\S]*ndarray"),
        ({"cameras": {"top": lambda env: env.render() / 255, "side": "pixels/top"}}, r"'top'[\s\S]*float64"),
        ({"cameras": {"top": lambda env: env.render()[..., 0], "side": "pixels/top"}}, r"'top'[\s\S]*\[48, 64\]"),
        ({"success": "solved"}, r"info must have 'solved'[\s\S]*is_success"),
    ],
)
def test_missing_pictures_and_success_are_refused_by_name(changes: dict[str, Any], words: str) -> None:
    simulator = make(**changes)
    simulator.reset(0)
    with pytest.raises(SimulatorError, match=words):
        simulator.step(np.zeros(2, np.float32))
        simulator.observe()


class Unseeded(Env):
    def reset(self, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        return super().reset(np.random.default_rng().integers(2**31))


def test_an_environment_that_ignores_its_seed_is_found_by_the_check() -> None:
    findings = check_simulator(CONFIG, "right", lambda config, task: make(config, task, Unseeded), None)
    assert any("the same seed" in str(finding) and "states differ" in str(finding) for finding in findings)


@pytest.fixture
def aloha(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimConfig:
    """The adapter of docs/simulators.md, installed as my_aloha.sim."""
    pytest.importorskip("gym_aloha", reason="needs gym-aloha")
    (block,) = re.findall(r"```python\n([^`]*gym_aloha.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_aloha").mkdir()
    (tmp_path / "my_aloha" / "sim.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("my_aloha", "my_aloha.sim"):
        sys.modules.pop(module, None)
    return SimConfig("my_aloha.sim", ("transfer_cube",), ("top",), height=120, width=160, max_steps=300)


@pytest.mark.sim
@pytest.mark.filterwarnings("ignore")  # of Gymnasium and dm_control, about themselves
def test_gym_aloha_is_a_simulator(aloha: SimConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightwam.sim.check.STEPS", 4)  # each step draws three pictures, asked for or not
    assert [str(finding) for finding in check_simulator(aloha, "transfer_cube")] == []
    simulator = registry.make_simulator(aloha, "transfer_cube")
    assert (simulator.state_dim, simulator.action_dim, simulator.fps) == (14, 14, 50)
    simulator.reset(0)
    first = simulator.observe()
    red = (first.frames["top"][..., 0] > 150) & (first.frames["top"][..., 1] < 100)
    rows, columns = np.nonzero(red)  # the cube lies in the right half of the table, the arms' bases at its sides
    assert 0 < red.sum() < 200 and 80 < columns.mean() < 160 and 40 < rows.mean() < 90
    target = first.state.copy()
    target[0] += 0.3  # the left arm's waist
    for _ in range(20):
        outcome = simulator.step(target)
    moved = simulator.observe().state - first.state
    assert not outcome.success and not outcome.ended and moved[0] > 0.2 and abs(moved[7]) < 0.05
    simulator.close()
