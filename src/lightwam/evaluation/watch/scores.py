"""What the watch is worth: its score beside others that need no world model, on the same episodes.

Every way gives a number a moment. An episode's is its largest: of an undisturbed one over all of it, of a disturbed one
from the disturbance on, so that a curve's false alarms are those of whole episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from lightwam.evaluation.statistics import bootstrap_roc_areas, percentile_interval, roc_area, roc_curve, wilson
from lightwam.evaluation.watch.surprise import (
    Calibration,
    ChangeModel,
    Moments,
    Predictions,
    conformal,
    out_of_fold,
    together,
    usual,
)

WATCH, WITHOUT = "watch", "without the world model"
PICTURES, STATE = "picture difference", "robot state"
WAYS = (WATCH, WITHOUT, PICTURES, STATE)
ANY = "any"
"""all disturbances as one kind"""
RIDGE = 1.0
SOON = 2
"""moments after a disturbance that count as soon"""


@dataclass(frozen=True)
class WatchedEpisode:
    """An episode as the looks at it left it."""

    task: str
    seed: int
    kind: str
    """of its disturbance, or "quiet" """
    look: int
    """the last one before the disturbance, also of its undisturbed twin; -1 in the calibration"""
    disturbed_at: int
    """control steps since the reset; -1 of an undisturbed one"""
    steps: int
    success: bool
    present: Float32[np.ndarray, "looks C h w"]
    expected: Float32[np.ndarray, "looks C h w"]
    states: Float32[np.ndarray, "looks P"]
    actions: Float32[np.ndarray, "looks replan A"]
    pixels: Float[np.ndarray, " moments"]
    """mean difference of a pixel between one look's canvas and the next, of 255"""

    def moments(self) -> Moments:
        """As `Predictions.moments`."""
        return Predictions(self.present, self.expected).moments()


Scores = list[Float[np.ndarray, " _moments"]]
"""a way's number of every moment, an array an episode"""


def measure(
    calibration: Calibration, quiet: Sequence[WatchedEpisode], tried: Sequence[WatchedEpisode]
) -> dict[str, Any]:
    """Curves, areas with their intervals, alarms and delays of every way and kind, as plain JSON values.

    `quiet` are the episodes of the calibration, `tried` all others. A disturbed episode that ended before anybody
    looked is left out and counted.
    """
    quiet = [one for one in quiet if len(one.present) > 1]
    tried = [one for one in tried if len(one.present) > 1]
    ways = {
        WATCH: (
            list(calibration.episodes[:, None]),
            [calibration.scores(Predictions(o.present, o.expected)) for o in tried],
        ),
        WITHOUT: _without(quiet, tried),
        PICTURES: ([one.pixels for one in quiet], [one.pixels for one in tried]),
        STATE: _state(quiet, tried),
    }
    executed = calibration.executed
    soon = SOON
    thresholds = {
        way: conformal(np.array([score.max() for score in of_quiet]), calibration.false_alarms)
        for way, (of_quiet, _) in ways.items()
    }
    trial = _Trial(tried, {way: scores for way, (_, scores) in ways.items()}, thresholds, executed, soon)
    kinds = [kind for kind in dict.fromkeys(one.kind for one in tried) if kind != "quiet"]
    undisturbed = sum(one.kind == "quiet" for one in tried)
    false = {way: trial.false_alarms(way) for way in WAYS}
    return {
        "ways": list(WAYS),
        "false_alarms": calibration.false_alarms,
        "calibration_episodes": calibration.num_episodes,
        "soon_steps": soon * executed,
        "thresholds": thresholds,
        "foreseen_share": _foreseen_share(calibration.yardstick, [one for one in tried if one.kind == "quiet"]),
        "quiet": {
            "episodes": undisturbed,
            "alarms": false,
            "interval_95": {way: wilson(count, undisturbed) for way, count in false.items()},
        },
        "kinds": {kind: trial.of_kind(kind) for kind in [*kinds, ANY]},
        "examples": [trial.example(kind) for kind in kinds],
    }


def _foreseen_share(stick: ChangeModel, quiet: Sequence[WatchedEpisode]) -> float:
    """The share of the squared change of undisturbed moments that the fitted expectation explains."""
    change, foreseen = together([one.moments() for one in quiet])
    rest = change - stick.offset - stick.gain * foreseen
    return 1 - float(np.square(rest).sum() / np.square(change).sum())


def _without(quiet: Sequence[WatchedEpisode], tried: Sequence[WatchedEpisode]) -> tuple[Scores, Scores]:
    """The watch's own two questions with the picture before in place of what the world model expects.

    What came is the change, in units of its spread; what was missed is that hardly anything changed.
    """

    def parts(train: Moments, test: Moments) -> Float[np.ndarray, "_moments 2"]:
        stick, none = ChangeModel.fit(train[0], 0 * train[1]), 0 * test[1]
        still = -np.log(np.square(test[0] / stick.spread).mean((1, 2, 3)) + 1e-6)
        return np.stack([stick.parts(test[0], none)[:, 0], still], axis=1)

    seen = [one.moments() for one in quiet]
    folds = out_of_fold(seen, parts)
    centre, scale = usual(np.concatenate(folds))
    every = together(seen)
    return (
        [((part - centre) / scale).max(1) for part in folds],
        [((parts(every, one.moments()) - centre) / scale).max(1) for one in tried],
    )


def _state(quiet: Sequence[WatchedEpisode], tried: Sequence[WatchedEpisode]) -> tuple[Scores, Scores]:
    """How far the robot is from where its actions usually bring it: the largest residual of a ridge regression."""

    def rows(one: WatchedEpisode) -> tuple[np.ndarray, np.ndarray]:
        return np.hstack([one.states[:-1], one.actions[:-1].sum(1)]), np.diff(one.states, axis=0)

    given, moved = (np.concatenate(columns) for columns in zip(*map(rows, quiet), strict=True))
    centre, scale = given.mean(0), given.std(0) + 1e-6

    def design(given: np.ndarray) -> np.ndarray:
        return np.hstack([np.ones((len(given), 1)), (given - centre) / scale])

    x = design(given)
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ moved)
    spread = (moved - x @ weights).std(0) + 1e-6

    def score(one: WatchedEpisode) -> np.ndarray:
        given, moved = rows(one)
        return np.asarray(np.abs((moved - design(given) @ weights) / spread).max(1))

    return [score(one) for one in quiet], [score(one) for one in tried]


@dataclass(frozen=True)
class _Trial:
    tried: Sequence[WatchedEpisode]
    scores: dict[str, Scores]
    thresholds: dict[str, float | None]
    executed: int
    soon: int
    """moments after the disturbance that count as soon"""

    def false_alarms(self, way: str) -> int:
        return sum(self._alarm(way, i, 0) is not None for i, one in enumerate(self.tried) if one.kind == "quiet")

    def of_kind(self, kind: str) -> dict[str, Any]:
        """Curves, areas, alarms and delays of one kind of disturbance."""
        mine = [i for i, one in enumerate(self.tried) if one.kind == kind or (kind == ANY and one.kind != "quiet")]
        seen = [i for i in mine if len(self.scores[WATCH][i]) > self.tried[i].look]
        quiet = [i for i, one in enumerate(self.tried) if one.kind == "quiet"]
        twins = [i for i in quiet if len(self.scores[WATCH][i]) > self.tried[i].look]
        whole = self._areas(seen, quiet, whole=True)
        soon = self._areas(seen, twins, whole=False)
        return {
            "episodes": len(seen),
            "ended_before": len(mine) - len(seen),
            "successes": sum(self.tried[i].success for i in seen),
            "ways": {way: whole["ways"][way] | {"soon": soon["ways"][way]} | self._alarms(way, seen) for way in WAYS},
            "gain_over": whole["gain_over"],
            "gain_over_soon": soon["gain_over"],
        }

    def _areas(self, disturbed: Sequence[int], quiet: Sequence[int], *, whole: bool) -> dict[str, Any]:
        pairs = {
            way: (self._largest(way, disturbed, whole), self._largest(way, quiet, whole, quiet=True)) for way in WAYS
        }
        draws = bootstrap_roc_areas(list(pairs.values()), (self._seeds(disturbed), self._seeds(quiet)))
        out: dict[str, Any] = {"ways": {}}
        for column, (way, (high, low)) in enumerate(pairs.items()):
            out["ways"][way] = {"area": roc_area(high, low), "interval_95": percentile_interval(draws[:, column])}
            if whole:
                out["ways"][way]["curve"] = [axis.round(5).tolist() for axis in roc_curve(high, low)]
        out["gain_over"] = {
            way: {
                "area": roc_area(*pairs[WATCH]) - roc_area(*pairs[way]),
                "interval_95": percentile_interval(draws[:, 0] - draws[:, column]),
            }
            for column, way in enumerate(WAYS)
            if way != WATCH
        }
        return out

    def _largest(
        self, way: str, episodes: Sequence[int], whole: bool, *, quiet: bool = False
    ) -> Float[np.ndarray, " episodes"]:
        rows = []
        for i in episodes:
            first = 0 if quiet and whole else self.tried[i].look
            rows.append(self.scores[way][i][first : None if whole else first + self.soon].max())
        return np.array(rows)

    def _seeds(self, episodes: Sequence[int]) -> Int[np.ndarray, " episodes"]:
        """A number for each task and seed."""
        order = {key: i for i, key in enumerate(sorted({(one.task, one.seed) for one in self.tried}))}
        return np.array([order[self.tried[i].task, self.tried[i].seed] for i in episodes])

    def _alarm(self, way: str, episode: int, first: int) -> int | None:
        """The first moment from `first` on whose score is above the threshold."""
        threshold = self.thresholds[way]
        assert threshold is not None
        above = np.flatnonzero(self.scores[way][episode][first:] > threshold)
        return int(above[0]) + first if len(above) else None

    def _alarms(self, way: str, seen: Sequence[int]) -> dict[str, Any]:
        found = [(i, self._alarm(way, i, self.tried[i].look)) for i in seen]
        delays = [(at + 1) * self.executed - self.tried[i].disturbed_at for i, at in found if at is not None]
        return {
            "alarms": len(delays),
            "alarms_95": wilson(len(delays), len(seen)),
            "delay_steps": float(np.median(delays)) if delays else None,
        }

    def example(self, kind: str) -> dict[str, Any]:
        """The episode whose score stands in the middle of its kind's; with every way's number of each moment."""
        seen = [i for i, one in enumerate(self.tried) if one.kind == kind and len(self.scores[WATCH][i]) > one.look]
        seen.sort(key=lambda i: (float(self.scores[WATCH][i][self.tried[i].look :].max()), i))
        middle = seen[len(seen) // 2]
        one = self.tried[middle]
        return {
            "kind": kind,
            "task": one.task,
            "seed": one.seed,
            "look": one.look,
            "disturbed_at": one.disturbed_at,
            "steps": one.steps,
            "success": one.success,
            "look_steps": [self.executed * (i + 1) for i in range(len(one.pixels))],
            "scores": [round(float(score), 4) for score in self.scores[WATCH][middle]],
            "threshold": self.thresholds[WATCH],
        }
