"""Starting a run from another one (--start-from): its weights, and the statistics they were trained with.

Weights work in normalised units: with other statistics the same weights give other actions. So the new run keeps the
other run's statistics, unless told to measure its own (--statistics new).
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
from lightwam.encoders.weight_files import check_tensors
from lightwam.errors import CheckpointError
from lightwam.model.light_wam import LightWAM
from lightwam.policy import run_directory
from lightwam.policy.run_directory import Weights
from lightwam.system.files import explain_disk_errors

Statistics = Literal["kept", "new"]
"""keep the statistics of the run that another one starts from, or measure them on the new dataset"""
FILE = "start.json"
"""in a run that started from another one: that run, its step, and which statistics are used"""
SAME = ("canvas", "places", "state_norm", "action_norm")
"""settings of the codec that must be equal to keep the statistics"""


@dataclass(frozen=True)
class Start:
    """A run to start from, loaded."""

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
        odd = sorted(_changes(self.codec, new, beyond=kept), reverse=True)
        most = odd[0][1] if odd else ""
        if kept:
            where = f"{len(odd)} dims of the new data leave its range, most {most}" if odd else "no new value leaves it"
            return f"statistics: kept from {self.run}; {where}; --statistics new measures them again"
        where = f"so its weights begin in other units, most {most}" if odd else "which are the same"
        return f"statistics: measured on the new dataset, not kept from {self.run}; {where}"


def record_start(run: Path, start: Start | None) -> None:
    """Record in a new run what it starts from; without a start, delete the record of an attempt that never began."""
    if start is not None:
        about = {"run": str(start.run.absolute()), "step": start.step, "statistics": start.statistics}
        run_directory.write_json(run / FILE, about)
    elif (run / FILE).exists():
        with explain_disk_errors(run / FILE):
            (run / FILE).unlink()


def load_start(run: Path, recipe: Recipe, start_from: Path | None, statistics: Statistics) -> Start | None:
    """Load what `run` starts from; None when it starts from nothing, or has checkpoints already.

    A run that has begun keeps its start, whether or not `start_from` is given again. Writes nothing. Raises
    CheckpointError when the run began with another start, or when the run to start from is missing or damaged, has
    weights of another model or not finite, or has statistics that this recipe cannot keep.
    """
    assert statistics in get_args(Statistics), statistics
    if not (run / "processing.json").exists():
        return None if start_from is None else _read(start_from, None, statistics, recipe)
    if (began := _began(run)) is not None:
        _check_same(run, began, start_from, statistics)
        again = (Path(began["run"]), began["step"], began["statistics"])
    elif start_from is not None:  # begun by an older version, which recorded nothing and always measured
        again = (start_from, None, "new")
    else:
        return None
    return None if run_directory.steps(run) else _read(*again, recipe)


def _read(run: Path, step: int | None, statistics: Statistics, recipe: Recipe) -> Start:
    theirs, (codec, measured) = run_directory.read_recipe(run), run_directory.read_processing(run)
    if statistics == "kept":
        _check_kept(recipe, theirs, codec, run)
    saved = run_directory.load(run, step, training=False)
    weights = run_directory.run_weights(run, saved)
    with torch.device("meta"):
        wanted = {name: value.shape for name, value in LightWAM(recipe.model).state_dict().items()}
    check_tensors("the weights to start from are of another model", run, weights, wanted, "give the recipe of that run")
    kept = Codec(recipe.codec, codec.state, codec.action) if statistics == "kept" else codec
    return Start(run, saved.step, statistics, weights, kept, measured)


def _began(run: Path) -> dict[str, Any] | None:
    if not (run / FILE).exists():
        return None
    began: dict[str, Any] = run_directory.read_json(run / FILE)
    kinds = {name: type(value) for name, value in began.items()} if isinstance(began, dict) else {}
    if kinds != {"run": str, "step": int, "statistics": str} or began["statistics"] not in get_args(Statistics):
        raise CheckpointError("a file of the run has an unknown layout", where=run / FILE, got=began,
                              expected="run, step and statistics", next_step="copy the run again")  # fmt: skip
    return began


def _check_same(run: Path, began: dict[str, Any], start_from: Path | None, statistics: Statistics) -> None:
    """Raise CheckpointError when the options differ from those the run began with."""
    if start_from is not None and Path(began["run"]) != start_from.absolute():
        raise CheckpointError("--start-from must be the run that this one started from", where=run,
                              got=f"--start-from {start_from}", expected=began["run"],
                              next_step="omit it, or choose another --run")  # fmt: skip
    if statistics == "new" and began["statistics"] == "kept":
        raise CheckpointError("--statistics must be as when the run began", where=run,
                              got="--statistics new", expected="kept",
                              next_step="omit it, or choose another --run")  # fmt: skip


def _check_kept(recipe: Recipe, theirs: Recipe, codec: Codec, run: Path) -> None:
    pairs = {f"codec.{name}": (getattr(codec.config, name), getattr(recipe.codec, name)) for name in SAME}
    pairs |= {
        "latents": (theirs.latents, recipe.latents),
        "model.state_dim": (codec.state.dim, recipe.model.state_dim),
        "model.action_dim": (codec.action.dim, recipe.model.action_dim),
    }
    odd = [
        f"{name}: that run has {to_dict(old)}, asked {to_dict(new)}" for name, (old, new) in pairs.items() if old != new
    ]
    if odd:
        same_model = all(old == new for name, (old, new) in pairs.items() if name.startswith("model."))
        anew = "or measure anew: --statistics new" if same_model else "or train anew: its weights have those widths too"
        raise CheckpointError(
            "the statistics of the run to start from cannot be kept",
            where=run,
            got="; ".join(odd),
            expected="the same cameras, normalisation, latents and widths",
            next_step=f"use that run's settings, {anew}",
        )


def _changes(old: Codec, new: Codec, *, beyond: bool) -> Iterator[tuple[float, str]]:
    """Yield the dims of state and action whose range differs (or only those beyond the old one): how much, in words."""
    for name in ("state", "action"):
        one, other = getattr(old, name), getattr(new, name)
        if one.dim != other.dim:  # statistics are new, and so is the robot
            yield np.inf, f"{name}: {other.dim} dims, were {one.dim}"
            continue
        for i, amount in enumerate(_amounts(one, other, beyond)):
            if amount > 1e-3:
                was = f"was {one.min[i]:.4g} to {one.max[i]:.4g}"
                yield float(amount), f"{name}[{i}]: {other.min[i]:.4g} to {other.max[i]:.4g}, {was}"


def _amounts(old: FeatureStats, new: FeatureStats, beyond: bool) -> np.ndarray:
    low, high = old.min - new.min, new.max - old.max
    most = np.maximum(np.maximum(low, high), 0) if beyond else np.maximum(np.abs(low), np.abs(high))
    span = np.maximum(old.max - old.min, 1e-6 * np.maximum(np.abs(old.min), np.abs(old.max)))
    return most / np.maximum(span, 1e-12)
