"""Read and check everything that the report shows of a run directory; what the run lacks is None."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, UInt8

from lightwam.config.schema import Recipe
from lightwam.config.strict_json import added, from_dict, stored_as, to_dict
from lightwam.data.facts import DatasetFacts
from lightwam.evaluation.episodes import EpisodeRow, read_episodes
from lightwam.evaluation.future_errors import FutureErrors, Pictures, read_futures
from lightwam.evaluation.probe import Probe, read_probe
from lightwam.evaluation.result_files import (
    Count,
    Duration,
    Protocol,
    read_lines,
    read_part,
    read_result,
)
from lightwam.evaluation.statistics import wilson
from lightwam.policy.run_directory import read_facts, read_recipe
from lightwam.policy.tensor_files import num_values
from lightwam.report.open_loop import OpenLoop, read_open_loop
from lightwam.report.watch_evidence import WatchResult, read_canvases

LOG_KEYS = (
    *("step", "loss", "loss_video", "loss_action", "grad_norm", "learning_rate"),
    *("samples_per_second", "seconds", "wait_share"),
)
HELD_OUT_KEYS = ("held_out", "held_out_hold", "held_out_repeat")
"""in the lines of checkpoints of a run with held-out episodes"""
Interval = Annotated[tuple[float, float], lambda ends: 0 <= ends[0] <= ends[1] <= 1, "[low, high] within 0..1"]
Latency = Annotated[Mapping[str, Duration], lambda ms: {"p50", "p95", "p99"} <= ms.keys(), "percentiles p50, p95, p99"]
WallSeconds = Annotated[Mapping[str, Duration], lambda seconds: "total" in seconds, "seconds by stage, with a total"]


@dataclass(frozen=True, kw_only=True)
class SuccessRate:
    """Successes among trials, with the 95 % interval of the rate: Wilson's where the file has none."""

    successes: Count
    trials: Count
    interval_95: Interval | None = added(None)

    def __post_init__(self) -> None:
        if not 0 < self.trials >= self.successes:
            raise ValueError("successes must be at most trials, of at least one trial")

    @property
    def rate(self) -> float:
        """Share of successes."""
        return self.successes / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        """Its two ends."""
        return self.interval_95 or wilson(self.successes, self.trials)


@dataclass(frozen=True, kw_only=True)
class TaskResult(SuccessRate):
    """A task's success rate and its instruction."""

    instruction: str


@dataclass(frozen=True, kw_only=True)
class EvaluationResult(SuccessRate):
    """A finished evaluation."""

    tasks: Mapping[str, TaskResult]
    protocol: Mapping[str, Any]
    """every constant of the evaluation"""
    latency_ms: Latency | None
    """per action chunk; None when no answer was timed"""
    wall_seconds: WallSeconds
    """of all attempts"""
    warnings: tuple[str, ...] = added(())
    """about the simulator's version; results of older releases have none"""


@dataclass(frozen=True, kw_only=True)
class SwapTaskResult:
    """A task's success rates with its own instruction and with another task's."""

    correct: SuccessRate = stored_as("right")
    swapped: SuccessRate
    swapped_instruction: str | None = added(None)


@dataclass(frozen=True, kw_only=True)
class SwapResult:
    """Success rates with the tasks' own instructions and with swapped ones."""

    correct: SuccessRate = stored_as("right")
    swapped: SuccessRate
    tasks: Mapping[str, SwapTaskResult]


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What `lightwam demo` measured."""

    wall_seconds: WallSeconds
    """by stage"""
    machine: Mapping[str, Any] | None = added(None)


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """The training dataset."""

    episodes: Count | None = added(None)
    fingerprint: Mapping[str, Any]
    """size and hash of every file"""


@dataclass(frozen=True)
class Log:
    """The training log: an array for each key, every step once; a resumed run's later line wins."""

    columns: dict[str, Float[np.ndarray, " N"]]
    truncated: bool
    """whether the last line was incomplete and left out"""
    held_out: dict[str, Float[np.ndarray, " M"]]
    """an array for each of HELD_OUT_KEYS and "step", at the checkpoints; {} without held-out episodes"""


@dataclass(frozen=True)
class Evidence:
    """Everything that a run directory holds for its report."""

    run: Path
    recipe: Recipe
    parameters: int | None
    """numbers stored in the newest checkpoint's weights"""
    dataset: DatasetRecord | None
    log: Log | None
    episodes: tuple[EpisodeRow, ...]
    episodes_truncated: bool
    """whether the last line was incomplete and left out"""
    planned_episodes: int
    """episodes of the evaluation when it is finished; 0 without a simulator"""
    result: EvaluationResult | None
    protocol: Protocol | None
    """the result's"""
    demo: DemoResult | None
    swap: SwapResult | None
    probe: Probe | None
    futures: tuple[FutureErrors, Pictures] | None
    """errors of imagined futures; None in older runs"""
    facts: DatasetFacts | None
    """of the training dataset; older runs have none"""
    open_loop: OpenLoop | None
    watch: WatchResult | None
    watch_canvases: Mapping[str, UInt8[np.ndarray, "observations height width 3"]]
    """of the watch's example of each kind of disturbance"""


def read_evidence(run: Path) -> Evidence:
    """Read `run`. CheckpointError, naming the file and line or key, for a broken file or a directory that is no run."""
    recipe, folder = read_recipe(run), run / "eval"
    weights = sorted((run / "checkpoints").glob(f"step_{8 * '[0-9]'}/model.safetensors"))
    plan = read_result(Protocol, folder / "protocol.json")
    if plan is None and recipe.sim is not None:
        plan = Protocol(sim=recipe.sim, eval=to_dict(recipe.eval), disturb=recipe.eval.disturb)
    episodes, truncated = _read_episodes(folder)
    result = read_result(EvaluationResult, folder / "result.json")
    watch = read_result(WatchResult, run / "watch" / "result.json")
    return Evidence(
        run=run,
        recipe=recipe,
        parameters=num_values(weights[-1]) if weights else None,
        dataset=read_result(DatasetRecord, run / "dataset.json"),
        log=_read_log(run / "log.jsonl"),
        episodes=episodes,
        episodes_truncated=truncated,
        planned_episodes=plan.eval["trials"] * len(plan.sim.tasks) if plan else 0,
        result=result,
        protocol=read_part(Protocol, result.protocol, f"{folder / 'result.json'}.protocol") if result else None,
        demo=read_result(DemoResult, run / "result.json"),
        swap=read_result(SwapResult, folder / "swap.json"),
        probe=read_probe(folder / "probe.npz"),
        futures=read_futures(folder),
        facts=read_facts(run),
        open_loop=read_open_loop(run),
        watch=watch,
        watch_canvases=read_canvases(run / "watch" / "examples.npz", watch.examples) if watch else {},
    )


def _read_log(path: Path) -> Log | None:
    lines, truncated = read_lines(path, LOG_KEYS) if path.is_file() else ([], False)
    rows = {line["step"]: [line[key] for key in LOG_KEYS] for line in lines}
    if not rows:
        return None
    values = np.asarray([rows[step] for step in sorted(rows)], np.float64)
    columns = {key: values[:, i] for i, key in enumerate(LOG_KEYS)}
    return Log(columns, truncated, _held_out(lines))


def _held_out(lines: Sequence[Mapping[str, Any]]) -> dict[str, Float[np.ndarray, " M"]]:
    keys = ("step", *HELD_OUT_KEYS)
    measured = (line for line in lines if all(type(line.get(key)) in (int, float) for key in keys))
    rows = {line["step"]: [float(line[key]) for key in keys] for line in measured}
    values = np.asarray([rows[step] for step in sorted(rows)], np.float64)
    return {key: values[:, i] for i, key in enumerate(keys)} if rows else {}


def _read_episodes(folder: Path) -> tuple[tuple[EpisodeRow, ...], bool]:
    """Read the finished episodes, and whether an incomplete line follows them."""
    rows, path = read_episodes(folder).values(), folder / "episodes.jsonl"
    incomplete = path.read_bytes().rpartition(b"\n")[2] if path.is_file() else b""
    return tuple(from_dict(EpisodeRow, row) for row in rows), incomplete != b""
