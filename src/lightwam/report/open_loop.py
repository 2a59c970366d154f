"""The open-loop evaluation for the report: errors by joint and step, and whole episodes with the predicted chunks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped, jaxtyped

from lightwam.config.strict_json import added
from lightwam.errors import CheckpointError
from lightwam.evaluation.open_loop_text import common_unit, mean_moved
from lightwam.evaluation.result_files import Count, Duration, read_arrays, read_result
from lightwam.report.charts import Axis, Chart, Line

Errors = Mapping[str, Duration]
"""policy, hold and repeat"""
Row = tuple[Duration, ...]
CSS = {"policy": "score watch", "hold": "score without", "repeat": "score pictures"}
"""class of a line"""
TITLES = {"policy": "policy", "hold": "holding still", "repeat": "repeating the last action"}
MAX_EPISODES = 6
"""that are drawn"""


@dataclass(frozen=True, kw_only=True)
class SentenceErrors:
    """Errors with the episodes' own sentence and with another one."""

    windows: Count
    own: Duration
    other: Duration


@dataclass(frozen=True, kw_only=True)
class ReplayResult:
    """How the chunks would have been played."""

    replan: Count
    joining: str
    error: Row
    jump: Row
    recorded_jump: Row
    jitter: Duration


@dataclass(frozen=True, kw_only=True)
class OpenLoopResult:
    """What `lightwam eval` measured in open loop."""

    policy: Mapping[str, Any]
    dataset: str
    held_out: bool
    episodes: tuple[Count, ...]
    windows: Count
    fps: Duration
    replan: Count
    names: tuple[str, ...]
    units: tuple[str, ...]
    switch_dims: tuple[Count, ...]
    overall: Errors
    first_step: Errors
    by_step: Mapping[str, Row]
    by_dim: Mapping[str, Row]
    sentences: SentenceErrors | None = added(None)
    replays: tuple[ReplayResult, ...]
    verdict: tuple[str, ...]

    @property
    def unit(self) -> str:
        """The unit of all numbers of the action, "" if they have several or it is unknown."""
        return common_unit(self.units)

    def mean(self, values: Row) -> float:
        """Return the mean over the dimensions that are no switches."""
        return mean_moved(values, self.switch_dims)


@dataclass(frozen=True)
class Joint:
    """The errors of one number of the action."""

    name: str
    unit: str
    errors: Mapping[str, float]

    @property
    def share(self) -> float:
        """The policy's error as a share of the larger baseline's, at most 1; 0 if nothing was moved or predicted."""
        return min(1.0, self.errors["policy"] / max(self.errors["hold"], self.errors["repeat"], 1e-12))


@dataclass(frozen=True)
class Way:
    """A way of playing chunks: its error, and its jump at a new chunk as a multiple of what was recorded there."""

    error: float
    jump: float


@dataclass(frozen=True)
class EpisodePlot:
    """A recorded episode: a chart for each number of the action."""

    index: int
    instruction: str
    charts: tuple[tuple[str, Chart], ...]
    """name and chart"""


@dataclass(frozen=True)
class OpenLoop:
    """The section of the report."""

    result: OpenLoopResult
    joints: tuple[Joint, ...]
    by_step: Chart
    joinings: list[str]
    ways: tuple[tuple[int, tuple[Way, ...]], ...]
    """replan, and a cell for each of `joinings`"""
    shown: tuple[EpisodePlot, ...]
    """an episode of each sentence"""
    others: tuple[EpisodePlot, ...]
    titles: Mapping[str, str]


def read_open_loop(run: Path) -> OpenLoop | None:
    """Read what `lightwam eval` wrote in open loop; None without it, CheckpointError when a file is broken."""
    result = read_result(OpenLoopResult, run / "eval" / "open_loop.json")
    if result is None:
        return None
    joints = tuple(
        Joint(name, unit, {key: values[dim] for key, values in result.by_dim.items()})
        for dim, (name, unit) in enumerate(zip(result.names, result.units, strict=True))
    )
    plots = _plots(run / "eval" / "open_loop.npz", result)
    first = {plot.instruction: plot for plot in reversed(plots)}
    shown = tuple(plot for plot in plots if plot in first.values())
    others = tuple(plot for plot in plots if plot not in shown)
    joinings, ways = _ways(result)
    return OpenLoop(result, joints, _step_chart(result), joinings, ways, shown, others, TITLES)


def _ways(result: OpenLoopResult) -> tuple[list[str], tuple[tuple[int, tuple[Way, ...]], ...]]:
    """Return the ways of joining, and for each replan a cell for each of them."""
    joinings = list(dict.fromkeys(row.joining for row in result.replays))
    cells = {
        (row.replan, row.joining): Way(
            float(np.mean(row.error)), _ratio(result.mean(row.jump), result.mean(row.recorded_jump))
        )
        for row in result.replays
    }
    replans = dict.fromkeys(row.replan for row in result.replays)
    return joinings, tuple((replan, tuple(cells[replan, name] for name in joinings)) for replan in replans)


def _step_chart(result: OpenLoopResult) -> Chart:
    steps = np.arange(1, len(result.by_step["policy"]) + 1, dtype=np.float64)
    lines = tuple(Line(CSS[name], steps, np.array(result.by_step[name])) for name in reversed(CSS))
    most = max(float(line.y.max()) for line in lines)
    policy = result.by_step["policy"]
    return Chart(
        title=f"Error by step of the chunk: from {policy[0]:.3g} at the first to {policy[-1]:.3g} at the last",
        x=Axis(1.0, max(2.0, float(len(steps))), "control step of the chunk"),
        y=Axis(0.0, 1.05 * most or 1.0, result.unit or "mean over all numbers"),
        lines=lines,
        width=520,
        height=260,
    )


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference else float("inf") if value else 1.0


@dataclass(frozen=True)
class _Arrays:
    """What open_loop.npz holds: E episodes of N control steps in all, and C chunks."""

    episodes: Int[np.ndarray, " E"]
    instructions: Shaped[np.ndarray, " E"]
    episode_start: Int[np.ndarray, " E+1"]
    action: Float[np.ndarray, "N A"]
    chunk_start: Int[np.ndarray, " C"]
    chunks: Float[np.ndarray, "C H A"]


def _plots(path: Path, result: OpenLoopResult) -> list[EpisodePlot]:
    if not path.is_file():
        return []
    what, step = "the recorded episodes cannot be read", "delete the file, then run lightwam eval RUN --open-loop"
    arrays = read_arrays(path, what, step)
    try:
        with jaxtyped("context"):
            data = _Arrays(**{name: arrays[name] for name in _Arrays.__dataclass_fields__})
    except (KeyError, TypeError) as error:
        raise CheckpointError(what, where=path, got=sorted(arrays), next_step=step) from error
    spans = list(pairwise(data.episode_start.tolist()))
    return [
        EpisodePlot(
            int(data.episodes[i]),
            str(data.instructions[i]),
            tuple((name, _joint_chart(data, span, dim, result)) for dim, name in enumerate(result.names)),
        )
        for i, span in enumerate(spans[:MAX_EPISODES])
    ]


def _joint_chart(data: _Arrays, span: tuple[int, int], dim: int, result: OpenLoopResult) -> Chart:
    """Chart one number of an episode: the recorded action, and the chunks, each with a dot where it begins."""
    begin, end = span
    recorded = data.action[begin:end, dim].astype(np.float64)
    lines, dots, values = [], [], [recorded]
    for start, chunk in zip(data.chunk_start.tolist(), data.chunks[..., dim].astype(np.float64), strict=True):
        if begin <= start < end:
            drawn = chunk[: end - start]
            lines.append(Line("chunk", (start - begin + np.arange(len(drawn))) / result.fps, drawn))
            dots.append(("dot start", (start - begin) / result.fps, float(drawn[0])))
            values.append(drawn)
    low, high = (float(function(np.concatenate(values))) for function in (np.min, np.max))
    margin = 0.05 * (high - low) or 1.0
    seconds = np.arange(len(recorded)) / result.fps
    return Chart(
        title=f"{result.names[dim]}: recorded {recorded.min():.3g} to {recorded.max():.3g}, and {len(lines)} chunks",
        x=Axis(0.0, max(float(seconds[-1]), 1 / result.fps), "seconds", num_ticks=4),
        y=Axis(low - margin, high + margin, result.units[dim], num_ticks=4),
        lines=(Line("recorded", seconds, recorded), *lines),
        dots=tuple(dots),
        height=180,
    )
