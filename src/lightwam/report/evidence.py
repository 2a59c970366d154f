"""Read and check everything that the report shows of a run directory; what the run lacks is None."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from lightwam.config.schema import Recipe
from lightwam.config.strict_json import from_dict
from lightwam.errors import CheckpointError, ConfigError
from lightwam.evaluation.episodes import read_episodes
from lightwam.evaluation.statistics import wilson
from lightwam.report.watch_evidence import WatchResult, read_watch
from lightwam.system.checked_json import Table, read_arrays, read_lines, read_object

LOG_KEYS = (
    *("step", "loss", "loss_video", "loss_action", "grad_norm", "learning_rate"),
    *("samples_per_second", "seconds", "wait_share"),
)


@dataclass(frozen=True)
class SuccessRate:
    """Successes among trials, with the 95 % interval of the rate."""

    successes: int
    trials: int
    interval: tuple[float, float]

    @property
    def rate(self) -> float:
        """Share of successes."""
        return self.successes / self.trials


@dataclass(frozen=True)
class TaskResult:
    """A task's success rate and its instruction."""

    task: str
    instruction: str
    success: SuccessRate


@dataclass(frozen=True)
class EvaluationResult:
    """A finished evaluation."""

    success: SuccessRate
    tasks: tuple[TaskResult, ...]
    protocol: dict[str, Any]
    replan: int
    first_seed: int
    max_steps: int
    """control steps of an episode at most"""
    latency_ms: dict[str, float] | None
    """percentile -> milliseconds per action chunk; None when no answer was timed"""
    seconds: float
    """of all attempts"""
    warnings: tuple[str, ...] = ()
    """about the simulator's version; results of older releases have none"""


@dataclass(frozen=True)
class EpisodeResult:
    """A closed-loop episode."""

    task: str
    seed: int
    success: bool
    steps: int
    steps_to_success: int | None
    video: Path | None


@dataclass(frozen=True)
class SwapTaskResult:
    """A task's success rates with its own instruction and with another task's."""

    task: str
    correct: SuccessRate
    swapped: SuccessRate
    swapped_instruction: str | None


@dataclass(frozen=True)
class SwapResult:
    """Success rates with the tasks' own instructions and with swapped ones."""

    correct: SuccessRate
    swapped: SuccessRate
    tasks: tuple[SwapTaskResult, ...]


@dataclass(frozen=True)
class Log:
    """The training log: an array for each key, every step once; a resumed run's later line wins."""

    columns: dict[str, Float[np.ndarray, " N"]]
    truncated: bool
    """whether the last line was incomplete and left out"""


@dataclass(frozen=True)
class Probe:
    """Predicted frames and attention at M moments of held-out episodes; evaluation/probe.py records them."""

    tasks: tuple[str, ...]
    instructions: tuple[str, ...]
    seeds: Int[np.ndarray, " M"]
    steps: Int[np.ndarray, " M"]
    """control step of the moment in its episode"""
    fps: float
    """control steps per second"""
    video_stride: int
    imagine_steps: int
    """Euler steps of a sample"""
    taps: Int[np.ndarray, " taps"]
    imagined: UInt8[np.ndarray, "M F height width 3"]
    real: UInt8[np.ndarray, "M F height width 3"]
    real_coded: UInt8[np.ndarray, "M F height width 3"]
    """the real frames, encoded and decoded through the latents that the model predicts"""
    real_is_pad: Bool[np.ndarray, "M F"]
    attention: Float[np.ndarray, "M taps queries rows cols"]


@dataclass(frozen=True)
class Evidence:
    """Everything that a run directory holds for its report."""

    run: Path
    recipe: Recipe
    parameters: int | None
    """numbers stored in the newest checkpoint's weights"""
    demonstrations: int | None
    """episodes in the training dataset, if the run knows"""
    log: Log | None
    episodes: tuple[EpisodeResult, ...]
    episodes_truncated: bool
    """whether the last line was incomplete and left out"""
    planned_episodes: int
    """episodes of the evaluation when it is finished"""
    result: EvaluationResult | None
    wall_seconds: dict[str, float] | None
    """by stage, with "total", if `lightwam demo` measured them"""
    machine: dict[str, Any] | None
    """on which they were measured"""
    swap: SwapResult | None
    probe: Probe | None
    watch: WatchResult | None


def read_evidence(run: Path) -> Evidence:
    """Read `run`. CheckpointError, naming the file and line or key, for a broken file or a directory that is no run."""
    recipe, folder = _read_recipe(run), run / "eval"
    swap, probe, demo = folder / "swap.json", folder / "probe.npz", run / "result.json"
    totals = read_object(demo) if demo.is_file() else None
    episodes, truncated = _read_episodes(folder)
    return Evidence(
        run=run,
        recipe=recipe,
        parameters=_count_parameters(run / "checkpoints"),
        demonstrations=_read_demonstrations(run / "dataset.json"),
        log=_read_log(run / "log.jsonl"),
        episodes=episodes,
        episodes_truncated=truncated,
        planned_episodes=_read_planned(folder / "protocol.json", recipe),
        result=_read_result(folder / "result.json"),
        wall_seconds=_read_seconds(totals) if totals else None,
        machine=totals.child("machine").data if totals and "machine" in totals else None,
        swap=_read_swap(read_object(swap)) if swap.is_file() else None,
        probe=_read_probe(probe) if probe.is_file() else None,
        watch=read_watch(run),
    )


def num_values(weights: Path) -> int:
    """Count the numbers in a safetensors file from its header; CheckpointError when that is broken.

    The header is 8 bytes with its length, then JSON with every tensor's shape.
    """
    with weights.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(min(size, 100_000_000))
    try:
        shapes = [entry["shape"] for name, entry in json.loads(header).items() if name != "__metadata__"]
        return sum(math.prod(shape) for shape in shapes)
    except (ValueError, KeyError, TypeError) as error:
        step = "delete this checkpoint and resume training from the one before"
        raise CheckpointError(
            "the weights must have a safetensors header", where=weights, got=repr(error), next_step=step
        ) from error


def _read_recipe(run: Path) -> Recipe:
    path = run / "recipe.json"
    if not path.is_file():
        step = "train first (`lightwam train --help`), or name another directory"
        raise CheckpointError("this is not a run directory", where=run, got="no recipe.json", next_step=step)
    try:
        return from_dict(Recipe, read_object(path).data, "recipe")
    except ConfigError as error:
        what, where = f"the run's recipe cannot be used: {error.what}", f"{path}: {error.where}"
        raise CheckpointError(
            what, where=where, got=error.got, expected=error.expected, next_step=error.next_step
        ) from error


def _read_planned(protocol: Path, recipe: Recipe) -> int:
    """Return the number of episodes of the evaluation that was started, or that the recipe asks for."""
    if not protocol.is_file():
        return recipe.eval.trials * len(recipe.sim.tasks)
    table = read_object(protocol)
    tasks = table.child("sim").value("tasks")
    if not isinstance(tasks, list):
        raise table.child("sim").refuse("tasks", "a list")
    return table.child("eval").count("trials") * len(tasks)


def _read_demonstrations(dataset: Path) -> int | None:
    table = read_object(dataset) if dataset.is_file() else None
    return table.count("episodes") if table and "episodes" in table else None


def _count_parameters(checkpoints: Path) -> int | None:
    weights = sorted(checkpoints.glob(f"step_{8 * '[0-9]'}/model.safetensors"))
    return num_values(weights[-1]) if weights else None


def _read_log(path: Path) -> Log | None:
    if not path.is_file():
        return None
    lines, truncated = read_lines(path)
    rows = {line.number("step"): [line.number(key) for key in LOG_KEYS] for line in lines}
    if not rows:
        return None
    values = np.asarray([rows[step] for step in sorted(rows)], np.float64)
    return Log({key: values[:, i] for i, key in enumerate(LOG_KEYS)}, truncated)


def _read_episodes(folder: Path) -> tuple[tuple[EpisodeResult, ...], bool]:
    """Read the finished episodes, and whether an incomplete line follows them."""
    keys = [field.name for field in fields(EpisodeResult) if field.name != "video"]
    episodes = tuple(
        EpisodeResult(**{key: row[key] for key in keys}, video=folder / row["video"] if row["video"] else None)
        for row in read_episodes(folder).values()
    )
    path = folder / "episodes.jsonl"
    return episodes, bool(path.read_bytes().rpartition(b"\n")[2]) if path.is_file() else False


def _read_success(table: Table, has_interval: bool = True) -> SuccessRate:
    """Read a success rate; if the file has no interval for it, compute Wilson's."""
    successes, trials = table.count("successes"), table.count("trials")
    if not 0 < trials >= successes:
        raise table.refuse("successes", f"at most trials ({trials}), of at least one trial")
    if not has_interval:
        return SuccessRate(successes, trials, wilson(successes, trials))
    low, high = table.numbers("interval_95", 2)
    if not 0 <= low <= high <= 1:
        raise table.refuse("interval_95", "[low, high] within 0..1")
    return SuccessRate(successes, trials, (low, high))


def _read_result(path: Path) -> EvaluationResult | None:
    if not path.is_file():
        return None
    table = read_object(path)
    protocol = table.child("protocol")
    latency = None if table.value("latency_ms") is None else table.child("latency_ms")
    return EvaluationResult(
        success=_read_success(table),
        tasks=tuple(
            TaskResult(name, task.text("instruction"), _read_success(task)) for name, task in table.children("tasks")
        ),
        protocol=protocol.data,
        replan=protocol.child("eval").count("replan"),
        first_seed=protocol.child("eval").count("first_seed"),
        max_steps=protocol.child("sim").count("max_steps"),
        latency_ms={key: latency.duration(key) for key in ("p50", "p95", "p99")} if latency else None,
        seconds=_read_seconds(table)["total"],
        warnings=tuple(map(str, table.data.get("warnings", ()))),
    )


def _read_seconds(table: Table) -> dict[str, float]:
    seconds = table.child("wall_seconds")
    return {stage: seconds.duration(stage) for stage in (*seconds.data, "total")}


def _read_swap(table: Table) -> SwapResult:
    def both(row: Table) -> tuple[SuccessRate, SuccessRate]:
        return _read_success(row.child("right"), False), _read_success(row.child("swapped"), False)

    tasks = []
    for name, row in table.children("tasks"):
        sentence = row.text("swapped_instruction") if "swapped_instruction" in row else None
        tasks.append(SwapTaskResult(name, *both(row), sentence))
    return SwapResult(*both(table), tuple(tasks))


def _read_probe(path: Path) -> Probe:
    what, step = "the recorded moments cannot be read", "delete the file, then run lightwam report RUN --imagine"
    arrays = read_arrays(path, what, step)
    missing = [field.name for field in fields(Probe) if field.name not in arrays]
    if missing:
        got = f"no array named {', '.join(missing)}; arrays: {', '.join(sorted(arrays))}"
        raise CheckpointError(what, where=path, got=got, next_step=step)
    if not _fits_together(arrays):
        shapes = {name: (str(array.dtype), array.shape) for name, array in sorted(arrays.items())}
        expected = "the arrays that evaluation.probe.record_probe writes"
        raise CheckpointError(what, where=path, got=shapes, expected=expected, next_step=step)
    values: dict[str, Any] = {field.name: arrays[field.name] for field in fields(Probe)}
    values |= {name: tuple(map(str, arrays[name])) for name in ("tasks", "instructions")}
    values |= {name: arrays[name].item() for name in ("fps", "video_stride", "imagine_steps")}
    return Probe(**values)


def _fits_together(arrays: dict[str, np.ndarray]) -> bool:
    frames, attention, moments = (arrays[name].shape for name in ("real", "attention", "tasks"))
    if (len(frames), len(attention), len(moments)) != (5, 5, 1):
        return False
    return all(
        (
            frames[:1] == attention[:1] == moments and moments[0] > 0 and frames[1] > 1 and frames[4] == 3,
            arrays["imagined"].shape == arrays["real_coded"].shape == frames,
            arrays["real_is_pad"].shape == frames[:2],
            arrays["instructions"].shape == arrays["seeds"].shape == arrays["steps"].shape == moments,
            arrays["taps"].shape == attention[1:2],
            all(arrays[name].size == 1 for name in ("fps", "video_stride", "imagine_steps")),
            all(arrays[name].dtype == np.uint8 for name in ("real", "imagined", "real_coded")),
        )
    )
