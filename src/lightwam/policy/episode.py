"""Single actions from chunks, for control loops that ask at every control step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

from lightwam.errors import ConfigError
from lightwam.policy.observations import ObservationLike

Act = Callable[[ObservationLike], Float32[np.ndarray, "H A"]]


class Episode:
    """One robot's episode: plays the first `replan` actions of a chunk, then asks `act` for the next chunk.

    It holds all state of an episode, so one policy serves many robots at a time with an Episode each. It blocks while
    the policy computes.
    """

    def __init__(self, act: Act, replan: int) -> None:
        """`act` is `Policy.act`, or any function from an observation to a chunk of at least `replan` actions."""
        if replan < 1:
            raise ConfigError("replan must be 1 or more", where="replan", got=replan)
        self.act, self.replan = act, replan
        self._left: list[Float32[np.ndarray, " A"]] = []

    @property
    def num_left(self) -> int:
        """Actions left of the chunk; only at 0 does the next `action` use its observation."""
        return len(self._left)

    def action(self, observation: ObservationLike) -> Float32[np.ndarray, " A"]:
        """Return the next action, in robot units. An error of `act` leaves the episode unchanged."""
        if not self._left:
            self._left = list(self.act(observation)[: self.replan])
        return self._left.pop(0)

    def reset(self) -> None:
        """Start a new episode: drop the rest of the chunk."""
        self._left = []
