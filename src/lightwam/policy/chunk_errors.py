"""Errors of a policy's chunks on recorded episodes, beside those of standing still and of repeating the last action.

Used while training (the averaged weights on held-out episodes) and by the open-loop evaluation. `windows_of` chooses
the moments, the caller predicts a chunk at each (`Windows.start` counts the dataset's control steps), and
`chunk_errors` measures. Everything is in robot units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from lightwam.config.schema import CodecConfig

MAX_WINDOWS = 256
"""moments of the held-out episodes at which training measures, at most"""


@dataclass(frozen=True)
class RecordedWindows:
    """Moments of recorded episodes and the actions that followed, in robot units."""

    start: Int64[np.ndarray, " W"]
    """control step of the dataset, never the first of an episode"""
    state: Float32[np.ndarray, "W P"]
    previous: Float32[np.ndarray, "W A"]
    """the action of the step before"""
    action: Float32[np.ndarray, "W H A"]
    """the recorded chunk; past the episode's end its last action"""
    valid: Bool[np.ndarray, "W H"]
    """whether the step counts: False past the episode's end"""


@dataclass(frozen=True)
class ChunkErrors:
    """Mean absolute errors by step of the chunk and dimension of the action, in robot units."""

    policy: Float64[np.ndarray, "H A"]
    hold: Float64[np.ndarray, "H A"]
    """of standing still where the robot is"""
    repeat: Float64[np.ndarray, "H A"]
    """of repeating the last action"""
    count: Int64[np.ndarray, " H"]
    """moments whose episode has that step; a step without any has the error 0"""

    def overall(self) -> dict[str, float]:
        """Return the mean over all steps and dimensions: policy, hold, repeat."""
        return {name: float(np.average(error.mean(1), weights=self.count)) for name, error in self._each()}

    def first_step(self) -> dict[str, float]:
        """Return the mean over dimensions of a chunk's first action: policy, hold, repeat."""
        return {name: float(error[0].mean()) for name, error in self._each()}

    def by_step(self) -> dict[str, Float64[np.ndarray, " H"]]:
        """Return the mean over dimensions: policy, hold, repeat."""
        return {name: error.mean(1) for name, error in self._each()}

    def by_dim(self) -> dict[str, Float64[np.ndarray, " A"]]:
        """Return the mean over steps: policy, hold, repeat."""
        return {name: np.average(error, 0, self.count) for name, error in self._each()}

    def _each(self) -> list[tuple[str, Float64[np.ndarray, "H A"]]]:
        return [("policy", self.policy), ("hold", self.hold), ("repeat", self.repeat)]


def windows_of(
    state: Float32[np.ndarray, "N P"],
    action: Float32[np.ndarray, "N A"],
    episode_start: Int64[np.ndarray, " episodes_and_1"],
    episodes: Sequence[int],
    horizon: int,
    most: int = MAX_WINDOWS,
    every: int = 1,
    taught: Bool[np.ndarray, " N"] | None = None,
) -> RecordedWindows:
    """Return at most `most` moments, evenly spaced over each `every`-th step of `episodes`.

    The arrays are a dataset's or a cache's, in robot units; `taught` says at which control steps the action counts, by
    default at all. An episode's first step is left out, as no action came before it. There are no moments if no episode
    has two steps.
    """
    taught = np.ones(len(action), np.bool_) if taught is None else taught
    spans = [(int(episode_start[episode]) + 1, int(episode_start[episode + 1])) for episode in episodes]
    pairs = [(step, end - 1) for begin, end in spans for step in range(begin, end, every) if taught[step]]
    if len(pairs) > most:
        pairs = [pairs[i] for i in np.linspace(0, len(pairs) - 1, most).round().astype(int)]
    steps, last = np.array(pairs, np.int64).reshape(-1, 2).T
    ahead = steps[:, None] + np.arange(horizon)
    return RecordedWindows(
        start=steps,
        state=np.asarray(state[steps], np.float32),
        previous=np.asarray(action[steps - 1], np.float32),
        action=np.asarray(action[np.minimum(ahead, last[:, None])], np.float32),
        valid=(ahead <= last[:, None]) & taught[np.minimum(ahead, last[:, None])],
    )


def state_dims(
    config: CodecConfig, state_names: Sequence[str] | None = None, action_names: Sequence[str] | None = None
) -> dict[int, int]:
    """Return action dim -> the dim of the state that it is a target for: of the same name, or relative to it."""
    named = {name: dim for dim, name in enumerate(state_names or ())}
    dims = {dim: named[name] for dim, name in enumerate(action_names or ()) if name in named}
    dims |= {dim: dim for dim in config.relative_action_dims}
    return {dim: at for dim, at in dims.items() if dim not in config.delta_action_dims}


def standing_still(
    windows: RecordedWindows, config: CodecConfig, targets: Mapping[int, int]
) -> Float32[np.ndarray, "W A"]:
    """Return the action that leaves the robot where it is at each moment.

    Motions are 0, targets (`state_dims`) the state, and anything else, such as a gripper's switch, as before.
    """
    action = windows.previous.copy()
    action[:, list(config.delta_action_dims)] = 0.0
    for dim, at in targets.items():
        if at < windows.state.shape[1]:  # a policy without a state has none to stand at
            action[:, dim] = windows.state[:, at]
    return action


def chunk_errors(
    predicted: Float[np.ndarray, "W H A"],
    windows: RecordedWindows,
    config: CodecConfig,
    targets: Mapping[int, int],
) -> ChunkErrors:
    """Measure chunks in robot units, predicted at the start of each window, against the recorded actions.

    `targets` are those of `state_dims`. `predicted` may be shorter than the windows' horizon: only its steps count.
    """
    num_steps = predicted.shape[1]
    recorded, valid = windows.action[:, :num_steps], windows.valid[:, :num_steps]
    count = valid.sum(0)

    def mean_error(chunks: Any) -> Float64[np.ndarray, "H A"]:
        errors = np.abs(chunks.astype(np.float64) - recorded) * valid[..., None]
        return errors.sum(0) / np.maximum(count, 1)[:, None]

    still, repeated = standing_still(windows, config, targets)[:, None], windows.previous[:, None]
    return ChunkErrors(mean_error(predicted), mean_error(still), mean_error(repeated), count)
