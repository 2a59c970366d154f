"""A control loop rehearsed in a simulator, with latency, on a clock that only counts control steps.

A control step takes 1 / rate seconds. The answer to what is asked at a step is there at the first step that begins
`latency` seconds later or more. Who waits for it lets the simulated robot hold meanwhile, as a real one would.
Everything is a function of policy, task, seed and settings: no wall clock is read, nothing sleeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from lightwam.errors import ConfigError
from lightwam.robot.background import ChunkReceived, Event
from lightwam.robot.chunks import Crossfade, Ensemble
from lightwam.robot.player import BlockingPlayer, ChunkPlayer, Hold, Play, Player, hold_still
from lightwam.sim.simulator import Simulator
from lightwam.types import Observation

Act = Callable[[Observation], Float32[np.ndarray, "H A"]]
"""`Policy.act`"""


@dataclass(frozen=True)
class Rehearsed:
    """An episode."""

    success: bool
    steps: int
    """control steps, until success or the limit"""
    idle: int
    """of them those in which the robot held"""
    command_jitter: float
    """RMS of the second difference of the commanded actions, switches left out, in action units"""
    hand_jitter: float | None
    """RMS of the second difference of the hand's position, in the state's units; None if the state has none"""
    jump: float
    """largest change of the command from one step to the next, switches left out"""


class Stage:
    """A simulated robot in an episode, and the server that it asks: both on a clock of control steps."""

    def __init__(self, simulator: Simulator, act: Act, hold: Hold, latency_steps: int, max_steps: int) -> None:
        """`simulator` has been reset."""
        self._simulator, self._act, self._hold = simulator, act, hold
        self._latency, self._max_steps = latency_steps, max_steps
        self._seen: Observation | None = None
        self._waiting: list[tuple[int, int, np.ndarray]] = []  # due step, number, chunk
        self.actions: list[np.ndarray] = []
        self.states = [simulator.observe().state]
        self.waited, self.success, self.over = 0, False, False

    def observe(self) -> Observation:
        """Return the observation of this step."""
        if self._seen is None:
            self._seen = self._simulator.observe()
        return self._seen

    def step(self, action: Float32[np.ndarray, " A"]) -> None:
        """Execute one control step."""
        outcome = self._simulator.step(action)
        self.actions.append(action)
        self._seen = None
        self.states.append(self.observe().state)
        self.success = outcome.success
        self.over = outcome.success or outcome.ended or len(self.actions) >= self._max_steps

    def act(self, observation: Observation) -> Float32[np.ndarray, "H A"]:
        """Ask the server and wait: the robot holds until the answer arrives or the episode is over."""
        chunk = self._act(observation)
        for _ in range(self._latency):
            if not self.over:
                self.step(np.asarray(self._hold(self.actions[-1] if self.actions else None), np.float32))
                self.waited += 1
        return chunk

    def ask(self, number: int, observation: Observation) -> None:
        """Ask the server; `events` has the answer when it is due."""
        self._waiting.append((len(self.actions) + self._latency, number, self._act(observation)))

    def events(self) -> list[Event]:
        """Return the answers that are due."""
        step, waiting = len(self.actions), self._waiting
        self._waiting = [answer for answer in waiting if answer[0] > step]
        return [ChunkReceived(number, chunk, 0.0) for due, number, chunk in waiting if due <= step]

    def close(self) -> None:
        """Drop the answers that are not due yet."""
        self._waiting = []


Way = Callable[[Stage, Hold], Player]
"""a way of playing chunks, ready for one episode"""


def ways(replan: int, switch_dims: tuple[int, ...], blend: int, decay: float) -> Mapping[str, Way]:
    """Return the ways that are compared: each adds to the one before; ensembling asks as often as it can."""

    def playing(play: Play) -> Way:
        return lambda stage, hold: ChunkPlayer(stage, play, hold)

    return {
        "blocking": lambda stage, hold: BlockingPlayer(stage.act, replan, hold, switch_dims),
        "asynchronous": playing(Play(replan, switch_dims=switch_dims, compensate=False)),
        "+ compensation": playing(Play(replan, switch_dims=switch_dims)),
        f"+ blend {blend}": playing(Play(replan, Crossfade(blend), switch_dims)),
        f"+ ensemble {decay:g}": playing(Play(1, Ensemble(decay), switch_dims)),
    }


def latency_steps(latency_ms: float, rate_hz: float) -> int:
    """Return the control steps that pass before an answer arrives."""
    return math.ceil(latency_ms / 1000 * rate_hz - 1e-9)


def switches(action_dim: int, delta_action_dims: tuple[int, ...]) -> tuple[int, ...]:
    """Return the dimensions that are not motions; ConfigError if none is a motion: how to hold is then unknown."""
    if not delta_action_dims:
        what, where = "a rehearsal must know how to hold: some actions must be motions", "codec.delta_action_dims"
        raise ConfigError(what, where=where, got="none", expected="the dimensions in which 0 is standing still")
    return tuple(dim for dim in range(action_dim) if dim not in delta_action_dims)


def rehearse(
    simulator: Simulator, seed: int, act: Act, way: Way, *, switch_dims: tuple[int, ...], latency: int, max_steps: int
) -> Rehearsed:
    """Run an episode with answers that are `latency` control steps late."""
    hold = hold_still(simulator.action_dim, switch_dims)
    simulator.reset(seed)
    stage = Stage(simulator, act, hold, latency, max_steps)
    player = way(stage, hold)
    while not stage.over:
        action = player.action(stage.observe)
        if not stage.over:  # else the episode ended while the robot waited
            stage.step(action)
    stats = player.stats()
    player.close()
    commands = np.delete(np.stack(stage.actions), switch_dims, axis=1)
    hand = [dim for dim, name in enumerate(simulator.state_names) if is_coordinate(name)]
    return Rehearsed(
        success=stage.success,
        steps=len(stage.actions),
        idle=stats.held + stage.waited,
        command_jitter=jitter(commands),
        hand_jitter=jitter(np.stack(stage.states)[:, hand]) if hand else None,
        jump=float(np.abs(np.diff(commands, axis=0)).max(initial=0.0)),
    )


def is_coordinate(name: str) -> bool:
    """Return whether a number of the state is a coordinate: x, y or z, of the hand or of what is moved."""
    what, _, axis = name.rpartition("_")
    return axis in ("x", "y", "z") and what in ("", "hand", "eef", "ee")


def jitter(path: np.ndarray) -> float:
    """Return the RMS of the second difference of (T, dims) along T; 0 for fewer than three rows."""
    second: Any = np.diff(np.asarray(path, np.float64), 2, axis=0)
    return float(np.sqrt(np.mean(np.square(second)))) if second.size else 0.0
