"""The ranges in which a dataset's robot moves, and its largest steps: the limits when a policy drives it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from lightwam.data.lerobot.reader import LeRobotDataset


@dataclass(frozen=True)
class RobotRanges:
    """Ranges in robot units, a number for each dimension of state or action."""

    state_low: tuple[float, ...]
    state_high: tuple[float, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_step: tuple[float, ...]
    """largest change from one action to the next of the same episode; 0 if no episode has two"""

    @classmethod
    def of(cls, dataset: LeRobotDataset, episodes: Collection[int] | None = None) -> RobotRanges:
        """Measure `episodes` of an open dataset (None: all); DatasetError when its tables are broken."""
        number = np.repeat(np.arange(dataset.num_episodes), np.diff(dataset.episode_start))
        used = np.ones(len(number), np.bool_) if episodes is None else np.isin(number, [*episodes])
        state, action, number = dataset.vectors.state[used], dataset.vectors.action[used], number[used]
        steps = np.abs(np.diff(action, axis=0))[np.diff(number) == 0]  # not from one episode to the next
        rows = (state.min(0), state.max(0), action.min(0), action.max(0), steps.max(0, initial=0.0))
        return cls(*(tuple(row.tolist()) for row in rows))

    @classmethod
    def joined(
        cls, parts: Sequence[tuple[RobotRanges, float]], fps: float, motions: Collection[int] = ()
    ) -> RobotRanges:
        """Return the ranges of several datasets, each with its own rate, for a robot that is driven at `fps`.

        `motions`: the dimensions of the action that are motions a step, which are larger where steps are longer.
        """
        steps = [np.array(part.action_step) * rate / fps for part, rate in parts]
        is_motion = np.isin(np.arange(len(parts[0][0].action_low)), [*motions])
        scales = [np.where(is_motion, rate / fps, 1.0) for _, rate in parts]
        rows = (
            np.min([part.state_low for part, _ in parts], axis=0),
            np.max([part.state_high for part, _ in parts], axis=0),
            np.min([part.action_low * scale for (part, _), scale in zip(parts, scales, strict=True)], axis=0),
            np.max([part.action_high * scale for (part, _), scale in zip(parts, scales, strict=True)], axis=0),
            np.max(steps, axis=0),
        )
        return cls(*(tuple(row.tolist()) for row in rows))
