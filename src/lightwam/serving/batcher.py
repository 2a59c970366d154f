"""The one place where requests wait and are answered: a bounded queue before a single thread that runs the policy.

The event loop never thinks, so pings and /healthz are answered while the model does. Requests that wait together are
answered together, in one pass of the model.
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
from lightwam.types import Observation

Act = Callable[[Sequence[Observation]], Float32[np.ndarray, "B H A"]]
"""what a policy's `act_batch` is"""


class Busy(LightwamError):
    """More requests wait than may; the client is to ask again."""


class Closing(LightwamError):
    """The server is about to stop and takes no more requests."""


class Answer(NamedTuple):
    """What came of one request."""

    actions: Float32[np.ndarray, "H A"]
    infer_ms: float
    """the pass of the model that it was part of"""
    waited_ms: float
    """from the request to the beginning of that pass"""
    batch_size: int
    """requests in that pass"""
    step: int
    """training step of the weights that answered"""


@dataclass(eq=False)
class _Request:
    observation: Observation
    answer: asyncio.Future[Answer]
    since: float


class Batcher:
    """Answers observations in the order they came, up to `max_batch` in one pass.

    `act` and `step` may be exchanged by `swap` between two passes: every request is answered by the weights before or
    by those after. `window_seconds` is how long the first of several clients waits for the others.
    """

    def __init__(
        self, act: Act, step: int, *, max_queue: int = 64, max_batch: int = 8, window_seconds: float = 0.002
    ) -> None:
        self.act, self.step = act, step
        self.max_queue, self.max_batch, self.window_seconds = max_queue, max_batch, window_seconds
        self.num_clients = 0
        """connections that may ask; the server keeps it. A lone client waits for nobody"""
        self._thinking_since: float | None = None
        self._waiting: deque[_Request] = deque()
        self._came = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def num_waiting(self) -> int:
        """Requests that no pass has begun for."""
        return len(self._waiting)

    @property
    def works(self) -> bool:
        """Whether requests are being answered."""
        return self._task is not None and not self._task.done()

    @property
    def thinking_seconds(self) -> float:
        """How long the pass that runs now has been running; 0 when none does."""
        return 0.0 if self._thinking_since is None else time.perf_counter() - self._thinking_since

    def open(self) -> None:
        """Begins to answer; to be called in the event loop that asks."""
        self._task = asyncio.create_task(self._answer_all())

    async def ask(self, observation: Observation) -> Answer:
        """The chunk for one observation.

        Raises Busy when too many wait, Closing after `close`, and what `act` raises for this observation alone: others
        of the same pass get their answers.
        """
        if self._closing:
            raise Closing("the server is stopping", next_step="connect again in a moment")
        if len(self._waiting) >= self.max_queue:
            raise Busy("too many requests are waiting", got=len(self._waiting), expected=f"at most {self.max_queue}",
                       next_step="ask again in a moment")  # fmt: skip
        request = _Request(observation, asyncio.get_running_loop().create_future(), time.perf_counter())
        self._waiting.append(request)
        self._came.set()
        try:
            return await request.answer
        finally:
            if request in self._waiting:  # its client is gone: nobody wants the answer
                self._waiting.remove(request)

    def swap(self, act: Act, step: int) -> None:
        """Other weights from the next pass on."""
        self.act, self.step = act, step

    async def close(self) -> None:
        """Answers what waits, then stops; no request is taken from now on."""
        self._closing = True
        self._came.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown(wait=False)

    async def _answer_all(self) -> None:
        while True:
            await self._came.wait()
            self._came.clear()
            while self._waiting:
                if len(self._waiting) < min(self.num_clients, self.max_batch) and not self._closing:
                    await asyncio.sleep(self.window_seconds)
                together = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.max_batch))]
                if together:
                    await self._answer(together)
            if self._closing:
                return

    async def _answer(self, together: list[_Request]) -> None:
        begun, act, step = time.perf_counter(), self.act, self.step
        self._thinking_since = begun
        loop = asyncio.get_running_loop()
        answers: Sequence[Float32[np.ndarray, "H A"] | BaseException]
        try:
            observations = [request.observation for request in together]
            answers = await loop.run_in_executor(self._thread, _act, act, observations)
        except BaseException as error:
            # nobody who asked is left waiting, whatever it was
            for request in together:
                if not request.answer.done():
                    request.answer.set_exception(RuntimeError(f"the pass was broken off: {error!r}"))
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        finally:
            self._thinking_since = None
        infer_ms = 1000 * (time.perf_counter() - begun)
        for request, answer in zip(together, answers, strict=True):
            if request.answer.done():  # cancelled: its client is gone
                continue
            if isinstance(answer, BaseException):
                request.answer.set_exception(answer)
            else:
                waited_ms = 1000 * (begun - request.since)
                request.answer.set_result(Answer(answer, infer_ms, waited_ms, len(together), step))


def _act(act: Act, observations: Sequence[Observation]) -> Sequence[Float32[np.ndarray, "H A"] | Exception]:
    """In the thread: the pass, or, when it fails, each observation alone, so that the guilty one alone fails."""
    try:
        answers = list(act(observations))
        if len(answers) != len(observations) or not all(np.isfinite(answer).all() for answer in answers):
            raise ValueError("the policy's answer is not a chunk of finite numbers for each observation")
        return answers
    except Exception as error:
        # the thread must outlive whatever a policy raises; every error goes to the client that caused it
        if len(observations) == 1:
            return [error]
        return [answer for one in observations for answer in _act(act, [one])]
