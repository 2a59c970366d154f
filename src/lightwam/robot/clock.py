"""The time of a control loop: the machine's, or a test's that passes without waiting."""

from __future__ import annotations

import time
from typing import Protocol, runtime_checkable


@runtime_checkable
class Clock(Protocol):
    """Seconds that only go forward."""

    def now(self) -> float:
        """Return the time in seconds."""

    def sleep(self, seconds: float) -> None:
        """Wait; a duration of 0 or less is no wait."""


class WallClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Return the time in seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        if seconds > 0:
            time.sleep(seconds)


class SimulatedClock:
    """The time of a simulator: it passes with `sleep` alone, so a step may take as long as it takes.

    It runs no faster than the machine's.
    """

    def __init__(self) -> None:
        self._seconds, self._due = 0.0, time.monotonic()

    def now(self) -> float:
        """Return the time in seconds."""
        return self._seconds

    def sleep(self, seconds: float) -> None:
        """Let time pass, waiting for what the work since the last call has left of it."""
        if seconds > 0:
            self._seconds += seconds
            self._due = max(self._due + seconds, time.monotonic())
            time.sleep(max(0.0, self._due - time.monotonic()))


class Pace:
    """Steps at a constant rate; a late step delays the ones after it, so that none are made in a burst."""

    def __init__(self, fps: float, clock: Clock) -> None:
        self._period, self._clock, self._due = 1 / fps, clock, clock.now()
        self.num_late = 0
        """steps that took more than 1.5 periods"""

    def wait(self) -> None:
        """Wait until the next step is due."""
        self._due += self._period
        late = self._clock.now() - self._due
        if late > 0.5 * self._period:
            self.num_late += 1
        self._due += max(0.0, late)
        self._clock.sleep(self._due - self._clock.now())
