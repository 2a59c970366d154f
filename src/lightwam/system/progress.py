"""A progress line: how much is done, how fast, and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

Say = Callable[[str], None]
"""called with a line for the user, such as `print`"""
OnProgress = Callable[[int, int], None]
"""called with the units that are done and with their total, before the first one and after each: `Progress.update`"""


def no_progress(done: int, total: int) -> None:
    """Show nothing."""


class Progress:
    """A counter of units of work that rewrites one line on a terminal, and elsewhere reports to `say` now and then.

    With a total of 0, which `update` may set, it reports nothing.
    """

    def __init__(
        self, what: str, total: int = 0, done: int = 0, unit: str = "it", say: Say = print, silent: bool = False
    ) -> None:
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self.say = (lambda line: None) if silent else say
        self.began, self.done_then = time.monotonic(), done
        self.live = sys.stderr.isatty() and not silent
        self.reported = self.began

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.total and self.live:
            sys.stderr.write("\n")
        if self.total and kind is None:
            self.say(f"{self.line()}  done in {format_duration(time.monotonic() - self.began)}")

    def advance(self, note: str = "", count: int = 1) -> None:
        """Count more units as done; `note` is put at the end of the line."""
        self.done += count
        now = time.monotonic()
        if now - self.reported < (0.2 if self.live else 15.0):
            return
        self.reported = now
        if self.live:
            sys.stderr.write(f"\r\033[K{self.line()}  {note}")
            sys.stderr.flush()
        else:
            self.say(f"{self.line()}  {note}")

    def tell(self, line: str) -> None:
        """Report a line of its own."""
        if self.live:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
        self.say(line)

    def update(self, done: int, total: int) -> None:
        """Set how much is done, and the total where it was not known; time counts from the first call."""
        if not self.total:
            self.total, self.done, self.done_then, self.began = total, done, done, time.monotonic()
        self.advance(count=done - self.done)

    def line(self) -> str:
        """Return the state as text."""
        passed = time.monotonic() - self.began
        rate = (self.done - self.done_then) / passed if passed > 0 else 0.0
        left = format_duration((self.total - self.done) / rate) if rate else "?"
        share = 100 * self.done / max(1, self.total)
        return f"{self.what} {self.done}/{self.total} ({share:.0f} %)  {rate:.2f} {self.unit}/s  {left} left"


def format_duration(seconds: float) -> str:
    """Format seconds as 1:05 or 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
