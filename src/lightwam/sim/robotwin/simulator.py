"""RoboTwin 2.0's tasks (rlinf-robotwin-runtime 0.1.3, SAPIEN 3.0.3): two arms, 14 numbers, three cameras.

State and action: six joints of the left arm in radians (0 is home), its gripper from 0 (closed) to 1 (open), the same
of the right arm. The state is RoboTwin's joint_action/vector, the last command. A control step is one `take_action`:
both arms go from their last targets to the new ones, from rest to rest, however long that takes. `action_repeat` is the
stride of demonstrations: how many of RoboTwin's frames, 15 physics steps each, one action of an expert spans.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightwam.config.robotwin_protocols import robotwin_protocol
from lightwam.config.robotwin_tasks import ARM_DIMS, CAMERAS, FRAME_HZ, JOINT_NAMES, STEP_LIMITS
from lightwam.config.schema import SimConfig
from lightwam.sim.robotwin import installation
from lightwam.sim.robotwin.robot import stand_in_looks
from lightwam.sim.robotwin.runtime import DEPTH, SAMPLES, SHADOW_MAP
from lightwam.sim.robotwin.sentences import draw_sentence, template
from lightwam.sim.robotwin.world import World
from lightwam.sim.simulator import RobotUnits, Simulator, StepOutcome, check_seed, finite_action, not_reset
from lightwam.sim.versions import PackageVersions
from lightwam.system.machine import versions
from lightwam.types import Observation

__all__ = ["CAMERAS", "SEED_RULE", "TASKS", "TESTED", "UNITS", "RobotwinSimulator", "make"]

TASKS = tuple(STEP_LIMITS)
_UNITS_BY_NAME = {name: "0 closed to 1 open" if "gripper" in name else "rad" for name in JOINT_NAMES}
UNITS = RobotUnits(state=_UNITS_BY_NAME, action=_UNITS_BY_NAME, steps_per_second=FRAME_HZ)
TESTED = {
    "rlinf-robotwin-runtime": PackageVersions(("0.1.3",), "other tasks, or other rules"),
    "sapien": PackageVersions(("3.0.3",), "its physics and pictures may differ"),
    "toppra": PackageVersions(("0.6.10",), "motions may differ in their last bits"),
}
ARMS = list(ARM_DIMS)
FARTHEST = 2 * np.pi
"""radians: targets beyond it are cut, as RoboTwin would spend hours on the way to one of 1e9"""

_open: list[RobotwinSimulator] = []
"""the one simulator of this process with a world in memory"""


class RobotwinSimulator(Simulator):
    """One RoboTwin task. A process holds one world at a time: a simulator's `reset` closes the others'.

    SAPIEN and RoboTwin are loaded by the first `reset`. An episode whose objects fall over while they settle, which
    the benchmark skips, ends at its first step. ConfigError for an unknown protocol.
    """

    state_names = action_names = JOINT_NAMES

    def __init__(self, config: SimConfig, task: str) -> None:
        installation.check_packages()
        self.protocol = robotwin_protocol(config.protocol)
        installation.check_assets(task, self.protocol.scene)
        self.task, self.cameras, self.instruction = task, config.cameras, template(task)
        self.robot = "robotwin-stand-in" if installation.embodiment() is None else "aloha-agilex"
        self.stride, self.fps = config.action_repeat, UNITS.steps_per_second / config.action_repeat
        self._size = config.height, config.width
        self._world: World | None = None
        self._steps = self._seed = 0

    def reset(self, seed: int) -> None:
        """Set the task up by `seed`, as RoboTwin does, and draw the episode's sentence."""
        check_seed(seed, f"robotwin/{self.task}")
        for other in list(_open):
            other.close()
        world = World(self.task, seed, self.protocol, *self._size)
        _open.append(self)
        self._world, self._seed, self._steps = world, seed, 0
        if self.protocol.sentences != "template":
            self.instruction = draw_sentence(self.task, self.protocol.sentences, world.words(), seed)

    def observe(self) -> Observation:
        """Draw every camera."""
        world = self.world
        return Observation(world.draw(self.cameras), world.command().astype(np.float32), self.instruction)

    def step(self, action: np.ndarray) -> StepOutcome:
        """Do one `take_action`; success counts at every physics step. A published protocol's limit ends the episode."""
        world = self.world
        target = finite_action(action, self.action_dim, f"robotwin/{self.task}").astype(np.float64)
        target[ARMS] = target[ARMS].clip(-FARTHEST, FARTHEST)
        success = world.take_action(target) and world.stable
        self._steps += 1
        at_limit = self.protocol.published and self._steps >= STEP_LIMITS[self.task]
        return StepOutcome(success, at_limit or not world.stable)

    def close(self) -> None:
        """Free the world; SAPIEN's renderer stays for the next one."""
        if self._world is not None:
            self._world.close()
            self._world = None
        if self in _open:
            _open.remove(self)

    def rehearse(self) -> World:
        """Return a second world of this episode's seed, for experts only, which close it."""
        _ = self.world  # SimulatorError outside an episode
        return World(self.task, self._seed, self.protocol, *self._size)

    @property
    def world(self) -> World:
        """The episode's world, for experts and tests; SimulatorError outside an episode."""
        if self._world is None:
            raise not_reset(f"robotwin/{self.task}")
        return self._world

    @property
    def progress(self) -> dict[str, bool]:
        """Whether anything was reached, grasped, lifted, placed (`progress.STAGES`)."""
        return {} if self._world is None else self._world.progress.stages()

    @property
    def constants(self) -> dict[str, Any]:
        """The protocol's constants, the robot, and how pictures are drawn."""
        drawn = {
            "ray-traced": f"{SAMPLES} samples, depth {DEPTH}, no denoiser",
            "no-shadows": "without shadows",
            "rasterised": f"shadow maps of {SHADOW_MAP}",
        }
        return self.protocol.to_dict() | {
            "robot": self.robot,
            "robot_looks": stand_in_looks() if self.robot == "robotwin-stand-in" else "its own",
            "planner": "lightwam's",
            "drawing": drawn[self.protocol.pictures],
            "stride": self.stride,
        }


class ExpertSolves:
    """The benchmark's rule: a seed counts if RoboTwin's script solves it, and its objects stay where they are."""

    def depends_on(self, config: SimConfig) -> str:
        """Return the packages' versions, the scene and the robot; not how it is drawn."""
        packages = " ".join(f"{name}=={version}" for name, version in versions(TESTED).items() if name in TESTED)
        robot = "stand-in" if installation.embodiment() is None else "aloha-agilex"
        return f"{packages} {robotwin_protocol(config.protocol).scene} {robot}"

    def counts(self, config: SimConfig, task: str, seed: int) -> bool:
        """Let the script try it in a world of its own."""
        installation.check_packages()
        world = World(task, seed, robotwin_protocol(config.protocol), config.height, config.width)
        try:
            return world.stable and world.perform()[1]
        finally:
            world.close()


make, SEED_RULE = RobotwinSimulator, ExpertSolves()
