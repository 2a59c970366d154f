"""One connection, or one HTTP request, as the server sees it: which family it speaks, and its requests in order.

A connection is always being read, also while the model thinks for it: that is what answers pings in time and notices
that a robot has gone. So requests are answered by a task, one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lightwam.errors import LightwamError, PromptError, WireError
from lightwam.serving.batcher import Answer, Batcher, Busy, Closing
from lightwam.serving.logs import log_event
from lightwam.serving.metrics import Metrics
from lightwam.serving.refusals import RefusalLog
from lightwam.serving.sentences import CheckSentence
from lightwam.wire.robot_schema import RobotSchema, path_text

MAX_IN_FLIGHT = 4
"""requests of one connection; robots have one"""


class Refusal(NamedTuple):
    """An error as clients get it."""

    code: str
    """bad_message, busy, closing, unauthorized, too_many_clients or internal"""
    where: str
    message: str
    expected: str

    def fields(self) -> dict[str, str]:
        """As it travels."""
        return self._asdict()


def code_of(error: Exception) -> str:
    """Return an error's code for the client; "internal" when the policy is at fault."""
    codes: Mapping[type[Exception], str] = {
        Busy: "busy",
        Closing: "closing",
        WireError: "bad_message",
        PromptError: "bad_message",
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), "internal")


@dataclass
class Service:
    """What every connection of a server shares."""

    batcher: Batcher
    schemas: Sequence[RobotSchema]
    metrics: Metrics
    on_message: Callable[[Mapping[str, Any] | WireError, str], None] | None = None
    """sees every message, or why it could not be read, with its protocol, before it is answered"""
    check_sentence: CheckSentence | None = None
    """refuses a sentence that the policy's text encoder cannot read, before it is queued for a batch"""
    refusals: RefusalLog = field(default_factory=RefusalLog)
    """the log of refused messages"""

    def refusal(self, error: Exception, client: str, protocol: str) -> Refusal:
        """Return what a client may know about an error; for an internal one only its number in the log."""
        code = code_of(error)
        if code != "internal" and isinstance(error, LightwamError):
            if code == "bad_message" and self.on_message is None:  # a check has printed it already
                self.refusals.message(client, error, protocol)
            got = "" if error.got is None else f"; got {error.got}"
            step = f"; {error.next_step}" if error.next_step else ""
            where = "prompt" if isinstance(error, PromptError) else str(error.where or "")
            return Refusal(code, where, f"{error.what}{got}{step}", str(error.expected or ""))
        number = uuid.uuid4().hex[:12]
        log_event("the policy failed", 40, error=error, client=client, number=number)
        return Refusal(
            "internal", "the server", f"the policy failed; the server's log has it under number {number}", ""
        )

    def reject(self, error: WireError, protocol: str) -> None:
        """Counts a message that could not even be read."""
        self.metrics.requests.labels(protocol, "bad_message").inc()
        if self.on_message is not None:
            self.on_message(error, protocol)

    async def serve(self, message: Mapping[str, Any], protocol: str) -> tuple[Answer, Any, RobotSchema]:
        """Answer one message: the answer, its actions in the format of the message's family, and that family."""
        begun, outcome = time.perf_counter(), "internal"
        try:
            if self.on_message is not None:
                self.on_message(message, protocol)
            schema = matching_schema(self.schemas, message)
            if schema.is_encoded(message):
                observation = await asyncio.to_thread(schema.observation, message)
            else:
                observation = schema.observation(message)
            if self.check_sentence is not None:
                self.check_sentence(observation.instruction)
            answer = await self.batcher.ask(observation)
            actions, outcome = schema.actions(answer.actions), "ok"
            self.metrics.infer.observe(answer.infer_ms / 1000)
            self.metrics.together.observe(answer.batch_size)
            return answer, actions, schema
        except asyncio.CancelledError:
            outcome = "gone"
            raise
        except LightwamError as error:
            outcome = code_of(error)
            raise
        finally:
            self.metrics.requests.labels(protocol, outcome).inc()
            self.metrics.seconds.labels(protocol).observe(time.perf_counter() - begun)


def matching_schema(schemas: Sequence[RobotSchema], message: Mapping[str, Any]) -> RobotSchema:
    """The first family all of whose cameras are in the message; the only one, where there is one, unasked."""
    if len(schemas) == 1:
        return schemas[0]
    for schema in schemas:
        if schema.matches(message):
            return schema
    raise WireError(
        "a message of no known family of robots",
        where="the message's keys",
        got=", ".join(map(str, list(message)[:20])) or "none",
        expected="; or ".join(f"{one.name}: {', '.join(map(path_text, one.cameras.values()))}" for one in schemas),
        next_step="lightwam check client tells what a client sends; docs/serving_robots.md how to declare a new robot",
    )


class RequestQueue:
    """The requests of one connection, done one after the other beside the reading of it."""

    def __init__(self, do: Callable[[Any], Awaitable[None]]) -> None:
        self._do, self._tasks = do, set[asyncio.Task[None]]()
        self._turn = asyncio.Lock()

    def add(self, request: Any) -> None:
        """Begins a request after those before it; Busy when too many are in flight already."""
        if len(self._tasks) >= MAX_IN_FLIGHT:
            raise Busy("this connection has too many unanswered requests", got=len(self._tasks) + 1,
                       expected=f"at most {MAX_IN_FLIGHT}", next_step="wait for an answer")  # fmt: skip
        task = asyncio.create_task(self._in_turn(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _in_turn(self, request: Any) -> None:
        # a client that is gone cannot be told; whoever reads its connection notices
        with contextlib.suppress(ConnectionError):
            async with self._turn:
                await self._do(request)

    async def finish(self) -> None:
        """Waits for what is in flight."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def drop(self) -> None:
        """Forgets what is in flight: nobody waits for it."""
        for task in list(self._tasks):
            task.cancel()
        await self.finish()
