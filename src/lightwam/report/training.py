"""How the run was made: training curves, wall time, and settings as flat tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lightwam.report.charts import Chart, held_out_chart, training_chart
from lightwam.report.evidence import HELD_OUT_KEYS, Evidence, Log
from lightwam.report.formatting import short_number

CURVES = (
    ("loss", "Joint loss", "", False),
    ("loss_action", "Action loss", "of normalised actions", False),
    ("loss_video", "Video loss", "weighted squared error", False),
    ("learning_rate", "Learning rate", "", True),
    ("grad_norm", "Gradient norm", "before clipping", False),
    ("samples_per_second", "Training speed", "samples per second", False),
)
"""key of the log, title, unit, whether it is scheduled"""


def training_charts(log: Log) -> list[tuple[str, Chart | None]]:
    """Draw every curve with its title; first the error on held-out episodes, if there are any."""
    step, charts = log.columns["step"], list[tuple[str, Chart | None]]()
    if log.held_out:
        columns = [log.held_out[key] for key in ("step", *HELD_OUT_KEYS)]
        title = (
            f"Held-out error; standing still {short_number(columns[2][-1])}, repeating {short_number(columns[3][-1])}"
        )
        charts.append((title, held_out_chart(*columns)))
    return charts + [
        (name, training_chart(name, unit, step, log.columns[key], fixed)) for key, name, unit, fixed in CURVES
    ]


def wall_time(wall_seconds: Mapping[str, float]) -> tuple[list[tuple[str, float]], float]:
    """Return the seconds of every stage, what is missing to the total as another one, and the total."""
    stages = [(name, seconds) for name, seconds in wall_seconds.items() if name != "total"]
    known = sum(seconds for _, seconds in stages)
    total = max(wall_seconds["total"], known)
    if total - known > 0.005 * total:
        stages.append(("everything else", total - known))
    return stages, total


def protocol_settings(evidence: Evidence) -> list[tuple[str, str]]:
    """Flatten the evaluation's protocol, with versions and machine; empty before an evaluation."""
    machine = {"machine": evidence.demo.machine} if evidence.demo and evidence.demo.machine else {}
    return flatten({**evidence.result.protocol, **machine}) if evidence.result else []


def flatten(data: Any, path: str = "") -> list[tuple[str, str]]:
    """Return (dotted path, value as JSON) of every plain value in nested objects."""
    if isinstance(data, dict) and data:
        return [leaf for key, value in data.items() for leaf in flatten(value, f"{path}.{key}" if path else str(key))]
    if isinstance(data, list) and any(isinstance(item, dict) for item in data):
        return [leaf for i, value in enumerate(data) for leaf in flatten(value, f"{path}[{i}]")]
    return [(path, data if isinstance(data, str) else json.dumps(data))]
