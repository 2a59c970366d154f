"""The last observations of a drive, for policies that act on several (`n_obs_steps` of a server's greeting)."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np


class History:
    """Counts control steps and keeps the observations of the last `num_steps`, the present one included."""

    def __init__(self, num_steps: int) -> None:
        """`num_steps`: 0 for a policy that needs neither a step nor a history."""
        self.num_steps, self.step = num_steps, -1
        self.episode = secrets.randbits(31)
        """that of no other drive, of any robot that a server knows"""
        self._recent: deque[dict[str, Any]] = deque(maxlen=max(1, num_steps))

    def add(self, frames: Mapping[str, np.ndarray], state: np.ndarray) -> None:
        """Take the observation of a control step; pictures are copied, as a camera may use its buffer again."""
        self.step += 1
        if self.num_steps > 1:
            self._recent.append({"frames": {name: picture.copy() for name, picture in frames.items()}, "state": state})

    def fields(self, task: str) -> dict[str, Any]:
        """Return what an observation has in addition: episode, step and the history, oldest first.

        At the beginning the first observation stands for those before it.
        """
        if not self.num_steps:
            return {}
        recent = [{**each, "instruction": task} for each in self._recent]
        missing = self.num_steps - len(recent)
        history = (*missing * recent[:1], *recent[:-1])
        return {"episode": self.episode, "step": self.step, "history": history}
