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

    def add(self, chunks: list[np.ndarray], new: np.ndarray, switch_dims: list[int]) -> list[np.ndarray]:
        """Return one chunk; a new one that comes during a fade is faded into what the fade had planned."""
        blended, old = new.copy(), chunks[0][: self.steps] if chunks else new[:0]
        count = min(len(old), len(new))
        weight = (np.arange(1, count + 1, dtype=np.float32) / (self.steps + 1))[:, None]
        blended[:count] = weight * new[:count] + (1 - weight) * old[:count]
        blended[:, switch_dims] = new[:, switch_dims]
        return [blended]

    def mean(self, actions: np.ndarray) -> np.ndarray:
        """Return the action (A,) of the only chunk (1, A)."""
        return actions[0]


@dataclass(frozen=True)
class Ensemble:
    """Temporal ensembling: the mean of all chunks' actions for a step, the i-th oldest weighted by exp(-decay * i).

    ACT (arXiv 2304.13705) uses decay 0.01. The oldest chunk weighs most: a large decay makes new chunks count late.
    """

    decay: float = 0.01

    def __post_init__(self) -> None:
        require(self.decay >= 0, "Ensemble.decay", self.decay, "0 or more")

    def add(self, chunks: list[np.ndarray], new: np.ndarray, switch_dims: list[int]) -> list[np.ndarray]:
        """Return all chunks, the oldest first."""
        return [*chunks, new]

    def mean(self, actions: np.ndarray) -> np.ndarray:
        """Return the action (A,) of the actions (N, A) that N chunks have for a step, the oldest chunk first."""
        weight = np.exp(-self.decay * np.arange(len(actions), dtype=np.float64))
        return (weight / weight.sum() @ actions).astype(np.float32)


Blend = Crossfade | Ensemble
"""how a new chunk is combined with the actions planned before"""


def require(condition: bool, setting: str, got: object, expected: str) -> None:
    """Raise ConfigError unless the condition for a setting is true."""
    if not condition:
        raise ConfigError(f"{setting} must be {expected}", got=got)


class Plan:
    """The next actions: what remains of the chunks, the oldest first; `switch_dims` are the newest chunk's alone."""

    def __init__(self, blend: Blend, switch_dims: tuple[int, ...]) -> None:
        self._blend, self._switch_dims = blend, list(switch_dims)
        self._chunks: list[np.ndarray] = []

    @property
    def remaining(self) -> int:
        """The number of actions."""
        return max(map(len, self._chunks), default=0)

    def add(self, actions: np.ndarray) -> None:
        """Add a chunk whose first action is the next one."""
        self._chunks = self._blend.add(self._chunks, actions, self._switch_dims)

    def pop(self) -> np.ndarray:
        """Remove and return the next action (A,)."""
        actions = np.stack([chunk[0] for chunk in self._chunks])
        action = self._blend.mean(actions)
        action[self._switch_dims] = actions[-1, self._switch_dims]
        self._chunks = [chunk[1:] for chunk in self._chunks if len(chunk) > 1]
        return action

    def clear(self) -> None:
        """Remove all actions."""
        self._chunks = []
