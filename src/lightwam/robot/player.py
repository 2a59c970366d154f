"""Chunks played at the robot's rate: the next one is asked for while the present one is executed.

The control loop calls `action` once a control step and is never kept waiting by the network. Two counts go with it:
the control steps since the episode began, and the places, which are those of them in which the robot was moved. Chunks
are laid out by place: while the robot holds, it stays where the chunk's observation saw it, so nothing of it passes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lightwam.errors import ConfigError, WireError
from lightwam.robot.background import (
    Act,
    ChunkReceived,
    ChunkRequester,
    Disconnected,
    Event,
    Reconnected,
    RequestFailed,
)
from lightwam.robot.chunks import Blend, Crossfade, Plan, require
from lightwam.robot.client import ConnectionLost

Observe = Callable[[], Any]
"""what the robot sees now; called only when a chunk is asked for"""
Hold = Callable[[np.ndarray | None], np.ndarray]
"""the last action (A,), or None in an episode that had none, to the action that lets the robot stand still"""
NUM_LATENCIES = 10_000
"""of so many answers, the newest, percentiles are taken"""

AT_ONCE = Crossfade(0)


@dataclass(frozen=True)
class Play:
    """How chunks are played."""

    replan: int = 4
    """a chunk is asked for every so many steps; sooner when what is left would not last until the answer"""
    blend: Blend = AT_ONCE
    """how a chunk joins the one before: `Crossfade(steps)` or `Ensemble(decay)`"""
    switch_dims: tuple[int, ...] = ()
    """dimensions of the action that are never mixed, as a gripper that opens or closes"""
    compensate: bool = True
    """the steps that were made while a chunk was on its way are dropped from its beginning"""
    max_age_steps: int = 100
    """no action is played more control steps than this after its chunk was asked for"""

    def __post_init__(self) -> None:
        require(self.replan >= 1, "Play.replan", self.replan, "1 or more")
        require(self.max_age_steps >= 1, "Play.max_age_steps", self.max_age_steps, "1 or more")
        require(min(self.switch_dims, default=0) >= 0, "Play.switch_dims", self.switch_dims, "0 or more each")


@dataclass(frozen=True)
class Stats:
    """What a player has done since it was made, all episodes."""

    steps: int
    """control steps: actions given"""
    held: int
    """of them those that came from `hold`"""
    requests: int
    """requests"""
    chunks: int
    """answers that were played"""
    late: int
    """answers that were not, as the episode was another, or nothing of them was still to come or young enough"""
    dropped: int
    """steps left out at the beginning of chunks, as they had passed"""
    connection_errors: int
    """times that the server was gone, counted at every failed try"""
    last_error: str
    """what was said when it was gone last; empty when it never was"""
    max_jump: float
    """largest change, in any dimension that is no switch, from one action to the first of a new chunk"""
    latency_p50_ms: float | None
    latency_p99_ms: float | None


@runtime_checkable
class Player(Protocol):
    """What a control loop calls; `ChunkPlayer` never blocks it, `BlockingPlayer` does."""

    def action(self, observe: Observe) -> np.ndarray:
        """The action (A,) of this control step."""
        ...

    def reset(self) -> None:
        """Begins a new episode."""
        ...

    def stats(self) -> Stats:
        """What happened so far."""
        ...

    def close(self) -> None:
        """Ends the player, not its client."""
        ...


def hold_still(action_dim: int, keep: tuple[int, ...] = ()) -> Hold:
    """A hold for actions that are motions: zeros, and what was last in the dimensions in `keep` (a gripper).

    Not for absolute targets: there zero is a place to go to.
    """

    def hold(last: np.ndarray | None) -> np.ndarray:
        still = np.zeros(action_dim, np.float32)
        if last is not None:
            still[list(keep)] = last[list(keep)]
        return still

    return hold


class _Record:
    """The actions that were given, and what there is to tell of them."""

    def __init__(self, hold: Hold, switch_dims: tuple[int, ...]) -> None:
        self._hold, self._switch = hold, switch_dims
        self.last: np.ndarray | None = None
        self.latencies_ms: deque[float] = deque(maxlen=NUM_LATENCIES)
        self.steps = self.held = self.requests = self.chunks = self.late = self.dropped = self.connection_errors = 0
        self.max_jump, self.last_error = 0.0, ""

    def loses(self, error: ConnectionLost) -> None:
        """Notes a failed try."""
        self.connection_errors, self.last_error = self.connection_errors + 1, str(error)

    def holds(self) -> np.ndarray:
        """Notes and returns a step of holding."""
        self.held += 1
        return self._gives(np.array(self._hold(self.last), np.float32))

    def plays(self, action: np.ndarray, *, joins: bool) -> np.ndarray:
        """Notes and returns an action, the first of a new chunk if it `joins`."""
        if joins and self.last is not None:
            change = np.delete(np.abs(action - self.last), self._switch)
            self.max_jump = max(self.max_jump, float(change.max(initial=0.0)))
        return self._gives(action)

    def _gives(self, action: np.ndarray) -> np.ndarray:
        self.steps += 1
        self.last = action
        return action.copy()

    def stats(self) -> Stats:
        """All of it."""
        times = np.array(self.latencies_ms)
        p50, p99 = (float(np.percentile(times, q)) if len(times) else None for q in (50, 99))
        return Stats(self.steps, self.held, self.requests, self.chunks, self.late, self.dropped, self.connection_errors,
                     self.last_error, self.max_jump, p50, p99)  # fmt: skip


class ChunkPlayer:
    """Plays chunks while the next is on its way; holds when it has none. One loop calls `action`, any thread `stats`.

    `requester` is `BackgroundRequester(client.act, client.connect)`. `action` raises each of its errors once, except
    lost connections: the player holds while the requester reconnects, then requests a chunk for a new observation.
    """

    def __init__(self, requester: ChunkRequester, play: Play, hold: Hold) -> None:
        self._requester, self._play = requester, play
        self._plan: Plan = play.blend.plan(play.switch_dims)
        self._record = _Record(hold, play.switch_dims)
        self._lock = threading.Lock()
        self._number = 0  # of the newest request
        self._latency_steps = 0  # of the newest answer
        self._width: int | None = None
        self._failures: list[Exception] = []  # to be raised, one a call
        self._begin()

    def _begin(self) -> None:
        self._plan.clear()
        self._record.last = None
        self._step = self._place = 0
        self._open: int | None = None  # the request that is open, by its number
        self._asked_step = 0
        self._asked_place: int | None = None  # None: nothing was asked yet, or in vain
        self._joins = False

    def reset(self) -> None:
        """Begins a new episode; answers to what was asked before do not reach it."""
        with self._lock:
            self._begin()

    def action(self, observe: Observe) -> np.ndarray:
        """The action (A,) of this control step; a copy. Takes no longer than `observe` and the mixing of a chunk."""
        with self._lock:
            self._collect()
            if self._due():
                self._ask(observe())
                self._collect()  # an asker without latency has the answer by now
            self._step += 1
            if not self._plan.left:
                return self._record.holds()
            self._place += 1
            joins, self._joins = self._joins, False
            return self._record.plays(self._plan.take(), joins=joins)

    def stats(self) -> Stats:
        """What happened so far, all episodes."""
        with self._lock:
            return self._record.stats()

    def close(self) -> None:
        """Ends asking; raises what went wrong in the background and was not told yet. A second call does nothing."""
        with self._lock:
            self._requester.close()
            self._collect()

    def __enter__(self) -> ChunkPlayer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _due(self) -> bool:
        if self._open is not None:
            return False
        if self._asked_place is None or not self._plan.left:
            return True
        passed = self._place - self._asked_place
        return passed >= self._play.replan or (passed > 0 and self._plan.left <= self._latency_steps)

    def _ask(self, observation: Any) -> None:
        self._number += 1
        self._open, self._asked_step, self._asked_place = self._number, self._step, self._place
        self._record.requests += 1
        self._requester.ask(self._number, observation)

    def _collect(self) -> None:
        self._failures += [failure for report in self._requester.events() if (failure := self._note(report))]
        if self._failures:
            raise self._failures.pop(0)

    def _note(self, report: Event) -> Exception | None:
        """Takes in a report; returns what has to be raised."""
        match report:
            case Disconnected(trouble):
                self._record.loses(trouble)
            case Reconnected(number):
                if number == self._open:
                    self._open = self._asked_place = None
            case RequestFailed(number, error):
                if number == self._open:
                    self._open = self._asked_place = None
                return error
            case ChunkReceived(number, actions, seconds):
                self._record.latencies_ms.append(1000 * seconds)
                if number != self._open:
                    self._record.late += 1
                    return None
                self._open = None
                try:
                    self._join(checked(actions, self._width, self._play.switch_dims))
                except (WireError, ConfigError) as error:
                    self._asked_place = None
                    return error
        return None

    def _join(self, actions: np.ndarray) -> None:
        assert self._asked_place is not None
        self._width = actions.shape[1]
        self._latency_steps = age = self._step - self._asked_step
        passed = self._place - self._asked_place if self._play.compensate else 0
        rest = actions[passed:][: max(0, self._play.max_age_steps + 1 - age)]
        if not len(rest):
            self._record.late += 1
            return
        self._record.chunks += 1
        self._record.dropped += passed
        self._plan.join(rest)
        self._joins = True


class BlockingPlayer:
    """The plain way, to compare with: asks when `replan` steps are executed, and the loop waits for the answer.

    The robot holds while the server is gone; `act` is tried again at every control step.
    """

    def __init__(
        self,
        act: Act,
        replan: int,
        hold: Hold,
        switch_dims: tuple[int, ...] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`switch_dims` do not count as jumps."""
        require(replan >= 1, "BlockingPlayer.replan", replan, "1 or more")
        self._act, self._replan, self._switch, self._clock = act, replan, switch_dims, clock
        self._record = _Record(hold, switch_dims)
        self._actions: list[np.ndarray] = []

    def reset(self) -> None:
        """Begins a new episode."""
        self._actions, self._record.last = [], None

    def action(self, observe: Observe) -> np.ndarray:
        """The action (A,) of this control step, after waiting for a chunk when there is none."""
        joins = not self._actions
        if joins:
            self._record.requests += 1
            began = self._clock()
            try:
                actions = checked(self._act(observe()), None, self._switch)
            except ConnectionLost as error:
                self._record.loses(error)
                return self._record.holds()
            self._record.latencies_ms.append(1000 * (self._clock() - began))
            self._record.chunks += 1
            self._actions = list(actions[: self._replan])
        return self._record.plays(self._actions.pop(0), joins=joins)

    def stats(self) -> Stats:
        """What happened so far, all episodes."""
        return self._record.stats()

    def close(self) -> None:
        """There is nothing to end."""


def checked(actions: Any, width: int | None, switch_dims: tuple[int, ...]) -> np.ndarray:
    """A server's chunk as float32 (H, A); WireError unless it is finite, H >= 1, and A is what it was (`width`).

    ConfigError when it has not the dimensions in `switch_dims`. A robot gets no number that nobody looked at.
    """
    array = np.asarray(actions)
    if (
        array.ndim != 2
        or 0 in array.shape
        or array.dtype.kind not in "fiu"
        or array.shape[1] != (width or array.shape[1])
    ):
        raise WireError("the server's answer is not a chunk of actions", where="actions",
                        got=f"{array.dtype} {array.shape}", expected=f"numbers (H, {width or 'A'})")  # fmt: skip
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused
        chunk = array.astype(np.float32)
    if not np.isfinite(chunk).all():
        raise WireError("the server's chunk holds what is no number", where="actions", got="NaN or infinity",
                        expected="finite numbers")  # fmt: skip
    if max(switch_dims, default=0) >= array.shape[1]:
        raise ConfigError("an action has no such dimension", where="Play.switch_dims", got=switch_dims,
                          expected=f"0..{array.shape[1] - 1}")  # fmt: skip
    return chunk
