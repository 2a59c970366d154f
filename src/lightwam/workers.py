"""A few processes that run jobs for one parent, which hears of every answer, error and death.

`multiprocessing.Pool` hangs when a worker is killed and `concurrent.futures` cannot say which job it held; simulators
in native code do get killed, so the parent has to be able to name the job.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Generic, TypeVar

from lightwam.errors import LightwamError, SimulatorError

Job = TypeVar("Job")
Answer = TypeVar("Answer")


@dataclass
class _Worker(Generic[Job]):
    process: SpawnProcess
    pipe: Connection
    job: Job | None = None


class Workers(Generic[Job, Answer]):
    """`count` spawned processes, each with its own copy of `run` (picklable; it may keep state between its jobs).

    With `count` 0 the jobs run in this process, as they are given: for debuggers and quick tests.
    Use as a context: leaving it ends the processes, at once when they are in the middle of a job. The processes never
    see Ctrl-C, so that the parent alone decides what an interrupt means.
    """

    def __init__(self, count: int, run: Callable[[Job], Answer]) -> None:
        context = multiprocessing.get_context("spawn")
        self._run = run if count == 0 else None
        self._done: list[tuple[Job, Answer]] = []
        self._workers: list[_Worker[Job]] = []
        # started before the mask is set, because starting it unblocks SIGINT again
        resource_tracker.ensure_running()
        # an exec keeps the signal mask: blocked here, SIGINT stays blocked in the child from its first instruction
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(count):
                pipe, far_end = context.Pipe()
                process = context.Process(target=_serve, args=(far_end, run), daemon=True)
                process.start()
                far_end.close()
                self._workers.append(_Worker(process, pipe))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def __enter__(self) -> Workers[Job, Answer]:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.pipe.close()
            if worker.job is not None:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
            worker.process.close()
        self._workers.clear()

    @property
    def num_idle(self) -> int:
        """How many more jobs can be given now."""
        if self._run:
            return int(not self._done)
        return sum(worker.job is None for worker in self._workers)

    @property
    def jobs(self) -> list[Job]:
        """The jobs under way."""
        return [worker.job for worker in self._workers if worker.job is not None]

    @property
    def count(self) -> int:
        """How many jobs can run at once."""
        return len(self._workers) or 1

    def give(self, job: Job, seat: int | None = None) -> None:
        """Starts `job` in an idle process (there must be one), or in process number `seat`, which must be idle."""
        if self._run:
            self._done.append((job, self._run(job)))
            return
        worker = next(worker for worker in self._workers if worker.job is None) if seat is None else self._workers[seat]
        assert worker.job is None, "this process is at work"
        worker.job = job
        try:
            worker.pipe.send(job)
        except BrokenPipeError:
            raise _death(worker, job) from None

    def answers(self, timeout_seconds: float) -> Iterator[tuple[Job, Answer]]:
        """Jobs that are done, with their answers; waits for the first one, `timeout_seconds` at most.

        Raises what the job raised when that is a LightwamError, and SimulatorError naming the job for any other error
        and for a process that died.
        """
        if self._run:
            done, self._done = self._done, []
            yield from done
            return
        busy = {worker.pipe: worker for worker in self._workers if worker.job is not None}
        for pipe in wait(list(busy), timeout_seconds):
            worker = busy[pipe]  # type: ignore[index]
            job, worker.job = worker.job, None
            assert job is not None
            try:
                answer, error, trace = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                raise _death(worker, job) from None
            if isinstance(error, LightwamError):
                raise error
            if error is not None:
                raise SimulatorError("a worker process failed", where=job, got=f"{error}\n{trace}") from error
            yield job, answer


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


def _death(worker: _Worker[Job], job: Job) -> SimulatorError:
    worker.process.join(5)
    code = worker.process.exitcode
    how = f"killed by signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"
    return SimulatorError(
        "a worker process died",
        where=job,
        got=how,
        next_step="run the same command again; fewer workers need less memory",
    )


def _serve(pipe: Connection, run: Callable[[Job], Answer]) -> None:
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            reply = (run(job), None, "")
        except Exception as error:
            # the parent raises it; an exception that cannot be pickled must not take its message with it
            known = error if isinstance(error, LightwamError) else RuntimeError(f"{type(error).__name__}: {error}")
            reply = (None, known, traceback.format_exc())  # type: ignore[assignment]
        try:
            pipe.send(reply)
        except BrokenPipeError:
            return
