"""How much the watch detects: its score compared with others that need no world model, on the same episodes.

Every detector gives each moment a score. An episode's score is its largest: over all moments of an undisturbed episode,
and from the disturbance on in a disturbed one, so that a ROC curve's false alarms are those of complete episodes.
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
    concatenate,
    conformal,
    median_and_spread,
    out_of_fold,
)

WATCH, WITHOUT = "watch", "without the world model"
PICTURES, STATE = "picture difference", "robot state"
DETECTORS = (WATCH, WITHOUT, PICTURES, STATE)
UNDISTURBED = "quiet"
"""the kind of an episode without a disturbance, in files"""
ANY = "any"
"""all disturbances as one kind"""
RIDGE = 1.0
SOON = 2
"""moments after a disturbance that count as soon"""


@dataclass(frozen=True)
class WatchedEpisode:
    """The record of an episode, as in its file: arrays of the observations at which the policy acted."""

    task: str
    seed: int
    kind: str
    """of its disturbance, or UNDISTURBED"""
    look: int
    """index of the last observation before the disturbance, also of its undisturbed twin; -1 in the calibration"""
    disturbed_at: int
    """control steps since the reset; -1 for an undisturbed episode"""
    steps: int
    success: bool
    present: Float32[np.ndarray, "observations C h w"]
    expected: Float32[np.ndarray, "observations C h w"]
    states: Float32[np.ndarray, "observations P"]
    actions: Float32[np.ndarray, "observations replan A"]
    pixels: Float[np.ndarray, " moments"]
    """mean difference of a pixel between one observation's canvas and the next, of 255"""

    @property
    def predictions(self) -> Predictions:
        """The world model's part."""
        return Predictions(self.present, self.expected)

    @property
    def disturbed(self) -> bool:
        """Whether it has a disturbance."""
        return self.kind != UNDISTURBED


Scores = list[Float[np.ndarray, " _moments"]]
"""a detector's score of every moment, an array for each episode"""


def measure(
    calibration: Calibration, undisturbed: Sequence[WatchedEpisode], trials: Sequence[WatchedEpisode]
) -> dict[str, Any]:
    """Compute ROC curves, areas with their intervals, alarms and delays of every detector and kind, as JSON values.

    `undisturbed` are the episodes of the calibration, `trials` all others. A disturbed episode that ended before
    the next observation is left out and counted.
    """
    undisturbed = [episode for episode in undisturbed if len(episode.present) > 1]
    trials = [episode for episode in trials if len(episode.present) > 1]
    watch = list(calibration.episodes[:, None]), [calibration.scores(episode.predictions) for episode in trials]
    scores = {
        WATCH: watch,
        WITHOUT: _without_world_model(undisturbed, trials),
        PICTURES: ([episode.pixels for episode in undisturbed], [episode.pixels for episode in trials]),
        STATE: _robot_state(undisturbed, trials),
    }
    thresholds = {
        detector: conformal(np.array([score.max() for score in of_undisturbed]), calibration.false_alarms)
        for detector, (of_undisturbed, _) in scores.items()
    }
    test = _Test(trials, {name: of_trials for name, (_, of_trials) in scores.items()}, thresholds, calibration.executed)
    kinds = [kind for kind in dict.fromkeys(episode.kind for episode in trials) if kind != UNDISTURBED]
    negatives = [episode for episode in trials if not episode.disturbed]
    false_alarms = {detector: test.false_alarms(detector) for detector in DETECTORS}
    return {
        "ways": list(DETECTORS),
        "false_alarms": calibration.false_alarms,
        "calibration_episodes": calibration.num_episodes,
        "soon_steps": SOON * calibration.executed,
        "thresholds": thresholds,
        "foreseen_share": _predicted_share(calibration.change_model, negatives),
        "quiet": {
            "episodes": len(negatives),
            "alarms": false_alarms,
            "interval_95": {detector: wilson(count, len(negatives)) for detector, count in false_alarms.items()},
        },
        "kinds": {kind: test.of_kind(kind) for kind in [*kinds, ANY]},
        "examples": [test.example(kind) for kind in kinds],
    }


def _predicted_share(model: ChangeModel, episodes: Sequence[WatchedEpisode]) -> float:
    """Return the share of the squared change that the fitted model explains."""
    change, predicted = concatenate([episode.predictions.moments() for episode in episodes])
    rest = change - model.offset - model.gain * predicted
    return 1 - float(np.square(rest).sum() / np.square(change).sum())


def _without_world_model(
    undisturbed: Sequence[WatchedEpisode], trials: Sequence[WatchedEpisode]
) -> tuple[Scores, Scores]:
    """Score as the watch does, but expecting the picture before: any change is unexpected, and none is missed."""

    def parts(train: Moments, test: Moments) -> Float[np.ndarray, "_moments 2"]:
        model = ChangeModel.fit(train[0], 0 * train[1])
        still = -np.log(np.square(test[0] / model.spread).mean((1, 2, 3)) + 1e-6)
        return np.stack([model.parts(test[0], 0 * test[1])[:, 0], still], axis=1)

    moments = [episode.predictions.moments() for episode in undisturbed]
    folds = out_of_fold(moments, parts)
    centre, scale = median_and_spread(np.concatenate(folds))
    train = concatenate(moments)
    of_trials = [parts(train, episode.predictions.moments()) for episode in trials]
    of_undisturbed, of_trials = ([((part - centre) / scale).max(1) for part in each] for each in (folds, of_trials))
    return of_undisturbed, of_trials


def _robot_state(undisturbed: Sequence[WatchedEpisode], trials: Sequence[WatchedEpisode]) -> tuple[Scores, Scores]:
    """Score how far the robot is from where its actions usually bring it: the largest residual of ridge regression."""

    def rows(episode: WatchedEpisode) -> tuple[np.ndarray, np.ndarray]:
        inputs = np.hstack([episode.states[:-1], episode.actions[:-1].sum(1)])
        return inputs, np.diff(episode.states, axis=0)

    inputs, motions = (np.concatenate(columns) for columns in zip(*map(rows, undisturbed), strict=True))
    centre, scale = inputs.mean(0), inputs.std(0) + 1e-6

    def design(inputs: np.ndarray) -> np.ndarray:
        return np.hstack([np.ones((len(inputs), 1)), (inputs - centre) / scale])

    x = design(inputs)
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ motions)
    spread = (motions - x @ weights).std(0) + 1e-6

    def score(episode: WatchedEpisode) -> np.ndarray:
        inputs, motions = rows(episode)
        return np.asarray(np.abs((motions - design(inputs) @ weights) / spread).max(1))

    return [score(episode) for episode in undisturbed], [score(episode) for episode in trials]


@dataclass(frozen=True)
class _Test:
    trials: Sequence[WatchedEpisode]
    scores: dict[str, Scores]
    thresholds: dict[str, float | None]
    executed: int

    def false_alarms(self, detector: str) -> int:
        """Count the undisturbed episodes with an alarm."""
        return sum(self._alarm(detector, i, 0) is not None for i, one in enumerate(self.trials) if not one.disturbed)

    def of_kind(self, kind: str) -> dict[str, Any]:
        """Return curves, areas, alarms and delays of one kind of disturbance."""
        of_kind = [i for i, one in enumerate(self.trials) if one.kind == kind or (kind == ANY and one.disturbed)]
        seen = [i for i in of_kind if self._reaches_disturbance(i)]
        undisturbed = [i for i, one in enumerate(self.trials) if not one.disturbed]
        all_moments = self._areas(seen, undisturbed, soon=False)
        soon = self._areas(seen, [i for i in undisturbed if self._reaches_disturbance(i)], soon=True)
        return {
            "episodes": len(seen),
            "ended_before": len(of_kind) - len(seen),
            "successes": sum(self.trials[i].success for i in seen),
            "ways": {
                detector: all_moments["ways"][detector]
                | {"soon": soon["ways"][detector]}
                | self._alarms(detector, seen)
                for detector in DETECTORS
            },
            "gain_over": all_moments["gain_over"],
            "gain_over_soon": soon["gain_over"],
        }

    def _reaches_disturbance(self, episode: int) -> bool:
        return len(self.scores[WATCH][episode]) > self.trials[episode].look

    def _areas(self, disturbed: Sequence[int], undisturbed: Sequence[int], *, soon: bool) -> dict[str, Any]:
        pairs = {
            detector: (self._largest(detector, disturbed, soon), self._largest(detector, undisturbed, soon))
            for detector in DETECTORS
        }
        draws = bootstrap_roc_areas(list(pairs.values()), (self._seeds(disturbed), self._seeds(undisturbed)))
        out: dict[str, Any] = {"ways": {}, "gain_over": {}}
        for column, (detector, (high, low)) in enumerate(pairs.items()):
            area, interval = roc_area(high, low), percentile_interval(draws[:, column])
            out["ways"][detector] = {"area": area, "interval_95": interval}
            if not soon:
                out["ways"][detector]["curve"] = [axis.round(5).tolist() for axis in roc_curve(high, low)]
            if detector != WATCH:
                gain = roc_area(*pairs[WATCH]) - area
                interval = percentile_interval(draws[:, 0] - draws[:, column])
                out["gain_over"][detector] = {"area": gain, "interval_95": interval}
        return out

    def _largest(self, detector: str, episodes: Sequence[int], soon: bool) -> Float[np.ndarray, " episodes"]:
        """Return each episode's largest score; with `soon`, of the moments after the disturbance, its twin's too."""
        rows = []
        for i in episodes:
            first = self.trials[i].look if soon or self.trials[i].disturbed else 0
            rows.append(self.scores[detector][i][first : first + SOON if soon else None].max())
        return np.array(rows)

    def _seeds(self, episodes: Sequence[int]) -> Int[np.ndarray, " episodes"]:
        """Return a number for each task and seed."""
        order = {key: i for i, key in enumerate(sorted({(one.task, one.seed) for one in self.trials}))}
        return np.array([order[self.trials[i].task, self.trials[i].seed] for i in episodes])

    def _alarm(self, detector: str, episode: int, first: int) -> int | None:
        """Return the first moment from `first` on whose score is above the threshold."""
        threshold = self.thresholds[detector]
        assert threshold is not None
        above = np.flatnonzero(self.scores[detector][episode][first:] > threshold)
        return int(above[0]) + first if len(above) else None

    def _alarms(self, detector: str, seen: Sequence[int]) -> dict[str, Any]:
        alarms = [(i, self._alarm(detector, i, self.trials[i].look)) for i in seen]
        delays = [(at + 1) * self.executed - self.trials[i].disturbed_at for i, at in alarms if at is not None]
        return {
            "alarms": len(delays),
            "alarms_95": wilson(len(delays), len(seen)),
            "delay_steps": float(np.median(delays)) if delays else None,
        }

    def example(self, kind: str) -> dict[str, Any]:
        """Return the kind's episode with the median score, with the watch's score of every moment."""
        scores = self.scores[WATCH]
        seen = [i for i, one in enumerate(self.trials) if one.kind == kind and self._reaches_disturbance(i)]
        seen.sort(key=lambda i: (float(scores[i][self.trials[i].look :].max()), i))
        middle = seen[len(seen) // 2]
        episode = self.trials[middle]
        names = ("kind", "task", "seed", "look", "disturbed_at", "steps", "success")
        return {name: getattr(episode, name) for name in names} | {
            "look_steps": [self.executed * (i + 1) for i in range(len(episode.pixels))],
            "scores": [round(float(score), 4) for score in scores[middle]],
            "threshold": self.thresholds[WATCH],
        }
