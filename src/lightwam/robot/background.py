"""Requests for chunks in the background: a thread that asks a server and reconnects when the connection is lost."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lightwam.robot.errors import ConnectionLost

RETRY_SECONDS = 0.05
"""the least time between two tries to connect; a client may wait longer"""


@dataclass(frozen=True)
class ChunkReceived:
    """The answer to a request."""

    number: int
    actions: np.ndarray
    """(H, A), as the server sent it, not checked yet"""
    seconds: float
    """from the request to the answer"""


@dataclass(frozen=True)
class Disconnected:
    """A failed try; the requester reconnects."""

    error: ConnectionLost


@dataclass(frozen=True)
class RequestFailed:
    """A request that gets no answer: make another one, with a new observation."""

    number: int
    error: Exception | None = None
    """None: it was lost with a connection, and there is a new connection"""


Event = ChunkReceived | Disconnected | RequestFailed


@runtime_checkable
class ChunkRequester(Protocol):
    """Makes requests without blocking. One request is open at a time, except for abandoned ones."""

    def ask(self, number: int, observation: Any) -> None:
        """Start a request; its events have the `number`."""

    def events(self) -> list[Event]:
        """Return the events since the last call, in order."""

    def close(self) -> None:
        """Stop making requests. Events that were not collected stay available."""


Act = Callable[[Any], np.ndarray]
"""an observation to a chunk (H, A), blocking: `Client.act`, `Policy.act`"""


class BackgroundRequester:
    """A `ChunkRequester` with one thread, started by the first request and ended by `close`.

    `act` blocks until it has a chunk (`Client.act`, `Policy.act`); `connect` reconnects (`Client.connect`). An
    observation must not change after `ask`, because the thread reads it while the robot moves.
    """

    def __init__(self, act: Act, connect: Callable[[], None] = lambda: None) -> None:
        self._act, self._connect = act, connect
        self._requests: queue.SimpleQueue[tuple[int, Any] | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lightwam chunks", daemon=True)
        self._newest = -1

    def ask(self, number: int, observation: Any) -> None:
        """Start a request; an older one that has not been sent yet is skipped."""
        if self._closing.is_set():
            raise ConnectionLost("the player is closed", next_step="make another one for more episodes")
        self._newest = number
        self._requests.put((number, observation))
        if not self._thread.ident:
            self._thread.start()

    def events(self) -> list[Event]:
        """Return the events since the last call, in order."""
        return [self._events.get_nowait() for _ in range(self._events.qsize())]

    def close(self, timeout_seconds: float = 1.0) -> None:
        """End the thread. If it waits for an answer, it ends with the answer, or when the client is closed."""
        self._closing.set()
        self._requests.put(None)
        if self._thread.ident:
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not self._closing.is_set() and (request := self._requests.get()):
            number, observation = request
            if number == self._newest:
                try:
                    self._serve(number, observation)
                except Exception as error:  # raised in the control loop
                    self._events.put(RequestFailed(number, error))

    def _serve(self, number: int, observation: Any) -> None:
        began = time.perf_counter()
        try:
            actions = self._act(observation)
        except ConnectionLost as error:
            self._events.put(Disconnected(error))
        else:
            return self._events.put(ChunkReceived(number, actions, time.perf_counter() - began))
        while not self._closing.wait(RETRY_SECONDS):
            try:
                self._connect()
            except ConnectionLost as error:
                self._events.put(Disconnected(error))
                continue
            self._events.put(RequestFailed(number))
            while not self._requests.empty():  # made meanwhile: their observations are as old as the disconnect
                if request := self._requests.get_nowait():
                    self._events.put(RequestFailed(request[0]))
            return
