"""How far what the camera shows is from what the policy's world model expected: a score, and what is usual of it.

present     pooled latents of the picture at a look [C h w]
expected    what one Euler step of the video pass makes of noise there: the model's mean guess of the frames to come
            (flow matching from pure noise; arXiv 2606.08242, the future-video pass)
foreseen    expected - present: the change that was expected
change      present at the next look - present: the change that came

Two things are surprising. Something **came** that was not expected: with a gain and an offset a channel and patch,
fitted to undisturbed episodes by least squares, r = change - (offset + gain foreseen), and

    came = mean over patches of log(0.1 + mean over channels of (r / spread)^2)

where spread is r's own root mean square in undisturbed episodes. The logarithm counts how many patches are odd rather
than how odd one is: a moving arm is odd in few. And something expected was **missed**, as when a camera hangs. With
e = offset + gain foreseen, and all sums weighted by 1 / spread^2,

    missed = (|e|^2 - e . change) / sqrt(|e|^2 + 1)

which is what a matched filter for "nothing of it came" answers. The score is the larger of the two, each counted from
its median in undisturbed moments in units of its spread there. What is usual of that score is measured by `calibrate`
on episodes that the policy drove.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from lightwam.data.codec import Codec
from lightwam.errors import CheckpointError, ConfigError
from lightwam.policy import run_directory
from lightwam.policy.policy import Policy
from lightwam.types import Observation

FILE, FORMAT = "surprise.json", 1
FLOOR = 0.1
"""of a patch's energy, in units of its usual one: patches quieter than this are equally quiet"""
LEAST_SPREAD = 0.05
"""times the median spread: what never moves in the calibration may move by so much later"""
FOLDS = 5
FEWEST_EPISODES = 10


Moments = tuple[Float[np.ndarray, "_moments C h w"], Float[np.ndarray, "_moments C h w"]]
"""the changes that came and those that were foreseen"""


def together(seen: Sequence[Moments]) -> Moments:
    """The moments of all episodes as one."""
    changes, foreseen = zip(*seen, strict=True)
    return np.concatenate(changes), np.concatenate(foreseen)


@dataclass(frozen=True)
class Predictions:
    """What an episode's looks leave behind, in order."""

    present: Float32[np.ndarray, "looks C h w"]
    expected: Float32[np.ndarray, "looks C h w"]

    def moments(self) -> Moments:
        """The change that came and the one that was foreseen, of every look but the first."""
        return self.present[1:] - self.present[:-1], self.expected[:-1] - self.present[:-1]


@dataclass(frozen=True)
class ChangeModel:
    """How much of what is foreseen usually comes, and how far off it usually is."""

    offset: Float[np.ndarray, "C h w"]
    gain: Float[np.ndarray, "C h w"]
    spread: Float[np.ndarray, "C h w"]

    @classmethod
    def fit(
        cls, change: Float[np.ndarray, "moments C h w"], foreseen: Float[np.ndarray, "moments C h w"]
    ) -> ChangeModel:
        """Least squares in every channel and patch, the gain kept within 0 and 1."""
        change, foreseen = change.astype(np.float64), foreseen.astype(np.float64)
        centred = foreseen - foreseen.mean(0)
        gain = (centred * (change - change.mean(0))).sum(0) / (np.square(centred).sum(0) + 1e-6)
        gain = gain.clip(0, 1)
        offset = change.mean(0) - gain * foreseen.mean(0)
        spread = np.sqrt(np.square(change - offset - gain * foreseen).mean(0))
        return cls(offset, gain, np.maximum(spread, LEAST_SPREAD * np.median(spread) + 1e-6))

    def patches(
        self, change: Float[np.ndarray, "moments C h w"], foreseen: Float[np.ndarray, "moments C h w"]
    ) -> Float[np.ndarray, "moments h w"]:
        """The energy of what came unexpected; 1 is usual."""
        return np.square((change - self.offset - self.gain * foreseen) / self.spread).mean(1)

    def parts(
        self, change: Float[np.ndarray, "moments C h w"], foreseen: Float[np.ndarray, "moments C h w"]
    ) -> Float[np.ndarray, "moments 2"]:
        """`came` and `missed` of every moment."""
        came = np.log(FLOOR + self.patches(change, foreseen)).mean((1, 2))
        expected = (self.offset + self.gain * foreseen) / self.spread
        energy = np.square(expected).sum((1, 2, 3))
        missed = energy - (expected * change / self.spread).sum((1, 2, 3))
        return np.stack([came, missed / np.sqrt(energy + 1)], axis=1)


@dataclass(frozen=True)
class Calibration:
    """What is usual of the score; saved whole as RUN/surprise.json."""

    checkpoint_step: int
    executed: int
    """control steps between two looks"""
    false_alarms: float
    """share of undisturbed episodes in which some score may reach the threshold"""
    num_episodes: int
    tasks: dict[str, int]
    """undisturbed episodes by task"""
    threshold: float
    centre: Float[np.ndarray, " 2"]
    scale: Float[np.ndarray, " 2"]
    moments: Float[np.ndarray, " moments"]
    """the scores of undisturbed moments, in rising order"""
    episodes: Float[np.ndarray, " episodes"]
    """the largest score of each undisturbed episode, in rising order"""
    yardstick: ChangeModel

    def scores(self, looks: Predictions) -> Float[np.ndarray, " moments"]:
        """The score of every look but the first."""
        return self.standard(self.yardstick.parts(*looks.moments())).max(1, initial=-math.inf)

    def standard(self, parts: Float[np.ndarray, "moments 2"]) -> Float[np.ndarray, "moments 2"]:
        """Both parts, counted from their usual middle in their usual spread."""
        return (parts - self.centre) / self.scale

    def p_value(self, score: float) -> float:
        """The share of undisturbed moments at least as surprising, this one counted in: never 0."""
        above = len(self.moments) - int(np.searchsorted(self.moments, score, side="left"))
        return (1 + above) / (1 + len(self.moments))

    def write(self, run: Path) -> None:
        """RUN/surprise.json, atomically."""
        rows = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "yardstick"}
        yardstick = {f.name: getattr(self.yardstick, f.name) for f in fields(ChangeModel)}
        run_directory.write_json(run / FILE, {"format": FORMAT} | _plain(rows) | {"yardstick": _plain(yardstick)})

    @classmethod
    def read(cls, run: Path) -> Calibration:
        """What `write` wrote; CheckpointError for a run without one or with a broken one."""
        path = run / FILE
        if not path.is_file():
            raise CheckpointError("nobody has measured what is usual of this policy's surprise", where=path,
                                  next_step=f"lightwam watch {run}")  # fmt: skip
        data = run_directory.read_json(path)
        names, sticks = ({f.name for f in fields(kind)} for kind in (cls, ChangeModel))
        whole = isinstance(data, dict) and data.get("format") == FORMAT and set(data) == names | {"format"}
        if not whole or not isinstance(data["yardstick"], dict) or set(data["yardstick"]) != sticks:
            raise _broken(path, sorted(data) if isinstance(data, dict) else type(data).__name__)
        try:
            stick = ChangeModel(**{name: np.array(rows, np.float64) for name, rows in data.pop("yardstick").items()})
            arrays = {name: np.array(data[name], np.float64) for name in ("centre", "scale", "moments", "episodes")}
        except (TypeError, ValueError) as error:
            raise _broken(path, error) from error
        shapes = {stick.offset.shape, stick.gain.shape, stick.spread.shape}
        finite = all(np.isfinite(a).all() for a in (*arrays.values(), stick.offset, stick.gain, stick.spread))
        if len(shapes) != 1 or stick.gain.ndim != 3 or not finite or arrays["centre"].shape != (2,):
            raise _broken(path, "arrays of odd shapes, or not finite")
        del data["format"]
        counts, rates = ("checkpoint_step", "executed", "num_episodes"), ("false_alarms", "threshold")
        if not (all(type(data[name]) is int for name in counts) and all(type(data[name]) is float for name in rates)):
            raise _broken(path, {name: data[name] for name in (*counts, *rates)})
        return cls(**(data | arrays), yardstick=stick)


def calibrate(
    episodes: Sequence[Predictions], tasks: dict[str, int], *, executed: int, step: int, false_alarms: float
) -> Calibration:
    """What is usual, from undisturbed `episodes` that the policy drove.

    The yardstick is fitted to all of them. The scores that are kept as usual come from yardsticks fitted without the
    episode that they judge (`FOLDS` folds), else they would be too small for an episode to come. The threshold is the
    smallest of the episodes' largest scores that, by the order statistics of exchangeable episodes, a new undisturbed
    episode exceeds with probability at most `false_alarms` (split conformal prediction; V. Vovk, A. Gammerman,
    G. Shafer, Algorithmic Learning in a Random World, 2005). Raises ConfigError when there are
    too few episodes for that.
    """
    seen = [looks.moments() for looks in episodes if len(looks.present) > 1]
    require_enough(len(seen), false_alarms)
    parts = out_of_fold(seen, lambda train, test: ChangeModel.fit(*train).parts(*test))
    every = np.concatenate(parts)
    centre, scale = usual(every)
    scores = [((part - centre) / scale).max(1) for part in parts]
    largest = np.sort([score.max() for score in scores])
    threshold = conformal(largest, false_alarms)
    assert threshold is not None
    return Calibration(step, executed, false_alarms, len(seen), tasks, threshold, centre, scale,
                       np.sort(np.concatenate(scores)), largest, ChangeModel.fit(*together(seen)))  # fmt: skip


def out_of_fold(
    seen: Sequence[Moments], parts: Callable[[Moments, Moments], Float[np.ndarray, "_moments 2"]]
) -> list[Float[np.ndarray, "_moments 2"]]:
    """Every episode's parts, by `parts(others, episode)` of what is learnt from the other folds alone."""
    out: list[np.ndarray] = [np.empty((0, 2))] * len(seen)
    for fold in range(FOLDS):
        others = together([one for i, one in enumerate(seen) if i % FOLDS != fold])
        for i in range(fold, len(seen), FOLDS):
            out[i] = parts(others, seen[i])
    return out


def usual(parts: Float[np.ndarray, "moments 2"]) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, " 2"]]:
    """Median of each part, and its spread as the median distance from that, scaled to a normal's standard deviation."""
    centre = np.median(parts, axis=0)
    return centre, 1.4826 * np.median(np.abs(parts - centre), axis=0) + 1e-9


def conformal(largest: Float[np.ndarray, " episodes"], false_alarms: float) -> float | None:
    """The threshold that a new episode's largest score exceeds with probability at most `false_alarms`; None when so
    few episodes say nothing of that."""
    rank = math.ceil((1 - false_alarms) * (len(largest) + 1))
    return float(np.sort(largest)[rank - 1]) if rank <= len(largest) else None


def require_enough(num_episodes: int, false_alarms: float) -> None:
    """ConfigError when so few undisturbed episodes say nothing of so small a share of false alarms."""
    if num_episodes < FEWEST_EPISODES or conformal(np.zeros(num_episodes), false_alarms) is None:
        needed = max(FEWEST_EPISODES, math.ceil(1 / false_alarms) - 1)
        raise ConfigError("too few undisturbed episodes with two looks for such a rate of false alarms",
                          where="calibrate", got=f"{num_episodes} episodes, {false_alarms:g} false alarms",
                          expected=f"at least {needed} episodes", next_step="more episodes (--quiet)")  # fmt: skip


@dataclass(frozen=True)
class Surprise:
    """What a look is, beside what is usual."""

    score: float
    """0 is the middle of undisturbed moments, 1 about a standard deviation above it"""
    p_value: float
    """share of undisturbed moments that were at least as surprising"""
    alarm: bool
    """the score is above what an undisturbed episode reaches with the calibration's share of false alarms"""
    missed: bool
    """an expected change did not come; else something came that was not expected"""
    camera: str
    """where most of it is"""
    executed_as_calibrated: bool
    """else the looks are farther apart or nearer than in the calibration: take p_value and alarm with care"""

    def to_dict(self) -> dict[str, float | bool | str]:
        """Plain values, for an answer on the wire."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class SurpriseWatch:
    """A policy with a calibration. It holds nothing of an episode: `episode` begins one, and a server keeps many."""

    def __init__(self, policy: Policy, calibration: Calibration) -> None:
        """CheckpointError when the calibration is of other weights or latents than the policy's."""
        rows, columns = policy.codec.config.canvas
        pooled = 2 * policy.latents.spatial_stride
        shape = policy.latents.channels, rows // pooled, columns // pooled
        got = calibration.yardstick.gain.shape
        if calibration.checkpoint_step != policy.step or got != shape:
            raise CheckpointError("the watch was calibrated with another policy", where=FILE,
                                  got=f"step {calibration.checkpoint_step}, latents {got}",
                                  expected=f"step {policy.step}, latents {shape}",
                                  next_step="calibrate again: remove RUN/watch, then lightwam watch RUN")  # fmt: skip
        self.policy, self.calibration = policy, calibration

    @classmethod
    def load(cls, run: Path | str, policy: Policy) -> SurpriseWatch:
        """The watch of a run that `lightwam watch` has calibrated; `policy` is the run's, without the engine."""
        return cls(policy, Calibration.read(Path(run)))

    def episode(self) -> EpisodeWatch:
        """A new episode of one robot."""
        return EpisodeWatch(self)


class EpisodeWatch:
    """One robot's episode: `update` every observation that it is asked to act on."""

    def __init__(self, watch: SurpriseWatch) -> None:
        self._watch = watch
        self._before: Predictions | None = None

    def update(self, observation: Observation, executed: int) -> Surprise | None:
        """How surprising the picture is; None for an episode's first, or when nothing was executed since the last.

        `executed` counts control steps since the observation seen before. One step of the video pass, whose result
        serves the next look. WireError as for `Policy.act`.
        """
        now = Predictions(*self._watch.policy.predict_next([observation]))
        before, self._before = self._before, now
        if before is None or executed < 1:
            return None
        calibration, codec = self._watch.calibration, self._watch.policy.codec
        change, foreseen = now.present - before.present, before.expected - before.present
        parts = calibration.standard(calibration.yardstick.parts(change, foreseen))[0]
        score, missed = float(parts.max()), bool(parts[1] > parts[0])
        stick = calibration.yardstick
        shown = np.square((stick.gain * foreseen)[0] / stick.spread).mean(0) if missed else (
            stick.patches(change, foreseen)[0]
        )  # fmt: skip
        return Surprise(score, calibration.p_value(score), score > calibration.threshold, missed,
                        _camera(codec, shown), executed == calibration.executed)  # fmt: skip


def _camera(codec: Codec, patches: Float[np.ndarray, "h w"]) -> str:
    """The camera whose patches on the canvas have the largest mean."""
    height, width = (side // count for side, count in zip(codec.config.canvas, patches.shape, strict=True))
    rows, columns = height * np.arange(patches.shape[0]), width * np.arange(patches.shape[1])
    means = {}
    for place in codec.config.places:
        on_rows = (rows + height > place.top) & (rows < place.top + place.height)
        on_columns = (columns + width > place.left) & (columns < place.left + place.width)
        means[place.camera] = float(patches[np.ix_(on_rows, on_columns)].mean())
    return max(means, key=lambda camera: means[camera])


def _plain(rows: dict[str, Any]) -> dict[str, Any]:
    """Arrays as lists of numbers with seven digits: float32's."""
    return {
        name: np.vectorize(lambda x: float(f"{x:.7g}"))(value).tolist() if isinstance(value, np.ndarray) else value
        for name, value in rows.items()
    }


def _broken(path: Path, got: object) -> CheckpointError:
    return CheckpointError("the calibration of the watch is broken", where=path, got=got,
                           expected="what lightwam watch writes", next_step="delete it, calibrate again")  # fmt: skip
