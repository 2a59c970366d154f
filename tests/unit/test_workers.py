"""Jobs in processes: answers, errors and deaths reach the parent, each with the job's name."""

import os
import signal
import sys

import pytest

from lightwam.errors import SimulatorError
from lightwam.workers import Workers, interrupt_as_flag

JOBS = """
import os, signal, time
from lightwam.errors import SimulatorError

def run(job):
    if job == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    elif job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif job == "refuse":
        raise SimulatorError("no such dot", next_step="look again")
    elif job == "break":
        raise ZeroDivisionError("one by nought")
    elif job == "sleep":
        time.sleep(600)
    return os.getpid(), job
"""


@pytest.fixture
def run(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """A function in a module that spawned processes can import too."""
    (tmp_path / "worker_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "worker_jobs", raising=False)
    import worker_jobs  # type: ignore[import-not-found]

    return worker_jobs.run


def answers(workers: Workers, count: int) -> list:
    found: list = []
    while len(found) < count:
        found += workers.answers(timeout_seconds=60.0)
    return found


def test_jobs_run_elsewhere_and_ctrl_c_does_not_reach_them(run) -> None:
    with Workers(2, run) as workers:
        assert workers.num_idle == 2
        workers.give("interrupt")
        workers.give("b")
        assert workers.num_idle == 0 and workers.jobs == ["interrupt", "b"]
        found = answers(workers, 2)
    assert sorted(job for job, _ in found) == ["b", "interrupt"]
    assert len({pid for _, (pid, _) in found} | {os.getpid()}) == 3


def test_a_death_names_job_and_signal(run) -> None:
    with Workers(1, run) as workers:
        workers.give("die")
        with pytest.raises(SimulatorError, match=r"where: die[\s\S]*SIGKILL"):
            answers(workers, 1)


def test_errors_arrive_as_they_are_and_leave_the_worker_usable(run) -> None:
    with Workers(1, run) as workers:
        workers.give("refuse")
        with pytest.raises(SimulatorError, match="no such dot") as refused:
            answers(workers, 1)
        assert refused.value.next_step == "look again"
        workers.give("break")
        with pytest.raises(SimulatorError, match=r"where: break[\s\S]*ZeroDivisionError: one by nought"):
            answers(workers, 1)
        workers.give("go on")
        assert answers(workers, 1)[0][0] == "go on"


def test_leaving_ends_a_job_in_hand(run) -> None:
    with Workers(1, run) as workers:
        workers.give("sleep")
        assert list(workers.answers(timeout_seconds=0.01)) == []


def test_no_workers_means_this_process(run) -> None:
    with Workers(0, run) as workers:
        workers.give("a")
        assert workers.num_idle == 0
        assert answers(workers, 1) == [("a", (os.getpid(), "a"))]
        assert workers.num_idle == 1


def test_an_interrupt_is_a_flag_once_and_an_exception_twice() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupt_as_flag() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.pressed
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 1)
    assert signal.getsignal(signal.SIGINT) is before
