"""The keys of a real terminal, a pseudo-terminal of the system's; and a process without one."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator

import pytest

from lightwam.robot.terminal import Unattended, terminal

pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The keyboard's end of a terminal that is this process's standard input."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "r", encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield master
    os.close(master)


def modes() -> int:
    """The terminal's local modes: whether it waits for a line, and shows what is typed."""
    return int(termios.tcgetattr(sys.stdin.fileno())[3])


def test_keys_are_read_one_at_a_time_without_waiting(keyboard: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = modes()
    with terminal("keys: q stop") as operator:
        assert modes() == before, "until the first key is asked for, lines can be read"
        assert operator.key() == "" and "keys: q stop" in capsys.readouterr().out
        assert not modes() & termios.ICANON and not modes() & termios.ECHO
        os.write(keyboard, b"tq")
        assert [operator.key() for _ in range(3)] == ["t", "q", ""]
    assert modes() == before


def test_the_terminal_is_as_before_after_an_error(keyboard: int) -> None:
    before = modes()
    with pytest.raises(ZeroDivisionError), terminal() as operator:
        operator.key()
        raise ZeroDivisionError
    assert modes() == before


def test_the_robot_is_released_by_a_key_that_is_pressed_afterwards(
    keyboard: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys from before do not count: a person who pressed q twice must not drop the arm."""
    with terminal() as operator:
        os.write(keyboard, b"qq")
        asked = []

        def read_key(seconds: float) -> str:
            if seconds > 0:  # it waits now
                asked.append(seconds)
                os.write(keyboard, b" ")
            return real(seconds)

        operator.key()
        real = operator._read  # type: ignore[attr-defined]
        operator._read = read_key  # type: ignore[attr-defined]
        operator.wait_to_release("the time is over")
    assert len(asked) == 1
    assert "the robot holds its position" in capsys.readouterr().out


def test_a_simulated_robot_is_released_without_asking(keyboard: int) -> None:
    with terminal(falls=False) as operator:
        operator.wait_to_release("the time is over")  # returns


def test_a_terminal_that_is_gone_has_no_keys_and_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lost ssh session: reading fails, and so does restoring the terminal's modes."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "r", encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with terminal() as operator:
            assert operator.key() == ""
            os.close(master)
            operator.wait_to_release("stopped by a signal")  # returns
            assert operator.key() == ""


def test_a_line_that_nobody_reads_is_no_error(keyboard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdout", Gone())
    with terminal() as operator:
        operator.say("a line")
    Unattended().say("a line")


@pytest.mark.parametrize("stdin", [None, "closed"])
def test_a_process_without_standard_input_has_no_keys(stdin: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdin", closed if stdin else None)
    with terminal() as operator:
        assert isinstance(operator, Unattended)


def test_without_a_terminal_there_are_no_keys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("qqq"))
    with terminal("keys: q stop") as operator:
        assert isinstance(operator, Unattended) and operator.key() == ""
        operator.wait_to_release("the time is over")
        operator.say("a line")
    assert capsys.readouterr().out == "a line\n"
