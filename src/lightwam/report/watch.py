"""What the watch tells: ROC curves by disturbance, beside scores that need no world model, and an episode of each."""

from __future__ import annotations

from pathlib import Path

from lightwam.report.charts import Line, roc_chart, trace_chart
from lightwam.report.formatting import THIN, counted, escape, figures, percent, simulator
from lightwam.report.html import figure, image, missing, section, table
from lightwam.report.images import jpeg
from lightwam.report.watch_evidence import LINES, WATCH, WITHOUT, Area, Example, Watched

SHOWN_LOOKS = 4
NAMES = {"object": "Object moved", "camera": "Camera bumped", "frozen": "Frozen frames", "any": "Any of them"}


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
