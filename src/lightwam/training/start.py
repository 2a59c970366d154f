"""Starting a run from another one (--start-from): its weights, and the statistics they were trained with.

Weights work in normalised units: with other statistics the same weights output other actions. So the new run keeps the
other run's statistics by default, and measures its own with --statistics new.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from lightwam.config.schema import Recipe
from lightwam.config.strict_json import to_dict
from lightwam.data.codec import Codec
from lightwam.data.statistics import FeatureStats
from lightwam.encoders.tensor_check import check_tensors
from lightwam.errors import CheckpointError
from lightwam.model.light_wam import LightWAM
from lightwam.policy import run_directory
from lightwam.policy.run_directory import Weights
from lightwam.system.files import explain_disk_errors

Statistics = Literal["kept", "new"]
"""keep the statistics of the run to start from, or measure them on the new dataset"""
FILE = "start.json"
"""in a run that started from another one: that run, its step, and which statistics are used"""
SAME = ("canvas", "places", "state_norm", "action_norm", "relative_action_dims")
"""settings of the codec that must be equal to keep the statistics"""


@dataclass(frozen=True)
class Start:
    """The loaded weights and statistics of a run to start from."""

    run: Path
    step: int
    statistics: Statistics
    weights: Weights
    codec: Codec
    measured: Any
    """statistics of its latents"""

    def line(self, new: Codec) -> str:
        """Describe in one line which statistics are used; `new` is the codec measured on the new dataset."""
        kept = self.statistics == "kept"
        changes = sorted(_changes(self.codec, new, beyond=kept), reverse=True)
        most = changes[0][1] if changes else ""
        if kept:
            where = f"{len(changes)} dims of the new data leave its range, most {most}"
            where = where if changes else "no new value leaves its range"
            return f"statistics: kept from {self.run}; {where}; --statistics new measures them again"
        where = f"so its weights begin in other units, most {most}" if changes else "which are the same"
        return f"statistics: measured on the new dataset, not kept from {self.run}; {where}"


def record_start(run: Path, start: Start | None) -> None:
    """Record in a new run what it starts from; without a start, delete the record of an attempt that never began."""
    if start is not None:
        record = {"run": str(start.run.absolute()), "step": start.step, "statistics": start.statistics}
        run_directory.write_json(run / FILE, record)
    elif (run / FILE).exists():
        with explain_disk_errors(run / FILE):
            (run / FILE).unlink()


def load_start(run: Path, recipe: Recipe, start_from: Path | None, statistics: Statistics) -> Start | None:
    """Load the run that `run` starts from; None without one, and when `run` has checkpoints already.

    A run that has begun keeps its start, with or without `start_from`. Writes nothing. Raises CheckpointError when the
    run began with another start, or when the run to start from is missing or damaged, has weights of another model or
    not finite, or has statistics that this recipe cannot keep.
    """
    assert statistics in get_args(Statistics), statistics
    if not (run / "processing.json").exists():
        return None if start_from is None else _load(start_from, None, statistics, recipe)
    if (began := _read_record(run)) is not None:
        _check_same(run, began, start_from, statistics)
        again = (Path(began["run"]), began["step"], began["statistics"])
    elif start_from is not None:  # begun by an older version, which recorded nothing and always measured
        again = (start_from, None, "new")
    else:
        return None
    return None if run_directory.steps(run) else _load(*again, recipe)


def _load(run: Path, step: int | None, statistics: Statistics, recipe: Recipe) -> Start:
    theirs, (codec, measured) = run_directory.read_recipe(run), run_directory.read_processing(run)
    if statistics == "kept":
        _check_kept(recipe, theirs, codec, run)
    saved = run_directory.load(run, step, training=False)
    weights = run_directory.run_weights(run, saved)
    with torch.device("meta"):
        wanted = {name: value.shape for name, value in LightWAM(recipe.model).state_dict().items()}
    if not theirs.model.expert.state_frequencies:  # then it has no reader, and a new one begins at zero
        new = {name: shape for name, shape in wanted.items() if name.startswith("expert.state_reader.")}
        weights = {name: torch.zeros(shape) for name, shape in new.items()} | weights
    check_tensors("the weights to start from are of another model", run, weights, wanted, "pass the recipe of that run")
    kept = Codec(recipe.codec, codec.state, codec.action, codec.relative) if statistics == "kept" else codec
    return Start(run, saved.step, statistics, weights, kept, measured)


def _read_record(run: Path) -> dict[str, Any] | None:
    if not (run / FILE).exists():
        return None
    began: dict[str, Any] = run_directory.read_json(run / FILE)
    kinds = {name: type(value) for name, value in began.items()} if isinstance(began, dict) else {}
    if kinds != {"run": str, "step": int, "statistics": str} or began["statistics"] not in get_args(Statistics):
        what = "the file must have run, step and statistics"
        raise CheckpointError(what, where=run / FILE, got=began, next_step="copy the run again")
    return began


def _check_same(run: Path, began: dict[str, Any], start_from: Path | None, statistics: Statistics) -> None:
    """Raise CheckpointError when the options differ from those the run began with."""
    step = "omit it, or choose another --run"
    if start_from is not None and Path(began["run"]) != start_from.absolute():
        what, got = "--start-from must be the run that this one started from", f"--start-from {start_from}"
        raise CheckpointError(what, where=run, got=got, expected=began["run"], next_step=step)
    if statistics == "new" and began["statistics"] == "kept":
        what = "--statistics must be as when the run began"
        raise CheckpointError(what, where=run, got="--statistics new", expected="kept", next_step=step)


def _check_kept(recipe: Recipe, theirs: Recipe, codec: Codec, run: Path) -> None:
    pairs = {f"codec.{name}": (getattr(codec.config, name), getattr(recipe.codec, name)) for name in SAME}
    pairs |= {
        "latents": (theirs.latents, recipe.latents),
        "model.state_dim": (codec.state.dim, recipe.model.state_dim),
        "model.action_dim": (codec.action.dim, recipe.model.action_dim),
    }
    changed = {name: (to_dict(old), to_dict(new)) for name, (old, new) in pairs.items() if old != new}
    if changed:
        widths = any(name.startswith("model.") for name in changed)
        option = "train from scratch: its weights have those widths too" if widths else "pass --statistics new"
        what, step = "the statistics of the run to start from cannot be kept", f"use that run's settings, or {option}"
        got = "; ".join(f"{name}: that run has {old}, this recipe {new}" for name, (old, new) in changed.items())
        raise CheckpointError(what, where=run, got=got, next_step=step)


def _changes(old: Codec, new: Codec, *, beyond: bool) -> Iterator[tuple[float, str]]:
    """Yield by how much, and a description, for dims whose range differs; with `beyond`, only those that leave it."""
    dims, were = (list(codec.config.relative_action_dims) for codec in (new, old))
    if dims != were:
        yield np.inf, f"relative actions: dims {dims}, were {were}"
    ranges = [("state", old.state, new.state), ("action", old.action, new.action)]
    if dims and dims == were:
        ranges.append(("the chunk's last relative action", old.relative[-1], new.relative[-1]))
    for name, before, after in ranges:
        if before.dim != after.dim:  # another robot
            yield np.inf, f"{name}: {after.dim} dims, were {before.dim}"
            continue
        for i, amount in enumerate(_amounts(before, after, beyond)):
            if amount > 1e-3:
                was = f"was {before.min[i]:.4g} to {before.max[i]:.4g}"
                yield float(amount), f"{name}[{i}]: {after.min[i]:.4g} to {after.max[i]:.4g}, {was}"


def _amounts(old: FeatureStats, new: FeatureStats, beyond: bool) -> np.ndarray:
    """Return how far the new range leaves the old one, or differs from it, as a fraction of the old one's span."""
    low, high = old.min - new.min, new.max - old.max
    most = np.maximum(np.maximum(low, high), 0) if beyond else np.maximum(np.abs(low), np.abs(high))
    span = np.maximum(old.max - old.min, 1e-6 * np.maximum(np.abs(old.min), np.abs(old.max)))
    return most / np.maximum(span, 1e-12)
