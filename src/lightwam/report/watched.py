"""What the watch tells: ROC curves by disturbance, beside scores that need no world model, and an episode of each."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from lightwam.errors import CheckpointError
from lightwam.report.charts import Line, Trace, roc_chart, trace_chart
from lightwam.report.markup import figure, image, missing, section, table
from lightwam.report.pictures import jpeg
from lightwam.report.tables import Table, read_object
from lightwam.report.words import THIN, counted, escape, figures, percent, simulator

SHOWN_LOOKS = 4
WATCH, WITHOUT, PICTURES = "watch", "without the world model", "picture difference"
LINES = ((WATCH, "watch"), (WITHOUT, "without"), (PICTURES, "pictures"))
"""scores that have a curve, and the CSS class of each"""
NAMES = {"object": "Object moved", "camera": "Camera bumped", "frozen": "Frozen frames", "any": "Any of them"}


@dataclass(frozen=True)
class Area:
    """A ROC curve with the area under it."""

    area: float
    interval: tuple[float, float]
    alarms: int
    delay_steps: float | None
    across: Float[np.ndarray, " N"]
    up: Float[np.ndarray, " N"]


@dataclass(frozen=True)
class Disturbed:
    """One kind of disturbance."""

    kind: str
    episodes: int
    ways: dict[str, Area]
    gain: tuple[float, float, float]
    """by how much the watch's area is above the one without the world model, and the interval of that"""
    gain_soon: tuple[float, float, float]
    """the same of the first moments after the disturbance alone"""


@dataclass(frozen=True)
class Example:
    """One disturbed episode."""

    kind: str
    task: str
    seed: int
    look: int
    trace: Trace
    canvases: UInt8[np.ndarray, "looks height width 3"]


@dataclass(frozen=True)
class Watched:
    """All of RUN/watch."""

    calibration_episodes: int
    false_alarms: float
    soon_steps: int
    quiet: int
    alarms: dict[str, int]
    kinds: tuple[Disturbed, ...]
    examples: tuple[Example, ...]
    see_ms: float
    act_ms: float


def read_watch(run: Path) -> Watched | None:
    """RUN/watch, None when nobody has measured it; CheckpointError for a broken file."""
    path = run / "watch" / "result.json"
    if not path.is_file():
        return None
    data = read_object(path)
    quiet, cost, kinds = data.child("quiet"), data.child("cost_ms"), data.child("kinds")
    counts = quiet.child("alarms")
    rows = data.value("examples")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise data.refuse("examples", "a list of objects")
    return Watched(
        calibration_episodes=data.count("calibration_episodes"),
        false_alarms=data.number("false_alarms"),
        soon_steps=data.count("soon_steps"),
        quiet=quiet.count("episodes"),
        alarms={way: counts.count(way) for way, _ in LINES},
        kinds=tuple(_kind(kind, kinds.child(kind)) for kind in kinds.data),
        examples=_examples(run / "watch" / "examples.npz", [Table(row, f"{path}: examples") for row in rows]),
        see_ms=cost.child("see").duration("p50_ms"),
        act_ms=cost.child("act").duration("p50_ms"),
    )


def _kind(kind: str, row: Table) -> Disturbed:
    ways = row.child("ways")
    gains = (row.child(name).child(WITHOUT) for name in ("gain_over", "gain_over_soon"))
    gain, soon = ((gain.number("area"), *_numbers(gain, "interval_95", 2)) for gain in gains)
    return Disturbed(
        kind, row.count("episodes"), {way: _area(ways.child(way)) for way, _ in LINES}, gain, soon
    )  # fmt: skip


def _area(row: Table) -> Area:
    curve = row.value("curve")
    if not (isinstance(curve, list) and len(curve) == 2):
        raise row.refuse("curve", "two lists of numbers")
    across, up = (np.array(_numbers(Table({"curve": axis}, row.where), "curve", None)) for axis in curve)
    if len(across) != len(up):
        raise row.refuse("curve", "two lists as long as each other")
    delay = None if row.value("delay_steps") is None else row.duration("delay_steps")
    return Area(row.number("area"), _numbers(row, "interval_95", 2), row.count("alarms"), delay, across, up)


def _numbers(row: Table, key: str, count: int | None) -> tuple:
    values = row.value(key)
    good = isinstance(values, list) and values and all(type(value) in (int, float) for value in values)
    if not good or count not in (None, len(values)):
        raise row.refuse(key, f"{count or 'some'} numbers")
    return tuple(map(float, values))


def _examples(path: Path, rows: list[Table]) -> tuple[Example, ...]:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            canvases = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _broken(path, error) from error
    examples = []
    for row in rows:
        kind, scores = row.text("kind"), _numbers(row, "scores", None)
        if kind not in canvases or canvases[kind].dtype != np.uint8 or canvases[kind].ndim != 4:
            raise _broken(path, f"no pictures of {kind!r}")
        if len(canvases[kind]) != len(scores) + 1:
            raise _broken(path, f"{len(canvases[kind])} pictures of {kind!r}, {len(scores)} scores")
        steps = _numbers(row, "look_steps", len(scores))
        trace = Trace(np.array(steps), np.array(scores), row.number("threshold"), row.number("disturbed_at"))
        examples.append(Example(kind, row.text("task"), row.count("seed"), row.count("look"), trace, canvases[kind]))
    return tuple(examples)


def _broken(path: Path, got: object) -> CheckpointError:
    return CheckpointError("the watch's examples cannot be read", where=path, got=got,
                           expected="the pictures that lightwam watch writes",
                           next_step="delete RUN/watch/result.json and give lightwam watch again")  # fmt: skip


def watch(watched: Watched | None, run: Path, simulator_name: str) -> str:
    """The section."""
    title = "The runtime watch"
    if watched is None:
        text = "Nobody has measured how well the policy notices that something is wrong."
        return section("watch", title, missing(text, f"lightwam watch {run}"))
    return section(
        "watch", title, _keys(), _curves(watched), _table(watched), *map(_example, watched.examples),
        lead=_lead(watched, simulator_name),
    )  # fmt: skip


def _lead(watched: Watched, simulator_name: str) -> str:
    best = next(kind for kind in watched.kinds if kind.kind == "any") if len(watched.kinds) > 1 else watched.kinds[0]
    area, without = best.ways[WATCH], best.ways[WITHOUT]
    return (
        "At every look the policy compares what its world model expected with the picture that came, by one step of "
        f"the video pass ({figures(watched.see_ms)}{THIN}ms beside {figures(watched.act_ms)}{THIN}ms to act). Tried in "
        f"{escape(simulator(simulator_name))} on seeds of their own, calibrated on "
        f"{counted(watched.calibration_episodes, 'undisturbed episode')}. Of all disturbed episodes against "
        f"undisturbed ones the area under the curve is {area.area:.2f}; the same score with the picture before in "
        f"place of the expectation has {without.area:.2f}: {_verdict(best.gain)}. Of the first "
        f"{counted(watched.soon_steps, 'control step')} after the disturbance alone {_verdict(best.gain_soon)}."
    )


def _verdict(gain: tuple[float, float, float]) -> str:
    value, low, high = gain
    said = (
        "the world model makes the score better" if low > 0
        else "the world model makes the score worse" if high < 0
        else "this does not show that the world model adds anything"
    )  # fmt: skip
    return f"{said} (difference {value:+.3f}, 95{THIN}% interval {low:+.3f} to {high:+.3f})"


def _keys() -> str:
    keys = "".join(f'<span><i class="key {css}"></i>{escape(name)}</span>' for name, css in LINES)
    return f'<p class="keys">{keys}</p>'


def _curves(watched: Watched) -> str:
    charts = []
    for row in watched.kinds:
        if row.kind == "any":
            continue
        lines = [Line(name, css, row.ways[name].across, row.ways[name].up) for name, css in LINES]
        said = "; ".join(f"{name}: area {row.ways[name].area:.3f}" for name, _ in LINES)
        name = NAMES.get(row.kind, row.kind)
        charts.append(figure(roc_chart(lines, f"{name}, ROC curves. {said}"), escape(name)))
    return f'<div class="charts">{"".join(charts)}</div>'


def _table(watched: Watched) -> str:
    rows = []
    for row in watched.kinds:
        mine = row.ways[WATCH]
        delay = "" if mine.delay_steps is None else counted(round(mine.delay_steps), "step")
        rows.append([
            escape(NAMES.get(row.kind, row.kind)), *(_cell(row.ways[name]) for name, _ in LINES),
            f"{mine.alarms} of {row.episodes}", delay,
        ])  # fmt: skip
    rows.append(["Undisturbed", "", "", "", f"{watched.alarms[WATCH]} of {watched.quiet}", ""])
    heads = ["Disturbance", "Area, watch", "without the model", "picture difference", "Alarms", "Delay"]
    caption = (
        "Area under the curve with its 95&#8239;% interval (bootstrapped by seed); alarms of the watch at a threshold "
        f"that {percent(watched.false_alarms)} of undisturbed episodes may exceed; the median delay in control steps"
    )
    return table(caption, heads, rows, (1, 2, 3, 4, 5), foot=1)


def _cell(area: Area) -> str:
    low, high = area.interval
    return f"{area.area:.2f} <small>{low:.2f}&ndash;{high:.2f}</small>"


def _example(example: Example) -> str:
    name = NAMES.get(example.kind, example.kind)
    said = f"{name}, {example.task}: the score at each look"
    chart = "".join(
        f'<div class="{kind}">{trace_chart(example.trace, said, width)}</div>'
        for kind, width in (("for-wide", 760), ("for-narrow", 350))
    )
    first = max(0, min(example.look, len(example.canvases) - SHOWN_LOOKS))
    shown = range(first, min(first + SHOWN_LOOKS, len(example.canvases)))
    tiles = []
    for look in shown:
        canvas = example.canvases[look]
        score = example.trace.score[look - 1] if look else None
        step = example.trace.step[look - 1] if look else 0
        alarm = score is not None and score > example.trace.threshold
        said = "" if score is None else f", score {score:.1f}"
        words = f"step {step:.0f}{said}" + (' <b class="bad">alarm</b>' if alarm else "")
        alt = f"{example.task}, step {step:.0f}{said}"
        tiles.append(figure(image(jpeg(canvas), alt, canvas.shape[1], canvas.shape[0]), words))
    return (
        f'<article class="watched"><h3>{escape(name)} <small>{escape(example.task)}, seed {example.seed}: the episode '
        f"whose score stands in the middle of its kind</small></h3>{chart}"
        f'<div class="frames" style="--times:{len(tiles)}">{"".join(tiles)}</div></article>'
    )
