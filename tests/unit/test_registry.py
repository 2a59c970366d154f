"""The protocol's door, and the point world."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightwam.config import recipes
from lightwam.config.checks import check_recipe
from lightwam.config.schema import Recipe, SimConfig
from lightwam.data.collect import collect
from lightwam.errors import ConfigError, SimulatorError
from lightwam.sim import point, registry

CONFIG = SimConfig("point", tasks=("red", "blue"), cameras=("top", "near"), height=24, width=32, max_steps=60)


def make(**changes: object) -> point.PointSimulator:
    simulator = registry.make_simulator(SimConfig(**{**vars(CONFIG), **changes}), "red")
    assert isinstance(simulator, point.PointSimulator)
    return simulator


@pytest.mark.parametrize(
    ("changes", "task", "words"),
    [
        ({"name": "metaword"}, "red", "metaworld"),
        ({"name": "no_such_package.sim"}, "red", "not installed"),
        ({}, "rd", "did you mean 'red'"),
        ({"cameras": ("tip",)}, "red", "did you mean 'top'"),
        ({"cameras": ()}, "red", "needs a camera"),
        ({"action_repeat": 0}, "red", "action_repeat"),
    ],
)
def test_what_is_unknown_is_refused_with_the_nearest_name(changes: dict, task: str, words: str) -> None:
    with pytest.raises(SimulatorError, match=words):
        registry.make_simulator(SimConfig(**{**vars(CONFIG), **changes}), task)


def test_a_simulator_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SimulatorError, match=r"pip install 'lightwam\[metaworld\]'"):
        registry.make_simulator(SimConfig("metaworld", ("reach",), ("corner4",), 24, 24, 10), "reach")


def test_names_are_known_without_a_simulator() -> None:
    assert registry.tasks("point") == point.TASKS and registry.cameras("point") == point.CAMERAS


def test_an_adapter_of_ones_own_is_found_by_its_import_path(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_robot").mkdir()
    (tmp_path / "my_robot" / "sim.py").write_text("from lightwam.sim.point import *\n")
    (tmp_path / "my_robot" / "half.py").write_text("TASKS = ('red',)\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("my_robot", "my_robot.sim"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    config = SimConfig(**{**vars(CONFIG), "name": "my_robot.sim"})
    simulator = registry.make_simulator(config, "blue")
    simulator.reset(0)
    assert registry.make_expert(config, simulator).action().shape == (2,)
    with pytest.raises(SimulatorError, match=r"must have TASKS, CAMERAS, make[\s\S]*got: no CAMERAS, make"):
        registry.make_simulator(SimConfig(**{**vars(CONFIG), "name": "my_robot.half"}), "red")


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((1, 2)), np.array([0.0, np.nan])])
def test_wrong_actions_are_refused(wrong: np.ndarray) -> None:
    simulator = make()
    simulator.reset(0)
    with pytest.raises(SimulatorError, match="point/red"):
        simulator.step(wrong)


def test_the_expert_reaches_the_dot_and_stays() -> None:
    simulator = make()
    for seed in range(20):
        simulator.reset(seed)
        expert = registry.make_expert(CONFIG, simulator)
        successes = [simulator.step(expert.action()).success for _ in range(CONFIG.max_steps)]
        assert any(successes) and successes[successes.index(True) :] == [True] * successes.count(True)


def test_the_sentence_decides_where_to_go() -> None:
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


@pytest.mark.parametrize("name", ["point", "metaworld", "libero"])
def test_a_negative_seed_is_refused(name: str) -> None:
    pytest.importorskip({"point": "numpy"}.get(name, name))
    recipe = {"point": "point", "metaworld": "demo", "libero": "libero-object-small"}[name]
    sim = recipes.recipe(recipe).sim
    with pytest.raises(SimulatorError, match=r"must not be negative[\s\S]*got: -5"):
        registry.make_simulator(sim, sim.tasks[0]).reset(-5)


def test_a_negative_seed_is_refused_before_anything_is_done(tmp_path: Path, tiny_recipe: Recipe) -> None:
    recipe = tiny_recipe
    with pytest.raises(ConfigError, match=r"eval.first_seed must be >= 0"):
        check_recipe(replace(recipe, eval=replace(recipe.eval, first_seed=-5)))
    odd = replace(recipe, collect=replace(recipe.collect, first_seed=-1))
    with pytest.raises(ConfigError, match=r"collect.first_seed must be >= 0"):
        check_recipe(odd)
    with pytest.raises(ConfigError, match=r"collect.first_seed"):
        collect(odd, tmp_path / "data")
    assert not (tmp_path / "data").exists()
