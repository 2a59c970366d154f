"""A bounded queue of requests, and one thread that runs the policy.

The policy never runs on the event loop, so pings and /healthz are answered meanwhile. Requests that wait at the same
time are answered by one pass of the model.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from lightwam.errors import LightwamError
from lightwam.serving.settings import Serving
from lightwam.types import Observation

Act = Callable[[Sequence[Observation]], Float32[np.ndarray, "B H A"]]
"""a policy's `act_batch`"""


class Busy(LightwamError):
    """Too many requests are waiting; the client should ask again."""


class Closing(LightwamError):
    """The server is stopping and accepts no more requests."""


class Answer(NamedTuple):
    """The answer to a request."""

    actions: Float32[np.ndarray, "H A"]
    infer_ms: float
    """duration of the model's pass"""
    waited_ms: float
    """from the request to the beginning of the pass"""
    batch_size: int
    """requests in the pass"""


@dataclass(eq=False)
class _Request:
    observation: Observation
    answer: asyncio.Future[Answer]
    since: float


class Batcher:
    """Answers observations in their order, up to `settings.max_batch` in one pass."""

    def __init__(self, act: Act, step: int, settings: Serving) -> None:
        self.act, self.step, self.settings = act, step, settings
        self.num_clients = 0
        """open connections, counted by the server; a single client does not wait for others"""
        self._pass_began: float | None = None
        self.waiting: deque[_Request] = deque()
        """requests whose pass has not begun"""
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def is_running(self) -> bool:
        """Whether requests are answered."""
        return self._task is not None and not self._task.done()

    @property
    def pass_seconds(self) -> float:
        """How long the current pass has been running; 0 without one."""
        return 0.0 if self._pass_began is None else time.perf_counter() - self._pass_began

    def open(self) -> None:
        """Start answering; call it in the event loop that calls `ask`."""
        self._task = asyncio.create_task(self._answer_all())

    async def ask(self, observation: Observation) -> Answer:
        """Return the chunk for an observation.

        Busy if too many requests are waiting, Closing after `close`, and what `act` raises for this observation alone:
        the others of the same pass get their answers.
        """
        if self._closing:
            raise Closing("the server is stopping", next_step="connect again in a moment")
        if len(self.waiting) >= (limit := self.settings.max_queue):
            what, expected, step = "too many requests are waiting", f"at most {limit}", "ask again in a moment"
            raise Busy(what, got=len(self.waiting), expected=expected, next_step=step)
        request = _Request(observation, asyncio.get_running_loop().create_future(), time.perf_counter())
        self.waiting.append(request)
        self._wake.set()
        try:
            return await request.answer
        finally:
            if request in self.waiting:  # its client is gone
                self.waiting.remove(request)

    def swap(self, act: Act, step: int) -> None:
        """Use other weights from the next pass on."""
        self.act, self.step = act, step

    async def close(self) -> None:
        """Answer the waiting requests, then stop; new requests raise Closing."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown(wait=False)

    async def _answer_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self.waiting:
                most = self.settings.max_batch
                if len(self.waiting) < min(self.num_clients, most) and not self._closing:
                    await asyncio.sleep(self.settings.window_ms / 1000)
                batch = [self.waiting.popleft() for _ in range(min(len(self.waiting), most))]
                if batch:
                    await self._answer(batch)
            if self._closing:
                return

    async def _answer(self, batch: list[_Request]) -> None:
        self._pass_began = begun = time.perf_counter()
        observations, loop = [request.observation for request in batch], asyncio.get_running_loop()
        answers: Sequence[Float32[np.ndarray, "H A"] | Exception]
        try:
            answers = await loop.run_in_executor(self._thread, _act, self.act, observations)
        except BaseException as error:
            answers = [RuntimeError(f"the pass failed: {error!r}")] * len(batch)  # no client is left waiting
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self._pass_began = None
            infer_ms = 1000 * (time.perf_counter() - begun)
            for request, answer in zip(batch, answers, strict=True):
                if request.answer.done():  # cancelled, as its client is gone
                    continue
                if isinstance(answer, Exception):
                    request.answer.set_exception(answer)
                else:
                    waited_ms = 1000 * (begun - request.since)
                    request.answer.set_result(Answer(answer, infer_ms, waited_ms, len(batch)))


def _act(act: Act, observations: Sequence[Observation]) -> Sequence[Float32[np.ndarray, "H A"] | Exception]:
    """Run the pass in the thread; if it fails, run each observation alone, so that only the faulty one fails."""
    try:
        answers = list(act(observations))
        if len(answers) != len(observations) or not all(np.isfinite(answer).all() for answer in answers):
            raise ValueError("the policy must return a chunk of finite numbers for each observation")
        return answers
    except Exception as error:
        # sent to the client that caused it
        if len(observations) == 1:
            return [error]
        return [answer for observation in observations for answer in _act(act, [observation])]
