"""Actions one at a time, out of chunks: for control loops that ask at every control step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from lightwam.errors import ConfigError
from lightwam.types import Observation

Act = Callable[[Observation | Mapping[str, Any]], Float32[np.ndarray, "H A"]]


class Episode:
    """One robot's episode: plays the first `replan` actions of a chunk, then asks `act` for the next chunk.

    All that an episode remembers is here, so one policy serves many robots at a time: an Episode each. It blocks while
    the policy thinks.
    """

    def __init__(self, act: Act, replan: int) -> None:
        """`act` is `Policy.act`, or whatever else answers an observation with a chunk of at least `replan` actions."""
        if replan < 1:
            raise ConfigError("an episode executes at least one action of a chunk", where="replan", got=replan,
                              expected="1 or more")  # fmt: skip
        self.act, self.replan = act, replan
        self._left: list[Float32[np.ndarray, " A"]] = []

    @property
    def num_left(self) -> int:
        """Actions left of the chunk; at 0 the next `action` reads its observation, else it may be an old one."""
        return len(self._left)

    def action(self, observation: Observation | Mapping[str, Any]) -> Float32[np.ndarray, " A"]:
        """The next action, in robot units; whatever `act` raises leaves the episode as it was."""
        if not self._left:
            self._left = list(self.act(observation)[: self.replan])
        return self._left.pop(0)

    def reset(self) -> None:
        """Begin anew: what is left of the chunk is forgotten."""
        self._left = []
