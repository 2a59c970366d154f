"""A few processes that run jobs for one parent, which hears of every answer, error and death.

`multiprocessing.Pool` hangs when a worker is killed and `concurrent.futures` cannot say which job it held; simulators
in native code do get killed, so the parent has to be able to name the job. A `WorkerDied` is an answer like any other:
the slot is free for a new process, and the parent decides whether to run the job again.
"""

from __future__ import annotations

import ast
import contextlib
import multiprocessing
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from lightwam.errors import ConfigError, LightwamError, SimulatorError

Job = TypeVar("Job")
Answer = TypeVar("Answer")
Reply = tuple[Any, Exception | None, str]
"""answer, error and its traceback: what a worker sends back"""

GUARD = 'if __name__ == "__main__":'
NO_GUARD = 87
"""exit status of a worker that runs the user's script again and would start workers itself"""
LONGEST = 300
"""characters of an unexpected error's text that are kept"""
DEATHS_IN_A_ROW = 3
"""a job whose worker dies this often is not tried again"""


@dataclass(frozen=True)
class WorkerDied:
    """A worker died with a job in hand: the job's answer. Whatever the worker knew is gone."""

    how: str
    """signal, exit status, or what the cluster says"""


class DeathCounter:
    """Counts the deaths of each job, by its name, and tells of each in a line."""

    def __init__(self, what: str, say: Callable[[str], None]) -> None:
        self._what, self._say, self._count = what, say, Counter[str]()

    def note(self, job: object, death: WorkerDied) -> None:
        """One more; the one after which a job is not tried again raises SimulatorError."""
        self._count[str(job)] += 1
        count = self._count[str(job)]
        if count >= DEATHS_IN_A_ROW:
            raise SimulatorError(
                f"a worker process died, {count} times in a row",
                where=job,
                got=death.how,
                next_step="run the same command again; fewer workers need less memory",
            )
        again = f"begins again, try {count + 1} of {DEATHS_IN_A_ROW}"
        self._say(f"{self._what}: a worker died ({death.how}); {job} {again}")


@runtime_checkable
class WorkerPool(Protocol[Job, Answer]):
    """What runs jobs for one parent: `Workers` here, or a cluster's. A seat does one job at a time and keeps its state
    from job to job until its worker dies. Use as a context; leaving it ends everything."""

    def __enter__(self) -> WorkerPool[Job, Answer]: ...

    def __exit__(self, *_: object) -> None: ...

    @property
    def idle(self) -> list[int]:
        """The seats that could begin a job now."""
        ...

    def submit(self, job: Job, slot: int) -> None:
        """Starts `job` in an idle seat."""
        ...

    def answers(self, timeout_seconds: float) -> Iterator[tuple[Job, Answer | WorkerDied]]:
        """Jobs that are over, each with its answer or death; waits for the first one, `timeout_seconds` at most."""
        ...


PoolFactory = Callable[[int, Callable[[Any], Any]], WorkerPool[Any, Any]]
"""makes a pool of a number of slots, each with its own copy of a function: `Workers` does, and `RayWorkers`"""


@dataclass
class _Worker(Generic[Job]):
    process: SpawnProcess
    pipe: Connection
    job: Job | None = None


class Workers(Generic[Job, Answer]):
    """Up to `count` spawned processes, each with its own copy of `run` (picklable; it may keep state between its jobs).

    A seat's process starts with its first job, and another one with the job after a death.
    With `count` 0 the jobs run in this process, as they are given: for debuggers and quick tests.
    Use as a context: leaving it ends the processes, at once when they are in the middle of a job. The processes never
    see Ctrl-C, so that the parent alone decides what an interrupt means.
    """

    def __init__(self, count: int, run: Callable[[Job], Answer]) -> None:
        """Raise ConfigError when a script without a main guard would start them."""
        self._run, self._here = run, count == 0
        if count:
            require_main_guard()
        self._done: list[tuple[Job, Answer]] = []
        self._workers: list[_Worker[Job] | None] = [None] * count
        # started before `_start` sets its mask, because starting it unblocks SIGINT again
        resource_tracker.ensure_running()

    def __enter__(self) -> Workers[Job, Answer]:
        return self

    def __exit__(self, *_: object) -> None:
        workers = [worker for worker in self._workers if worker]
        for worker in workers:
            worker.pipe.close()
            if worker.job is not None:
                worker.process.terminate()
        for worker in workers:
            worker.process.join()
            worker.process.close()
        self._workers.clear()

    @property
    def idle(self) -> list[int]:
        """The seats that could begin a job now."""
        if self._here:
            return [] if self._done else [0]
        return [slot for slot, worker in enumerate(self._workers) if worker is None or worker.job is None]

    def submit(self, job: Job, slot: int | None = None) -> None:
        """Starts `job` in an idle process (there must be one), or in process number `slot`, which must be idle."""
        if self._here:
            self._done.append((job, self._run(job)))
            return
        slot = self.idle[0] if slot is None else slot
        worker = self._workers[slot] = self._workers[slot] or self._start(slot)
        assert worker.job is None, "this process is at work"
        worker.job = job
        with contextlib.suppress(BrokenPipeError):  # it died while idle: `answers` will find that out
            worker.pipe.send(job)

    def answers(self, timeout_seconds: float) -> Iterator[tuple[Job, Answer | WorkerDied]]:
        """Jobs that are over, with their answers; waits for the first one, `timeout_seconds` at most.

        The answer is a `WorkerDied` when the process died. Raises what the job raised when that is a LightwamError, and
        SimulatorError naming the job for any other error.
        """
        if self._here:
            done, self._done = self._done, []
            yield from done
            return
        seated = [(slot, worker) for slot, worker in enumerate(self._workers) if worker and worker.job is not None]
        busy = {worker.pipe: (slot, worker) for slot, worker in seated}
        for pipe in wait(list(busy), timeout_seconds):
            slot, worker = busy[pipe]  # type: ignore[index]
            job, worker.job = worker.job, None
            assert job is not None
            try:
                reply = worker.pipe.recv()
            except (EOFError, OSError):  # the second when it died in the middle of an answer
                self._workers[slot] = None
                yield job, _reap(worker)
            else:
                yield job, unwrap(job, reply)

    def _start(self, slot: int) -> _Worker[Job]:
        context = multiprocessing.get_context("spawn")
        # an exec keeps the signal mask: blocked here, SIGINT stays blocked in the child from its first instruction
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            pipe, far_end = context.Pipe()
            process = context.Process(target=_serve, args=(far_end, self._run), name=f"worker {slot}", daemon=True)
            process.start()
            far_end.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return _Worker(process, pipe)


def _reap(worker: _Worker[Any]) -> WorkerDied:
    worker.pipe.close()
    worker.process.join(5)
    worker.process.kill()  # a process that closed its pipe and hangs is as good as dead
    worker.process.join()
    code = worker.process.exitcode
    worker.process.close()
    assert code is not None
    if code == NO_GUARD:
        raise _unguarded(sys.argv[0])
    return WorkerDied(f"killed by signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}")


def run_job(run: Callable[[Job], Answer], job: Job) -> Reply:
    """A worker's side: the job done, or the error that came of it, fit to be pickled."""
    try:
        return run(job), None, ""
    except Exception as error:
        # the parent raises it; an exception that cannot be pickled must not take its message with it
        known = error if isinstance(error, LightwamError) else RuntimeError(_brief(error))
        return None, known, traceback.format_exc()


def _brief(error: Exception) -> str:
    """Format an error in one line, with where it was raised; the text is cut, as some contain arrays."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"{text[:LONGEST]}{'...' if len(text) > LONGEST else ''} ({place.filename}:{place.lineno})"


def unwrap(job: object, reply: Reply) -> Any:
    """The parent's side: the answer in a reply, or its error raised."""
    answer, error, trace = reply
    if isinstance(error, LightwamError):
        raise error
    if error is not None:
        raise SimulatorError("a worker process failed", where=job, got=error,
                             next_step="LIGHTWAM_DEBUG=1 shows the traceback") from RuntimeError(trace)  # fmt: skip
    return answer


def require_main_guard() -> None:
    """Raise ConfigError when the calling script has no main guard, so that every worker would run it again.

    A new process imports the parent's script, and runs what is not under `if __name__ == "__main__":`. When called in
    such a process, exits with a status that the parent knows.
    """
    if vars(multiprocessing.process.current_process()).get("_inheriting"):
        sys.exit(NO_GUARD)
    main = vars(sys.modules["__main__"])
    file, spec = main.get("__file__"), main.get("__spec__")
    if file is None or (spec is not None and spec.name.rpartition(".")[2] == "__main__"):
        return  # a notebook, python -c, python -m PACKAGE: no script is imported again
    if file == "<stdin>":
        raise _unguarded("standard input, which other processes cannot read")
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals is main and frame.f_code.co_filename == file:
            if not _guarded(Path(file), frame.f_lineno):
                raise _unguarded(f"{file}, line {frame.f_lineno}")
            return
        frame = frame.f_back


def _guarded(script: Path, line: int) -> bool:
    """Whether a script's statement at `line` is inside `if __name__ == ...`, or after `if __name__ != ...`.

    True if the script cannot be parsed: the worker finds out then.
    """
    try:
        tree = ast.parse(script.read_bytes())
    except (OSError, SyntaxError):
        return True
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and node.lineno <= line:
            inside = list(ast.walk(node.test))
            named = any(isinstance(word, ast.Name) and word.id == "__name__" for word in inside)
            unequal = any(isinstance(word, ast.NotEq) for word in inside)
            if named and (unequal or line <= (node.end_lineno or line)):
                return True
    return False


def _unguarded(where: str) -> ConfigError:
    return ConfigError(
        "a script that starts worker processes must have a main guard",
        where=where,
        expected=f"a file with `{GUARD}`",
        next_step=f"put the code that calls lightwam under `{GUARD}`",
    )


@dataclass
class Interrupt:
    """Whether Ctrl-C was pressed."""

    pressed: bool = False


@contextlib.contextmanager
def interrupt_as_flag() -> Iterator[Interrupt]:
    """Within this context Ctrl-C only sets a flag, so that no file is left half written; a second one raises.

    Outside the main thread, where Python delivers no signals, the flag stays down.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def press(number: int, frame: FrameType | None) -> None:
        if interrupt.pressed:
            raise KeyboardInterrupt
        interrupt.pressed = True

    previous = signal.signal(signal.SIGINT, press)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)


def _serve(pipe: Connection, run: Callable[[Any], Any]) -> None:
    while True:
        try:
            job = pipe.recv()
        except (EOFError, ConnectionError):  # the parent has closed the pipe, or is gone
            return
        try:
            pipe.send(run_job(run, job))
        except ConnectionError:
            return
