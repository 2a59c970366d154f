"""What `lightwam drive` puts together: a run's robot, chunks of its policy or of a server, a device, a recording."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightwam.config.schema import Recipe, SimConfig
from lightwam.data.codec import Codec
from lightwam.data.facts import DatasetFacts
from lightwam.data.lerobot.recorder import INTERVENTION, EpisodeRecorder
from lightwam.data.lerobot.writer import LeRobotWriter
from lightwam.errors import ConfigError
from lightwam.policy import run_directory
from lightwam.policy.policy import Policy
from lightwam.robot.background import Act
from lightwam.robot.client import Client
from lightwam.robot.device import RobotDevice, camera_sizes
from lightwam.robot.lerobot_devices import make_lerobot_robot, make_lerobot_teleoperator
from lightwam.robot.limits import RobotProfile
from lightwam.sim import registry
from lightwam.sim.device import SimulatedRobot, simulated_robot
from lightwam.types import Observation
from lightwam.wire.robot_schema import fit_schema
from lightwam.wire.robot_schemas import load_schema

SIMULATED = "simulated"
"""the word for the run's own simulator in place of a robot"""


@dataclass(frozen=True)
class DrivenRun:
    """A run as far as driving needs it, without its weights."""

    run: Path
    recipe: Recipe
    codec: Codec
    facts: DatasetFacts | None
    """None for a run of an older version"""

    @classmethod
    def read(cls, run: Path) -> DrivenRun:
        """Read a run directory; CheckpointError or ConfigError when it is missing or broken."""
        codec, _ = run_directory.read_processing(run)
        return cls(run, run_directory.read_recipe(run), codec, run_directory.read_facts(run))

    def profile(self, fps: float | None = None) -> RobotProfile:
        """Return the robot that the run was trained on: its data's names, rate, ranges and largest steps.

        A run of an older version has fewer facts: names and rate are then its simulator's, and unknown steps are
        infinite. ConfigError if nothing has the rate and `fps` is None.
        """
        state_dim, action_dim = self.recipe.model.state_dim, self.recipe.model.action_dim
        state_names, action_names, rate = self._names_and_rate()
        if (rate := fps or rate) is None:
            what, step = "the run does not have its data's rate", "--fps, the control steps in a second of its dataset"
            raise ConfigError(what, where=self.run, next_step=step)
        facts, codec = self.facts, self.codec
        measured = facts.ranges if facts is not None else None
        unknown = np.full(action_dim, np.inf)
        if measured is None and codec.config.relative_action_dims:
            what = "a run with relative actions must have its data's ranges"
            raise ConfigError(what, where=self.run, next_step="train it again with this version")
        return RobotProfile(
            fps=float(rate),
            cameras={name: None if facts is None else facts.cameras.get(name) for name in codec.cameras},
            state_names=state_names[:state_dim],
            action_names=action_names,
            motion_dims=codec.config.delta_action_dims,
            state_low=codec.state.min[:state_dim] if measured is None else np.array(measured.state_low[:state_dim]),
            state_high=codec.state.max[:state_dim] if measured is None else np.array(measured.state_high[:state_dim]),
            action_low=codec.action.min if measured is None else np.array(measured.action_low),
            action_high=codec.action.max if measured is None else np.array(measured.action_high),
            action_step=unknown if measured is None else np.array(measured.action_step),
            sentences=() if facts is None else tuple(facts.sentences),
        )

    def _names_and_rate(self) -> tuple[tuple[str, ...], tuple[str, ...], float | None]:
        if self.facts is not None:
            return self.facts.state_names, self.facts.action_names, self.facts.fps
        sim = self.recipe.sim
        units = None if sim is None else registry.robot_units(sim.name)
        if sim is not None and units is not None:
            return tuple(units.state), tuple(units.action), units.steps_per_second / sim.action_repeat
        numbers = [tuple(map(str, range(n))) for n in (self.recipe.model.state_dim, self.recipe.model.action_dim)]
        return numbers[0], numbers[1], None


def with_device_names(profile: RobotProfile, device: RobotDevice) -> RobotProfile:
    """Return the profile with the device's names where the dataset has only numbers, taken in the device's order.

    A profile with names is returned as it is, and so is one with another number of joints.
    """
    cameras = camera_sizes(device)
    joints = tuple(name for name in device.observation_features if name not in cameras)
    actions = tuple(device.action_features)
    if profile.state_names == tuple(map(str, range(len(joints)))):
        profile = dataclasses.replace(profile, state_names=joints)
    if profile.action_names == tuple(map(str, range(len(actions)))):
        profile = dataclasses.replace(profile, action_names=actions)
    return profile


def policy_chunks(policy: Policy) -> Act:
    """Return a function from an observation of `drive` to the policy's chunk, as far as training supervised it."""
    prefix = policy.recipe.model.supervised_prefix
    return lambda observation: policy.act(observation)[:prefix]


def server_chunks(client: Client, driven: DrivenRun, robot_schema: str = "light-wam") -> Act:
    """Return a function from an observation of `drive` to the chunk of a server, asked in the form of a robot schema.

    ConfigError if the schema is unknown or does not fit the run.
    """
    model = driven.recipe.model
    schema = fit_schema(load_schema(robot_schema), driven.codec.cameras, model.state_dim, model.action_dim)
    return lambda observation: schema.chunk(client.act(schema.message(Observation(**observation))))


def open_robot(word: str, options: Mapping[str, Any], driven: DrivenRun, task: str, seed: int = 0) -> RobotDevice:
    """Make a robot, not connected yet: the run's simulator, one of LeRobot's, or one of the user's.

    `word`: "simulated" (on the task of the sentence `task`), "simulated:TASK" (its name), a LeRobot type such as
    "so101_follower", whose config `options` are, or "MODULE:NAME", which is called with the options.
    "simulated:SIMULATOR/TASK" is any simulator, for a run on data alone: it draws the run's cameras at the data's size.
    ConfigError, SimulatorError or SetupError if it cannot be made.
    """
    kind, _, name = word.partition(":")
    if kind == SIMULATED:
        return _simulated(driven, name, task, seed)
    return _imported(kind, name, options) if name else make_lerobot_robot(word, options)


def _simulated(driven: DrivenRun, name: str, task: str, seed: int) -> SimulatedRobot:
    sim, (other, _, task_name) = driven.recipe.sim, name.partition("/")
    if task_name and (sim is None or name not in sim.tasks):
        size = next(iter(driven.facts.cameras.values())) if driven.facts is not None else driven.codec.config.canvas
        sim = SimConfig(other, (task_name,), driven.codec.cameras, *size, max_steps=1)
        return simulated_robot(sim, task_name, seed)
    if sim is None:
        step = "--robot simulated:SIMULATOR/TASK, or a robot"
        raise ConfigError("the run has no simulator of its own", where="--robot", got=name or SIMULATED, next_step=step)
    return simulated_robot(sim, name or task, seed)


def open_teleoperator(word: str, options: Mapping[str, Any]) -> Any:
    """Make a teleoperator, not connected yet: LeRobot's type, such as "so101_leader", or "MODULE:NAME"."""
    kind, _, name = word.partition(":")
    return _imported(kind, name, options) if name else make_lerobot_teleoperator(word, options)


def _imported(module: str, name: str, options: Mapping[str, Any]) -> Any:
    if "" not in sys.path:  # a module beside the user, as `python -m` finds it
        sys.path.insert(0, "")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        expected = "MODULE:NAME of a class or function that can be imported"
        raise ConfigError("a robot cannot be imported", got=f"{module}:{name}: {error}", expected=expected) from error
    try:
        return make(**options)
    except TypeError as error:
        raise ConfigError(f"{module}:{name} refuses the options", got=error) from error


def open_recorder(folder: Path, driven: DrivenRun, profile: RobotProfile, device: RobotDevice) -> EpisodeRecorder:
    """Begin an episode in the LeRobot dataset `folder`, a new one or one that was recorded like this.

    ConfigError for a rate that is not an integer, which LeRobot's format does not have; DatasetError for a folder with
    another robot's dataset.
    """
    if profile.fps != round(profile.fps):
        what, expected = "a recording must have an integer rate", "an integer"
        raise ConfigError(what, where="--record", got=f"{profile.fps:g} steps/s", expected=expected)
    sizes = camera_sizes(device)
    cameras = {name: sizes[name] for name in profile.cameras}
    robot = driven.facts.robot if driven.facts is not None else "robot"
    names = profile.state_names, profile.action_names
    return EpisodeRecorder(LeRobotWriter(folder, round(profile.fps), robot, cameras, *names, flags=(INTERVENTION,)))


def succeeded(device: RobotDevice) -> bool | None:
    """Return whether a simulated robot's task was solved; None for a real robot."""
    return device.success if isinstance(device, SimulatedRobot) else None
