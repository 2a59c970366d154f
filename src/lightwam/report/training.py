"""How the run was made: learning curves, where the time went, config, versions, commands."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from lightwam.config.schema import to_dict
from lightwam.report.charts import Curve, curve_chart, stacked_bar
from lightwam.report.evidence import Evidence, Log, Result
from lightwam.report.formatting import THIN, counted, duration, escape, figures, percent
from lightwam.report.html import demo_command, eval_command, figure, missing, note, pairs, section, table, train_command


def curves(evidence: Evidence) -> str:
    """Loss, its two halves, and the learning rate over the training steps."""
    title, log = "Learning curves", evidence.log
    if log is None:
        command = train_command(evidence.recipe.name, evidence.run)
        return section("curves", title, missing("There is no training log.", command))
    column = log.columns
    panels = (
        ("loss", "Joint loss", "", True),
        ("loss_action", "Action loss", "squared error", True),
        ("loss_video", "Video loss", "weighted squared error", True),
        ("learning_rate", "Learning rate", "", False),
        ("grad_norm", "Gradient norm", "before clipping", True),
        ("samples_per_second", "Speed", "samples a second", True),
    )
    charts = [
        figure(curve_chart(Curve(name, unit, column["step"], column[key], smooth)), name)
        for key, name, unit, smooth in panels
    ]
    every = evidence.recipe.train.log_every
    lead = (
        f"Pale: one batch every {every} steps. Strong: the moving average."
        if every > 1
        else "Pale: every batch. Strong: the moving average."
    )
    return section("curves", title, _log_notes(log), f'<div class="charts">{"".join(charts)}</div>', lead=lead)


def _log_notes(log: Log) -> str:
    remarks = []
    if log.torn:
        remarks.append(
            "The last line of <code>log.jsonl</code> was cut off (the run was killed while it wrote, or still writes); "
            "it is left out."
        )
    broken = int((~np.isfinite(log.columns["loss"])).sum())
    if broken:
        remarks.append(
            f"{broken} of {len(log.columns['loss'])} logged losses are not finite numbers: training diverged. The "
            "curves leave them out."
        )
    return "".join(map(note, remarks))


def times(evidence: Evidence) -> str:
    """Wall time by part, training speed, the loader's share, latency of an action."""
    log, result, wall = evidence.log, evidence.result, evidence.wall_seconds
    rows: list[tuple[str, str]] = []
    if wall:
        blocks = [_wall(wall)]
    else:
        blocks = [note("Wall time by part is measured where <code>lightwam demo</code> makes the whole run.")]
    if log is not None:
        rows += _training_times(log, evidence.recipe.train.batch_size)
    if result is None:
        blocks.append(missing("The latency of an action has not been measured.", eval_command(evidence.run)))
    else:
        rows += _evaluation_times(result, evidence.recipe.model.horizon)
    if rows:
        blocks.append(pairs(rows, "speeds"))
    return section("time", "Time", *blocks)


def _training_times(log: Log, batch_size: int) -> list[tuple[str, str]]:
    low, middle, high = (figures(speed) for speed in np.quantile(log.columns["samples_per_second"], (0.1, 0.5, 0.9)))
    seconds, steps = duration(float(log.columns["seconds"][-1])), figures(log.columns["step"][-1])
    waited = percent(float(log.columns["wait_share"].mean()))
    return [
        ("Training speed", f"{middle} samples/s <small>median; {low} to {high} in the middle 80{THIN}%</small>"),
        ("Training time", f"{seconds} <small>{steps} steps of {counted(batch_size, 'sample')}</small>"),
        ("Waiting for the loader", f"{waited} <small>of the training time</small>"),
    ]


def _evaluation_times(result: Result, horizon: int) -> list[tuple[str, str]]:
    rows = [("Evaluation time", f"{duration(result.seconds)} <small>all attempts</small>")]
    chunk = f"{counted(horizon, 'action')} a chunk, {result.replan} of them executed"
    if result.latency_ms is None:
        rows.append(("Latency of an action chunk", "<small>not measured: no episode was left to run</small>"))
    else:
        p50, p95, p99 = (f"{figures(result.latency_ms[key])}{THIN}ms" for key in ("p50", "p95", "p99"))
        rows.append(("Latency of an action chunk", f"{p50} <small>median; p95 {p95}, p99 {p99}; {chunk}</small>"))
    return rows


def _wall(wall: dict[str, float]) -> str:
    parts = [(name, seconds) for name, seconds in wall.items() if name != "total"]
    total = max(wall["total"], sum(seconds for _, seconds in parts))
    if total - sum(seconds for _, seconds in parts) > 0.005 * total:
        parts.append(("everything else", total - sum(seconds for _, seconds in parts)))
    rows = [
        [
            f'<i class="swatch p{i % 8}"></i>{escape(name)}',
            duration(seconds),
            percent(seconds / total if total else 0.0),
        ]
        for i, (name, seconds) in enumerate(parts)
    ]
    rows.append(["total", duration(total), ""])
    numbers = table("Wall time by part, in the order of the bar", ["Part", "Time", "Share"], rows, (1, 2), foot=1)
    return stacked_bar(parts, "Wall time by part") + numbers


def reproduction(evidence: Evidence) -> str:
    """The commands, the versions and the machine, and every setting."""
    recipe, run = evidence.recipe, evidence.run
    data = f"data/{recipe.name}"
    commands = [
        f"lightwam collect {recipe.name} --dataset {data}",
        f"lightwam train {recipe.name} --dataset {data} --run {run}",
        eval_command(run),
        f"lightwam report {run}",
    ]
    lines = "\n".join(map(escape, commands))
    blocks = [
        f"<pre><code>{lines}</code></pre>",
        f'<p class="small">Or all at once: <code>{escape(demo_command(recipe.name, run))}</code>. '
        "Settings overridden on the command line are in the config below, and in <code>recipe.json</code>.</p>",
    ]
    if recipe.notes:
        blocks.append(f"<p>{escape(recipe.notes)}</p>")
    if evidence.result is None:
        blocks.append(missing("Versions and machine are recorded by the evaluation.", eval_command(run)))
    else:
        machine = {"machine": evidence.machine} if evidence.machine else {}
        blocks.append(_folded("Evaluation protocol, versions and machine", evidence.result.protocol | machine))
    settings = {key: value for key, value in to_dict(recipe).items() if key != "notes"}
    blocks.append(_folded("Every setting of the recipe", settings))
    return section("reproduce", "Config and commands", *blocks)


def _folded(title: str, data: dict[str, Any]) -> str:
    rows = [[escape(key), f"<code>{escape(value)}</code>"] for key, value in leaves(data)]
    return (
        f'<details class="settings"><summary>{title}</summary>{table(title, ["Setting", "Value"], rows, ())}</details>'
    )


def leaves(data: Any, path: str = "") -> list[tuple[str, str]]:
    """(dotted path, value as JSON) of every plain value in nested objects."""
    if isinstance(data, dict) and data:
        return [leaf for key, value in data.items() for leaf in leaves(value, f"{path}.{key}" if path else str(key))]
    if isinstance(data, list) and any(isinstance(item, dict) for item in data):
        return [leaf for i, value in enumerate(data) for leaf in leaves(value, f"{path}[{i}]")]
    return [(path, data if isinstance(data, str) else json.dumps(data))]
