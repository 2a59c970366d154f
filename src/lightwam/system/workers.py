"""Jobs in worker processes, for one parent that learns of every answer, error and death.

`multiprocessing.Pool` hangs when a worker is killed and `concurrent.futures` cannot say which job it had; simulators
run native code and do get killed, so the parent has to know the job. A pool (`Workers`, or `ray_workers.RayWorkers`)
runs jobs in numbered slots; `jobs.JobRunner` is the loop around it.
"""

from __future__ import annotations

import ast
import contextlib
import multiprocessing
import signal
import sys
import threading
import traceback
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

GUARD = 'if __name__ == "__main__":'
NO_GUARD = 87
"""exit status of a worker that runs the user's script again and would start workers itself"""
MAX_ERROR_LENGTH = 300
"""characters of an unexpected error's text that are kept"""


class WorkerDied(Exception):
    """A worker died with a job, and its state is lost. The text is the signal, the exit status, or Ray's reason."""


@dataclass(frozen=True)
class Outcome(Generic[Answer]):
    """What came of a job: its answer or an error."""

    answer: Answer | None = None
    error: Exception | None = None
    trace: str = ""
    """the error's traceback in the worker"""

    def unwrap(self, job: object) -> Answer:
        """Return the answer. Raises WorkerDied, the job's own LightwamError, or SimulatorError for any other error."""
        if isinstance(self.error, (WorkerDied, LightwamError)):
            raise self.error
        if self.error is not None:
            what, step = "a worker process failed", "LIGHTWAM_DEBUG=1 shows the traceback"
            raise SimulatorError(what, where=job, got=self.error, next_step=step) from RuntimeError(self.trace)
        return self.answer  # type: ignore[return-value]  # None may be an answer


@runtime_checkable
class WorkerPool(Protocol[Job, Answer]):
    """Numbered slots, each with a worker that does one job at a time and keeps its state between jobs until it dies.

    Use as a context; leaving it ends all workers.
    """

    def __enter__(self) -> WorkerPool[Job, Answer]: ...

    def __exit__(self, *_: object) -> None: ...

    @property
    def idle(self) -> list[int]:
        """The slots that could start a job now."""
        ...

    def submit(self, job: Job, slot: int) -> None:
        """Start `job` in an idle slot."""
        ...

    def answers(self, timeout_seconds: float) -> Iterator[tuple[int, Outcome[Answer]]]:
        """Yield slots whose job is over, with its outcome; waits up to `timeout_seconds` for the first."""
        ...


PoolFactory = Callable[[int, Callable[[Any], Any]], WorkerPool[Any, Any]]
"""makes a pool of a number of slots, each with its own copy of a function: `Workers` does, and `RayWorkers`"""


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    busy: bool = False


class Workers(Generic[Job, Answer]):
    """Up to `count` spawned processes, each with its own copy of `work` (picklable; it may keep state between jobs).

    A slot's process starts with its first job, and another one with the job after a death. With `count` 0 jobs run in
    this process: for debuggers and quick tests. Leaving the context terminates processes that have a job. They never
    see Ctrl-C, so that the parent alone decides what an interrupt means.
    """

    def __init__(self, count: int, work: Callable[[Job], Answer]) -> None:
        """Raise ConfigError when a script without a main guard would start them."""
        self._work, self._in_process = work, count == 0
        if count:
            require_main_guard()
        self._pending: list[Job] = []  # without processes
        self._workers: list[_Worker | None] = [None] * count
        # started before `_start` sets its mask, because starting it unblocks SIGINT again
        resource_tracker.ensure_running()

    def __enter__(self) -> Workers[Job, Answer]:
        return self

    def __exit__(self, *_: object) -> None:
        workers = [worker for worker in self._workers if worker]
        for worker in workers:
            worker.pipe.close()
            if worker.busy:
                worker.process.terminate()
        for worker in workers:
            worker.process.join()
            worker.process.close()
        self._workers.clear()

    @property
    def idle(self) -> list[int]:
        """As `WorkerPool.idle`."""
        if self._in_process:
            return [] if self._pending else [0]
        return [slot for slot, worker in enumerate(self._workers) if worker is None or not worker.busy]

    def submit(self, job: Job, slot: int) -> None:
        """As `WorkerPool.submit`."""
        if self._in_process:
            self._pending.append(job)
            return
        worker = self._workers[slot] = self._workers[slot] or self._start(slot)
        assert not worker.busy, "this worker has a job"
        worker.busy = True
        with contextlib.suppress(BrokenPipeError):  # it died while idle: `answers` will find out
            worker.pipe.send(job)

    def answers(self, timeout_seconds: float) -> Iterator[tuple[int, Outcome[Answer]]]:
        """As `WorkerPool.answers`; an error of a job that ran in this process is raised as it is."""
        if self._in_process:
            if self._pending:
                yield 0, Outcome(self._work(self._pending.pop()))
            return
        busy = {worker.pipe: slot for slot, worker in enumerate(self._workers) if worker and worker.busy}
        for pipe in wait(list(busy), timeout_seconds):
            slot = busy[pipe]  # type: ignore[index]
            worker = self._workers[slot]
            assert worker is not None
            worker.busy = False
            try:
                outcome = worker.pipe.recv()
            except (EOFError, OSError):  # OSError when it died in the middle of an answer
                self._workers[slot] = None
                outcome = Outcome(error=_reap(worker))
            yield slot, outcome

    def _start(self, slot: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        # an exec keeps the signal mask: blocked here, SIGINT stays blocked in the child from its first instruction
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            pipe, far_end = context.Pipe()
            process = context.Process(target=_serve, args=(far_end, self._work), name=f"worker {slot}", daemon=True)
            process.start()
            far_end.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return _Worker(process, pipe)


def _reap(worker: _Worker) -> WorkerDied:
    """End a process whose pipe is closed, and say what it died of."""
    worker.pipe.close()
    worker.process.join(5)
    worker.process.kill()  # it may have closed its pipe without exiting
    worker.process.join()
    code = worker.process.exitcode
    worker.process.close()
    assert code is not None
    if code == NO_GUARD:
        raise _unguarded(sys.argv[0])
    return WorkerDied(f"killed by signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}")


def run_job(work: Callable[[Job], Answer], job: Job) -> Outcome[Answer]:
    """Do a job in a worker; the outcome can be pickled whatever the error is."""
    try:
        return Outcome(work(job))
    except Exception as error:
        # an exception that cannot be pickled must not take its message with it
        picklable = error if isinstance(error, LightwamError) else RuntimeError(_brief(error))
        return Outcome(error=picklable, trace=traceback.format_exc())


def _brief(error: Exception) -> str:
    """Format an error in one line, with where it was raised; the text is cut, as some contain arrays."""
    raised = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    cut = "..." if len(text) > MAX_ERROR_LENGTH else ""
    return f"{text[:MAX_ERROR_LENGTH]}{cut} ({raised.filename}:{raised.lineno})"


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
    what, step = "a script that starts worker processes must have a main guard", f"call lightwam under `{GUARD}`"
    return ConfigError(what, where=where, expected=f"a file with `{GUARD}`", next_step=step)


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


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    while True:
        try:
            job = pipe.recv()
        except (EOFError, ConnectionError):  # the parent closed the pipe, or died
            return
        try:
            pipe.send(run_job(work, job))
        except ConnectionError:
            return
