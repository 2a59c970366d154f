"""Calls of a robot or teleoperator, whose exceptions may be of any kind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

from lightwam.errors import LightwamError
from lightwam.robot.device import RobotDevice, Teleoperator
from lightwam.robot.errors import RobotError
from lightwam.robot.terminal import Operator

Value = TypeVar("Value")


def ask(done: str, call: Callable[..., Value], *arguments: Any) -> Value:
    """Call the robot; RobotError for any exception of its own."""
    try:
        return call(*arguments)
    except LightwamError:
        raise
    except Exception as error:
        step = "check cables and power, and that no other program uses the port or the camera"
        got = f"{type(error).__name__}: {error}"
        raise RobotError(f"the robot could not be {done}", got=got, next_step=step) from error


def connect(device: RobotDevice | Teleoperator, stack: contextlib.ExitStack, operator: Operator) -> None:
    """Connect a device until `stack` ends."""
    try:
        if not device.is_connected:
            ask("connected", device.connect)
    except BaseException:  # Ctrl-C too
        if device.is_connected:
            _disconnect(device, operator)
        raise
    stack.callback(_disconnect, device, operator)


def _disconnect(device: RobotDevice | Teleoperator, operator: Operator) -> None:
    try:
        device.disconnect()
    except Exception as error:  # the others must be disconnected too, and the first error is the one to show
        operator.say(f"could not disconnect: {type(error).__name__}: {error}")
