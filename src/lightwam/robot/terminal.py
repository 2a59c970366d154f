"""The person beside the robot: keys of a terminal, lines that are printed, and signals that stop the robot."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Protocol, runtime_checkable

STOP_KEYS = ("q", "\x1b")
"""q or Esc"""
PAUSE_KEY, TAKE_OVER_KEY, DISCARD_KEY = " ", "t", "x"
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGTSTP")
"""Ctrl-C, kill, a terminal that is gone (a lost ssh session), Ctrl-Z"""


@runtime_checkable
class Operator(Protocol):
    """What `drive` needs of the person beside the robot."""

    def key(self) -> str:
        """Return the next key that was pressed, without waiting; "" if there is none."""

    def say(self, line: str) -> None:
        """Show a line."""

    def wait_to_release(self, why: str) -> None:
        """Return when the robot, which stands still, may lose its torque; `why` says why it stopped."""


class Unattended:
    """An operator who presses no key; the robot is released at once."""

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self._say = say

    def key(self) -> str:
        """Return no key."""
        return ""

    def say(self, line: str) -> None:
        """Show a line, unless its reader is gone: the robot must be stopped all the same."""
        with contextlib.suppress(OSError):
            self._say(line)

    def wait_to_release(self, why: str) -> None:
        """Return at once."""


ReadKey = Callable[[float], str]
"""waits at most so many seconds for a key; "" if there was none, EOFError when the terminal is gone"""


class Terminal:
    """The keys of this process's terminal; use `terminal()`."""

    def __init__(self, open_keys: Callable[[], ReadKey], *, falls: bool = True) -> None:
        """`open_keys` is called when a key is first asked for: until then lines can be read, as LeRobot may.

        `falls=False`: a robot that can be released without a person, such as a simulated one.
        """
        self._open_keys, self._falls = open_keys, falls
        self._read: ReadKey | None = None
        self._is_gone = False

    def _read_key(self, seconds: float) -> str:
        if self._is_gone:
            return ""
        try:
            if self._read is None:
                self._read = self._open_keys()
            return self._read(seconds)
        except EOFError:
            self._is_gone = True
            return ""

    def key(self) -> str:
        """Return the next key, "" if there is none."""
        return self._read_key(0.0)

    def say(self, line: str) -> None:
        """Print a line, unless the terminal is gone: the robot must be stopped all the same."""
        with contextlib.suppress(OSError):
            print(line, flush=True)

    def wait_to_release(self, why: str) -> None:
        """Wait for a key, as an arm without torque falls; return at once when the terminal is gone."""
        if not self._falls:
            return
        self.say(f"{why}\nthe robot holds its position; support it, then press any key to release it")
        while self.key():  # pressed before the question
            pass
        while not self._read_key(0.2) and not self._is_gone:
            pass


@contextlib.contextmanager
def terminal(keys: str = "", *, falls: bool = True) -> Iterator[Operator]:
    """Read single keys from the terminal inside the context; without a terminal there are none.

    `keys` is shown when keys are first read; `falls` is that of `Terminal`.
    """
    with contextlib.ExitStack() as stack:

        def open_keys() -> ReadKey:
            with contextlib.suppress(OSError):
                print(keys, flush=True)
            return _windows_key if sys.platform == "win32" else _posix_keys(stack)

        has_keys = sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()
        yield Terminal(open_keys, falls=falls) if has_keys else Unattended()


def _posix_keys(stack: contextlib.ExitStack) -> ReadKey:
    """Switch the terminal to single keys until `stack` ends; EOFError when it is gone."""
    import termios
    import tty

    number = sys.stdin.fileno()
    try:
        before = termios.tcgetattr(number)
        tty.setcbreak(number)
    except termios.error as error:
        raise EOFError from error

    def restore() -> None:
        with contextlib.suppress(termios.error):  # of a terminal that is gone
            termios.tcsetattr(number, termios.TCSADRAIN, before)

    stack.callback(restore)

    def read_key(seconds: float) -> str:
        if not select.select([number], [], [], seconds)[0]:
            return ""
        try:
            key = os.read(number, 1)
        except OSError as error:
            raise EOFError from error
        if not key:
            raise EOFError
        return key.decode("latin-1")

    return read_key


def _windows_key(seconds: float) -> str:
    import msvcrt

    module: Any = msvcrt  # its functions exist on Windows alone
    end = time.monotonic() + seconds
    while not module.kbhit():
        if time.monotonic() >= end:
            return ""
        time.sleep(0.01)
    return str(module.getwch())


class StopSignals:
    """STOP_SIGNALS inside the context: KeyboardInterrupt, or while `interrupts` is False a request to stop.

    After such a request a second Ctrl-C or SIGTERM interrupts. Signals that the process ignores, as under nohup, stay
    ignored. Elsewhere than in the main thread Python receives no signals, and nothing is changed.
    """

    def __init__(self) -> None:
        self.received = False
        """a signal came"""
        self.interrupts = True
        """the first one interrupts at once, as nothing moves"""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            known = [number for number in signal.Signals if number.name in STOP_SIGNALS]
            taken = [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._stop) for number in taken}
        return self

    def __exit__(self, *error: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _stop(self, number: int, frame: FrameType | None) -> None:
        is_again = self.received and number in (signal.SIGINT, signal.SIGTERM)  # a lost session may say so twice
        interrupts = is_again or (self.interrupts and not self.received)
        self.received = True
        if interrupts:
            raise KeyboardInterrupt
