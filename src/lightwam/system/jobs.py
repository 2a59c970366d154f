"""The loop in which collecting, evaluating and watching hand jobs to a pool of workers."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic

from lightwam.errors import SimulatorError
from lightwam.system import workers
from lightwam.system.workers import Interrupt, Job, PoolFactory, WorkerDied, WorkerPool, interrupt_as_flag

MAX_DEATHS = 3
"""a job whose worker died this often is not tried again"""
WAIT_SECONDS = 0.2
"""how long to wait for answers before checking for Ctrl-C"""


@dataclass(frozen=True)
class Finished(Generic[Job]):
    """A job that is over."""

    job: Job
    answer: Any
    seconds: float
    """since its start, the last one if its worker died before"""


@dataclass
class JobRunner:
    """Jobs run in a pool, started again when a worker dies. Made by `job_runner`."""

    pool: WorkerPool[Any, Any]
    interrupt: Interrupt
    what: str
    """the command, for messages"""
    say: Callable[[str], None]
    deaths: Counter[str] = field(default_factory=Counter)
    """by the job's name"""

    def run(
        self,
        todo: list[Job],
        *,
        choose: Callable[[int, Collection[Job]], int] = lambda slot, running: 0,
        is_over: Callable[[Any], bool] = lambda answer: True,
        next_steps: Callable[[list[tuple[Job, Any]]], list[Any]] = lambda waiting: [],
    ) -> Iterator[Finished[Job]]:
        """Run all jobs of `todo`, which the caller may change meanwhile; yield each when it is over, in any order.

        `choose(slot, running jobs)` is the index in `todo` of the slot's next job. Where `is_over` denies an answer,
        the job goes on in its slot: `next_steps` turns all such jobs with their answers into the next message of each.
        A job whose worker dies begins again, at the front of `todo`. Raises SimulatorError when that happens too
        often, any error of the worker's, and KeyboardInterrupt after Ctrl-C if something is left to do.
        """
        running: dict[int, tuple[Job, float]] = {}

        def start() -> None:
            idle = [slot for slot in self.pool.idle if slot not in running]
            for slot in idle[: 0 if self.interrupt.pressed else len(todo)]:
                job = todo.pop(choose(slot, [other for other, _ in running.values()]))
                running[slot] = job, time.perf_counter()
                self.pool.submit(job, slot)

        while todo or running:
            start()
            waiting: dict[int, tuple[Job, Any]] = {}
            for slot, outcome in self.pool.answers(WAIT_SECONDS):
                job, began = running[slot]
                try:
                    answer = outcome.unwrap(job)
                except WorkerDied as death:
                    todo.insert(0, running.pop(slot)[0])
                    self._note(job, death)
                    continue
                if not is_over(answer):
                    waiting[slot] = job, answer
                    continue
                del running[slot]
                start()  # before the caller, who may take long
                yield Finished(job, answer, time.perf_counter() - began)
            if self.interrupt.pressed and (todo or running):
                raise KeyboardInterrupt
            start()  # before the others go on: resetting a simulator takes long
            if waiting:
                for slot, step in zip(waiting, next_steps(list(waiting.values())), strict=True):
                    self.pool.submit(step, slot)

    def _note(self, job: object, death: WorkerDied) -> None:
        self.deaths[str(job)] += 1
        count = self.deaths[str(job)]
        if count >= MAX_DEATHS:
            step = "run the same command again; fewer workers need less memory"
            raise SimulatorError(f"a worker process died, {count} times in a row", where=job, got=death, next_step=step)
        self.say(f"{self.what}: a worker died ({death}); {job} begins again, try {count + 1} of {MAX_DEATHS}")


@contextlib.contextmanager
def job_runner(
    what: str,
    work: Callable[[Any], Any],
    num_workers: int,
    pool_factory: PoolFactory | None = None,
    say: Callable[[str], None] = print,
) -> Iterator[JobRunner]:
    """Open a pool of `num_workers` with a copy of `work` each, in this machine unless a factory is given.

    Inside, Ctrl-C is left to `JobRunner.run`, which stops between two answers.
    """
    with interrupt_as_flag() as interrupt, (pool_factory or workers.Workers)(num_workers, work) as pool:
        yield JobRunner(pool, interrupt, what, say)
