"""A disturbed simulator: undisturbed it is what it wraps; each disturbance comes when it should, and goes at reset."""

from dataclasses import replace

import numpy as np
import pytest

from lightwam.config.recipes import point
from lightwam.errors import SimulatorError
from lightwam.sim import registry
from lightwam.sim.disturb import KINDS, Disturbance, Disturbed, Kind
from lightwam.sim.simulator import Simulator, StepOutcome
from lightwam.types import Observation

SIM = replace(point().sim, tasks=("red",))


def seen(simulator: Simulator, seed: int = 4, steps: int = 5) -> list[np.ndarray]:
    """The first camera's picture after each step of one way, the beginning first."""
    simulator.reset(seed)
    camera, frames = simulator.cameras[0], []
    for _ in range(steps):
        frames.append(simulator.observe().frames[camera])
        simulator.step(np.array([0.3, -0.2], np.float32))
    return frames


def same(a: list[np.ndarray], b: list[np.ndarray]) -> list[bool]:
    return [bool((x == y).all()) for x, y in zip(a, b, strict=True)]


def test_without_a_disturbance_it_equals_the_wrapped_simulator() -> None:
    inside = registry.make_simulator(SIM, "red")
    wrapped = Disturbed(inside)
    assert isinstance(wrapped, Simulator)
    assert (wrapped.state_dim, wrapped.action_dim, wrapped.constants) == (2, 2, inside.constants)
    assert all(same(seen(wrapped), seen(registry.make_simulator(SIM, "red"))))
    assert wrapped.size is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_disturbance_starts_at_its_step_and_ends_with_the_reset(kind: Kind) -> None:
    plain, inside = seen(registry.make_simulator(SIM, "red")), registry.make_simulator(SIM, "red")
    disturbed = Disturbed(inside, Disturbance(kind, 2, seed=7))
    agrees = same(seen(disturbed), plain)
    first = 3 if kind == "frozen" else 2
    assert agrees[:first] == [True] * first
    assert not any(agrees[first:])
    assert disturbed.size is not None
    assert all(same(seen(inside), plain))
    assert all(same(seen(disturbed)[:2], plain[:2]))


def test_frozen_pictures_stay_while_the_state_changes() -> None:
    disturbed = Disturbed(registry.make_simulator(SIM, "red"), Disturbance("frozen", 0, 0))
    disturbed.reset(1)
    before = disturbed.observe()
    disturbed.step(np.array([1, 0], np.float32))
    after = disturbed.observe()
    assert all((before.frames[camera] == after.frames[camera]).all() for camera in SIM.cameras)
    assert after.state[0] != before.state[0]


def test_the_seed_decides_the_disturbance() -> None:
    one, two = (Disturbed(registry.make_simulator(SIM, "red"), Disturbance("object", 1, seed)) for seed in (5, 6))
    assert all(same(seen(one), seen(Disturbed(registry.make_simulator(SIM, "red"), Disturbance("object", 1, 5)))))
    assert not all(same(seen(one), seen(two)))


def test_a_disturbance_now_equals_one_that_was_planned() -> None:
    planned = Disturbed(registry.make_simulator(SIM, "red"), Disturbance("object", 1, 5), Disturbance("camera", 1, 6))
    now = Disturbed(registry.make_simulator(SIM, "red"))
    for simulator in (planned, now):
        simulator.reset(4)
        simulator.step(np.zeros(2, np.float32))
    now.disturb("object", 5)
    now.disturb("camera", 6)
    assert all((now.observe().frames[camera] == planned.observe().frames[camera]).all() for camera in SIM.cameras)


def test_a_second_freeze_lets_pictures_go_on() -> None:
    disturbed, free = Disturbed(registry.make_simulator(SIM, "red")), registry.make_simulator(SIM, "red")
    for simulator in (disturbed, free):
        simulator.reset(1)
    disturbed.disturb("frozen", 0)
    for simulator in (disturbed, free):
        simulator.step(np.array([1, 0], np.float32))
    assert (disturbed.observe().frames["top"] != free.observe().frames["top"]).any()
    disturbed.disturb("frozen", 0)
    assert (disturbed.observe().frames["top"] == free.observe().frames["top"]).all()


def test_use_before_reset_and_after_close_is_refused() -> None:
    disturbed = Disturbed(registry.make_simulator(SIM, "red"))
    with pytest.raises(SimulatorError, match="not in an episode"):
        disturbed.step(np.zeros(2, np.float32))
    disturbed.reset(0)
    disturbed.close()
    with pytest.raises(SimulatorError, match="not in an episode"):
        disturbed.step(np.zeros(2, np.float32))


class Bare(Simulator):
    """Nothing in it can be moved."""

    task, instruction, robot = "t", "i", "r"
    cameras, state_names, action_names, fps = ("c",), ("x",), ("x",), 1.0

    def reset(self, seed: int) -> None: ...

    def observe(self) -> Observation:
        raise AssertionError

    def step(self, action: np.ndarray) -> StepOutcome:
        return StepOutcome(False)

    def close(self) -> None: ...


def test_a_simulator_without_the_disturbance_is_refused() -> None:
    with pytest.raises(SimulatorError, match="no disturbance 'object'"):
        Disturbed(Bare(), Disturbance("object", 0, 0))
    Disturbed(Bare(), Disturbance("frozen", 0, 0))
