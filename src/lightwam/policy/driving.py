"""What `lightwam drive` puts together: a run's robot, chunks of its policy or of a server, a device, a recording."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from lightwam.config.schema import Recipe, SimConfig
from lightwam.config.strict_json import from_dict, to_dict
from lightwam.data.codec import Codec
from lightwam.data.facts import DatasetFacts
from lightwam.data.inspection.dims import action_dims
from lightwam.data.inspection.tracks import read_tracks
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.lerobot.recorder import INTERVENTION, EpisodeRecorder
from lightwam.data.lerobot.writer import LeRobotWriter
from lightwam.data.ranges import RobotRanges
from lightwam.errors import ConfigError
from lightwam.policy import run_directory
from lightwam.policy.policy import Policy
from lightwam.robot.background import Act
from lightwam.robot.client import Client
from lightwam.robot.device import RenamedRobot, RobotDevice, Teleoperator, camera_sizes
from lightwam.robot.lerobot_devices import make_lerobot_robot, make_lerobot_teleoperator
from lightwam.robot.limits import RobotProfile
from lightwam.sim import registry
from lightwam.sim.device import SimulatedRobot, simulated_robot
from lightwam.types import Observation
from lightwam.wire.openpi import N_OBS_STEPS, obs_steps
from lightwam.wire.robot_schema import HISTORY, fit_schema
from lightwam.wire.robot_schemas import load_schema

ROBOT = "robot"
"""key of the robot in a server's greeting"""
MAX_SENTENCES = 500
"""sentences in a server's greeting, at most"""
SIMULATED = "simulated"
"""the word for a simulator in place of a robot"""
RATE_TOLERANCE = 0.05
"""share by which a robot's rate may differ from that of the policy's data"""
DEFAULT_SIZE = (240, 320)
"""of simulated pictures, where the data's is not known"""


@dataclass(frozen=True)
class DrivenPolicy:
    """A policy as far as driving needs it, without its weights."""

    profile: RobotProfile
    replan: int
    """steps of a chunk that are executed"""
    horizon: int
    """steps of a chunk that may be executed"""
    robot: str
    """LeRobot's robot_type of its data"""
    sim: SimConfig | None = None
    """its recipe's simulator"""

    @classmethod
    def of_run(cls, run: Path, fps: float | None = None) -> DrivenPolicy:
        """Read a run directory; CheckpointError or ConfigError when it is missing or broken, and as `robot_profile`."""
        codec, _ = run_directory.read_processing(run)
        recipe, facts = run_directory.read_recipe(run), run_directory.read_facts(run)
        profile = robot_profile(recipe, codec, facts, fps)
        robot = facts.robot if facts is not None else "robot"
        return cls(profile, recipe.eval.replan, recipe.model.supervised_prefix, robot, recipe.sim)

    @classmethod
    def of_server(cls, client: Client, fps: float | None = None) -> DrivenPolicy:
        """Read the greeting of a `lightwam serve`; ConfigError if it does not describe the robot.

        Connects; the errors of `Client.connect`.
        """
        greeting, where = client.metadata, f"{client.url}: the greeting"
        if missing := [key for key in (ROBOT, "replan", "horizon") if key not in greeting]:
            step = "a copy of the run here, and --server; or a newer lightwam on the server"
            what = "the server must describe the robot of its policy"
            raise ConfigError(what, where=where, got=f"no {', '.join(missing)}", next_step=step)
        table = dict(greeting[ROBOT])
        robot = str(table.pop("type", "robot"))
        profile = from_dict(RobotProfile, table, where)
        profile.check(where)
        profile = dataclasses.replace(profile, fps=_asked_rate(profile.fps, fps))
        return cls(profile, int(greeting["replan"]), int(greeting["horizon"]), robot)

    def check_server(self, client: Client) -> None:
        """Raise ConfigError if the server's greeting describes another robot than this policy's. Connects."""
        table = client.metadata.get(ROBOT)
        if not isinstance(table, Mapping):
            return
        ours = to_dict(self.profile)
        for name in ("cameras", "state_names", "action_names", "motion_dims"):
            here, there = (list(value) if value is not None else None for value in (ours[name], table.get(name)))
            if here != there:
                what, where = "the server's policy must be of the run's robot", f"{client.url}: {name}"
                step = "the server's address in place of the run"
                raise ConfigError(what, where=where, got=there, expected=here, next_step=step)


def robot_profile(recipe: Recipe, codec: Codec, facts: DatasetFacts | None, fps: float | None = None) -> RobotProfile:
    """Return the robot that a policy was trained on: its data's names, rate, ranges and largest steps.

    A run of an older version has no facts: names and rate are then its simulator's, and steps are infinite. ConfigError
    if nothing has the rate and `fps` is None, `fps` is another rate, or an older run has relative actions.
    """
    state_dim, action_dim = recipe.model.state_dim, recipe.model.action_dim
    state_names, action_names, rate = _names_and_rate(recipe, facts)
    rate = fps if rate is None else _asked_rate(rate, fps)
    if rate is None:
        what, step = "the run does not have its data's rate", "--fps, the control steps in a second of its dataset"
        raise ConfigError(what, where=f"recipe {recipe.name}", next_step=step)
    ranges = facts.ranges if facts is not None else None
    if ranges is None and codec.config.relative_action_dims:
        what, step = "a run with relative actions must have its data's ranges", "train it again with this version"
        raise ConfigError(what, where=f"recipe {recipe.name}", next_step=step)
    if ranges is None:
        rows = (codec.state.min, codec.state.max, codec.action.min, codec.action.max, np.full(action_dim, np.inf))
        ranges = RobotRanges(*(tuple(row.tolist()) for row in rows))
    return RobotProfile(
        float(rate),
        {name: None if facts is None else facts.cameras.get(name) for name in codec.cameras},
        state_names[:state_dim],
        action_names,
        codec.config.delta_action_dims,
        ranges.state_low[:state_dim],
        ranges.state_high[:state_dim],
        ranges.action_low,
        ranges.action_high,
        ranges.action_step,
        sentences=() if facts is None else tuple(facts.sentences),
        units=() if facts is None else facts.units,
    )


def _names_and_rate(
    recipe: Recipe, facts: DatasetFacts | None
) -> tuple[tuple[str, ...], tuple[str, ...], float | None]:
    if facts is not None:
        return facts.state_names, facts.action_names, facts.fps
    units = None if recipe.sim is None else registry.robot_units(recipe.sim.name)
    if recipe.sim is not None and units is not None:
        return tuple(units.state), tuple(units.action), registry.control_rate(recipe.sim)
    numbers = [tuple(map(str, range(n))) for n in (recipe.model.state_dim, recipe.model.action_dim)]
    return numbers[0], numbers[1], None


def _asked_rate(own: float, fps: float | None) -> float:
    """Return the rate of --fps, else the data's, `own`; ConfigError if they differ."""
    if fps is None:
        return own
    _at_rate(own, fps, "--fps", "leave it out, or train on data of that rate")
    return fps


def _at_rate(own: float, rate: float, where: str, step: str) -> None:
    """Raise ConfigError unless a robot's rate is that of the policy's data: actions would be too fast or too slow.

    A dataset's rate is an integer, so a simulator's may be rounded.
    """
    if abs(rate / own - 1) > RATE_TOLERANCE and round(rate) != own:
        got, expected = f"{rate:g} steps a second", f"{own:g}, within {RATE_TOLERANCE:.0%}"
        what = "the rate must be that of the policy's data"
        raise ConfigError(what, where=where, got=got, expected=expected, next_step=step)


def greeting(policy: Policy) -> dict[str, Any]:
    """Return what a server says of its policy's robot, for `DrivenPolicy.of_server`; nothing for an older run."""
    facts = policy.facts
    if facts is None or facts.ranges is None:
        return {}
    return _described(robot_profile(policy.recipe, policy.codec, facts), facts.robot)


def dataset_greeting(dataset: Path, cameras: Sequence[str], state_dim: int, action_dim: int) -> dict[str, Any]:
    """Return what `greeting` does for a policy that was trained elsewhere, from its LeRobot dataset.

    `cameras` and sizes are the policy's: ConfigError if the dataset has others. DatasetError for a broken dataset.
    """
    data = LeRobotDataset(dataset)
    facts, ranges = DatasetFacts.of(data), RobotRanges.of(data)
    got = f"cameras {', '.join(facts.cameras)}, {len(facts.state_names)} of state, {len(facts.action_names)} of action"
    expected = f"{', '.join(cameras)}, {state_dim} and {action_dim}"
    has_state = state_dim in (0, len(facts.state_names))
    if not (set(cameras) <= set(facts.cameras) and has_state and action_dim == len(facts.action_names)):
        raise ConfigError("the dataset must be the policy's", where=dataset, got=got, expected=expected)
    motions = tuple(dim.index for dim in action_dims(read_tracks(data)) if dim.kind == "motion")
    profile = RobotProfile(
        facts.fps,
        {name: facts.cameras[name] for name in cameras},
        facts.state_names[:state_dim],
        facts.action_names,
        motions,
        ranges.state_low[:state_dim],
        ranges.state_high[:state_dim],
        ranges.action_low,
        ranges.action_high,
        ranges.action_step,
        sentences=tuple(facts.sentences),
        units=facts.units,
    )
    return _described(profile, facts.robot)


def _described(profile: RobotProfile, robot: str) -> dict[str, Any]:
    if len(profile.sentences) > MAX_SENTENCES:  # of which a part would be misleading
        profile = dataclasses.replace(profile, sentences=())
    return {ROBOT: {"type": robot, **to_dict(profile)}}


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


def server_chunks(client: Client, profile: RobotProfile, robot_schema: str = "light-wam") -> Act:
    """Return a function from an observation of `drive` to the chunk of a server, asked in the form of a robot schema.

    ConfigError if the schema is unknown or does not fit the robot.
    """
    sizes = len(profile.state_names), len(profile.action_names)
    schema = fit_schema(load_schema(robot_schema), tuple(profile.cameras), *sizes)
    schema = dataclasses.replace(schema, n_obs_steps=asked_obs_steps(client))

    def act(observation: Mapping[str, Any]) -> np.ndarray:
        history = tuple(Observation(**each) for each in observation.get(HISTORY, ()))
        return schema.chunk(client.act(schema.message(Observation(**{**observation, HISTORY: history}))))

    return act


def asked_obs_steps(client: Client) -> int:
    """Return the control steps that a server's policy acts on, 0 if it needs no history (`DriveSettings.n_obs_steps`).

    Connects. ConfigError for a policy that must be asked at every step, which no loop can that moves on meanwhile.
    """
    steps = obs_steps(client.metadata, client.url)
    if steps == 1:
        what, step = "a policy that is asked once a chunk is needed", "serve it without temporal ensembling"
        raise ConfigError(what, where=f"{client.url}: {N_OBS_STEPS}", got="1: at every step", next_step=step)
    return steps


def open_robot(word: str, options: Mapping[str, Any], driven: DrivenPolicy, task: str, seed: int = 0) -> RobotDevice:
    """Make a robot, not connected yet: the run's simulator, one of LeRobot's, or one of the user's.

    `word`: "simulated" (on the task of the sentence `task`), "simulated:TASK" (its name), a LeRobot type such as
    "so101_follower", whose config `options` are, or "MODULE:NAME", which is called with the options.
    "simulated:SIMULATOR/TASK" is any simulator, for a run on data alone: it draws the run's cameras at the data's size.
    ConfigError, SimulatorError or SetupError if it cannot be made.
    """
    kind, _, name = word.partition(":")
    if kind == SIMULATED:
        return _simulated(driven, name, task, seed)
    if name:
        return cast(RobotDevice, _imported(kind, name, options, vars(RobotDevice)))
    return make_lerobot_robot(word, options, driven.profile.unit)


def _simulated(driven: DrivenPolicy, name: str, task: str, seed: int) -> SimulatedRobot:
    sim, (other, _, task_name) = driven.sim, name.partition("/")
    if task_name and (sim is None or name not in sim.tasks):
        cameras = driven.profile.cameras
        height, width = next((size for size in cameras.values() if size is not None), DEFAULT_SIZE)
        sim = SimConfig(other, (task_name,), tuple(cameras), height, width, max_steps=1)
    if sim is None:
        step = "--robot simulated:SIMULATOR/TASK, or a robot"
        what = "the policy has no simulator of its own"
        raise ConfigError(what, where="--robot", got=name or SIMULATED, next_step=step)
    if (rate := registry.control_rate(sim)) is not None:
        _at_rate(driven.profile.fps, rate, f"simulator {sim.name}", "a simulator of that rate, or data of this one")
    return simulated_robot(sim, sim.tasks[0] if sim is not driven.sim else name or task, seed)


def open_teleoperator(word: str, options: Mapping[str, Any], unit: str = "") -> Any:
    """Make a teleoperator, not connected yet: LeRobot's type, such as "so101_leader", or "MODULE:NAME".

    `unit`: the data's, `RobotProfile.unit`.
    """
    kind, _, name = word.partition(":")
    if name:
        return _imported(kind, name, options, vars(Teleoperator))
    return make_lerobot_teleoperator(word, options, unit)


def _imported(module: str, name: str, options: Mapping[str, Any], members: Iterable[str]) -> Any:
    """Import a robot or teleoperator and make it; ConfigError unless it has the public ones of `members`."""
    if "" not in sys.path:  # a module beside the user, as `python -m` finds it
        sys.path.insert(0, "")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        expected = "MODULE:NAME of a class or function that can be imported"
        raise ConfigError("a robot cannot be imported", got=f"{module}:{name}: {error}", expected=expected) from error
    try:
        device = make(**options)
    except TypeError as error:
        raise ConfigError(f"{module}:{name} refuses the options", got=error) from error
    needed = {member for member in members if not member.startswith("_")}
    if missing := sorted(needed - set(dir(device))):
        what, expected = f"{module}:{name} must have LeRobot's methods and properties", ", ".join(sorted(needed))
        raise ConfigError(what, got=f"no {', '.join(missing)}", expected=expected, next_step="docs/robot.md")
    return device


def open_recorder(folder: Path, driven: DrivenPolicy, profile: RobotProfile, device: RobotDevice) -> EpisodeRecorder:
    """Begin an episode in the LeRobot dataset `folder`, a new one or one that was recorded like this.

    ConfigError for a rate that is not an integer, which LeRobot's format does not have; DatasetError for a folder with
    another robot's dataset.
    """
    if profile.fps != round(profile.fps):
        what, expected = "a recording must have an integer rate", "an integer"
        raise ConfigError(what, where="--record", got=f"{profile.fps:g} steps/s", expected=expected)
    sizes = camera_sizes(device)
    cameras = {name: sizes[name] for name in profile.cameras}
    names = profile.state_names, profile.action_names
    writer = LeRobotWriter(folder, round(profile.fps), driven.robot, cameras, *names, flags=(INTERVENTION,))
    return EpisodeRecorder(writer)


def succeeded(device: RobotDevice) -> bool | None:
    """Return whether a simulated robot's task was solved; None for a real robot."""
    device = device.device if isinstance(device, RenamedRobot) else device
    return device.success if isinstance(device, SimulatedRobot) else None
