"""What looks wrong in a dataset's numbers: units, polarity, clocks, idle rows, dimensions that never move."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float64

from lightwam.data.inspection.dims import ALIKE, GRIPPER, Dim, correlation, still_dims
from lightwam.data.inspection.tracks import Rows, Tracks
from lightwam.errors import first_few

MAX_LEAD_S = 0.6
"""seconds each way in which the shift between action and state is searched"""
LATE_S = 0.25
"""a state that follows its action later than this is noted"""
IDLE_S = 0.5
"""a start or end that stands still for longer is noted"""
IDLE_SPEED = 0.05
"""a row stands still if every dimension moves by less than this share of a usual fast step (the 90th percentile)"""
FAR = 4.0
FULL_TURN = 2 * math.pi * 1.05
JOINT = re.compile(r"joint|waist|shoulder|elbow|wrist|forearm|pan|lift|flex|roll|qpos|\.pos$", re.IGNORECASE)


def lead_steps(tracks: Tracks, dims: Sequence[int]) -> int | None:
    """Return by how many rows the actions lead the states of the same dims, from the correlation of their changes.

    Negative if they come later than the states; None if the changes have no clear correlation.
    """
    most = max(1, round(MAX_LEAD_S * tracks.fps))
    scores: dict[int, float] = {}
    for steps in range(-most, most + 1):
        pairs = [
            (np.diff(action[:, dims], axis=0), np.diff(state[:, dims], axis=0))
            for action, state in tracks.shifted(steps)
            if len(action) > 2
        ]
        if pairs:
            said, moved = np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])
            rows = [correlation(said[:, dim], moved[:, dim]) for dim in range(len(dims))]
            scores[steps] = float(np.mean(rows))
    if not scores:
        return None
    best = max(scores, key=lambda steps: (scores[steps], -abs(steps)))
    return best if scores[best] >= 0.3 else None


def lead_problems(tracks: Tracks, dims: Sequence[Dim], lead: int | None) -> Iterator[str]:
    """Yield what is odd about the clocks of targets and states."""
    targets = [dim.index for dim in dims if dim.kind == "target"]
    if targets:
        said, state = tracks.action[:, targets], tracks.state[:, targets]
        span = np.maximum(said.max(0) - said.min(0), 1e-12)
        if float((np.abs(said - state) / span).max()) < 1e-6:
            yield "the action equals the state of the same row: such targets command no motion; record what was sent"
            return
    if lead is None:
        return
    late = f"{abs(lead)} rows ({abs(lead) / tracks.fps:.2f} s)"
    if lead < 0:
        yield f"the actions come {late} after the states that they cause: state and action were recorded out of step"
    elif lead > LATE_S * tracks.fps:
        yield f"the state follows the action {late} later: a slow robot, or two clocks"


def unit_word(names: Sequence[str], values: Rows) -> str:
    """Guess the unit of joint angles from their range: degrees, radians or -100..100; "" for other numbers.

    Only dimensions with a joint's name count: other numbers of the same size may be metres or pixels.
    """
    joints = [i for i, name in enumerate(names) if JOINT.search(name) and not GRIPPER.search(name)]
    if not joints:
        return ""
    size, span = np.abs(values[:, joints]).max(0), np.ptp(values[:, joints], axis=0)
    if size.max() > 1000 or span.max() < 1e-6:
        return ""
    if size.max() > 100.5:
        return "degrees"
    if size.max() > FULL_TURN:
        clipped = (size > 99.5) & (size < 100.05)
        return "-100..100" if clipped.any() else "degrees or -100..100"
    return "radians"


def action_units(tracks: Tracks, dims: Sequence[Dim]) -> tuple[str, ...]:
    """Return the unit of each dimension of the action; "" where it is not known, () if none is."""
    word = unit_word(tracks.action_names, tracks.action)
    known = word if word in ("degrees", "radians", "-100..100") else ""
    joints = [dim.kind in ("target", "position", "still") and JOINT.search(dim.name) is not None for dim in dims]
    return tuple(known if joint else "" for joint in joints) if known and any(joints) else ()


def scale_problems(tracks: Tracks, dims: Sequence[Dim]) -> Iterator[str]:
    """Yield where state and action have other units: the same course, but another scale, or the opposite sign."""
    state, action = tracks.state, tracks.action
    factors: dict[str, list[str]] = {}
    offsets: list[str] = []
    for dim in dims:
        if dim.index >= state.shape[1] or dim.kind in ("motion", "still"):
            continue
        said, measured = action[:, dim.index], state[:, dim.index]
        alike, factor = correlation(said, measured), float(said.std()) / max(float(measured.std()), 1e-12)
        if dim.kind == "gripper":
            if alike < -0.5:
                yield (
                    f"{dim.name}: a larger action goes with a smaller state (correlation {alike:.2f}): its polarity is "
                    "reversed; check which end is open before the robot moves"
                )
        elif alike < -ALIKE:
            factors.setdefault("the opposite sign", []).append(dim.name)
        elif alike > 0.99 and 0.9 < factor < 1.1 and abs(offset := float((said - measured).mean())) > np.ptp(measured):
            offsets.append(f"{dim.name} {offset:+.4g}")
        elif alike > ALIKE and not 1 / 3 < factor < 3:
            near = math.isclose(max(factor, 1 / factor), 180 / math.pi, rel_tol=0.1)
            words = "degrees in one and radians in the other" if near else f"{factor:.3g} times the scale"
            factors.setdefault(words, []).append(dim.name)
    for words, names in factors.items():
        yield f"state and action follow the same course with {words}: {first_few(names)}"
    if offsets:
        yield f"state and action follow the same course with other zero points: {first_few(offsets)}"


def still_problems(tracks: Tracks) -> Iterator[str]:
    """Yield dimensions that never move."""
    for feature, names, values in (
        ("state", tracks.state_names, tracks.state),
        ("action", tracks.action_names, tracks.action),
    ):
        still = still_dims(values)
        if still and len(still) < len(names):
            listed = first_few([f"{names[i]} ({values[:, i].mean():.4g})" for i in sorted(still)])
            yield f"{feature} dimensions that never move: {listed}"
        elif still:
            yield f"the {feature} never moves at all"


def idle_rows(tracks: Tracks, dims: Sequence[Dim]) -> list[tuple[int, int]]:
    """Return each episode's number of rows before the first and after the last motion."""
    motions = [dim.index for dim in dims if dim.kind == "motion"]
    others = [dim.index for dim in dims if dim.kind in ("target", "position", "gripper")]
    changes = [np.abs(np.diff(track.action[:, others], axis=0, prepend=track.action[:1, others])) for track in
               tracks.episodes]  # fmt: skip
    sizes = [np.abs(track.action[:, motions]) for track in tracks.episodes]
    usual = [_usual(np.concatenate(part)) for part in (changes, sizes)]
    rows = []
    for change, motion in zip(changes, sizes, strict=True):
        moving = _exceeds(change, usual[0]) | _exceeds(motion, usual[1])
        at = np.flatnonzero(moving)
        rows.append((int(at[0]), int(len(moving) - 1 - at[-1])) if at.size else (len(moving), 0))
    return rows


def _usual(values: Rows) -> Float64[np.ndarray, " D"]:
    """Return a usual fast step of each dimension: the 90th percentile of those that are not 0."""
    steps = [column[column > 0] for column in values.T]
    return np.array([np.quantile(column, 0.9) if column.size else np.inf for column in steps])


def _exceeds(values: Rows, usual: Float64[np.ndarray, " D"]) -> Bool[np.ndarray, " T"]:
    return np.asarray((values > IDLE_SPEED * usual).any(1))


def idle_problems(tracks: Tracks, dims: Sequence[Dim]) -> Iterator[str]:
    """Yield how long episodes stand still when they begin and end."""
    rows = np.array(idle_rows(tracks, dims))
    for column, where, step in ((0, "begin", "a policy may learn to wait"), (1, "end", "")):
        seconds = rows[:, column] / tracks.fps
        many = int((seconds > IDLE_S).sum())
        if many > 0.1 * len(seconds):
            why = f": {step}" if step else ""
            yield (
                f"{many} of {len(seconds)} episodes {where} with more than {IDLE_S} s without motion "
                f"(median {np.median(seconds):.1f} s){why}"
            )


def have_outliers(tracks: Tracks, dims: Sequence[Dim]) -> bool:
    """Return whether the range of a moving dimension is more than FAR times that of 98 % of its values."""
    moving = [dim.index for dim in dims if dim.kind not in ("gripper", "still")]
    state = tracks.state
    columns = [tracks.action[:, moving], state[:, sorted({*range(state.shape[1])} - still_dims(state))]]
    for values in columns:
        low, high = np.quantile(values, [0.01, 0.99], axis=0)
        usual, whole = high - low, np.ptp(values, axis=0)
        if ((whole > FAR * usual) & (usual > 2e-3 * whole)).any():
            return True
    return False


def gripper_words(tracks: Tracks, dims: Sequence[Dim]) -> str:
    """Describe the grippers: range, whether a switch, and the value that episodes begin with."""
    words = []
    for dim in dims:
        if dim.kind == "gripper":
            values = tracks.action[:, dim.index]
            first = float(np.median([track.action[0, dim.index] for track in tracks.episodes]))
            kind = "a switch" if dim.switch else "continuous"
            words.append(f"{dim.name} {kind}, {values.min():.4g} to {values.max():.4g}, episodes begin at {first:.4g}")
    return "; ".join(words)
