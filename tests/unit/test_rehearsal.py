"""The rehearsed control loop: a virtual clock, the point simulator, and the table of `lightwam bench control`."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lightwam.cli.main import main
from lightwam.config.commands import ControlSettings
from lightwam.config.schema import SimConfig
from lightwam.errors import ConfigError
from lightwam.evaluation.latency_benchmark import bench_control
from lightwam.evaluation.rehearsal import (
    Rehearsed,
    SimulatedRobot,
    is_position,
    jitter,
    latency_steps,
    player_factories,
    rehearse,
    switches,
)
from lightwam.robot.chunks import Crossfade
from lightwam.robot.player import BlockingPlayer, ChunkPlayer, Hold, Play, Player, hold_still
from lightwam.sim import registry
from lightwam.sim.point import STEP, PointSimulator
from lightwam.types import Observation

SIM = SimConfig(name="point", tasks=("red",), cameras=("top",), height=8, width=8, max_steps=200)
SPEED = 0.25
"""of the policy, so that an episode lasts longer than a chunk"""
WAYS = player_factories(4, (), blend=2, decay=0.01)
PLAIN = ("blocking", "asynchronous", "+ compensation")


@pytest.fixture
def simulator() -> PointSimulator:
    made = registry.make_simulator(SIM, "red")
    assert isinstance(made, PointSimulator)
    return made


@pytest.fixture
def act(simulator: PointSimulator) -> Callable[[Observation], np.ndarray]:
    """A policy that goes straight to the target, slowly, and knows where its chunk leads it."""

    def straight(seen: Observation) -> np.ndarray:
        at, goal, chunk = seen.state.astype(np.float64), np.array(simulator.target), []
        for _ in range(8):
            way = goal - at
            chunk.append(way / max(np.linalg.norm(way), SPEED * STEP) * SPEED)
            at = at + STEP * chunk[-1]
        return np.array(chunk, np.float32)

    return straight


def episode(simulator: PointSimulator, act: Any, way: str, latency: int, seed: int = 1) -> Rehearsed:
    return rehearse(simulator, seed, act, WAYS[way], switch_dims=(), latency=latency, max_steps=200)


def test_without_latency_every_plain_way_is_the_same(simulator: PointSimulator, act: Any) -> None:
    one, *others = (episode(simulator, act, way, 0) for way in PLAIN)
    assert one.success and one.idle == 0 and one.steps > 8
    assert others == [one, one]


def test_waiting_costs_the_robot_what_the_player_saves_it(simulator: PointSimulator, act: Any) -> None:
    free = episode(simulator, act, "blocking", 0)
    blocking, playing = (episode(simulator, act, way, 3) for way in ("blocking", "+ compensation"))
    chunks = -(-free.steps // 4)
    assert blocking.success and blocking.idle == 3 * chunks and blocking.steps == free.steps + 3 * chunks
    assert playing.success and playing.idle == 3 and playing.steps == free.steps + 3
    assert playing.command_jitter < blocking.command_jitter
    assert playing.hand_jitter is not None and blocking.hand_jitter is not None
    assert playing.hand_jitter < blocking.hand_jitter


def test_without_compensation_it_goes_too_far(simulator: PointSimulator) -> None:
    """A policy of motions that brakes: played late, it passes the target by what was moved on the way."""

    def across(seen: Observation) -> np.ndarray:
        left = 0.8 - seen.state[0]
        motion = np.clip(left / STEP - SPEED * np.arange(8), 0, SPEED)  # the end of the way, cut off
        return np.stack([motion, np.zeros(8)], axis=1).astype(np.float32)

    def end(play: Play) -> float:
        simulator.reset(1)
        hold = hold_still(2)
        stage = SimulatedRobot(simulator, across, hold, 3, 150)
        player = ChunkPlayer(stage, play, hold)
        while not stage.over:
            stage.step(player.action(stage.observe))
        return float(stage.states[-1][0])

    start = simulator.reset(1) or float(simulator.observe().state[0])
    assert start < 0.7
    assert end(Play(4)) == pytest.approx(0.8, abs=1e-3)
    assert end(Play(4, compensate=False)) > 0.8 + STEP * SPEED


def test_the_episode_may_end_while_the_robot_waits(simulator: PointSimulator, act: Any) -> None:
    row = rehearse(simulator, 1, act, WAYS["blocking"], switch_dims=(), latency=50, max_steps=20)
    assert (row.steps, row.idle, row.success) == (20, 20, False)


def test_an_episode_is_a_function_of_its_seed(simulator: PointSimulator, act: Any) -> None:
    for way in WAYS:
        again = [episode(simulator, act, way, 2, seed) for seed in (3, 4, 3)]
        assert again[0] == again[2] != again[1]


def test_an_answer_is_there_at_its_step_and_not_before(simulator: PointSimulator) -> None:
    simulator.reset(1)
    stage = SimulatedRobot(simulator, lambda seen: np.zeros((8, 2), np.float32), hold_still(2), 2, 100)
    stage.ask(7, stage.observe())
    stage.step(np.zeros(2, np.float32))
    assert stage.events() == []
    stage.step(np.zeros(2, np.float32))
    (report,) = stage.events()
    assert report.number == 7 and stage.events() == []  # type: ignore[union-attr]


def test_pictures_are_drawn_once_a_step(simulator: PointSimulator) -> None:
    simulator.reset(1)
    stage = SimulatedRobot(simulator, lambda seen: np.zeros((8, 2), np.float32), hold_still(2), 0, 100)
    assert stage.observe() is stage.observe()
    before = stage.observe()
    stage.step(np.ones(2, np.float32))
    assert stage.observe() is not before


@pytest.mark.parametrize(
    ("milliseconds", "rate", "steps"),
    [(0, 50, 0), (1, 50, 1), (100, 10, 1), (100, 20, 2), (250, 80 / 3, 7), (300, 50, 15)],
)
def test_latency_in_steps(milliseconds: float, rate: float, steps: int) -> None:
    assert latency_steps(float(milliseconds), float(rate)) == steps


def test_jitter_is_the_second_difference() -> None:
    assert jitter(np.arange(10.0)[:, None]) == 0
    assert jitter(np.array([[0.0], [1.0], [0.0], [1.0]])) == 2
    assert jitter(np.zeros((2, 3))) == 0 and jitter(np.zeros((0, 3))) == 0


def test_a_place_has_an_axis() -> None:
    names = ("x", "y", "hand_x", "hand_z", "eef_y", "hand_turn_x", "gripper", "finger_left", "velocity_x", "axis")
    assert [name for name in names if is_position(name)] == ["x", "y", "hand_x", "hand_z", "eef_y"]


def test_dimensions_without_motion_are_switches() -> None:
    assert switches(4, (0, 1, 2)) == (3,)
    with pytest.raises(ConfigError, match="must be motions"):
        switches(7, ())


def test_a_custom_player(simulator: PointSimulator, act: Any) -> None:
    def way(stage: SimulatedRobot, hold: Hold) -> Player:
        return ChunkPlayer(stage, Play(2, Crossfade(1)), hold)

    def waiting(stage: SimulatedRobot, hold: Hold) -> Player:
        return BlockingPlayer(stage.act, 8, hold)

    for mine in (way, waiting):
        assert rehearse(simulator, 1, act, mine, switch_dims=(), latency=1, max_steps=200).success


# --- the command


def test_the_table(tiny_once: Any) -> None:
    said: list[str] = []
    settings = ControlSettings(trials=1, latencies_ms=(0.0, 200.0), patience=1.0)
    result = bench_control(tiny_once.run, settings, said.append)
    assert (
        json.loads(json.dumps(result))["rows"][0].keys() == result["rows"][0].keys() and "rehearsal 20/20" in said[-1]
    )
    rows = {(row["latency_ms"], row["way"]): row for row in result["rows"]}
    assert len(rows) == 2 * 5 and all(row["trials"] == 2 for row in rows.values())
    assert {row["latency_steps"] for row in rows.values()} == {0, 2}
    assert rows[0.0, "blocking"]["idle_share"] == 0
    assert rows[200.0, "blocking"]["idle_share"] > rows[200.0, "+ compensation"]["idle_share"] > 0
    plain = [{**rows[0.0, way], "way": ""} for way in PLAIN]
    assert plain[0] == plain[1] == plain[2]
    limit = tiny_once.recipe.sim.max_steps
    assert all(one["steps"] <= limit for row in rows.values() for one in row["episodes"])


def test_the_command(tiny_once: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "control", str(tiny_once.run), "--trials", "1", "--latencies-ms", "100", "--rates-hz", "20", "50"]
    assert main([*words, "--patience", "1.0", "--replan", "2"]) in (None, 0)
    told = capsys.readouterr().out
    assert (
        "a new one every 2 steps" in told
        and "100 ms = 2" in told
        and "100 ms = 5" in told
        and "+ ensemble 0.01" in told
    )


@pytest.mark.parametrize(
    "wrong", [{"trials": 0}, {"latencies_ms": ()}, {"latencies_ms": (-1.0,)}, {"rates_hz": (0.0,)}, {"patience": 0.5}]
)
def test_invalid_rehearsals_are_refused(wrong: dict[str, Any], tiny_once: Any) -> None:
    with pytest.raises(ConfigError, match=r"at least 1|none below 0"):
        bench_control(tiny_once.run, ControlSettings(**({"trials": 1, "latencies_ms": (0.0,)} | wrong)))
