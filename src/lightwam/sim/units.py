"""What the numbers of lightwam's own simulators mean, told without a simulator."""

from __future__ import annotations

from dataclasses import dataclass

from lightwam.config.libero_protocols import ACTION_NAMES, FPS, STATE_NAMES
from lightwam.config.schema import SimConfig
from lightwam.sim.metaworld.simulator import STEPS_PER_SECOND, MetaWorldSimulator
from lightwam.sim.point import STEP, PointSimulator


@dataclass(frozen=True)
class Number:
    """One dimension of a state or an action."""

    name: str
    unit: str
    """with its range where it has one"""


@dataclass(frozen=True)
class RobotUnits:
    """What a robot tells of itself and is told."""

    state: tuple[Number, ...]
    action: tuple[Number, ...]
    steps_per_second: float
    """control steps in a second of simulated time"""


def robot_units(sim: SimConfig) -> RobotUnits | None:
    """The robot of one of lightwam's adapters; None for an adapter of somebody else's."""
    if sim.name == "metaworld":
        motion = "-1 to 1, 1 is 1 cm a simulator step"
        return RobotUnits(
            _numbers(MetaWorldSimulator.state_names, "m", "m", "m", "0 closed to 1 open"),
            _numbers(MetaWorldSimulator.action_names, motion, motion, motion, "effort, -1 to 1"),
            STEPS_PER_SECOND / sim.action_repeat,
        )
    if sim.name == "libero":
        turned, move, turn = "rad, axis times angle", "-1 to 1, 1 is 5 cm", "-1 to 1, 1 is 0.5 rad"
        return RobotUnits(
            _numbers(STATE_NAMES, "m", "m", "m", turned, turned, turned, "m", "m"),
            _numbers(ACTION_NAMES, move, move, move, turn, turn, turn, "0 closed, 1 open"),
            float(FPS),
        )
    if sim.name == "point":
        place, velocity = "-1 to 1 across the picture", f"-1 to 1, 1 is {STEP:g} a simulator step"
        return RobotUnits(
            _numbers(PointSimulator.state_names, place, place),
            _numbers(PointSimulator.action_names, velocity, velocity),
            10.0 / sim.action_repeat,
        )
    return None


def _numbers(names: tuple[str, ...], *units: str) -> tuple[Number, ...]:
    return tuple(Number(*pair) for pair in zip(names, units, strict=True))
