"""How far the camera's picture is from what the policy's world model predicted: a score, and its usual range.

present     pooled latents of the picture of one observation [C h w]
expected    what one Euler step of the video pass makes of noise there: the model's mean guess of the frames to come
            (flow matching from pure noise; arXiv 2606.08242, the future-video pass)
predicted   expected - present: the predicted change
change      present at the next observation - present: the change that happened

Two things are surprising. A change may be **unexpected**: with a gain and an offset for each channel and patch, fitted
to undisturbed episodes by least squares, r = change - (offset + gain predicted), and

    unexpected = mean over patches of log(0.1 + mean over channels of (r / spread)^2)

where spread is r's own root mean square in undisturbed episodes. The logarithm counts how many patches are odd rather
than how odd one is: a moving arm is odd in few. And an expected change may be **missed**, as when a camera hangs. With
e = offset + gain predicted, and all sums weighted by 1 / spread^2,

    missed = (|e|^2 - e . change) / sqrt(|e|^2 + 1)

which is the answer of a matched filter for "no change happened". The score is the larger of the two, each minus its
median in undisturbed moments and divided by its spread there. `calibrate` measures both on episodes in which the
policy acted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32

from lightwam.config.strict_json import from_dict
from lightwam.data.codec import Codec
from lightwam.errors import CheckpointError, ConfigError
from lightwam.policy import run_directory
from lightwam.policy.policy import Policy
from lightwam.types import Observation

FILE, FORMAT = "surprise.json", 1
MIN_ENERGY = 0.1
"""of a patch, in units of its usual energy: patches below it count as equally still"""
MIN_SPREAD = 0.05
"""times the median spread: a patch that never changes in the calibration may change by this much later"""
FOLDS = 5
MIN_EPISODES = 10


Moments = tuple[Float[np.ndarray, "_moments C h w"], Float[np.ndarray, "_moments C h w"]]
"""the changes that happened and the predicted ones"""


def concatenate(episodes: Sequence[Moments]) -> Moments:
    """Join the moments of all episodes."""
    changes, predicted = zip(*episodes, strict=True)
    return np.concatenate(changes), np.concatenate(predicted)


@dataclass(frozen=True)
class Predictions:
    """The latents of an episode's observations, in order, and the model's expectation at each."""

    present: Float32[np.ndarray, "observations C h w"]
    expected: Float32[np.ndarray, "observations C h w"]

    def moments(self) -> Moments:
        """Return the change that happened and the predicted one, for every observation but the first."""
        return self.present[1:] - self.present[:-1], self.expected[:-1] - self.present[:-1]


@dataclass(frozen=True)
class ChangeModel:
    """How much of a predicted change usually happens, and the usual error."""

    offset: Float[np.ndarray, "C h w"]
    gain: Float[np.ndarray, "C h w"]
    spread: Float[np.ndarray, "C h w"]

    @classmethod
    def fit(
        cls, change: Float[np.ndarray, "moments C h w"], predicted: Float[np.ndarray, "moments C h w"]
    ) -> ChangeModel:
        """Fit every channel and patch by least squares, with the gain kept within 0 and 1."""
        change, predicted = change.astype(np.float64), predicted.astype(np.float64)
        centred = predicted - predicted.mean(0)
        gain = (centred * (change - change.mean(0))).sum(0) / (np.square(centred).sum(0) + 1e-6)
        gain = gain.clip(0, 1)
        offset = change.mean(0) - gain * predicted.mean(0)
        spread = np.sqrt(np.square(change - offset - gain * predicted).mean(0))
        return cls(offset, gain, np.maximum(spread, MIN_SPREAD * np.median(spread) + 1e-6))

    def patches(
        self, change: Float[np.ndarray, "moments C h w"], predicted: Float[np.ndarray, "moments C h w"]
    ) -> Float[np.ndarray, "moments h w"]:
        """Return the energy of the unexpected change; 1 is usual."""
        return np.square((change - self.offset - self.gain * predicted) / self.spread).mean(1)

    def parts(
        self, change: Float[np.ndarray, "moments C h w"], predicted: Float[np.ndarray, "moments C h w"]
    ) -> Float[np.ndarray, "moments 2"]:
        """Return `unexpected` and `missed` of every moment."""
        unexpected = np.log(MIN_ENERGY + self.patches(change, predicted)).mean((1, 2))
        expected = (self.offset + self.gain * predicted) / self.spread
        energy = np.square(expected).sum((1, 2, 3))
        missed = energy - (expected * change / self.spread).sum((1, 2, 3))
        return np.stack([unexpected, missed / np.sqrt(energy + 1)], axis=1)


Grid = tuple[tuple[tuple[float, ...], ...], ...]


@dataclass(frozen=True)
class _ModelFile:
    offset: Grid
    gain: Grid
    spread: Grid


@dataclass(frozen=True)
class _CalibrationFile:
    """The content of surprise.json."""

    format: Literal[1]
    checkpoint_step: int
    executed: int
    false_alarms: float
    num_episodes: int
    tasks: Mapping[str, int]
    threshold: float
    centre: tuple[float, float]
    scale: tuple[float, float]
    moments: tuple[float, ...]
    episodes: tuple[float, ...]
    yardstick: _ModelFile


@dataclass(frozen=True)
class Calibration:
    """The score's usual range; saved as RUN/surprise.json."""

    checkpoint_step: int
    executed: int
    """control steps between two observations"""
    false_alarms: float
    """share of undisturbed episodes in which some score may reach the threshold"""
    num_episodes: int
    tasks: Mapping[str, int]
    """undisturbed episodes by task"""
    threshold: float
    centre: Float[np.ndarray, " 2"]
    scale: Float[np.ndarray, " 2"]
    moments: Float[np.ndarray, " moments"]
    """the scores of undisturbed moments, in rising order"""
    episodes: Float[np.ndarray, " episodes"]
    """the largest score of each undisturbed episode, in rising order"""
    change_model: ChangeModel

    def scores(self, predictions: Predictions) -> Float[np.ndarray, " moments"]:
        """Return the score of every look but the first."""
        return self.standardise(self.change_model.parts(*predictions.moments())).max(1, initial=-math.inf)

    def standardise(self, parts: Float[np.ndarray, "moments 2"]) -> Float[np.ndarray, "moments 2"]:
        """Subtract the usual median of both parts and divide by their usual spread."""
        return (parts - self.centre) / self.scale

    def p_value(self, score: float) -> float:
        """Return the share of undisturbed moments at least as surprising, counting this one: never 0."""
        above = len(self.moments) - int(np.searchsorted(self.moments, score, side="left"))
        return (1 + above) / (1 + len(self.moments))

    def write(self, run: Path) -> None:
        """Write RUN/surprise.json atomically; arrays have seven digits, float32's."""
        content = {"format": FORMAT} | vars(self) | {"yardstick": vars(self.change_model)}
        del content["change_model"]
        run_directory.write_json(run / FILE, _to_lists(content))

    @classmethod
    def read(cls, run: Path) -> Calibration:
        """Read what `write` wrote. Raises CheckpointError for a run without one or with a broken one."""
        path = run / FILE
        if not path.is_file():
            raise CheckpointError("the policy's watch is not calibrated", where=path, next_step=f"lightwam watch {run}")
        try:
            content = vars(from_dict(_CalibrationFile, run_directory.read_json(path), FILE))
            model = ChangeModel(**{name: np.array(grid) for name, grid in vars(content.pop("yardstick")).items()})
            arrays = {name: np.array(content[name]) for name in ("centre", "scale", "moments", "episodes")}
            if not all(np.isfinite(array).all() for array in (*arrays.values(), *vars(model).values())):
                raise ValueError("arrays must be finite")
            if model.gain.ndim != 3 or len({array.shape for array in vars(model).values()}) > 1:
                raise ValueError("the arrays of the change model must have one shape")
        except (ConfigError, ValueError) as error:
            hint = "delete it and calibrate again"
            raise CheckpointError("the watch's calibration is broken", where=path, got=error, next_step=hint) from error
        del content["format"]
        return cls(**(content | arrays), change_model=model)


def calibrate(
    episodes: Sequence[Predictions], tasks: Mapping[str, int], *, executed: int, step: int, false_alarms: float
) -> Calibration:
    """Measure the usual range of scores on undisturbed `episodes` in which the policy acted.

    The change model is fitted to all of them. The scores that are kept come from models fitted without the episode that
    they judge (`FOLDS` folds), else they would be too small for a new episode. The threshold is the smallest of the
    episodes' largest scores that, by the order statistics of exchangeable episodes, a new undisturbed episode exceeds
    with probability at most `false_alarms` (split conformal prediction; V. Vovk, A. Gammerman, G. Shafer, Algorithmic
    Learning in a Random World, 2005). Raises ConfigError when there are too few episodes for that.
    """
    moments = [predictions.moments() for predictions in episodes if len(predictions.present) > 1]
    require_enough(len(moments), false_alarms)
    parts = out_of_fold(moments, lambda train, test: ChangeModel.fit(*train).parts(*test))
    centre, scale = median_and_spread(np.concatenate(parts))
    scores = [((part - centre) / scale).max(1) for part in parts]
    largest = np.sort([score.max() for score in scores])
    threshold = conformal(largest, false_alarms)
    assert threshold is not None
    return Calibration(
        checkpoint_step=step,
        executed=executed,
        false_alarms=false_alarms,
        num_episodes=len(moments),
        tasks=tasks,
        threshold=threshold,
        centre=centre,
        scale=scale,
        moments=np.sort(np.concatenate(scores)),
        episodes=largest,
        change_model=ChangeModel.fit(*concatenate(moments)),
    )


def out_of_fold(
    episodes: Sequence[Moments], parts: Callable[[Moments, Moments], Float[np.ndarray, "_moments 2"]]
) -> list[Float[np.ndarray, "_moments 2"]]:
    """Return every episode's parts, by `parts(train, episode)` with the episodes of the other folds as `train`."""
    out: list[np.ndarray] = [np.empty((0, 2))] * len(episodes)
    for fold in range(FOLDS):
        train = concatenate([episode for i, episode in enumerate(episodes) if i % FOLDS != fold])
        for i in range(fold, len(episodes), FOLDS):
            out[i] = parts(train, episodes[i])
    return out


def median_and_spread(
    parts: Float[np.ndarray, "moments 2"],
) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, " 2"]]:
    """Return each part's median and median absolute deviation, scaled to a normal's standard deviation."""
    centre = np.median(parts, axis=0)
    return centre, 1.4826 * np.median(np.abs(parts - centre), axis=0) + 1e-9


def conformal(largest: Float[np.ndarray, " episodes"], false_alarms: float) -> float | None:
    """Return the threshold that a new episode's largest score exceeds with probability at most `false_alarms`.

    None when there are too few episodes for that.
    """
    rank = math.ceil((1 - false_alarms) * (len(largest) + 1))
    return float(np.sort(largest)[rank - 1]) if rank <= len(largest) else None


def require_enough(num_episodes: int, false_alarms: float) -> None:
    """Raise ConfigError when there are too few undisturbed episodes for this share of false alarms."""
    if num_episodes < MIN_EPISODES or conformal(np.zeros(num_episodes), false_alarms) is None:
        what = "too few undisturbed episodes with two observations for this share of false alarms"
        got, least = f"{num_episodes} episodes, {false_alarms:g} false alarms", math.ceil(1 / false_alarms) - 1
        expected, step = f"at least {max(MIN_EPISODES, least)} episodes", "more episodes (--undisturbed)"
        raise ConfigError(what, got=got, expected=expected, next_step=step)


@dataclass(frozen=True)
class Surprise:
    """How unusual a picture is."""

    score: float
    """0 is the median of undisturbed moments, 1 about a standard deviation above it"""
    p_value: float
    """share of undisturbed moments that were at least as surprising"""
    alarm: bool
    """the score is above the calibration's threshold, which its share of undisturbed episodes exceeds"""
    missed: bool
    """an expected change did not happen; else an unexpected one did"""
    camera: str
    """the camera with most of the surprise"""
    executed_as_calibrated: bool
    """False: observations are farther apart or nearer than in the calibration, so p_value and alarm are less certain"""

    def to_dict(self) -> dict[str, float | bool | str]:
        """Return plain values, for an answer on the wire."""
        return asdict(self)


class SurpriseWatch:
    """A policy with a calibration. It holds no episode's state: `episode` begins one, and a server keeps many."""

    def __init__(self, policy: Policy, calibration: Calibration) -> None:
        """Raise CheckpointError when the calibration belongs to another checkpoint or other latents."""
        rows, columns = policy.codec.config.canvas
        pooled = 2 * policy.latents.spatial_stride
        shape = policy.latents.channels, rows // pooled, columns // pooled
        calibrated, needed = (calibration.checkpoint_step, calibration.change_model.gain.shape), (policy.step, shape)
        if calibrated != needed:
            what, step = "the watch was calibrated with another policy", "remove RUN/watch, then lightwam watch RUN"
            got, expected = (f"step {number}, latents {latents}" for number, latents in (calibrated, needed))
            raise CheckpointError(what, where=FILE, got=got, expected=expected, next_step=step)
        self.policy, self.calibration = policy, calibration

    @classmethod
    def load(cls, run: Path | str, policy: Policy) -> SurpriseWatch:
        """Load the calibration of a run that `lightwam watch` made; `policy` is the run's, without the engine."""
        return cls(policy, Calibration.read(Path(run)))

    def episode(self) -> EpisodeWatch:
        """Begin an episode of one robot."""
        return EpisodeWatch(self)


class EpisodeWatch:
    """The watch of one robot's episode: `update` it with every observation that the policy acts on."""

    def __init__(self, watch: SurpriseWatch) -> None:
        self._watch = watch
        self._before: Predictions | None = None

    def update(self, observation: Observation, executed: int) -> Surprise | None:
        """Return how surprising the picture is; None for the first, or when nothing was executed since the last.

        `executed` counts control steps since the previous observation. Costs one step of the video pass, whose result
        also serves the next call. Raises WireError as `Policy.act` does.
        """
        now = Predictions(*self._watch.policy.predict_next([observation]))
        before, self._before = self._before, now
        if before is None or executed < 1:
            return None
        calibration, model = self._watch.calibration, self._watch.calibration.change_model
        change, predicted = now.present - before.present, before.expected - before.present
        unexpected, missed = calibration.standardise(model.parts(change, predicted))[0]
        score = float(max(unexpected, missed))
        if missed > unexpected:
            patches = np.square((model.gain * predicted)[0] / model.spread).mean(0)
        else:
            patches = model.patches(change, predicted)[0]
        return Surprise(
            score=score,
            p_value=calibration.p_value(score),
            alarm=score > calibration.threshold,
            missed=bool(missed > unexpected),
            camera=_camera(self._watch.policy.codec, patches),
            executed_as_calibrated=executed == calibration.executed,
        )


def _camera(codec: Codec, patches: Float[np.ndarray, "h w"]) -> str:
    """Return the camera whose patches on the canvas have the largest mean."""
    height, width = (side // count for side, count in zip(codec.config.canvas, patches.shape, strict=True))
    rows, columns = height * np.arange(patches.shape[0]), width * np.arange(patches.shape[1])
    means = {}
    for place in codec.config.places:
        on_rows = (rows + height > place.top) & (rows < place.top + place.height)
        on_columns = (columns + width > place.left) & (columns < place.left + place.width)
        means[place.camera] = float(patches[np.ix_(on_rows, on_columns)].mean())
    return max(means, key=lambda camera: means[camera])


def _to_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _to_lists(inner) for name, inner in value.items()}
    rounded = np.vectorize(lambda number: float(f"{number:.7g}"))
    return rounded(value).tolist() if isinstance(value, np.ndarray) else value
