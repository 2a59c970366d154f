"""Chunks played along recorded episodes by the robot's own player: what would have been commanded, and how smoothly.

The player asks as it does on a robot, on a clock that only counts control steps, and is answered with the chunk that
the policy predicts from the recorded observation. What it then commands is compared with what was recorded. Nothing
that is commanded changes what is observed next, so this measures errors and smoothness, and no drift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from lightwam.config.schema import CodecConfig
from lightwam.evaluation.rehearsal import jitter
from lightwam.robot.background import ChunkReceived, Event
from lightwam.robot.chunks import Blend, Crossfade, Ensemble
from lightwam.robot.player import ChunkPlayer, Play


@dataclass(frozen=True)
class Replayed:
    """An episode as it was commanded."""

    action: Float32[np.ndarray, "T A"]
    played: Bool[np.ndarray, " T"]
    """False where no chunk was left: the robot would have held"""
    border: Bool[np.ndarray, " T"]
    """whether a new chunk was received at this step, apart from the first one"""
    age: Int64[np.ndarray, " T"]
    """control steps since the observation of the newest chunk"""


@dataclass(frozen=True)
class Smoothness:
    """How a way of playing did on all episodes; the rows of errors are in robot units, by dimension of the action."""

    error: Float64[np.ndarray, " A"]
    """mean absolute difference to the recorded action, over the steps that were played and count"""
    jump: Float64[np.ndarray, " A"]
    """mean absolute change of the command from the step before a new chunk to the chunk's first"""
    recorded_jump: Float64[np.ndarray, " A"]
    """the recorded action's change at the same steps"""
    jitter: float
    """RMS of the second difference of the commands, relative to that of the recorded actions; switches left out"""
    held: float
    """share of steps in which the robot would have held"""
    age: float
    """mean control steps since the newest chunk's observation"""


class _Server:
    """Answers requests with an episode's chunks, each `latency` control steps after it was asked."""

    def __init__(self, chunks: Float32[np.ndarray, "T H A"], latency: int) -> None:
        self._chunks, self._latency = chunks, latency
        self._waiting: list[tuple[int, int, int]] = []  # due step, number, step of the observation
        self.now, self.observed = 0, 0
        self.answered = False

    def ask(self, number: int, observation: int) -> None:
        """Answer later with the chunk of the step `observation`."""
        due = observation + self._latency if observation else 0
        self._waiting.append((due, number, observation))

    def events(self) -> list[Event]:
        """Return the answers that are due."""
        due = [each for each in self._waiting if each[0] <= self.now]
        self._waiting = [each for each in self._waiting if each[0] > self.now]
        for _, _, self.observed in due:
            self.answered = True
        return [ChunkReceived(number, self._chunks[step], 0.0) for _, number, step in due]

    def close(self) -> None:
        """Drop the answers that are not due yet."""
        self._waiting = []


def replay(chunks: Float32[np.ndarray, "T H A"], play: Play, latency: int = 0) -> Replayed:
    """Play an episode whose observation at step t is answered with `chunks[t]`, `latency` control steps later.

    The first answer is there when the episode begins. Without a chunk the last action is held.
    """
    server = _Server(chunks, latency)
    player = ChunkPlayer(server, play, lambda last: chunks[0, 0] if last is None else last)
    actions, played, border, age = [], [], [], []
    for step in range(len(chunks)):
        server.now, server.answered, held = step, False, player.stats().held
        actions.append(player.action(lambda: server.now))
        played.append(player.stats().held == held)
        border.append(server.answered and step > 0)
        age.append(step - server.observed)
    player.close()
    return Replayed(np.stack(actions), np.array(played), np.array(border), np.array(age))


def smoothness(
    episodes: Sequence[Replayed],
    recorded: Sequence[Float32[np.ndarray, "_T A"]],
    switch_dims: tuple[int, ...],
    taught: Sequence[Bool[np.ndarray, " _T"]] | None = None,
) -> Smoothness:
    """Measure replayed episodes against the recorded actions of each.

    `taught`: at which steps the recorded action counts for the error; by default at all.
    """
    counted = [each.played for each in episodes]
    if taught is not None:
        counted = [played & steps for played, steps in zip(counted, taught, strict=True)]
    errors = [
        np.abs(each.action - action)[steps] for each, action, steps in zip(episodes, recorded, counted, strict=True)
    ]
    jumps, others = (
        [np.abs(np.diff(action, axis=0))[each.border[1:]] for each, action in zip(episodes, actions, strict=True)]
        for actions in ([each.action for each in episodes], recorded)
    )
    ages = np.concatenate([each.age[each.played] for each in episodes])
    return Smoothness(
        error=_mean(errors),
        jump=_mean(jumps),
        recorded_jump=_mean(others),
        jitter=_ratio([each.action for each in episodes], recorded, switch_dims),
        held=1 - len(ages) / sum(len(each.played) for each in episodes),
        age=float(ages.mean()) if len(ages) else 0.0,
    )


def ways(
    replans: Sequence[int], blend: int, decay: float, switch_dims: tuple[int, ...]
) -> Mapping[tuple[int, str], Play]:
    """Return the ways of playing that are compared, by replan and how chunks are joined."""
    joins: Mapping[str, Blend] = {
        "at once": Crossfade(),
        f"cross-fade {blend}": Crossfade(blend),
        f"ensemble {decay:g}": Ensemble(decay),
    }
    return {(replan, name): Play(replan, join, switch_dims) for replan in replans for name, join in joins.items()}


def switch_dims(config: CodecConfig, action_names: Sequence[str] = ()) -> tuple[int, ...]:
    """Return the dimensions of the action that must not be blended: what is no motion, or no relative target.

    If all are absolute targets: the grippers, by their names.
    """
    dims = range(len(action_names))
    if kept := config.delta_action_dims or config.relative_action_dims:
        return tuple(dim for dim in dims if dim not in kept)
    return tuple(dim for dim in dims if "gripper" in action_names[dim].lower())


def _mean(parts: Sequence[np.ndarray]) -> Float64[np.ndarray, " A"]:
    rows = np.concatenate(parts).astype(np.float64)
    return rows.mean(0) if len(rows) else np.zeros(rows.shape[1])


def _ratio(commanded: Sequence[np.ndarray], recorded: Sequence[np.ndarray], switch_dims: tuple[int, ...]) -> float:
    moved, real = (
        np.array([jitter(np.delete(each, switch_dims, 1)) for each in actions]) for actions in (commanded, recorded)
    )
    return float(np.sqrt(np.square(moved).sum() / max(float(np.square(real).sum()), 1e-12)))
