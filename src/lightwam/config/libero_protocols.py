"""Constants for the evaluation of LIBERO, as different publications use them: results compare only under the same ones.

All turn pictures by 180 degrees, as LIBERO renders them upside down, and all have the same state. Source: facts as
published with each code base; the table in docs/libero.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from lightwam.config.schema import EvalConfig, SimConfig
from lightwam.errors import ConfigError, did_you_mean

FOUR = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
PERTURBATIONS = ("lan", "object", "swap", "task")
"""LIBERO-PRO's: another wording, other objects, exchanged positions, another task in the same scene"""
PLUS: Mapping[str, Mapping[str, int]] = {
    axis: dict(zip(FOUR, counts, strict=True))
    for axis, counts in {
        "camera": (376, 396, 408, 419),
        "robot": (350, 398, 409, 393),
        "language": (390, 354, 410, 383),
        "moved": (177, 195, 185, 139),
        "added": (208, 208, 240, 173),
        "light": (292, 297, 279, 274),
        "background": (258, 248, 281, 289),
        "noise": (351, 422, 379, 449),
    }.items()
}
"""LIBERO-plus's axes -> suite -> number of tasks; "moved" and "added" objects are its axis layout"""
SUITES: Mapping[str, int] = (
    dict.fromkeys(FOUR, 10)
    | {"libero_90": 90}
    | {f"{suite}_{perturbation}": 10 for suite in FOUR for perturbation in PERTURBATIONS}
    | {f"{suite}_plus_{axis}": count for axis, counts in PLUS.items() for suite, count in counts.items()}
)
"""suite -> number of tasks"""

FPS, ROBOT = 20, "panda"
"""LIBERO's control rate; some publications of its demonstrations state half of it for the same steps"""
STATE_NAMES = ("hand_x", "hand_y", "hand_z", "hand_turn_x", "hand_turn_y", "hand_turn_z", "finger_left", "finger_right")
ACTION_NAMES = ("motion_x", "motion_y", "motion_z", "turn_x", "turn_y", "turn_z", "gripper")
FIRST_STATE, NUM_STATES = 1_000_000, 50
"""seeds from FIRST_STATE up are a task's fixed initial states in the benchmark; lower seeds draw a random state"""

Treatment = Literal["as drawn", "resized", "as OpenVLA-OFT sees it"]
GripperRule = Literal["sign", "linear"]


@dataclass(frozen=True)
class LiberoProtocol:
    """One publication's constants, a column of the table in docs/libero.md."""

    max_steps: Mapping[str, int]
    """suite -> control steps after settling; perturbed suites have those of the suite they perturb"""
    settle_steps: int
    """steps without motion, gripper open, before the first observation"""
    replan: int | None
    """steps to execute of a chunk; None: the recipe's eval.replan"""
    env_seed: int
    """determines what the initial state does not (fixtures)"""
    gripper: GripperRule
    """how the policy's 0 (closed) to 1 (open) becomes LIBERO's 1 to -1: by its sign, or linearly"""
    treatment: Treatment
    """what is done with a picture rendered at 256 x 256"""
    picture: Literal["whole", "plain"] = "whole"
    """plain: without shadows, reflections, antialiasing and fine details of meshes, which is faster on a CPU"""

    @property
    def size(self) -> int:
        """Height and width of a picture, pixels."""
        return 256 if self.treatment == "as drawn" else 224

    def limit(self, suite: str) -> int:
        """Return the number of control steps that an episode may take."""
        return self.max_steps[next(name for name in (*FOUR, "libero_90") if suite.startswith(name))]

    def to_dict(self) -> dict[str, Any]:
        """Return every constant, for a result file."""
        states = f"seed {FIRST_STATE} + i: initial state i; lower seeds: drawn"
        derived = {"max_steps": dict(self.max_steps), "size": self.size, "orientation": "turned 180 degrees"}
        return {**vars(self), **derived, "states": states}


_LONG = {"libero_spatial": 400, "libero_object": 400, "libero_goal": 400, "libero_10": 700, "libero_90": 700}
_SHORT = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
_LIGHT_WAM = LiberoProtocol(_LONG, 30, 10, 42, "sign", "as drawn")
PROTOCOLS: Mapping[str, LiberoProtocol] = {
    "light-wam": _LIGHT_WAM,
    "openpi": LiberoProtocol(_SHORT, 10, 5, 7, "linear", "resized"),
    "openvla-oft": LiberoProtocol(_SHORT, 10, 8, 0, "sign", "as OpenVLA-OFT sees it"),
    "lerobot": LiberoProtocol(_SHORT | {"libero_spatial": 280}, 10, None, 0, "linear", "as drawn"),
    "plain": LiberoProtocol(_LONG, 30, None, 42, "sign", "as drawn", "plain"),
}
"""name -> constants. "plain" is this library's own: light-wam's with pictures that are quick to render. LeRobot leaves
chunk and seed to its user; its seed is 0 here."""


def protocol(name: str) -> LiberoProtocol:
    """Return the protocol of this name; ConfigError with the nearest names for an unknown one."""
    if name not in PROTOCOLS:
        what, step = f"sim.protocol must be one of {', '.join(PROTOCOLS)}", did_you_mean(name, PROTOCOLS)
        raise ConfigError(what, got=repr(name), next_step=step)
    return PROTOCOLS[name]


def with_suite_and_protocol(
    sim: SimConfig, settings: EvalConfig, suite: str | None, name: str | None, explicit: frozenset[str] = frozenset()
) -> tuple[SimConfig, EvalConfig]:
    """Return the settings with all tasks of a suite and the constants of the protocol `name`, where these are given.

    Settings that `explicit` names, such as "--sim.max-steps", keep their values (`check_recipe` refuses what
    contradicts a protocol). ConfigError for unknown names and for another simulator than LIBERO.
    """
    if sim.name != "libero" and (suite or name):
        where, step = "--suite, --protocol", "choose tasks by --sim.tasks"
        raise ConfigError(
            "suites are LIBERO's, protocols LIBERO's and RoboTwin's",
            where=where,
            got=f"sim.name {sim.name}",
            next_step=step,
        )
    other_suite = False
    if suite:
        if suite not in SUITES:
            step = did_you_mean(suite, SUITES)
            raise ConfigError("unknown LIBERO suite", where="--suite", got=repr(suite), next_step=step)
        other_suite = any(not task.startswith(f"{suite}/") for task in sim.tasks)
        sim = replace(sim, tasks=tuple(f"{suite}/{i}" for i in range(SUITES[suite])))
    if name:
        constants = protocol(name)
        sim = replace(sim, protocol=name)
        if constants.picture != "plain" and not explicit & {"--sim.height", "--sim.width"}:
            sim = replace(sim, height=constants.size, width=constants.size)
        if "--eval.replan" not in explicit:
            settings = replace(settings, replan=constants.replan or settings.replan)
    if (name or other_suite) and "--sim.max-steps" not in explicit:
        sim = replace(sim, max_steps=max(protocol(sim.protocol).limit(task.partition("/")[0]) for task in sim.tasks))
    return sim, settings
