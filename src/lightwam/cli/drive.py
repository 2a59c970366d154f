"""`lightwam drive`: a trained policy moves a robot, within the limits of its training data."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from lightwam.cli.eval import KEY_VARIABLE
from lightwam.cli.options import Flat, PolicyOptions, given, print_step, run_command
from lightwam.errors import ConfigError
from lightwam.robot.background import BackgroundRequester
from lightwam.robot.client import Client
from lightwam.robot.clock import SimulatedClock, WallClock
from lightwam.robot.device import RenamedRobot, RenamedTeleoperator, RobotDevice, Teleoperator
from lightwam.robot.drive_settings import DriveSettings
from lightwam.robot.driving import drive
from lightwam.robot.lerobot_devices import merged, nested_options, opencv_cameras

if TYPE_CHECKING:
    from lightwam.policy.driving import DrivenPolicy
    from lightwam.robot.limits import RobotProfile

KEYS = "keys: q stop, space hold and continue, t teleoperator and back, x stop without saving"
COMPUTING = frozenset({"--device", "--weights", "--step", "--engine", "--no-engine"})
"""options of the machine that computes"""
SERVER = frozenset({"--robot-schema"})
CAMERAS = frozenset({"--camera-size", "--camera-fps"})
HARDWARE = frozenset({"--port", "--robot-id", "--camera", "--robot-options"}) | CAMERAS
SIMULATED = frozenset({"--seed"})
TELEOPERATOR = frozenset({"--teleop-port", "--teleop-id", "--teleop-options"})
Repeated = tyro.conf.UseAppendAction[tuple[str, ...]]


@dataclass(frozen=True)
class SettingsOptions(DriveSettings):
    """How a robot is driven; the history is what the policy asks for."""

    n_obs_steps: tyro.conf.Suppress[int] = 0


@dataclass(frozen=True, kw_only=True)
class DriveOptions(PolicyOptions):
    """Drive a robot by a run's policy: at its data's rate, within its ranges and largest steps. q or Ctrl-C stops."""

    robot: str
    """a type of LeRobot's, such as so101_follower; MODULE:NAME of yours; simulated, simulated:TASK or
    simulated:SIMULATOR/TASK (docs/robot.md)"""
    port: str | None = None
    """the robot's serial port, such as /dev/ttyACM0"""
    robot_id: str | None = None
    """the name under which LeRobot keeps its calibration"""
    camera: Repeated = ()
    """NAME=INDEX or NAME=PATH of an OpenCV camera; once for each camera"""
    camera_size: str = ""
    """WIDTHxHEIGHT of all cameras; by default as in the training data"""
    camera_fps: int = 30
    """pictures a second of the cameras"""
    robot_options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """further fields of the robot's config, such as use_degrees=false cameras.front.rotation=180"""
    teleop: str | None = None
    """a type of LeRobot's, such as so101_leader, or MODULE:NAME: the key t hands over to it, and back"""
    teleop_port: str | None = None
    """its serial port"""
    teleop_id: str | None = None
    """the name under which LeRobot keeps its calibration"""
    teleop_options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """further fields of its config"""
    task: str = ""
    """the sentence; may be left out if the training data has only one"""
    record: Path | None = None
    """LeRobot dataset to which the episode is added; what the teleoperator did is marked in the column intervention"""
    server: str | None = None
    """ws://HOST:PORT of a `lightwam serve` that computes instead of this machine"""
    robot_schema: str = "light-wam"
    """how observations are sent to the server (docs/serving_robots.md)"""
    drive: Annotated[SettingsOptions, Flat] = field(default_factory=SettingsOptions)
    max_step: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NUMBER|JOINT=NUMBER")] = ()
    """largest change of a target from one step to the next, in the robot's units, instead of the data's"""
    fps: float | None = None
    """control steps a second, if not the data's"""
    rename: Annotated[tuple[str, ...], tyro.conf.arg(metavar="DATASET=ROBOT")] = ()
    """names of joints and cameras that the robot calls otherwise than the dataset"""
    seed: int = 0
    """of a simulated robot's episode"""
    engine: bool = True
    """act by the folded model: the same actions, faster"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam drive RUN|ws://HOST:PORT --robot TYPE [--port P] [--camera NAME=INDEX ...] --task SENTENCE [...]`."""
    (word,), options = run_command(DriveOptions, arguments, "drive")
    words = given(arguments)
    _check_options(options, words, by_server="://" in word or options.server is not None)
    with contextlib.ExitStack() as stack:
        if (client := _client(word, options)) is not None:
            stack.enter_context(client)
        _drive(word, options, words, client)


def _drive(word: str, options: DriveOptions, words: frozenset[str], client: Client | None) -> None:
    from lightwam.policy.driving import open_recorder, succeeded, with_device_names
    from lightwam.robot.startup import check_device
    from lightwam.robot.terminal import terminal

    driven, run = _driven(word, options, client)
    settings = _settings(options, driven, words, client)
    profile, names = driven.profile, _pairs(options.rename)
    task = options.task or _only_sentence(profile)
    device = _robot(options, driven, profile, task, names)
    profile = with_device_names(profile, device).with_max_step(options.max_step)
    profile.check_steps()
    teleoperator = _teleoperator(options, profile, names)
    check_device(profile, device, teleoperator)  # before a model is loaded
    requester, computes = _requester(options, profile, client, run)
    print(f"{word}: {computes}\n{task!r} for {settings.seconds:g} s, a new chunk after {settings.replan} steps")
    recorder = open_recorder(options.record, driven, profile, device) if options.record else None
    with terminal(KEYS, falls=not is_simulated(options.robot)) as operator:
        result = drive(
            device,
            requester,
            profile,
            task,
            settings,
            teleoperator=teleoperator,
            recorder=recorder,
            operator=operator,
            clock=SimulatedClock() if is_simulated(options.robot) else WallClock(),
        )
    print("\n".join(result.lines()))
    if (success := succeeded(device)) is not None and not settings.dry:
        print("the simulated task was solved" if success else "the simulated task was not solved")


def is_simulated(robot: str) -> bool:
    """Return whether --robot names a simulator."""
    return robot.partition(":")[0] == "simulated"


def _check_options(options: DriveOptions, words: frozenset[str], *, by_server: bool) -> None:
    """Raise ConfigError for an option of `words` that would be ignored."""
    simulated = is_simulated(options.robot)
    for is_ignored, group, why in (
        (by_server, COMPUTING, "the server computes"),
        (not by_server, SERVER, "no server computes"),
        (simulated, HARDWARE, "a simulated robot has none of it"),
        (not simulated, SIMULATED, "the robot is not simulated"),
        (not options.camera, CAMERAS, "there is no --camera"),
        (options.teleop is None, TELEOPERATOR, "there is no --teleop"),
    ):
        if is_ignored and (found := sorted(words & group)):
            raise ConfigError(f"{', '.join(found)} must be left out", got=why)
    if options.port is not None and options.port == options.teleop_port:
        raise ConfigError("robot and teleoperator must have different ports", where="--teleop-port", got=options.port)


def _settings(
    options: DriveOptions, driven: DrivenPolicy, words: frozenset[str], client: Client | None
) -> DriveSettings:
    """Return the settings with the run's replan and the history that a server asks for.

    A simulator's pictures have no noise, and it need not go back.
    """
    settings, most = options.drive, driven.horizon
    if client is not None:
        from lightwam.policy.driving import asked_obs_steps

        settings = dataclasses.replace(settings, n_obs_steps=asked_obs_steps(client))
    if settings.dry and options.record:
        raise ConfigError("a dry drive records nothing", where="--record", next_step="leave out --dry or --record")
    if "--replan" not in words:
        settings = dataclasses.replace(settings, replan=driven.replan)
    if settings.replan > most:
        expected = f"1 to {most}, the steps that training supervised"
        raise ConfigError("replan is out of range", where="--replan", got=settings.replan, expected=expected)
    if is_simulated(options.robot):
        frozen = settings.frozen_seconds if "--frozen-seconds" in words else 0.0
        returns = settings.return_to_start and "--return-to-start" in words
        settings = dataclasses.replace(settings, frozen_seconds=frozen, return_to_start=returns)
    return settings


def _pairs(words: Sequence[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    if wrong := [word for word, (name, equals, other) in zip(words, pairs, strict=True) if not (name and other)]:
        raise ConfigError("--rename takes pairs DATASET=ROBOT of names", got=" ".join(wrong))
    names = {name: other for name, _, other in pairs}
    if len(names) < len(pairs):
        raise ConfigError("--rename must give each name once", got=" ".join(words))
    return names


def _only_sentence(profile: RobotProfile) -> str:
    if len(profile.sentences) != 1:
        known = "; ".join(map(repr, profile.sentences)) or None
        raise ConfigError("the task must be given as a sentence", where="--task", expected=known)
    return profile.sentences[0]


def _config(port: str | None, name: str | None, pairs: Sequence[str], option: str) -> dict[str, Any]:
    """Return the options of a device's config that are given."""
    given = {"port": port, "id": name}
    return {key: value for key, value in given.items() if value is not None} | nested_options(pairs, option)


def _teleoperator(options: DriveOptions, profile: RobotProfile, names: Mapping[str, str]) -> Teleoperator | None:
    if options.teleop is None:
        return None
    from lightwam.policy.driving import open_teleoperator

    config = _config(options.teleop_port, options.teleop_id, options.teleop_options, "--teleop-options")
    device: Teleoperator = open_teleoperator(options.teleop, config, profile.unit)
    return RenamedTeleoperator(device, names) if names else device


def _robot(
    options: DriveOptions, driven: DrivenPolicy, profile: RobotProfile, task: str, names: Mapping[str, str]
) -> RobotDevice:
    from lightwam.policy.driving import open_robot

    sizes = {names.get(name, name): size for name, size in profile.cameras.items() if size is not None}
    if options.camera_size:
        width, _, height = options.camera_size.partition("x")
        if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
            raise ConfigError("--camera-size must be WIDTHxHEIGHT", got=options.camera_size, expected="640x480")
        sizes = {word.partition("=")[0]: (int(height), int(width)) for word in options.camera}
    config: dict[str, Any] = {}
    if options.camera:
        config["cameras"] = opencv_cameras(options.camera, sizes, options.camera_fps)
    config = merged(config, _config(options.port, options.robot_id, options.robot_options, "--robot-options"))
    device = open_robot(options.robot, config, driven, task, options.seed)
    return RenamedRobot(device, names) if names else device


def _client(word: str, options: DriveOptions) -> Client | None:
    """Return the client of the server that computes: of --server, or of an address in place of the run."""
    if (is_address := "://" in word) and options.server is not None:
        raise ConfigError("the server is given twice", where="--server", got=f"{word}, {options.server}")
    url = word if is_address else options.server
    return None if url is None else Client(url, api_key=os.environ.get(KEY_VARIABLE))


def _driven(word: str, options: DriveOptions, client: Client | None) -> tuple[DrivenPolicy, Path | None]:
    """Return the policy, and its run directory unless the server's greeting describes it."""
    from lightwam.policy import hub
    from lightwam.policy.driving import DrivenPolicy

    if client is not None and "://" in word:
        return DrivenPolicy.of_server(client, options.fps), None
    run = hub.find_run(word, options.step)
    driven = DrivenPolicy.of_run(run, options.fps)
    if client is not None:
        driven.check_server(client)
    return driven, run


def _requester(
    options: DriveOptions, profile: RobotProfile, client: Client | None, run: Path | None
) -> tuple[BackgroundRequester, str]:
    """Return what asks for chunks, and a line about who computes them."""
    if client is not None:
        from lightwam.policy.driving import server_chunks

        act, about = server_chunks(client, profile, options.robot_schema), client.metadata
        policy = f"step {about['step']}" if "step" in about else about.get("policy", "a policy")
        computes = f"{policy} on {client.url}, {about.get('computes', 'another server')}"
        return BackgroundRequester(act, client.connect), computes
    assert run is not None, "without a server there is a run"
    from lightwam.policy.driving import policy_chunks
    from lightwam.policy.policy import Policy
    from lightwam.system.cpu import keep_memory

    keep_memory()
    print_step(run, options.step)
    policy = Policy.load(run, options.step, device=options.device, weights=options.weights, engine=options.engine)
    return BackgroundRequester(policy_chunks(policy)), f"step {policy.step}, {policy.computes}"
