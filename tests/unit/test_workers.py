"""system/workers.py: answers, errors and deaths of worker processes reach the parent."""

import os
import signal
import subprocess
import sys
import time

import pytest

from lightwam.errors import ConfigError, SimulatorError
from lightwam.system.workers import GUARD, WorkerDied, Workers, interrupt_as_flag

JOBS = """
import os, signal, threading, time
from lightwam.errors import SimulatorError

def run(job):
    if job == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    elif job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif job == "leave":
        os._exit(3)
    elif job == "die while answering":  # more than a pipe holds, and nobody reads it
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return bytes(10_000_000)
    elif job == "refuse":
        raise SimulatorError("no such dot", next_step="look again")
    elif job == "unguarded":
        os._exit(87)
    elif job == "dump":
        raise ValueError("an array\\n" * 1000)
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
    """The next `count` slots whose job is over, each with the answer."""
    found: list = []
    while len(found) < count:
        found += [(slot, outcome.unwrap("the job")) for slot, outcome in workers.answers(timeout_seconds=60.0)]
    return found


def death(workers: Workers) -> str:
    with pytest.raises(WorkerDied) as died:
        answers(workers, 1)
    return str(died.value)


def test_jobs_run_in_other_processes_and_ctrl_c_does_not_reach_them(run) -> None:
    with Workers(2, run) as workers:
        assert workers.idle == [0, 1]
        workers.submit("interrupt", 0)
        workers.submit("b", 1)
        assert workers.idle == []
        found = answers(workers, 2)
    assert sorted((slot, job) for slot, (_, job) in found) == [(0, "interrupt"), (1, "b")]
    assert len({pid for _, (pid, _) in found} | {os.getpid()}) == 3


def test_a_worker_that_dies_is_reported_and_another_process_takes_its_slot(run) -> None:
    with Workers(1, run) as workers:
        workers.submit("a", 0)
        ((_, (first, _)),) = answers(workers, 1)
        for job, how in (("die", "killed by signal SIGKILL"), ("leave", "exit status 3")):
            workers.submit(job, 0)
            assert death(workers) == how
            assert workers.idle == [0]
        workers.submit("b", 0)
        ((_, (second, _)),) = answers(workers, 1)
        assert second != first
        os.kill(second, signal.SIGKILL)  # while it is idle
        os.waitid(os.P_PID, second, os.WEXITED | os.WNOWAIT)
        workers.submit("c", 0)
        assert death(workers) == "killed by signal SIGKILL"


def test_a_worker_that_dies_in_the_middle_of_an_answer_is_reported(run) -> None:
    with Workers(1, run) as workers:
        workers.submit("die while answering", 0)
        time.sleep(0.1)
        os.waitid(os.P_PID, workers._workers[0].process.pid, os.WEXITED | os.WNOWAIT)
        assert death(workers) == "killed by signal SIGKILL"


def test_errors_arrive_as_they_are_and_leave_the_worker_usable(run) -> None:
    with Workers(1, run) as workers:
        workers.submit("refuse", 0)
        with pytest.raises(SimulatorError, match="no such dot") as refused:
            answers(workers, 1)
        assert refused.value.next_step == "look again"
        workers.submit("break", 0)
        with pytest.raises(SimulatorError, match=r"where: the job[\s\S]*ZeroDivisionError: one by nought"):
            answers(workers, 1)
        workers.submit("go on", 0)
        assert answers(workers, 1)[0][1][1] == "go on"


def test_leaving_the_pool_ends_a_running_job(run) -> None:
    with Workers(1, run) as workers:
        workers.submit("sleep", 0)
        assert list(workers.answers(timeout_seconds=0.01)) == []


def test_no_workers_means_this_process(run) -> None:
    with Workers(0, run) as workers:
        workers.submit("a", 0)
        assert workers.idle == []
        assert answers(workers, 1) == [(0, (os.getpid(), "a"))]
        assert workers.idle == [0]
        workers.submit("break", 0)
        with pytest.raises(ZeroDivisionError):  # as it is, for a debugger
            answers(workers, 1)


def test_an_interrupt_is_a_flag_once_and_an_exception_twice() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupt_as_flag() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.pressed
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 1)
    assert signal.getsignal(signal.SIGINT) is before


HEAVY = """
print("heavy", flush=True)
from lightwam.system.workers import Workers
import worker_jobs

def start():
    with Workers(2, worker_jobs.run) as workers:
        workers.submit("a", 0)
        print(*workers.answers(60.0))
"""
SCRIPTS = {
    "unguarded": ("start()", False),
    "by a function": ("def main():\n    start()\nmain()", False),
    "a guard elsewhere": ('if __name__ == "__main__":\n    print("no matter")\nstart()', False),
    "guarded": ('if __name__ == "__main__":\n    start()', True),
    "guarded by a function": ('def main():\n    start()\nif __name__ == "__main__" and start:\n    main()', True),
    "a guard that passes the others by": ('if __name__ != "__main__":\n    start = print\nstart()', True),
}


def ran(run, tmp_path, words: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join((str(tmp_path), *filter(None, sys.path)))
    return subprocess.run(
        [sys.executable, *words], input=text, capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_without_a_main_guard_fails_once_and_says_so(name: str, run, tmp_path) -> None:
    end, works = SCRIPTS[name]
    script = tmp_path / "script.py"
    script.write_text(HEAVY + end)
    done = ran(run, tmp_path, [str(script)])
    assert done.returncode == (not works), done.stderr
    if not works:
        assert done.stderr.count("ConfigError") == 1 and "must have a main guard" in done.stderr
        assert done.stderr.rstrip().endswith(f"`{GUARD}`") and "script.py, line" in done.stderr
        assert done.stdout.count("heavy") == 1  # no worker was started


def test_a_script_from_standard_input_is_refused(run, tmp_path) -> None:
    done = ran(run, tmp_path, ["-"], HEAVY + "start()")
    assert done.returncode == 1 and done.stdout.count("heavy") == 1
    assert "must have a main guard" in done.stderr and "standard input" in done.stderr


def test_scripts_that_workers_do_not_import_need_no_guard(run, tmp_path) -> None:
    """A text on the command line, and a package's __main__."""
    assert ran(run, tmp_path, ["-c", HEAVY + "start()"]).returncode == 0
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").write_text(HEAVY + "start()")
    assert ran(run, tmp_path, ["-m", "package"]).returncode == 0


def test_a_worker_that_finds_no_guard_says_it_to_the_first_process(run) -> None:
    """Where the script itself does not tell: nothing is tried again."""
    with Workers(1, run) as workers:
        workers.submit("unguarded", 0)
        with pytest.raises(ConfigError, match="must have a main guard"):
            answers(workers, 1)


def test_an_unexpected_error_is_short_and_says_where(run) -> None:
    with Workers(1, run) as workers:
        workers.submit("dump", 0)
        with pytest.raises(SimulatorError) as failed:
            answers(workers, 1)
    text = str(failed.value)
    assert len(text) < 700 and len(text.splitlines()) <= 4
    assert "where: the job" in text and "worker_jobs.py:" in text and "LIGHTWAM_DEBUG=1" in text
    assert "in run" in str(failed.value.__cause__)  # the traceback
