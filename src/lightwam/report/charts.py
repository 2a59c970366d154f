"""Line charts: the positions of axes, ticks and curves in an SVG, which templates/macros.html draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lightwam.report.formatting import short_number
from lightwam.report.watch_evidence import DetectorResult, Example

Values = Float[np.ndarray, " _points"]


@dataclass(frozen=True)
class Axis:
    """The values that one side of a chart spans."""

    low: float
    high: float
    title: str
    num_ticks: int = 5
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """How far along the axis a value lies, 0 to 1; values beyond an end lie at that end."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low or 1.0)

    def ticks(self) -> list[float]:
        """Round values to label."""
        return log_ticks(self.low, self.high) if self.logarithmic else even_ticks(self.low, self.high, self.num_ticks)


@dataclass(frozen=True)
class Line:
    """A polyline with its CSS class."""

    css: str
    x: Values
    y: Values


@dataclass(frozen=True)
class Chart:
    """A chart of lines, in the units of its SVG."""

    title: str
    """for screen readers"""
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    dots: tuple[tuple[str, float, float], ...] = ()
    """CSS class, x and y"""
    threshold: float | None = None
    """drawn as a horizontal line"""
    event: float | None = None
    """drawn as a vertical line"""
    width: int = 310
    height: int = 205

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the area between the axes."""
        return 54, 24, self.width - 8, self.height - 36

    def at_x(self, value: float) -> float:
        """The horizontal position of a value."""
        left, _, right, _ = self.box
        return round(left + (right - left) * self.x.share(value), 1)

    def at_y(self, value: float) -> float:
        """The vertical position of a value."""
        _, top, _, bottom = self.box
        return round(bottom - (bottom - top) * self.y.share(value), 1)

    def points(self, line: Line) -> str:
        """The line's `points` attribute."""
        return " ".join(f"{self.at_x(line.x[i])},{self.at_y(line.y[i])}" for i in thin(line.y))


def training_chart(name: str, unit: str, step: Values, value: Values, scheduled: bool = False) -> Chart | None:
    """Chart a logged quantity with its moving average; None when no value is finite.

    The y axis is logarithmic where the average spans more than a factor of 12. A `scheduled` quantity, as the learning
    rate, has neither an average nor a logarithmic axis.
    """
    finite = np.isfinite(value)
    step, value = step[finite], value[finite]
    if not len(step):
        return None
    smooth = value if scheduled else moving_average(value)
    logarithmic = bool(not scheduled and value.min() > 0 and smooth.max() / smooth.min() > 12)
    low, high = _limits(value, smooth, logarithmic)
    first, last = (short_number(end) for end in (smooth[0], smooth[-1]))
    raw, average = Line("raw", step, value), Line("smooth", step, smooth)
    return Chart(
        title=f"{name} over {short_number(step[-1])} training steps: from {first} to {last}",
        x=Axis(float(step[0]), float(step[-1]), "training step", num_ticks=4),
        y=Axis(low, high, f"{unit}, log scale".lstrip(", ") if logarithmic else unit, logarithmic=logarithmic),
        lines=(average,) if scheduled else (raw, average),
        dots=(("dot", float(step[0]), float(value[0])),) if len(step) == 1 else (),
    )


def held_out_chart(step: Values, policy: Values, hold: Values, repeat: Values) -> Chart:
    """Chart the error on held-out episodes, with thin lines for standing still and repeating the last action."""
    first, last, still, repeated = (short_number(value) for value in (policy[0], policy[-1], hold[-1], repeat[-1]))
    baselines = f"standing still has {still}, repeating the last action {repeated}"
    highest = max(float(values.max()) for values in (policy, hold, repeat))
    return Chart(
        title=f"Held-out error over {short_number(step[-1])} training steps: from {first} to {last}; {baselines}",
        x=Axis(float(step[0]), float(step[-1]), "training step", num_ticks=4),
        y=Axis(0.0, 1.05 * highest or 1.0, "mean absolute error"),
        lines=(Line("raw", step, hold), Line("raw", step, repeat), Line("smooth", step, policy)),
        dots=(("dot", float(step[0]), float(policy[0])),) if len(step) == 1 else (),
    )


def roc_chart(name: str, detectors: Mapping[str, DetectorResult], css: dict[str, str]) -> Chart:
    """Chart the detectors' ROC curves, `css` giving their names and classes; the diagonal is chance."""
    ends = np.array([0.0, 100.0])
    lines = [Line(f"score {css[key]}", *(100 * np.array(rates) for rates in detectors[key].curve)) for key in css]
    return Chart(
        title=f"{name}, ROC curves. " + "; ".join(f"{key}: AUC {detectors[key].area:.3f}" for key in css),
        x=Axis(0.0, 100.0, "false alarms, % of undisturbed episodes"),
        y=Axis(0.0, 100.0, "alarms, % of disturbed episodes"),
        lines=(Line("chance", ends, ends), *reversed(lines)),  # the first on top
        height=310,
    )


def trace_chart(example: Example, title: str, width: int) -> Chart:
    """Chart the score at every observation of an episode, the alarm's threshold and the time of the disturbance."""
    return Chart(
        title=title,
        x=Axis(0.0, max(*example.steps, example.disturbed_at), "control step", num_ticks=6 if width > 500 else 4),
        y=Axis(min(0.0, *example.scores), 1.08 * max(example.threshold, *example.scores), "score", num_ticks=4),
        lines=(Line("score watch", np.array(example.steps), np.array(example.scores)),),
        dots=tuple(
            ("dot alarm" if score > example.threshold else "dot", step, score)
            for step, score in zip(example.steps, example.scores, strict=True)
        ),
        threshold=example.threshold,
        event=example.disturbed_at,
        width=width,
    )


def moving_average(value: Values) -> Values:
    """Average the neighbours within 2 % of the run on either side (at least one), fewer at both ends."""
    reach = max(1, round(0.02 * len(value)))
    sums = np.concatenate([[0.0], np.cumsum(value)])
    at = np.arange(len(value))
    width = np.minimum(np.minimum(at, len(value) - 1 - at), reach)
    return (sums[at + width + 1] - sums[at - width]) / (2 * width + 1)


def thin(value: Values, buckets: int = 250) -> Int[np.ndarray, " kept"]:
    """Return the indices of the points to draw: all, or the lowest and highest of each bucket, so no spike is lost."""
    if len(value) <= 2 * buckets:
        return np.arange(len(value))
    edges = np.linspace(0, len(value), buckets + 1).round().astype(int)
    kept = {0, len(value) - 1}
    for start, end in itertools.pairwise(edges.tolist()):
        part = value[start:end]
        kept |= {start + int(part.argmin()), start + int(part.argmax())}
    return np.asarray(sorted(kept))


def even_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers within [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten within [low, high], with 2 and 5 times them if they fit."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**p for p in powers for f in factors if low * 0.999 <= f * 10.0**p <= high * 1.001]
        if len(ticks) <= 6:
            break
    return ticks


def _limits(value: Values, smooth: Values, logarithmic: bool) -> tuple[float, float]:
    """The y axis: single spikes may be cut off, the smoothed curve may not."""
    low = min(float(np.quantile(value, 0.005)), float(smooth.min()))
    high = max(float(value[value <= np.quantile(value, 0.995)].max()), float(smooth.max()))
    if logarithmic:
        return low * 0.9, high * 1.1
    low = min(low, 0.0)
    return (low, high * 1.05) if high > low else (low, low + 1.0)
