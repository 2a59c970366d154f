"""Small SVG charts. Colours come from the page's CSS by class, so that light, dark and print each have their own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from lightwam.report.formatting import escape, figures, percent
from lightwam.report.watch_evidence import Trace


@dataclass(frozen=True)
class Bar:
    """A rate with its interval, all within 0..1, and the count that stands behind it."""

    label: str
    rate: float
    low: float
    high: float
    count: str
    kind: str = "bar"
    """CSS class of the bar"""


@dataclass(frozen=True)
class Curve:
    """A quantity over training steps."""

    name: str
    unit: str
    step: Float[np.ndarray, " N"]
    value: Float[np.ndarray, " N"]
    smooth: bool = True
    """with its moving average; a scheduled quantity needs none, and no log scale"""


@dataclass(frozen=True)
class Line:
    """One score's curve of false alarms (across) and alarms (up), both as shares."""

    name: str
    kind: str
    """CSS class of the line"""
    across: Float[np.ndarray, " N"]
    up: Float[np.ndarray, " N"]


def interval_bars(bars: Sequence[Bar], title: str, width: int) -> str:
    """Horizontal bars from 0 to 100 % with interval whiskers, `width` units wide; below 500 the labels go on top."""
    longest = max(len(bar.label) for bar in bars)
    above = width < 500 or longest > 30
    left, right = 2 if above else 14 + 8 * longest, 70 + 8 * max(len(bar.count) for bar in bars)
    pitch, thick = (48, 16) if above else (34, 18)
    top, span = 4, width - left - right
    bottom = top + pitch * len(bars)

    def x(rate: float) -> str:
        return f"{left + span * rate:.1f}"

    parts = [
        f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="{top}" y2="{bottom}"/>'
        f'<text class="tick" x="{x(tick)}" y="{bottom + 18}" text-anchor="{"start" if tick == 0 else "middle"}">'
        f"{tick * 100:.0f}{'&#8239;%' if tick == 1 else ''}</text>"
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    for i, bar in enumerate(bars):
        y = top + pitch * i + (pitch - thick - 4 if above else (pitch - thick) / 2)
        middle = y + thick / 2
        parts.append(
            (f'<text class="label" x="{left}" y="{y - 7:.1f}">' if above else
             f'<text class="label" x="{left - 10}" y="{middle + 5:.1f}" text-anchor="end">')
            + f"{escape(bar.label)}</text>"
            f'<rect class="{bar.kind}" x="{left}" y="{y:.1f}" width="{span * bar.rate:.1f}" height="{thick}" rx="2"/>'
            f'<path class="whisker" d="M{x(bar.low)} {middle - 5:.1f}v10m0-5H{x(bar.high)}m0-5v10"/>'
            f'<text class="value" x="{width - 2}" y="{middle + 5:.1f}" text-anchor="end">{percent(bar.rate)}'
            f'<tspan class="count" dx="6">{escape(bar.count)}</tspan></text>'
        )  # fmt: skip
    if not above:
        parts.append(f'<line class="axis" x1="{left}" x2="{left}" y1="{top}" y2="{bottom}"/>')
    said = "; ".join(f"{b.label} {percent(b.rate)}, {percent(b.low)} to {percent(b.high)}, {b.count}" for b in bars)
    return _svg(width, bottom + 26, f"{title}: {said}", parts)


def stacked_bar(parts: Sequence[tuple[str, float]], title: str) -> str:
    """Shares of a whole as one bar without text; the table beside it is the legend."""
    total, at, out = sum(value for _, value in parts), 0.0, []
    for i, (_, value) in enumerate(parts):
        share = 1000 * value / total if total > 0 else 0.0
        out.append(f'<rect class="part p{i % 8}" x="{at:.2f}" y="0" width="{max(share - 2, 0.5):.2f}" height="40"/>')
        at += share
    said = "; ".join(f"{name} {percent(value / total if total > 0 else 0.0)}" for name, value in parts)
    return (
        f'<svg class="stack" viewBox="0 0 1000 40" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(f"{title}: {said}")}">{"".join(out)}</svg>'
    )


def curve_chart(curve: Curve, width: int = 310, height: int = 205) -> str:
    """One curve with its axes: the raw values pale, their moving average on top; a log scale when it spans much."""
    finite = np.isfinite(curve.value)
    step, value = curve.step[finite], curve.value[finite]
    if not len(step):
        return '<p class="missing">Not one logged value is a finite number.</p>'
    smooth = moving_average(value) if curve.smooth else value
    logarithmic = bool(curve.smooth and value.min() > 0 and smooth.max() / smooth.min() > 12)
    low, high = _bounds(value, smooth, logarithmic)
    left, right, top, bottom = 48, 6, 24, height - 36

    def x(at: float) -> float:
        return left + (width - left - right) * (at - step[0]) / max(step[-1] - step[0], 1e-9)

    def y(at: float) -> float:
        at = min(max(at, low), high)
        share = math.log(at / low) / math.log(high / low) if logarithmic else (at - low) / (high - low)
        return bottom - (bottom - top) * share

    def path(values: Float[np.ndarray, " N"], kind: str) -> str:
        keep = thin(values)
        points = " ".join(f"{x(step[i]):.1f},{y(values[i]):.1f}" for i in keep)
        return f'<polyline class="{kind}" points="{points}"/>'

    ticks = log_ticks(low, high) if logarithmic else even_ticks(low, high)
    unit = ", ".join(part for part in (curve.unit, "log scale" if logarithmic else "") if part)
    parts = [f'<text class="tick" x="0" y="12">{escape(unit)}</text>']
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
            f'<text class="tick" x="{left - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{figures(tick)}</text>'
        )
    for tick in even_ticks(float(step[0]), float(step[-1]), 4):
        side = "end" if x(tick) > width - right - 16 else "middle"
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="{side}">{figures(tick)}</text>'
        )
    parts.append(f'<text class="tick" x="{width - right}" y="{height - 4}" text-anchor="end">training step</text>')
    parts.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{bottom}" y2="{bottom}"/>')
    if len(step) == 1:
        parts.append(f'<circle class="dot" cx="{x(step[0]):.1f}" cy="{y(value[0]):.1f}" r="4"/>')
    parts += [path(value, "raw"), path(smooth, "smooth")] if curve.smooth else [path(value, "smooth")]
    said = f"{curve.name} over {figures(step[-1])} training steps: from {figures(smooth[0])} to {figures(smooth[-1])}"
    return _svg(width, height, said, parts)


def roc_chart(lines: Sequence[Line], title: str, size: int = 310) -> str:
    """Curves from (0, 0) to (1, 1) in a square; the diagonal is chance."""
    left, top, right, bottom = 40, 24, size - 8, size - 40

    def x(share: float) -> float:
        return left + (right - left) * share

    def y(share: float) -> float:
        return bottom - (bottom - top) * share

    parts = ['<text class="tick" x="0" y="12">alarms, % of episodes</text>']
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            f'<line class="grid" x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
            f'<text class="tick" x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{100 * tick:.0f}</text>'
            f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{100 * tick:.0f}</text>'
        )
    parts.append(f'<line class="chance" x1="{left}" y1="{bottom}" x2="{right}" y2="{top}"/>')
    parts.append(f'<path class="axis" fill="none" d="M{left} {top}V{bottom}H{right}"/>')
    for line in reversed(lines):  # the first on top
        points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(line.across, line.up, strict=True))
        parts.append(f'<polyline class="score {line.kind}" points="{points}"/>')
    parts.append(f'<text class="tick" x="{right}" y="{size - 6}" text-anchor="end">false alarms, % of episodes</text>')
    return _svg(size, size, title, parts)


def trace_chart(trace: Trace, title: str, width: int = 760, height: int = 190) -> str:
    """The score at each look, the threshold of an alarm, and the moment of the disturbance."""
    left, right, top, bottom = 40, 8, 18, height - 34
    last = float(max(trace.step.max(), trace.disturbed_at))
    low = min(0.0, float(trace.score.min()))
    high = 1.08 * max(trace.threshold, float(trace.score.max()))

    def x(step: float) -> float:
        return left + (width - left - right) * step / last

    def y(score: float) -> float:
        return bottom - (bottom - top) * (score - low) / (high - low)

    parts = []
    for tick in even_ticks(low, high, 4):
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
            f'<text class="tick" x="{left - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{figures(tick)}</text>'
        )
    for tick in even_ticks(0.0, last, 6):
        side = "end" if x(tick) > width - right - 16 else "middle"
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="{side}">{figures(tick)}</text>'
        )
    at, limit = x(trace.disturbed_at), y(trace.threshold)
    beyond = at > width / 2
    points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(trace.step, trace.score, strict=True))
    parts += [
        f'<text class="tick" x="{width - right}" y="{height - 4}" text-anchor="end">control step</text>',
        f'<line class="limit" x1="{left}" x2="{width - right}" y1="{limit:.1f}" y2="{limit:.1f}"/>',
        f'<text class="tick" x="{left + 4}" y="{limit - 5:.1f}">alarm above this</text>',
        f'<line class="event" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>',
        f'<text class="tick" x="{at + (-5 if beyond else 5):.1f}" y="{top - 5}" '
        f'text-anchor="{"end" if beyond else "start"}">disturbed</text>',
        f'<polyline class="score watch" points="{points}"/>',
    ]
    for step, score in zip(trace.step, trace.score, strict=True):
        kind = "dot alarm" if score > trace.threshold else "dot"
        parts.append(f'<circle class="{kind}" cx="{x(step):.1f}" cy="{y(score):.1f}" r="4"/>')
    return _svg(width, height, title, parts)


def moving_average(value: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """The mean of the neighbours within 2 % of the run on either side (at least one), narrower at both ends."""
    reach = max(1, round(0.02 * len(value)))
    sums = np.concatenate([[0.0], np.cumsum(value)])
    at = np.arange(len(value))
    room = np.minimum(np.minimum(at, len(value) - 1 - at), reach)
    return (sums[at + room + 1] - sums[at - room]) / (2 * room + 1)


def thin(value: Float[np.ndarray, " N"], buckets: int = 250) -> Int[np.ndarray, " kept"]:
    """Indices of the points worth drawing: all, or the lowest and highest of each bucket, so that no spike is lost."""
    if len(value) <= 2 * buckets:
        return np.arange(len(value))
    edges = np.linspace(0, len(value), buckets + 1).round().astype(int)
    kept = {0, len(value) - 1}
    for start, end in itertools.pairwise(edges.tolist()):
        part = value[start:end]
        kept |= {start + int(part.argmin()), start + int(part.argmax())}
    return np.asarray(sorted(kept))


def even_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers within [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high], with 2 and 5 times them where there is room."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**p for p in powers for f in factors if low * 0.999 <= f * 10.0**p <= high * 1.001]
        if len(ticks) <= 6:
            break
    return ticks


def _bounds(value: Float[np.ndarray, " N"], smooth: Float[np.ndarray, " N"], logarithmic: bool) -> tuple[float, float]:
    # single spikes may leave the picture; the smoothed curve may not
    spread: Bool[np.ndarray, " N"] = value <= np.quantile(value, 0.995)
    low = min(float(np.quantile(value, 0.005)), float(smooth.min()))
    high = max(float(value[spread].max()), float(smooth.max()))
    if logarithmic:
        return low * 0.9, high * 1.1
    low = 0.0 if low >= 0 else low
    return (low, high * 1.05) if high > low else (low, low + 1.0)


def _svg(width: int, height: int, said: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(said)}">{"".join(parts)}</svg>'
