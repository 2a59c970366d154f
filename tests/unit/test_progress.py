"""system/progress.py: one line, rewritten on a terminal, now and then elsewhere."""

import io
import sys

import pytest

from lightwam.system import progress
from lightwam.system.progress import Progress, format_duration


class Clock:
    """A clock that stands still until it is told."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    still = Clock()
    monkeypatch.setattr(progress, "time", still)
    return still


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0:00"), (5.4, "0:05"), (59.6, "1:00"), (65.0, "1:05"), (3599.0, "59:59"), (7384.0, "2:03:04")],
)
def test_clock(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_elsewhere_it_speaks_every_quarter_minute_and_at_the_end(time: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    said: list[str] = []
    with Progress("train", 100, done=20, unit="step", say=said.append) as bar:
        for _ in range(40):
            time.now += 1
            bar.advance("loss 1")
    assert [line.split("  ")[0] for line in said] == [
        "train 35/100 (35 %)",
        "train 50/100 (50 %)",
        "train 60/100 (60 %)",
    ]
    # what an earlier session did counts for the place, not for the speed
    assert said[0] == "train 35/100 (35 %)  1.00 step/s  1:05 left  loss 1"
    assert said[-1].endswith("done in 0:40")
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_a_terminals_line_is_rewritten_at_most_five_times_a_second(
    time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    said: list[str] = []
    with Progress("eval", 10, unit="ep", say=said.append) as bar:
        for _ in range(10):
            time.now += 0.125
            bar.advance("1 of 2")
    assert terminal.getvalue().count("\r\033[K") == 5
    assert terminal.getvalue().endswith("\n")
    assert len(said) == 1


def test_after_an_error_it_does_not_say_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    said: list[str] = []
    with pytest.raises(KeyError), Progress("x", 2, say=said.append):
        raise KeyError
    assert said == []


def test_nothing_done_yet_and_nothing_to_do(time: Clock) -> None:
    bar = Progress("x", 0, say=print)
    assert bar.line() == "x 0/0 (0 %)  0.00 it/s  ? left"
    time.now += 1
    assert bar.line() == "x 0/0 (0 %)  0.00 it/s  ? left"


def test_without_a_total_it_is_silent_until_it_is_updated(time: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    said: list[str] = []
    with Progress("decode", unit="frame", say=said.append):
        pass
    assert said == [] and sys.stderr.getvalue() == ""  # type: ignore[attr-defined]
    with Progress("decode", unit="frame", say=said.append) as bar:
        time.now += 60  # before the work begins
        bar.update(20, 100)
        time.now += 10
        bar.update(40, 100)
    assert said == ["decode 40/100 (40 %)  2.00 frame/s  0:30 left  done in 0:10"]
