"""Everything that a run directory can show, read and checked; what the run lacks is None."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from lightwam.config.schema import Recipe, from_dict
from lightwam.errors import CheckpointError, ConfigError
from lightwam.evaluation.statistics import wilson
from lightwam.report.watch_evidence import Watched, read_watch
from lightwam.system.checked_json import Table, read_lines, read_object

LOG_KEYS = (
    "step", "loss", "loss_video", "loss_action", "grad_norm", "learning_rate", "samples_per_second", "seconds",
    "wait_share",
)  # fmt: skip


@dataclass(frozen=True)
class Score:
    """Successes among trials, with the 95 % interval of the rate."""

    successes: int
    trials: int
    interval: tuple[float, float]

    @property
    def rate(self) -> float:
        """Share of successes."""
        return self.successes / self.trials


@dataclass(frozen=True)
class TaskScore:
    """One task's score and its sentence."""

    task: str
    instruction: str
    score: Score


@dataclass(frozen=True)
class Result:
    """A finished evaluation."""

    score: Score
    tasks: tuple[TaskScore, ...]
    protocol: dict[str, Any]
    replan: int
    first_seed: int
    max_steps: int
    """control steps that an episode may take"""
    latency_ms: dict[str, float] | None
    """percentile -> milliseconds of one answer; None when no answer was ever timed"""
    seconds: float
    """of all attempts"""
    warnings: tuple[str, ...] = ()
    """what it says of its simulator's versions; results of older releases lack it"""


@dataclass(frozen=True)
class Episode:
    """One closed-loop episode."""

    task: str
    seed: int
    success: bool
    steps: int
    steps_to_success: int | None
    video: Path | None


@dataclass(frozen=True)
class SwapTask:
    """One task, told its own sentence and another's."""

    task: str
    right: Score
    swapped: Score
    swapped_instruction: str | None


@dataclass(frozen=True)
class Swap:
    """What became of success when the sentences were exchanged."""

    right: Score
    swapped: Score
    tasks: tuple[SwapTask, ...]


@dataclass(frozen=True)
class Log:
    """The training log, one array a key, each step once; a resumed run's later line wins."""

    columns: dict[str, Float[np.ndarray, " N"]]
    torn: bool


@dataclass(frozen=True)
class Probe:
    """What the model imagined and looked at in M moments of held-out episodes (see probe.py, which records it)."""

    tasks: tuple[str, ...]
    instructions: tuple[str, ...]
    seeds: Int[np.ndarray, " M"]
    steps: Int[np.ndarray, " M"]
    """control step of the moment in its episode"""
    fps: float
    """control steps a second"""
    video_stride: int
    imagine_steps: int
    """Euler steps of a sample"""
    taps: Int[np.ndarray, " taps"]
    imagined: UInt8[np.ndarray, "M F height width 3"]
    real: UInt8[np.ndarray, "M F height width 3"]
    real_coded: UInt8[np.ndarray, "M F height width 3"]
    """the real frames, through the latents that the model imagines in"""
    real_is_pad: Bool[np.ndarray, "M F"]
    attention: Float[np.ndarray, "M taps queries rows cols"]


@dataclass(frozen=True)
class Evidence:
    """A whole run."""

    run: Path
    recipe: Recipe
    parameters: int | None
    """numbers stored in the newest checkpoint's weights"""
    demonstrations: int | None
    """in the dataset that it was trained on, where the run knows"""
    log: Log | None
    episodes: tuple[Episode, ...]
    episodes_torn: bool
    planned: int
    """episodes that the evaluation has, or will have"""
    result: Result | None
    wall_seconds: dict[str, float] | None
    """of every part, with "total", where `lightwam demo` measured them"""
    machine: dict[str, Any] | None
    """that they were measured on"""
    swap: Swap | None
    probe: Probe | None
    watch: Watched | None


def read_evidence(run: Path) -> Evidence:
    """All of `run`. Raises CheckpointError, saying where, for a directory that is no run and for every broken file."""
    recipe = _read_recipe(run)
    episodes, torn = _read_episodes(run / "eval" / "episodes.jsonl")
    result = _read_result(run / "eval" / "result.json")
    swap, probe = run / "eval" / "swap.json", run / "eval" / "probe.npz"
    whole = read_object(run / "result.json") if (run / "result.json").is_file() else None
    return Evidence(
        run=run,
        recipe=recipe,
        planned=_read_planned(run / "eval" / "protocol.json", recipe),
        demonstrations=_read_demonstrations(run / "dataset.json"),
        parameters=_count_parameters(run / "checkpoints"),
        log=_read_log(run / "log.jsonl"),
        episodes=episodes,
        episodes_torn=torn,
        result=result,
        wall_seconds=_read_seconds(whole) if whole else None,
        machine=whole.child("machine").data if whole and "machine" in whole else None,
        swap=_read_swap(read_object(swap)) if swap.is_file() else None,
        probe=_read_probe(probe) if probe.is_file() else None,
        watch=read_watch(run),
    )


def _read_recipe(run: Path) -> Recipe:
    path = run / "recipe.json"
    if not path.is_file():
        raise CheckpointError(
            "this is not a run directory", where=run, got="no recipe.json", expected="a directory that training made",
            next_step="train first (`lightwam train --help`), or name another directory",
        )  # fmt: skip
    try:
        return from_dict(Recipe, read_object(path).data, "recipe")
    except ConfigError as error:
        raise CheckpointError(
            f"the run's recipe cannot be used: {error.what}", where=f"{path}: {error.where}", got=error.got,
            expected=error.expected, next_step=error.next_step,
        ) from error  # fmt: skip


def _read_planned(protocol: Path, recipe: Recipe) -> int:
    """Of the evaluation that has begun, or that the recipe asks for."""
    if not protocol.is_file():
        return recipe.eval.trials * len(recipe.sim.tasks)
    table = read_object(protocol)
    tasks = table.child("sim").value("tasks")
    if not isinstance(tasks, list):
        raise table.child("sim").refuse("tasks", "a list")
    return table.child("eval").count("trials") * len(tasks)


def _read_demonstrations(dataset: Path) -> int | None:
    if not dataset.is_file():
        return None
    table = read_object(dataset)
    return table.count("episodes") if "episodes" in table else None


def _count_parameters(checkpoints: Path) -> int | None:
    found = sorted(checkpoints.glob(f"step_{8 * '[0-9]'}/model.safetensors"))
    return num_values(found[-1]) if found else None


def num_values(weights: Path) -> int:
    """Numbers in a safetensors file; CheckpointError when it is broken.

    From its header alone: 8 bytes of length, then JSON with every shape; no weight is read.
    """
    with weights.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(min(size, 100_000_000))
    try:
        shapes = [entry["shape"] for name, entry in json.loads(header).items() if name != "__metadata__"]
        return sum(math.prod(shape) for shape in shapes)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            "the weights have a broken header", where=weights, got=repr(error), expected="a safetensors file",
            next_step="delete this checkpoint and train on from the one before",
        ) from error  # fmt: skip


def _read_log(path: Path) -> Log | None:
    if not path.is_file():
        return None
    lines, torn = read_lines(path)
    rows = {line.number("step"): [line.number(key) for key in LOG_KEYS] for line in lines}
    if not rows:
        return None
    values = np.asarray([rows[step] for step in sorted(rows)], np.float64)
    return Log({key: values[:, i] for i, key in enumerate(LOG_KEYS)}, torn)


def _read_episodes(path: Path) -> tuple[tuple[Episode, ...], bool]:
    if not path.is_file():
        return (), False
    lines, torn = read_lines(path)
    return tuple(_episode(line, path.parent) for line in lines), torn


def _episode(line: Table, folder: Path) -> Episode:
    video = None if line.value("video") is None else folder / line.text("video")
    steps_to_success = None if line.value("steps_to_success") is None else line.count("steps_to_success")
    return Episode(
        line.text("task"), line.count("seed"), line.flag("success"), line.count("steps"), steps_to_success, video
    )


def _read_score(table: Table, interval: bool) -> Score:
    successes, trials = table.count("successes"), table.count("trials")
    if not (trials > 0 and successes <= trials):
        raise table.refuse("successes", f"0..{trials} (trials), of at least one trial")
    if not interval:
        return Score(successes, trials, wilson(successes, trials))
    pair = table.value("interval_95")
    if not (
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(end, (int, float)) for end in pair)
        and 0 <= pair[0] <= pair[1] <= 1
    ):
        raise table.refuse("interval_95", "[low, high] within 0..1")
    return Score(successes, trials, (float(pair[0]), float(pair[1])))


def _read_result(path: Path) -> Result | None:
    if not path.is_file():
        return None
    table = read_object(path)
    tasks, protocol = table.child("tasks"), table.child("protocol")
    latency = None if table.value("latency_ms") is None else table.child("latency_ms")
    return Result(
        score=_read_score(table, interval=True),
        tasks=tuple(
            TaskScore(name, tasks.child(name).text("instruction"), _read_score(tasks.child(name), interval=True))
            for name in tasks.data
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
    return {**{part: seconds.duration(part) for part in seconds.data}, "total": seconds.duration("total")}


def _read_swap(table: Table) -> Swap:
    right, swapped, tasks = table.child("right"), table.child("swapped"), table.child("tasks")
    rows = [(name, tasks.child(name)) for name in tasks.data]
    return Swap(
        _read_score(right, interval=False),
        _read_score(swapped, interval=False),
        tuple(
            SwapTask(
                name,
                _read_score(row.child("right"), interval=False),
                _read_score(row.child("swapped"), interval=False),
                row.text("swapped_instruction") if "swapped_instruction" in row else None,
            )
            for name, row in rows
        ),
    )


def _read_probe(path: Path) -> Probe:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise _broken_probe(path, str(error)) from error
    names = [name for name in Probe.__dataclass_fields__ if name not in arrays]
    if names:
        raise _broken_probe(path, f"no array named {', '.join(names)}; it holds {', '.join(sorted(arrays))}")
    _check_probe(path, arrays)
    text, number = ("tasks", "instructions"), ("fps", "video_stride", "imagine_steps")
    values: dict[str, Any] = {name: arrays[name] for name in Probe.__dataclass_fields__}
    values.update({name: tuple(str(item) for item in arrays[name]) for name in text})
    values.update({name: arrays[name].item() for name in number})
    return Probe(**values)


def _check_probe(path: Path, arrays: dict[str, np.ndarray]) -> None:
    frames, attention = arrays["real"].shape, arrays["attention"].shape
    moments = arrays["tasks"].shape
    whole = len(frames) == 5 and len(attention) == 5 and len(moments) == 1
    fits = whole and all(
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
    if not fits:
        raise _broken_probe(path, {name: (str(array.dtype), array.shape) for name, array in sorted(arrays.items())})


def _broken_probe(path: Path, got: object) -> CheckpointError:
    return CheckpointError(
        "the recorded moments cannot be read", where=path, got=got,
        expected="the arrays that lightwam.evaluation.probe.record_probe writes",
        next_step="delete the file and evaluate again",
    )  # fmt: skip
