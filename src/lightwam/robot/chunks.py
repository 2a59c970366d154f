"""Blending of a new chunk into the one that is being played: a crossfade, or an average of all chunks that overlap.

Actions are float32 arrays of A numbers in robot units, chunks are (H, A).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightwam.errors import ConfigError


@dataclass(frozen=True)
class Crossfade:
    """A linear fade over `steps` steps from the planned actions to those of the new chunk."""

    steps: int = 0
    """0: switch to the new chunk at once"""

    def __post_init__(self) -> None:
        require(self.steps >= 0, "Crossfade.steps", self.steps, "0 or more")

    def plan(self, switch_dims: tuple[int, ...]) -> _CrossfadePlan:
        """Make an empty plan; `switch_dims` (a gripper) are taken from the newest chunk alone."""
        return _CrossfadePlan(self.steps, switch_dims)


@dataclass(frozen=True)
class Ensemble:
    """Temporal ensembling: the mean of all chunks' actions for a step, the i-th oldest weighted by exp(-decay * i).

    ACT (arXiv 2304.13705) uses decay 0.01. The oldest chunk weighs most: a large decay makes new chunks count late.
    """

    decay: float = 0.01

    def __post_init__(self) -> None:
        require(self.decay >= 0, "Ensemble.decay", self.decay, "0 or more")

    def plan(self, switch_dims: tuple[int, ...]) -> _EnsemblePlan:
        """Make an empty plan; `switch_dims` (a gripper) are taken from the newest chunk alone."""
        return _EnsemblePlan(self.decay, switch_dims)


def require(condition: bool, setting: str, got: object, expected: str) -> None:
    """Raise ConfigError unless the condition for a setting is true."""
    if not condition:
        raise ConfigError(f"{setting} must be {expected}", got=got)


class _CrossfadePlan:
    """One sequence of actions; a chunk that comes during a fade is faded into what the fade had planned."""

    def __init__(self, steps: int, switch_dims: tuple[int, ...]) -> None:
        self._steps, self._switch_dims = steps, list(switch_dims)
        self._actions = np.empty((0, 0), np.float32)

    @property
    def remaining(self) -> int:
        return len(self._actions)

    def add(self, actions: np.ndarray) -> None:
        blended, count = actions.copy(), min(self._steps, self.remaining, len(actions))
        if count:
            weight = (np.arange(1, count + 1, dtype=np.float32) / (self._steps + 1))[:, None]
            blended[:count] = weight * actions[:count] + (1 - weight) * self._actions[:count]
            blended[:, self._switch_dims] = actions[:, self._switch_dims]
        self._actions = blended

    def pop(self) -> np.ndarray:
        action, self._actions = self._actions[0], self._actions[1:]
        return action

    def clear(self) -> None:
        self._actions = np.empty((0, 0), np.float32)


class _EnsemblePlan:
    """The remaining actions of every chunk, the oldest chunk first."""

    def __init__(self, decay: float, switch_dims: tuple[int, ...]) -> None:
        self._decay, self._switch_dims = decay, list(switch_dims)
        self._chunks: list[np.ndarray] = []

    @property
    def remaining(self) -> int:
        return max(map(len, self._chunks), default=0)

    def add(self, actions: np.ndarray) -> None:
        self._chunks.append(actions)

    def pop(self) -> np.ndarray:
        candidates = np.stack([chunk[0] for chunk in self._chunks])
        weight = np.exp(-self._decay * np.arange(len(candidates), dtype=np.float64))
        action = (weight / weight.sum() @ candidates).astype(np.float32)
        action[self._switch_dims] = candidates[-1, self._switch_dims]
        self._chunks = [chunk[1:] for chunk in self._chunks if len(chunk) > 1]
        return action

    def clear(self) -> None:
        self._chunks = []


Blend = Crossfade | Ensemble
"""how a new chunk is combined with the actions planned before"""
Plan = _CrossfadePlan | _EnsemblePlan
"""the next actions: `add` a chunk whose first action is the next one, `pop` an action, `clear` them all"""
