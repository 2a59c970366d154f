"""The interface of a robot that `drive` moves: that of LeRobot's robots, so that each of them can be used as it is.

Joints and cameras have names, as in LeRobot: a joint "shoulder_pan.pos" is a number, a camera "front" a picture.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from lightwam.errors import ConfigError, did_you_mean
from lightwam.robot.errors import RobotError


@runtime_checkable
class RobotDevice(Protocol):
    """A robot: LeRobot's `Robot`, or a class of yours with these methods.

    A method may raise any exception when the hardware fails: `drive` stops, and reports it as a `RobotError`.
    """

    @property
    def observation_features(self) -> Mapping[str, Any]:
        """What `get_observation` returns: joint -> `float`, camera -> (height, width, 3)."""

    @property
    def action_features(self) -> Mapping[str, Any]:
        """What `send_action` takes: joint -> `float`."""

    @property
    def is_connected(self) -> bool:
        """Whether the other methods may be called."""

    def connect(self) -> None:
        """Connect to motors and cameras, without moving."""

    def get_observation(self) -> dict[str, Any]:
        """Return the numbers and the latest pictures (uint8, height x width x 3, RGB, upright) by name.

        Called once a control step, so it must not wait for a camera longer than that.
        """

    def send_action(self, action: dict[str, float]) -> Mapping[str, Any] | None:
        """Send the targets, or motions, of one control step; return what was sent if the robot changes it."""

    def disconnect(self) -> None:
        """Release the robot; many arms lose their torque here."""


@runtime_checkable
class Teleoperator(Protocol):
    """A device by which a person moves the robot, such as a leader arm: LeRobot's `Teleoperator`, or yours."""

    @property
    def action_features(self) -> Mapping[str, Any]:
        """What `get_action` returns: joint -> `float`."""

    @property
    def is_connected(self) -> bool:
        """Whether the other methods may be called."""

    def connect(self) -> None:
        """Connect."""

    def get_action(self) -> Mapping[str, Any]:
        """Return the action of this control step by joint name, in the robot's units."""

    def disconnect(self) -> None:
        """Disconnect."""


Device = TypeVar("Device", bound=RobotDevice | Teleoperator)


class _Renamed(Generic[Device]):
    """What a robot and a teleoperator under the names of a dataset have in common."""

    def __init__(self, device: Device, names: Mapping[str, str]) -> None:
        """`names`: the dataset's name -> the device's; ConfigError if two things would have one name."""
        self.device, self._to_robot = device, dict(names)
        self._to_data = {robot: data for data, robot in names.items()}
        if len(self._to_data) < len(names):
            twice = {robot for robot in names.values() if list(names.values()).count(robot) > 1}
            what = "--rename must give a name of the robot once"
            raise ConfigError(what, got=", ".join(f"{data}={robot}" for data, robot in names.items() if robot in twice))
        self._check_distinct(device.action_features)

    def _check_distinct(self, features: Mapping[str, Any]) -> None:
        """Raise ConfigError if two of the device's names become one: the values of one would be lost."""
        new = [self._to_data.get(name, name) for name in features]
        if twice := {name for name in new if new.count(name) > 1}:
            what, step = "--rename must not give two of the robot's names one name", "rename the other one as well"
            raise ConfigError(what, got=", ".join(sorted(twice)), next_step=step)

    @property
    def action_features(self) -> dict[str, Any]:
        """The joints of an action."""
        return _renamed(self.device.action_features, self._to_data)

    @property
    def is_connected(self) -> bool:
        """Whether the device is connected."""
        return self.device.is_connected

    def connect(self) -> None:
        """Connect the device."""
        self.device.connect()

    def disconnect(self) -> None:
        """Disconnect the device."""
        self.device.disconnect()


class RenamedRobot(_Renamed[RobotDevice]):
    """A robot under the names of a dataset."""

    def __init__(self, device: RobotDevice, names: Mapping[str, str]) -> None:
        """`names`: a joint or camera in the dataset -> in the robot.

        ConfigError for one that the robot lacks, or if two would have one name.
        """
        known = {*device.observation_features, *device.action_features}
        for name in names.values():
            if name not in known:
                what, step = "--rename takes pairs DATASET=ROBOT of names", did_you_mean(name, known)
                raise ConfigError(what, got=f"{name}, which the robot does not have", next_step=step)
        super().__init__(device, names)
        self._check_distinct(device.observation_features)

    @property
    def observation_features(self) -> dict[str, Any]:
        """What `get_observation` returns."""
        return _renamed(self.device.observation_features, self._to_data)

    def get_observation(self) -> dict[str, Any]:
        """Return the robot's observation."""
        return _renamed(self.device.get_observation(), self._to_data)

    def send_action(self, action: dict[str, float]) -> dict[str, Any]:
        """Send an action; return what was sent."""
        return _renamed(self.device.send_action(_renamed(action, self._to_robot)) or {}, self._to_data)


class RenamedTeleoperator(_Renamed[Teleoperator]):
    """A teleoperator under the names of a dataset; names that it lacks are left out."""

    def get_action(self) -> dict[str, Any]:
        """Return the teleoperator's action."""
        return _renamed(self.device.get_action(), self._to_data)


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}


def camera_sizes(device: RobotDevice) -> dict[str, tuple[int, int]]:
    """Return height and width of every camera with three channels: a depth camera has one."""
    features = device.observation_features.items()
    shapes = {name: tuple(shape) for name, shape in features if isinstance(shape, (tuple, list))}
    return {name: (shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 3 and shape[2] == 3}


def joint_numbers(values: Mapping[str, Any], names: tuple[str, ...], what: str) -> np.ndarray:
    """Return the numbers of the joints `names`, float32 (N,); RobotError for one that is missing or not finite."""
    if not isinstance(values, Mapping):
        raise RobotError(f"the {what} must be a map from joint to number", got=type(values).__name__)
    if missing := [name for name in names if name not in values]:
        step = "the device must return every joint at every step"
        raise RobotError(f"the {what} lacks joints", got=", ".join(missing), next_step=step)
    try:
        numbers = np.array([float(values[name]) for name in names], np.float32)
    except (TypeError, ValueError) as error:
        raise RobotError(f"the {what} must have a number for each joint", got=error) from error
    if not np.isfinite(numbers).all():
        bad = ", ".join(name for name, number in zip(names, numbers, strict=True) if not np.isfinite(number))
        raise RobotError(f"the {what} must be finite", where=bad, got="NaN or infinity")
    return numbers


def camera_pictures(values: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    """Return the pictures of the cameras in `sizes` (name -> height, width).

    RobotError for one that is missing, no RGB picture, or of another size: the model would see it distorted.
    """
    pictures = {}
    for name, size in sizes.items():
        picture = values.get(name)
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape != (*size, 3):
            got = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
            what, expected = "a camera must return an RGB picture of its size", f"uint8 {(*size, 3)}"
            raise RobotError(what, where=f"camera {name}", got=got, expected=expected)
        pictures[name] = picture
    return pictures


class CameraWatch:
    """Notices a camera whose pictures do not change any more: a sensor's noise changes every real one."""

    def __init__(self, frozen_seconds: float) -> None:
        self._limit, self._seen = frozen_seconds, dict[str, tuple[int, float]]()

    def check(self, frames: Mapping[str, np.ndarray], now: float) -> None:
        """Raise RobotError if a camera has returned one picture for too long."""
        for name, picture in frames.items() if self._limit else ():
            digest = zlib.crc32(picture[::4, ::4].tobytes())
            before = self._seen.get(name)
            if before is None or before[0] != digest:
                self._seen[name] = digest, now
            elif now - before[1] > self._limit:
                step = "plug it in again; --frozen-seconds 0 for pictures without noise"
                got = f"the same picture for {now - before[1]:.1f} s"
                raise RobotError("a camera must not freeze", where=f"camera {name}", got=got, next_step=step)
