"""A control loop rehearsed in a simulator, with latency, on a clock that only counts control steps.

A control step takes 1 / rate seconds. The answer to a request made at a step arrives at the first step that begins at
least `latency` seconds later. While a player waits for it, the simulated robot holds still, as a real one would.
Everything is a function of policy, task, seed and settings: no clock is read, nothing sleeps.
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
    """How an episode went."""

    success: bool
    steps: int
    """control steps, until success or the limit"""
    idle: int
    """control steps in which the robot held still"""
    command_jitter: float
    """RMS of the second difference of the commanded actions, switches left out, in action units"""
    hand_jitter: float | None
    """RMS of the second difference of the hand's position, in the state's units; None if the state has no position"""
    jump: float
    """largest change of the command from one step to the next, switches left out"""


class SimulatedRobot:
    """A robot in an episode, and the server that it asks, both on a clock of control steps."""

    def __init__(self, simulator: Simulator, act: Act, hold: Hold, latency_steps: int, max_steps: int) -> None:
        """`simulator` has been reset."""
        self._simulator, self._act, self._hold = simulator, act, hold
        self._latency, self._max_steps = latency_steps, max_steps
        self._observation: Observation | None = None
        self._waiting: list[tuple[int, int, np.ndarray]] = []  # due step, number, chunk
        self.actions: list[np.ndarray] = []
        self.states = [simulator.observe().state]
        self.waited, self.success, self.over = 0, False, False

    def observe(self) -> Observation:
        """Return this step's observation."""
        if self._observation is None:
            self._observation = self._simulator.observe()
        return self._observation

    def step(self, action: Float32[np.ndarray, " A"]) -> None:
        """Execute one control step."""
        outcome = self._simulator.step(action)
        self.actions.append(action)
        self._observation = None
        self.states.append(self.observe().state)
        self.success = outcome.success
        self.over = outcome.success or outcome.ended or len(self.actions) >= self._max_steps

    def act(self, observation: Observation) -> Float32[np.ndarray, "H A"]:
        """Ask the server and wait: the robot holds still until the answer arrives or the episode is over."""
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
        due = [item for item in self._waiting if item[0] <= len(self.actions)]
        self._waiting = [item for item in self._waiting if item[0] > len(self.actions)]
        return [ChunkReceived(number, chunk, 0.0) for _, number, chunk in due]

    def close(self) -> None:
        """Drop the answers that are not due yet."""
        self._waiting = []


PlayerFactory = Callable[[SimulatedRobot, Hold], Player]
"""makes the player of an episode"""


def player_factories(
    replan: int, switch_dims: tuple[int, ...], blend: int, decay: float
) -> Mapping[str, PlayerFactory]:
    """Return the players that are compared, each the one before plus something; ensembling asks as often as it can."""

    def playing(play: Play) -> PlayerFactory:
        return lambda robot, hold: ChunkPlayer(robot, play, hold)

    return {
        "blocking": lambda robot, hold: BlockingPlayer(robot.act, replan, hold, switch_dims),
        "asynchronous": playing(Play(replan, switch_dims=switch_dims, compensate=False)),
        "+ compensation": playing(Play(replan, switch_dims=switch_dims)),
        f"+ blend {blend}": playing(Play(replan, Crossfade(blend), switch_dims)),
        f"+ ensemble {decay:g}": playing(Play(1, Ensemble(decay), switch_dims)),
    }


def latency_steps(latency_ms: float, rate_hz: float) -> int:
    """Return the control steps that pass before an answer arrives."""
    return math.ceil(latency_ms / 1000 * rate_hz - 1e-9)


def switches(action_dim: int, delta_action_dims: tuple[int, ...]) -> tuple[int, ...]:
    """Return the dimensions that are not motions; ConfigError if all are, as nothing is known to hold a robot still."""
    if not delta_action_dims:
        expected = "the dimensions in which 0 means standing still"
        raise ConfigError("rehearsed actions must be motions", where="codec.delta_action_dims", expected=expected)
    return tuple(dim for dim in range(action_dim) if dim not in delta_action_dims)


def rehearse(
    simulator: Simulator,
    seed: int,
    act: Act,
    make_player: PlayerFactory,
    *,
    switch_dims: tuple[int, ...],
    latency: int,
    max_steps: int,
) -> Rehearsed:
    """Run one episode with answers that are `latency` control steps late."""
    hold = hold_still(simulator.action_dim, switch_dims)
    simulator.reset(seed)
    robot = SimulatedRobot(simulator, act, hold, latency, max_steps)
    player = make_player(robot, hold)
    while not robot.over:
        action = player.action(robot.observe)
        if not robot.over:  # else the episode ended while the robot waited
            robot.step(action)
    stats = player.stats()
    player.close()
    commands = np.delete(np.stack(robot.actions), switch_dims, axis=1)
    hand = [dim for dim, name in enumerate(simulator.state_names) if is_position(name)]
    return Rehearsed(
        success=robot.success,
        steps=len(robot.actions),
        idle=stats.held + robot.waited,
        command_jitter=jitter(commands),
        hand_jitter=jitter(np.stack(robot.states)[:, hand]) if hand else None,
        jump=float(np.abs(np.diff(commands, axis=0)).max(initial=0.0)),
    )


def is_position(name: str) -> bool:
    """Tell whether a number of the state is a coordinate, x, y or z, of the hand or of a point that is moved."""
    what, _, axis = name.rpartition("_")
    return axis in ("x", "y", "z") and what in ("", "hand", "eef", "ee")


def jitter(path: np.ndarray) -> float:
    """Return the RMS of the second difference of (T, dims) along T; 0 for fewer than three rows."""
    second: Any = np.diff(np.asarray(path, np.float64), 2, axis=0)
    return float(np.sqrt(np.mean(np.square(second)))) if second.size else 0.0
