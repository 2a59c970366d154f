"""Asking for chunks without waiting: a thread that asks a server, and mends the connection when it is lost."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lightwam.robot.client import ConnectionLost

PAUSE_SECONDS = 0.05
"""at least so long between two tries to connect, whatever the client's own patience"""


@dataclass(frozen=True)
class ChunkReceived:
    """A request was answered."""

    number: int
    actions: np.ndarray
    """(H, A), as the server sent it: unchecked"""
    seconds: float
    """from asking to the answer, on the asker's clock"""


@dataclass(frozen=True)
class Disconnected:
    """There is no connection, or not yet again; it is being mended."""

    error: ConnectionLost


@dataclass(frozen=True)
class Reconnected:
    """The connection is there again; its request was lost with the old one and has to be made anew."""

    number: int


@dataclass(frozen=True)
class RequestFailed:
    """The request cannot be answered, now or later."""

    number: int
    error: Exception


Event = ChunkReceived | Disconnected | Reconnected | RequestFailed


@runtime_checkable
class ChunkRequester(Protocol):
    """Takes requests without blocking and reports later. One request is open at a time, but for those given up."""

    def ask(self, number: int, observation: Any) -> None:
        """Begins a request; `number` comes back in its report."""
        ...

    def events(self) -> list[Event]:
        """What happened since the last call, in order."""
        ...

    def close(self) -> None:
        """Asks no more. What was reported and not collected stays to be collected."""
        ...


Act = Callable[[Any], np.ndarray]
"""an observation to a chunk (H, A), blocking: `Client.act`, `Policy.act`"""


def _nothing_to_mend() -> None:
    return


class BackgroundRequester:
    """An asker of one thread, which begins with the first request and ends with `close`.

    `act` blocks until the chunk is there; `connect` makes a lost connection anew (`Client.act`, `Client.connect`). The
    observation must not change after it was given: the thread reads it while the robot goes on.
    """

    def __init__(
        self, act: Act, connect: Callable[[], None] = _nothing_to_mend, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._act, self._connect, self._clock = act, connect, clock
        self._requests: queue.SimpleQueue[tuple[int, Any] | None] = queue.SimpleQueue()
        self._reports: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lightwam chunks", daemon=True)
        self._newest = -1

    def ask(self, number: int, observation: Any) -> None:
        """Begins a request; one that was given up and not begun is skipped."""
        if self._closing.is_set():
            raise ConnectionLost("the player is closed", where="Background", next_step="make another for more episodes")
        self._newest = number
        self._requests.put((number, observation))
        if not self._thread.ident:
            self._thread.start()

    def events(self) -> list[Event]:
        """What happened since the last call, in order."""
        found = []
        while not self._reports.empty():
            found.append(self._reports.get_nowait())
        return found

    def close(self, timeout_seconds: float = 1.0) -> None:
        """Ends the thread. One that waits for an answer ends with it, or when the client is closed."""
        self._closing.set()
        self._requests.put(None)
        if self._thread.ident:
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while (request := self._requests.get()) is not None and not self._closing.is_set():
            number, observation = request
            if number == self._newest:
                # whatever goes wrong in here is raised in the control loop
                try:
                    self._serve(number, observation)
                except Exception as error:
                    self._reports.put(RequestFailed(number, error))

    def _serve(self, number: int, observation: Any) -> None:
        began = self._clock()
        try:
            actions = self._act(observation)
        except ConnectionLost as error:
            self._reports.put(Disconnected(error))
        else:
            return self._reports.put(ChunkReceived(number, actions, self._clock() - began))
        while not self._closing.wait(PAUSE_SECONDS):
            try:
                self._connect()
            except ConnectionLost as error:
                self._reports.put(Disconnected(error))
            else:
                self._reports.put(Reconnected(number))
                return self._give_up()

    def _give_up(self) -> None:
        """What was asked meanwhile is as old as the trouble: it has to be asked anew, too."""
        while not self._requests.empty():
            if (request := self._requests.get_nowait()) is None:
                return self._requests.put(None)
            self._reports.put(Reconnected(request[0]))
