"""The runtime watch: ROC curves for each disturbance, and an example episode with its scores and pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from lightwam.evaluation.watch.scores import ANY
from lightwam.report.charts import Chart, roc_chart, trace_chart
from lightwam.report.images import Image, jpeg
from lightwam.report.watch_evidence import DETECTORS, Example, WatchResult

MAX_PICTURES = 4
TITLES = {"object": "Object moved", "camera": "Camera bumped", "frozen": "Frozen frames", ANY: "Any disturbance"}


@dataclass(frozen=True)
class Observed:
    """What the policy saw at a control step; the first observation of an episode has no score."""

    step: int
    score: float | None
    alarm: bool
    image: Image


@dataclass(frozen=True)
class ExampleView:
    """An example with its charts for wide and narrow screens, and the pictures around the disturbance."""

    example: Example
    title: str
    wide: Chart
    narrow: Chart
    observed: tuple[Observed, ...]


def roc_charts(watch: WatchResult) -> list[tuple[str, Chart]]:
    """Draw the ROC curves of every kind of disturbance, without those of all together."""
    titles = {kind: TITLES.get(kind, kind) for kind in watch.disturbances if kind != ANY}
    return [(title, roc_chart(title, watch.disturbances[kind].detectors, DETECTORS)) for kind, title in titles.items()]


def example_view(example: Example, canvases: UInt8[np.ndarray, "observations height width 3"]) -> ExampleView:
    """Draw an example's scores, and its pictures from the last one before the disturbance on."""
    title = TITLES.get(example.kind, example.kind)
    label = f"{title}, {example.task}: the score at every observation"
    first = max(0, min(example.last_before, len(canvases) - MAX_PICTURES))
    observed = []
    for i, canvas in enumerate(canvases[first : first + MAX_PICTURES], first):
        step, score = (int(example.steps[i - 1]), example.scores[i - 1]) if i else (0, None)
        observed.append(Observed(step, score, score is not None and score > example.threshold, jpeg(canvas)))
    wide, narrow = (trace_chart(example, label, width) for width in (760, 350))
    return ExampleView(example, title, wide, narrow, tuple(observed))
