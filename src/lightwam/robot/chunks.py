"""How the chunk that comes joins the one that is being played: a cross-fade, or an average of all that overlap.

A place is counted in steps that the robot was moved since the episode began. Actions are float32 arrays of A numbers in
robot units, chunks (H, A).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from lightwam.errors import ConfigError


@runtime_checkable
class Plan(Protocol):
    """The actions to come. Holds no clock: `take` goes on by one place."""

    @property
    def left(self) -> int:
        """How many actions there are from this place on."""
        ...

    def join(self, actions: np.ndarray) -> None:
        """Puts in a chunk (n, A) whose first action is for this place; n >= 1."""
        ...

    def take(self) -> np.ndarray:
        """The action (A,) of this place, `left` being at least 1."""
        ...

    def clear(self) -> None:
        """Nothing is to come any more."""
        ...


@runtime_checkable
class Blend(Protocol):
    """A setting of how chunks are joined."""

    def plan(self, switch_dims: tuple[int, ...]) -> Plan:
        """An empty plan; dimensions in `switch_dims` (a gripper that opens or closes) are the newest chunk's alone."""
        ...


@dataclass(frozen=True)
class Crossfade:
    """Over `steps` steps the weight goes in a straight line from the actions planned before to the new chunk's."""

    steps: int = 0
    """0: the new chunk at once"""

    def __post_init__(self) -> None:
        require(self.steps >= 0, "Crossfade.steps", self.steps, "0 or more")

    def plan(self, switch_dims: tuple[int, ...]) -> Plan:
        """An empty plan."""
        return _Faded(self.steps, switch_dims)


@dataclass(frozen=True)
class Ensemble:
    """Temporal ensembling: the mean of what all chunks say of a step, the i-th oldest weighing exp(-decay * i).

    ACT (arXiv 2304.13705) has decay 0.01. The oldest weighs most, a large decay makes new chunks slow to count.
    """

    decay: float = 0.01

    def __post_init__(self) -> None:
        require(self.decay >= 0, "Ensemble.decay", self.decay, "0 or more")

    def plan(self, switch_dims: tuple[int, ...]) -> Plan:
        """An empty plan."""
        return _Ensembled(self.decay, switch_dims)


def require(good: bool, where: str, got: object, expected: str) -> None:
    """ConfigError naming the setting, unless it is good."""
    if not good:
        raise ConfigError("a setting of the player is out of range", where=where, got=got, expected=expected)


class _Faded:
    """Joined when a chunk comes: a chunk that comes during a fade is faded into what the fade had planned."""

    def __init__(self, steps: int, switch_dims: tuple[int, ...]) -> None:
        self._steps, self._switch = steps, list(switch_dims)
        self._actions = np.empty((0, 0), np.float32)

    @property
    def left(self) -> int:
        return len(self._actions)

    def join(self, actions: np.ndarray) -> None:
        joined, count = actions.copy(), min(self._steps, self.left, len(actions))
        if count:
            share = (np.arange(1, count + 1, dtype=np.float32) / (self._steps + 1))[:, None]
            joined[:count] = share * actions[:count] + (1 - share) * self._actions[:count]
            joined[:, self._switch] = actions[:, self._switch]
        self._actions = joined

    def take(self) -> np.ndarray:
        first, self._actions = self._actions[0], self._actions[1:]
        return first

    def clear(self) -> None:
        self._actions = np.empty((0, 0), np.float32)


class _Ensembled:
    """What is left of every chunk, the oldest first."""

    def __init__(self, decay: float, switch_dims: tuple[int, ...]) -> None:
        self._decay, self._switch = decay, list(switch_dims)
        self._chunks: list[np.ndarray] = []

    @property
    def left(self) -> int:
        return max(map(len, self._chunks), default=0)

    def join(self, actions: np.ndarray) -> None:
        self._chunks.append(actions)

    def take(self) -> np.ndarray:
        said = np.stack([chunk[0] for chunk in self._chunks])
        weight = np.exp(-self._decay * np.arange(len(said), dtype=np.float64))
        action = (weight / weight.sum() @ said).astype(np.float32)
        action[self._switch] = said[-1, self._switch]
        self._chunks = [chunk[1:] for chunk in self._chunks if len(chunk) > 1]
        return action

    def clear(self) -> None:
        self._chunks = []
