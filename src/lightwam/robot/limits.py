"""What a policy's training data says of its robot (`RobotProfile`), and the limits on commands that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lightwam.errors import ConfigError
from lightwam.robot.errors import RobotError

ROUNDING = 1e-5
"""relative difference up to which a command does not count as limited"""


@dataclass(frozen=True)
class RobotProfile:
    """The robot that a policy was trained on: names and sizes from its dataset, ranges and steps measured on it.

    P numbers of state, A of action, in robot units. An action dimension is a *motion* (0: stand still) or a *target*.
    """

    fps: float
    """control steps a second"""
    cameras: Mapping[str, tuple[int, int] | None]
    """camera of the policy -> height and width of its pictures in the dataset, None if not known"""
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    motion_dims: tuple[int, ...]
    """dimensions of the action that are motions; all others are targets"""
    state_low: tuple[float, ...]
    """smallest and largest state in the data: P numbers"""
    state_high: tuple[float, ...]
    action_low: tuple[float, ...]
    """smallest and largest action in the data: A numbers"""
    action_high: tuple[float, ...]
    action_step: tuple[float, ...]
    """largest change from one action to the next in the data, infinite if not known; not used for motions"""
    sentences: tuple[str, ...] = ()
    """the dataset's tasks"""
    units: tuple[str, ...] = ()
    """of the dimensions of the action, such as "degrees"; "" where unknown, empty if none is known"""

    @property
    def unit(self) -> str:
        """The unit of the joints; "" if it is not known, or they have several."""
        known = {unit for unit in self.units if unit}
        return known.pop() if len(known) == 1 else ""

    def check(self, where: object = None) -> None:
        """Raise ConfigError unless rate and largest steps are possible and every name has a range, low to high."""
        if not 0 < self.fps < np.inf:
            raise ConfigError("the rate must be a positive number of steps a second", where=where, got=self.fps)
        for kind, names, *rows in (
            ("state", self.state_names, self.state_low, self.state_high),
            ("action", self.action_names, self.action_low, self.action_high, self.action_step),
        ):
            if any(len(row) != len(names) for row in rows):
                got = f"{len(names)} names, {', '.join(str(len(row)) for row in rows)} numbers"
                raise ConfigError(f"every {kind} must have a range", where=where, got=got)
            for name, low, high in zip(names, rows[0], rows[1], strict=True):
                if not low <= high:  # also NaN
                    what, got = "a range must be from low to high", f"{low:g} to {high:g}"
                    raise ConfigError(what, where=name if where is None else f"{where}: {name}", got=got)
        if not all(step >= 0 for step in self.action_step):
            raise ConfigError("the largest steps must be 0 or more", where=where, got=self.action_step)
        if not {*self.motion_dims} <= {*range(len(self.action_names))}:
            what, expected = "motions must be dimensions of the action", f"0 to {len(self.action_names) - 1}"
            raise ConfigError(what, where=where, got=self.motion_dims, expected=expected)

    def with_max_step(self, limits: Sequence[str]) -> RobotProfile:
        """Return the profile with other largest steps: "5" for every dimension, "gripper.pos=30" for one.

        ConfigError for a word that is neither, or an unknown name.
        """
        steps = list(self.action_step)
        for word in limits:
            name, equals, number = word.rpartition("=")
            try:
                step = float(number)
            except ValueError:
                step = float("nan")
            if not step > 0 or (equals and name not in self.action_names):
                expected, known = "a positive number, or NAME=NUMBER", ", ".join(self.action_names)
                raise ConfigError("--max-step must be " + expected, got=word, next_step=f"names: {known}")
            steps = [
                step if not equals or name == joint else old
                for joint, old in zip(self.action_names, steps, strict=True)
            ]
        return replace(self, action_step=tuple(steps))

    def check_steps(self) -> None:
        """Raise ConfigError unless every target has a largest step: an older run does not have its data's."""
        names = [name for i, name in enumerate(self.action_names) if i not in self.motion_dims]
        if not np.isfinite(np.delete(np.array(self.action_step), list(self.motion_dims))).all():
            what, step = "the largest step of a target must be known", "--max-step 5, in the robot's units"
            raise ConfigError(what, where=", ".join(names), next_step=step)


@dataclass(frozen=True, eq=False)
class Limits:
    """Limits on commands: the range of the data, and for targets the largest step from the last command.

    ConfigError for a profile that is not consistent (`RobotProfile.check`).
    """

    profile: RobotProfile

    def __post_init__(self) -> None:
        self.profile.check()

    def apply(
        self, wanted: np.ndarray, last: np.ndarray, *, in_range: bool = True
    ) -> tuple[np.ndarray, tuple[int, ...]]:
        """Return the nearest allowed command (A,), and the dimensions that were limited.

        `last` (A,) is the command before; NaN where there is none yet, and then there is no limit on the step.
        `in_range=False` leaves out the range: a person may go where the data never went. RobotError for a command that
        is not finite.
        """
        profile = self.profile
        if not np.isfinite(wanted).all():
            names = [name for name, number in zip(profile.action_names, wanted, strict=True) if not np.isfinite(number)]
            raise RobotError("a command must be finite", where=", ".join(names), got="NaN or infinity")
        low, high = (np.array(row, np.float32) for row in (profile.action_low, profile.action_high))
        if not in_range:
            low, high = np.full_like(low, -np.inf), np.full_like(high, np.inf)
        target = np.isfinite(last)
        target[list(profile.motion_dims)] = False
        step = np.array(profile.action_step, np.float32)
        bounded = np.clip(wanted, low, high)
        # the step counts most: a robot that begins outside the range comes into it slowly
        allowed = np.where(target, np.clip(bounded, last - step, last + step), bounded).astype(np.float32)
        slack = ROUNDING * np.maximum(np.abs(wanted), np.abs(allowed))
        return allowed, tuple(np.flatnonzero(np.abs(allowed - wanted) > slack).tolist())

    def lines(self) -> list[str]:
        """Format range and largest step of every dimension of the action."""
        profile, lines = self.profile, []
        width = max(map(len, profile.action_names))
        for i, name in enumerate(profile.action_names):
            low, high, step = profile.action_low[i], profile.action_high[i], profile.action_step[i]
            limit = "a motion" if i in profile.motion_dims else f"at most {step:.4g} a step, {step * profile.fps:.4g}/s"
            unit = profile.units[i] if i < len(profile.units) else ""
            lines.append(f"  {name:{width}}  {low:9.4g} to {high:9.4g}  {limit}  {unit}".rstrip())
        return lines
