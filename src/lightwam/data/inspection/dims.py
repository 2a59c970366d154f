"""The kind of number in each dimension of an action, found in its values and names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64

from lightwam.data.inspection.tracks import Rows, Tracks

DimKind = Literal["target", "position", "motion", "gripper", "still"]
"""target: where the state's dimension of the same index is to go; position: an absolute number that the state does not
have at this index; motion: 0 means no motion; gripper: an end effector's opening, or another switch; still: constant"""
ActionKind = Literal["targets", "positions", "motions"]
GRIPPER = re.compile(r"grip|jaw|finger|claw|(?<![a-z])hand_(open|close)", re.IGNORECASE)
NEAR = 0.5
"""share of a target's variance that the state of the same row explains, at least"""
STILL_SPAN = 2e-3
"""a dimension is still if its range is within this share of the widest range of its feature, or of its own magnitude"""
FOLLOWS, ALIKE = 0.5, 0.9
"""least correlations: of a motion with the state's change, of numbers that differ in scale only"""
SMOOTH, SMOOTH_S = 0.2, 0.1
"""a number that changes within SMOOTH_S seconds by less than this share of its spread is a position"""
ENDS, TWO_VALUED = 0.1, 0.9
"""a switch is within ENDS of its range from an end in at least TWO_VALUED of the rows"""


@dataclass(frozen=True)
class Dim:
    """One dimension of the action."""

    index: int
    name: str
    kind: DimKind
    switch: bool = False
    """nearly always at one of its two ends"""


def action_dims(tracks: Tracks, kind: ActionKind | None = None) -> tuple[Dim, ...]:
    """Return the kind of every dimension of the action; `kind`: of those that are no gripper and move, if known."""
    state, action = tracks.state, tracks.action
    still = still_dims(action)
    dims = []
    for index, name in enumerate(tracks.action_names):
        values = action[:, index]
        switch = is_switch(values)
        if GRIPPER.search(name) or (switch and len(np.unique(values)) == 2):
            dims.append(Dim(index, name, "gripper", switch))
        elif index in still:
            dims.append(Dim(index, name, "still"))
        elif kind is not None:
            given: Mapping[ActionKind, DimKind] = {"targets": "target", "positions": "position", "motions": "motion"}
            dims.append(Dim(index, name, given[kind]))
        elif index < state.shape[1] and explained(values, state[:, index]) >= NEAR:
            dims.append(Dim(index, name, "target"))
        else:
            dims.append(Dim(index, name, "motion" if _is_motion(tracks, index, state, values) else "position"))
    return tuple(dims)


def action_kind(dims: Sequence[Dim]) -> ActionKind:
    """Return the kind of most dimensions, without grippers and still ones."""
    kinds = [dim.kind for dim in dims if dim.kind not in ("gripper", "still")]
    counts: dict[ActionKind, int] = {
        "targets": kinds.count("target"),
        "motions": kinds.count("motion"),
        "positions": kinds.count("position"),
    }
    return max(counts, key=lambda kind: counts[kind])


def explained(values: Float64[np.ndarray, " N"], by: Float64[np.ndarray, " N"]) -> float:
    """Return the share of the variance of `values` that `by` explains as it is, without a slope; below 0 if none."""
    variance = float(values.var())
    return 1 - float(((values - by) ** 2).mean()) / variance if variance > 0 else 0.0


def is_switch(values: Float64[np.ndarray, " N"]) -> bool:
    """Return whether the values are nearly always at one of two ends, and often enough at both."""
    low, high = values.min(), values.max()
    if high <= low:
        return False
    at = (values - low) / (high - low)
    ends = (at <= ENDS).mean(), (at >= 1 - ENDS).mean()
    return bool(sum(ends) >= TWO_VALUED and min(ends) >= 0.01)


def still_dims(values: Rows) -> frozenset[int]:
    """Return the dimensions that never move: constant, or with a range that is tiny beside the feature's others."""
    if not values.shape[1]:
        return frozenset()
    span, size = values.max(0) - values.min(0), np.abs(values).max(0)
    small = span <= STILL_SPAN * np.maximum(size, 1e-12)
    small |= span <= STILL_SPAN * span.max()
    return frozenset(np.flatnonzero(small).tolist())


def _is_motion(tracks: Tracks, index: int, state: Rows, values: Float64[np.ndarray, " N"]) -> bool:
    """Return whether 0 means no motion: the state's change follows the number, or it is spread around 0, not smooth."""
    near = max([explained(values, measured) for measured in state.T], default=0.0)
    alike = correlation(values, state[:, index]) ** 2 if index < state.shape[1] else 0.0
    pairs = [(action[:-1, index], np.diff(later, axis=0)) for action, later in tracks.shifted(0) if len(later) > 1]
    if state.shape[1] and pairs:
        said, moved = np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])
        follows = max(correlation(said, change) for change in moved.T)
        if follows >= FOLLOWS and follows**2 >= max(near, alike):
            return True
    if near >= NEAR or alike >= ALIKE**2:  # alike: the same course in another unit
        return False
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    if not low <= 0 <= high or abs(middle) > 0.25 * (high - low):
        return False
    step = max(1, round(SMOOTH_S * tracks.fps))
    changes = np.concatenate([track.action[step:, index] - track.action[:-step, index] for track in tracks.episodes])
    return bool(len(changes) == 0 or changes.std() >= SMOOTH * values.std())


def correlation(a: Float64[np.ndarray, " N"], b: Float64[np.ndarray, " N"]) -> float:
    """Return Pearson's correlation; 0 if one of them is constant."""
    spread = float(a.std() * b.std())
    return float(((a - a.mean()) * (b - b.mean())).mean()) / spread if spread > 1e-12 else 0.0
