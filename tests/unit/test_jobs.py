"""system/jobs.py: jobs are handed to idle slots, begun again when a worker dies, and stopped by Ctrl-C."""

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lightwam.errors import SimulatorError
from lightwam.system.jobs import JobRunner, job_runner
from lightwam.system.workers import Interrupt, Outcome, WorkerDied


class FakePool:
    """Slots that answer at once, all of them together; `answer` may raise WorkerDied."""

    def __init__(self, count: int, answer: Callable[[Any], Any]) -> None:
        self.count, self.answer = count, answer
        self.jobs: dict[int, Any] = {}
        self.log: list[tuple[int, Any]] = []

    def __enter__(self) -> "FakePool":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def idle(self) -> list[int]:
        return [slot for slot in range(self.count) if slot not in self.jobs]

    def submit(self, job: Any, slot: int) -> None:
        assert slot not in self.jobs
        self.jobs[slot] = job
        self.log.append((slot, job))

    def answers(self, timeout_seconds: float) -> Iterator[tuple[int, Outcome[Any]]]:
        for slot in list(self.jobs):
            job = self.jobs.pop(slot)
            try:
                yield slot, Outcome(self.answer(job))
            except WorkerDied as died:
                yield slot, Outcome(error=died)


def runner(pool: FakePool, said: list[str] | None = None) -> JobRunner:
    return JobRunner(pool, Interrupt(), "eval", (said if said is not None else []).append)


def test_every_job_is_run_once_and_comes_with_its_answer() -> None:
    todo = list(range(7))
    done = [(job.job, job.answer) for job in runner(FakePool(3, lambda job: 10 * job)).run(todo)]
    assert sorted(done) == [(i, 10 * i) for i in range(7)] and todo == []


def test_a_freed_slot_gets_its_next_job_at_once() -> None:
    """Else no worker would be busy while a demonstration is written."""
    pool = FakePool(1, str)
    for finished in runner(pool).run(list("abc")):
        assert finished.job == "c" or len(pool.jobs) == 1


def test_the_caller_may_add_and_remove_jobs() -> None:
    pool, todo, done = FakePool(1, str), ["a", "b", "c"], []
    for finished in runner(pool).run(todo):
        done.append(finished.job)
        if finished.job == "a":  # b has been begun
            todo[:] = ["d"]
    assert done == ["a", "b", "d"]


def test_a_job_keeps_its_slot_and_new_jobs_start_first() -> None:
    pool = FakePool(2, lambda job: job)
    jobs = runner(pool).run(
        [3, 1, 2],
        is_over=lambda left: left == 0,
        next_steps=lambda waiting: [left - 1 for _, left in waiting],
    )
    assert [finished.job for finished in jobs] == [1, 3, 2]
    assert [job for slot, job in pool.log if slot == 0] == [3, 2, 1, 0]
    assert [job for slot, job in pool.log if slot == 1] == [1, 0, 2, 1, 0]
    assert pool.log.index((1, 2)) < pool.log.index((0, 0))


def test_a_job_whose_worker_dies_begins_again_from_its_start() -> None:
    deaths = iter([1])

    def answer(left: int) -> int:
        if left == 1 and next(deaths, None):
            raise WorkerDied("exit status 3")
        return left

    pool, said = FakePool(1, answer), []
    done = list(
        runner(pool, said).run([2], is_over=lambda left: left == 0, next_steps=lambda waiting: [waiting[0][1] - 1])
    )
    assert [job for _, job in pool.log] == [2, 1, 2, 1, 0] and len(done) == 1
    assert said == ["eval: a worker died (exit status 3); 2 begins again, try 2 of 3"]


def test_the_third_death_of_a_job_is_an_error() -> None:
    def die(job: str) -> None:
        raise WorkerDied(f"exit status of {job}")

    said: list[str] = []
    with pytest.raises(SimulatorError, match=r"3 times in a row\s+where: (a|b)\s+got: exit status of \1\s+next: run"):
        list(runner(FakePool(2, die), said).run(["a", "b"]))
    assert sorted(said) == [
        f"eval: a worker died (exit status of {job}); {job} begins again, try {count} of 3"
        for job in "ab"
        for count in (2, 3)
    ]


def test_ctrl_c_stops_between_two_answers_if_something_is_left() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), job_runner("eval", str, 0) as jobs:
        for finished in jobs.run(list("abcd")):
            done.append(finished.job)
            if finished.job == "b":
                os.kill(os.getpid(), signal.SIGINT)
    assert done == ["a", "b"]
    with job_runner("eval", str, 0) as jobs:
        for _ in jobs.run(["a"]):
            os.kill(os.getpid(), signal.SIGINT)
