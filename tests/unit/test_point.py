"""The point simulator and its expert."""

import numpy as np
import pytest

from lightwam.config.schema import SimConfig
from lightwam.errors import SimulatorError
from lightwam.sim import point, registry

CONFIG = SimConfig("point", tasks=("red", "blue"), cameras=("top", "near"), height=24, width=32, max_steps=60)


def make(**changes: object) -> point.PointSimulator:
    simulator = registry.make_simulator(SimConfig(**{**vars(CONFIG), **changes}), "red")
    assert isinstance(simulator, point.PointSimulator)
    return simulator


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((1, 2)), np.array([0.0, np.nan])])
def test_wrong_actions_are_refused(wrong: np.ndarray) -> None:
    simulator = make()
    simulator.reset(0)
    with pytest.raises(SimulatorError, match="point/red"):
        simulator.step(wrong)


def test_the_point_expert_reaches_the_dot_and_stays() -> None:
    simulator = make()
    for seed in range(20):
        simulator.reset(seed)
        expert = registry.make_expert(CONFIG, simulator)
        successes = [simulator.step(expert.action()).success for _ in range(CONFIG.max_steps)]
        assert any(successes) and successes[successes.index(True) :] == [True] * successes.count(True)


def test_the_task_decides_instruction_and_target() -> None:
    targets = []
    for task in CONFIG.tasks:
        simulator = registry.make_simulator(CONFIG, task)
        simulator.reset(3)
        targets.append((simulator.instruction, simulator.target))  # type: ignore[attr-defined]
    assert targets[0][0] != targets[1][0] and targets[0][1] != targets[1][1]


def test_pictures_are_upright_and_show_the_point_where_the_state_says() -> None:
    simulator = make(height=100, width=100)
    simulator.reset(1)
    seen = simulator.observe()
    rows, columns = np.nonzero((seen.frames["top"] == 255).all(-1))
    assert np.allclose([columns.mean() / 50 - 1, 1 - rows.mean() / 50], seen.state, atol=0.03)
    x, y = simulator.target
    assert tuple(seen.frames["top"][int(50 * (1 - y)), int(50 * (1 + x))]) == point.COLOURS["red"]


def test_action_repeat_covers_more_ground_and_sees_success_on_the_way() -> None:
    once, thrice = make(), make(action_repeat=3)
    for simulator in (once, thrice):
        simulator.reset(0)
    action = np.array([0.3, -0.2], np.float32)
    for _ in range(3):
        once.step(action)
    thrice.step(action)
    assert np.array_equal(once.observe().state, thrice.observe().state)
    assert thrice.fps * 3 == once.fps
    through = make(action_repeat=40)
    through.reset(0)
    (x, y), at = through.target, through.observe().state
    way = np.array([x, y], np.float32) - at
    assert through.step(way / np.abs(way).max()).success  # it ends at the far wall, beyond the dot
