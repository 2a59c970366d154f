"""Action chunks played at the robot's rate: the next chunk is requested while the current one is executed.

The control loop calls `action` once a control step, and never waits for the network. Chunks are aligned by *moves*, the
control steps in which the robot moved: while it holds, it stays where the chunk's observation saw it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lightwam.errors import ConfigError, WireError
from lightwam.robot.background import Act, ChunkReceived, ChunkRequester, Disconnected, Event, RequestFailed
from lightwam.robot.chunks import Blend, Crossfade, Plan, require
from lightwam.robot.errors import ConnectionLost

Observe = Callable[[], Any]
"""returns an observation; called only when a chunk is requested"""
Hold = Callable[[np.ndarray | None], np.ndarray]
"""the last action (A,), or None at the beginning of an episode, to the action with which the robot stands still"""
NUM_LATENCIES = 10_000
"""percentiles are of this many answers, the newest"""


@dataclass(frozen=True)
class Play:
    """How chunks are played."""

    replan: int = 4
    """steps from one request to the next; fewer if the rest of the chunk would not last until the answer"""
    blend: Blend = field(default_factory=Crossfade)
    """how a new chunk replaces the old one: `Crossfade(steps)` or `Ensemble(decay)`"""
    switch_dims: tuple[int, ...] = ()
    """dimensions of the action that are never blended, such as a gripper that opens or closes"""
    compensate: bool = True
    """drop the first steps of a chunk, as many as were executed between request and answer"""
    max_age_steps: int = 100
    """an action is not played more than this many control steps after its chunk was requested"""

    def __post_init__(self) -> None:
        require(self.replan >= 1, "Play.replan", self.replan, "1 or more")
        require(self.max_age_steps >= 1, "Play.max_age_steps", self.max_age_steps, "1 or more")
        require(min(self.switch_dims, default=0) >= 0, "Play.switch_dims", self.switch_dims, "0 or more each")


@dataclass
class Stats:
    """Counts of a player over all its episodes."""

    steps: int = 0
    """control steps"""
    held: int = 0
    """control steps whose action came from `hold`"""
    requests: int = 0
    chunks: int = 0
    """answers that were played"""
    late: int = 0
    """answers that were not: of another episode, or with no action that was still to come and young enough"""
    dropped: int = 0
    """actions dropped from the beginning of chunks by `compensate`"""
    connection_errors: int = 0
    """failed tries to reach the server"""
    last_error: str = ""
    """the last of them; empty if there was none"""
    max_jump: float = 0.0
    """largest change, in any dimension but `switch_dims`, from one action to the first of a new chunk"""
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None


def hold_still(action_dim: int, keep: tuple[int, ...] = ()) -> Hold:
    """Make a hold for actions that are motions: zeros, and the last values of the dimensions in `keep` (a gripper).

    Not for absolute targets: there, zero is a target.
    """

    def hold(last: np.ndarray | None) -> np.ndarray:
        still = np.zeros(action_dim, np.float32)
        if last is not None:
            still[list(keep)] = last[list(keep)]
        return still

    return hold


class _Recorder:
    """Counts of actions, and the last action."""

    def __init__(self, hold: Hold, switch_dims: tuple[int, ...]) -> None:
        self._hold, self._switch_dims = hold, switch_dims
        self.last: np.ndarray | None = None
        self.counts, self.latencies_ms = Stats(), deque[float](maxlen=NUM_LATENCIES)

    def connection_error(self, error: ConnectionLost) -> None:
        self.counts.connection_errors += 1
        self.counts.last_error = str(error)

    def hold(self) -> np.ndarray:
        """Count a step of holding and return its action."""
        self.counts.held += 1
        return self._record(np.array(self._hold(self.last), np.float32))

    def play(self, action: np.ndarray, *, first: bool) -> np.ndarray:
        """Count and return an action; `first`: it is the first of a new chunk."""
        if first and self.last is not None:
            change = np.delete(np.abs(action - self.last), self._switch_dims)
            self.counts.max_jump = max(self.counts.max_jump, float(change.max(initial=0.0)))
        return self._record(action)

    def _record(self, action: np.ndarray) -> np.ndarray:
        self.counts.steps += 1
        self.last = action
        return action.copy()

    def stats(self) -> Stats:
        """Return a copy of the counts, with the latencies' percentiles."""
        if not self.latencies_ms:
            return replace(self.counts)
        p50, p99 = np.percentile(self.latencies_ms, (50, 99)).tolist()
        return replace(self.counts, latency_p50_ms=p50, latency_p99_ms=p99)


class ChunkPlayer:
    """Plays chunks while the next is on its way; holds when it has none. One loop calls `action`, any thread `stats`.

    `requester` is `BackgroundRequester(client.act, client.connect)`. `action` raises each of its errors once, except
    lost connections: the player holds while the requester reconnects, then requests a chunk for a new observation.
    """

    def __init__(self, requester: ChunkRequester, play: Play, hold: Hold) -> None:
        self._requester, self._play = requester, play
        self._plan = Plan(play.blend, play.switch_dims)
        self._recorder = _Recorder(hold, play.switch_dims)
        self._lock = threading.Lock()
        self._number = 0  # of the newest request
        self._latency_steps = 0  # of the newest answer
        self._action_dim: int | None = None
        self._errors: list[Exception] = []  # to be raised, one a call
        self._begin()

    def _begin(self) -> None:
        self._plan.clear()
        self._recorder.last = None
        self._step = self._move = 0
        self._open: int | None = None  # number of the open request
        self._request_step = 0
        self._request_move: int | None = None  # None: no request yet, or it failed
        self._is_first = False

    def reset(self) -> None:
        """Begin a new episode; answers to earlier requests are discarded."""
        with self._lock:
            self._begin()

    def action(self, observe: Observe) -> np.ndarray:
        """Return the action (A,) of this control step, a copy; takes only as long as `observe` and blending a chunk."""
        with self._lock:
            self._collect()
            if self._is_due():
                self._request(observe())
                self._collect()  # a requester without latency has the answer already
            self._step += 1
            if not self._plan.remaining:
                return self._recorder.hold()
            self._move += 1
            first, self._is_first = self._is_first, False
            return self._recorder.play(self._plan.pop(), first=first)

    def stats(self) -> Stats:
        """Return the counts of all episodes so far."""
        with self._lock:
            return self._recorder.stats()

    def close(self) -> None:
        """Stop requesting; raises an error from the background that was not raised yet. A second call does nothing."""
        with self._lock:
            self._requester.close()
            self._collect()

    def __enter__(self) -> ChunkPlayer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _is_due(self) -> bool:
        if self._open is not None:
            return False
        if self._request_move is None or not self._plan.remaining:
            return True
        moves = self._move - self._request_move
        return moves >= self._play.replan or (moves > 0 and self._plan.remaining <= self._latency_steps)

    def _request(self, observation: Any) -> None:
        self._number += 1
        self._open, self._request_step, self._request_move = self._number, self._step, self._move
        self._recorder.counts.requests += 1
        self._requester.ask(self._number, observation)

    def _collect(self) -> None:
        self._errors += [error for event in self._requester.events() if (error := self._process(event))]
        if self._errors:
            raise self._errors.pop(0)

    def _process(self, event: Event) -> Exception | None:
        """Apply an event; returns an error that must be raised."""
        match event:
            case Disconnected(connection_error):
                self._recorder.connection_error(connection_error)
            case RequestFailed(number, error):
                if number == self._open:
                    self._open = self._request_move = None
                return error
            case ChunkReceived(number, actions, seconds):
                self._recorder.latencies_ms.append(1000 * seconds)
                if number != self._open:
                    self._recorder.counts.late += 1
                    return None
                self._open = None
                try:
                    self._add(check_chunk(actions, self._action_dim, self._play.switch_dims))
                except (WireError, ConfigError) as error:
                    self._request_move = None
                    return error
        return None

    def _add(self, actions: np.ndarray) -> None:
        assert self._request_move is not None
        self._action_dim = actions.shape[1]
        self._latency_steps = age = self._step - self._request_step
        passed = self._move - self._request_move if self._play.compensate else 0
        rest = actions[passed:][: max(0, self._play.max_age_steps + 1 - age)]
        if not len(rest):
            self._recorder.counts.late += 1
            return
        self._recorder.counts.chunks += 1
        self._recorder.counts.dropped += passed
        self._plan.add(rest)
        self._is_first = True


class BlockingPlayer:
    """The simple way, for comparison: requests a chunk after `replan` steps, and the loop waits for the answer.

    The robot holds while the server is gone; `act` is tried again at every control step.
    """

    def __init__(self, act: Act, replan: int, hold: Hold, switch_dims: tuple[int, ...] = ()) -> None:
        """`switch_dims` do not count as jumps."""
        require(replan >= 1, "BlockingPlayer.replan", replan, "1 or more")
        self._act, self._replan, self._switch_dims = act, replan, switch_dims
        self._recorder = _Recorder(hold, switch_dims)
        self._actions: list[np.ndarray] = []

    def reset(self) -> None:
        """Begin a new episode."""
        self._actions, self._recorder.last = [], None

    def action(self, observe: Observe) -> np.ndarray:
        """Return the action (A,) of this control step, after waiting for a chunk if there is no action left."""
        first = not self._actions
        if first:
            self._recorder.counts.requests += 1
            began = time.perf_counter()
            try:
                actions = check_chunk(self._act(observe()), None, self._switch_dims)
            except ConnectionLost as error:
                self._recorder.connection_error(error)
                return self._recorder.hold()
            self._recorder.latencies_ms.append(1000 * (time.perf_counter() - began))
            self._recorder.counts.chunks += 1
            self._actions = list(actions[: self._replan])
        return self._recorder.play(self._actions.pop(0), first=first)

    def stats(self) -> Stats:
        """Return the counts of all episodes so far."""
        return self._recorder.stats()

    def close(self) -> None:
        """Do nothing: there is no thread to stop."""


Player = ChunkPlayer | BlockingPlayer
"""gives a control loop its actions"""


def check_chunk(actions: Any, action_dim: int | None, switch_dims: tuple[int, ...]) -> np.ndarray:
    """Return a server's chunk as float32 (H, A); WireError unless it is finite, H >= 1, and A `action_dim` if known.

    ConfigError if it lacks one of `switch_dims`. No number reaches a robot without this check.
    """
    array = np.asarray(actions)
    has_shape = array.ndim == 2 and 0 not in array.shape and action_dim in (None, array.shape[1])
    if not has_shape or array.dtype.kind not in "fiu":
        got, expected = f"{array.dtype} {array.shape}", f"numbers (H, {action_dim or 'A'})"
        raise WireError("the server's answer must be a chunk of actions", got=got, expected=expected)
    with np.errstate(over="ignore"):  # too large for float32: infinite, and refused
        chunk = array.astype(np.float32)
    if not np.isfinite(chunk).all():
        raise WireError("the server's actions must be finite", got="NaN or infinity")
    if max(switch_dims, default=0) >= array.shape[1]:
        raise ConfigError(f"Play.switch_dims must be 0 to {array.shape[1] - 1}, as the action", got=switch_dims)
    return chunk
