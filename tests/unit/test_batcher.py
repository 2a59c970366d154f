"""The batcher answers everyone once, in order, together when they wait together, and nobody for another's mistake."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from lightwam.errors import WireError
from lightwam.serving.batcher import Batcher, Busy, Closing
from lightwam.serving.settings import Serving
from lightwam.types import Observation


def seen(number: float) -> Observation:
    return Observation({}, np.array([number], np.float32), "")


def chunks(observations: Sequence[Observation]) -> np.ndarray:
    """Every observation's own number, negative ones refused."""
    if any(one.state[0] < 0 for one in observations):
        raise WireError("negative", where="state")
    return np.stack([np.full((2, 1), one.state[0], np.float32) for one in observations])


def batching(test: Callable[[Batcher], Awaitable[Any]], act: Any = chunks, **settings: Any) -> Any:
    async def run() -> Any:
        batcher = Batcher(act, 7, Serving(**settings))
        batcher.open()
        try:
            return await asyncio.wait_for(test(batcher), 10)
        finally:
            await batcher.close()

    return asyncio.run(run())


def test_every_request_gets_its_answer() -> None:
    async def ask(batcher: Batcher) -> list[float]:
        batcher.num_clients = 20
        return [a.actions[0, 0] for a in await asyncio.gather(*(batcher.ask(seen(i)) for i in range(20)))]

    assert batching(ask) == list(range(20))


def test_waiting_requests_are_answered_in_one_pass() -> None:
    sizes: list[int] = []

    def act(observations: Sequence[Observation]) -> np.ndarray:
        sizes.append(len(observations))
        return chunks(observations)

    async def ask(batcher: Batcher) -> list[Any]:
        batcher.num_clients = 7
        return await asyncio.gather(*(batcher.ask(seen(i)) for i in range(7)))

    answers = batching(ask, act, max_batch=4)
    assert sizes == [4, 3]
    assert [answer.batch_size for answer in answers] == [4] * 4 + [3] * 3


def test_a_bad_request_fails_alone() -> None:
    async def ask(batcher: Batcher) -> list[Any]:
        batcher.num_clients = 3
        return await asyncio.gather(*(batcher.ask(seen(i)) for i in (1, -1, 2)), return_exceptions=True)

    first, bad, last = batching(ask)
    assert isinstance(bad, WireError)
    assert (first.actions[0, 0], last.actions[0, 0]) == (1, 2)


def test_a_single_client_does_not_wait_for_others() -> None:
    async def ask(batcher: Batcher) -> float:
        batcher.num_clients = 1
        begun = time.perf_counter()
        await batcher.ask(seen(1))
        return time.perf_counter() - begun

    assert batching(ask, window_ms=5000.0) < 2


def test_the_queue_is_bounded_and_the_loop_stays_free() -> None:
    gate = threading.Event()

    def slow(observations: Sequence[Observation]) -> np.ndarray:
        gate.wait(5)
        return chunks(observations)

    async def ask(batcher: Batcher) -> int:
        running = asyncio.create_task(batcher.ask(seen(0)))
        await asyncio.sleep(0.05)
        assert batcher.pass_seconds > 0
        waiting = [asyncio.create_task(batcher.ask(seen(i))) for i in (1, 2)]
        await asyncio.sleep(0.01)
        with pytest.raises(Busy, match="at most 2"):
            await batcher.ask(seen(3))
        waiting[1].cancel()
        await asyncio.sleep(0.01)
        assert len(batcher.waiting) == 1
        gate.set()
        return len(await asyncio.gather(running, waiting[0]))

    assert batching(ask, slow, max_queue=2) == 2


def test_closing_answers_waiting_requests_and_refuses_new_ones() -> None:
    async def ask(batcher: Batcher) -> Any:
        waiting = [asyncio.create_task(batcher.ask(seen(i))) for i in range(3)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(Closing):
            await batcher.ask(seen(9))
        await closing
        return await asyncio.gather(*waiting)

    assert [answer.actions[0, 0] for answer in batching(ask)] == [0, 1, 2]


def test_new_weights_answer_from_the_next_pass() -> None:
    async def ask(batcher: Batcher) -> list[float]:
        before = await batcher.ask(seen(1))
        batcher.swap(lambda observations: chunks(observations) + 8, 8)
        return [before.actions[0, 0], (await batcher.ask(seen(1))).actions[0, 0], batcher.step]

    assert batching(ask) == [1, 9, 8]
