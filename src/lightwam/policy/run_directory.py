"""A run directory: the recipe, what it was trained on, and its checkpoints; docs/design.md lists the files.

A checkpoint has a folder, checkpoints/step_00000500, which is written under a temporary name and renamed at the end, so
it is complete or absent. Of its files, model and ema.safetensors hold the trained weights and their moving average,
training.pt the optimiser and the loader, so that training resumes to the same bits, and meta.json, written last, the
step and the digest of each file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from lightwam.config.recipe_files import read_recipe as read_recipe
from lightwam.config.schema import Recipe
from lightwam.config.strict_json import to_dict
from lightwam.data.codec import Codec
from lightwam.data.facts import DatasetFacts
from lightwam.encoders.frozen import open_latents
from lightwam.encoders.tensor_check import check_finite, not_finite
from lightwam.errors import CheckpointError
from lightwam.policy.tensor_files import Weights as Weights
from lightwam.policy.tensor_files import load_strict as load_strict
from lightwam.policy.tensor_files import named_tensors, num_bytes, to_cpu
from lightwam.policy.tensor_files import read_metadata as read_metadata
from lightwam.policy.tensor_files import read_tensors as read_tensors
from lightwam.policy.tensor_files import write_tensors as write_tensors
from lightwam.system.differences import differences
from lightwam.system.file_damage import likely_cause
from lightwam.system.files import explain_disk_errors, write_file
from lightwam.types import LatentCodec

FORMAT = 1
FROZEN, PROMPTS, TRAINING = "frozen.safetensors", "prompts.safetensors", "training.pt"
FACTS = "facts.json"
"""what a run knows of its robot and data; older runs have none"""
MUTABLE_SETTINGS = (
    "notes",
    "weights",
    "train.steps",
    "train.micro_batch",
    "train.checkpointing",
    "train.compile",
    "train.loggers",
)
"""settings that may change when training resumes: they do not affect what is learnt; train.steps may only be raised"""


@dataclass(frozen=True)
class Checkpoint:
    """Everything saved at one step."""

    step: int
    model: Weights
    ema: Weights | None
    training: dict[str, Any]
    """optimiser, loader and counters; tensors and plain values only"""
    held_out: Mapping[str, float] | None = None
    """errors on held-out episodes (`training.validation`), of the average if there is one: policy, hold, repeat, ..."""


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON to `path`, atomically."""
    write_file(path, json.dumps(data, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; CheckpointError when the file is missing or broken."""
    if not path.is_file():
        step = "is this a run directory? `lightwam train` makes one"
        raise CheckpointError("a file of the run is missing", where=path, next_step=step)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        what, got = "a file of the run is not JSON", likely_cause(path) or error
        raise CheckpointError(what, where=path, got=got, next_step="copy the run again") from error


def read_table(path: Path, names: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a JSON object with exactly these keys, and any of `optional`; else CheckpointError."""
    return _check_keys(read_json(path), path, names, optional)


def start_run(run: Path, recipe: Recipe) -> None:
    """Write the recipe into a run directory; CheckpointError, naming the differences, if it holds another recipe.

    MUTABLE_SETTINGS are not compared, and are updated. train.steps may be raised: the run is extended.
    """
    wanted = _as_json(recipe)
    saved = _as_json(read_recipe(run)) if (run / "recipe.json").exists() else None
    if saved is not None and (had := saved["train"]["steps"]) > (asked := wanted["train"]["steps"]):
        what = "train.steps must not be lowered: the learning rates so far were those of the longer training"
        step = f"--train.steps {had} or more; without a recipe and this option a run goes on as it is"
        raise CheckpointError(what, where=run, got=asked, expected=f"at least {had}", next_step=step)
    if saved is not None and (changed := changes(saved, wanted)):
        step = f"`lightwam train --run {run}` resumes it as it is; or choose another --run, or delete this one"
        got = "; ".join(changed[:8])
        raise CheckpointError("the run directory belongs to another config", where=run, got=got, next_step=step)
    if saved != wanted:
        write_json(run / "recipe.json", wanted)


def changes(old: Any, new: Any) -> list[str]:
    """Return a line for every value that differs in nested dictionaries, MUTABLE_SETTINGS left out."""
    lines = differences(old, new, ignored=MUTABLE_SETTINGS)
    return [f"{name}: run has {before!r}, asked {after!r}" for name, before, after in lines]


def write_processing(run: Path, codec: Codec, latents: Mapping[str, Any]) -> None:
    """Save the statistics of the data."""
    write_json(run / "processing.json", {"codec": codec.to_dict(), "latents": dict(latents)})


def read_processing(run: Path) -> tuple[Codec, Any]:
    """Read a run's codec and the statistics of its latents; ConfigError or CheckpointError."""
    path = run / "processing.json"
    data = read_table(path, ("codec", "latents"))
    return Codec.from_dict(data["codec"], f"{path} codec"), data["latents"]


def write_facts(run: Path, facts: DatasetFacts) -> None:
    """Save what the run knows of its robot and data."""
    write_json(run / FACTS, facts.to_dict())


def read_facts(run: Path) -> DatasetFacts | None:
    """Read what a run knows of its robot and data; None for an older run, ConfigError for a broken file."""
    path = run / FACTS
    return DatasetFacts.from_dict(read_json(path), str(path)) if path.is_file() else None


def open_processing(run: Path, recipe: Recipe, device: torch.device | str = "cpu") -> tuple[Codec, LatentCodec]:
    """Open a run's codec and latents; ConfigError or CheckpointError that names the key that does not fit."""
    codec, measured = read_processing(run)
    return codec, open_latents(recipe, measured, f"{run / 'processing.json'} latents", device)


def steps(run: Path) -> list[int]:
    """Return the steps that have a checkpoint, in ascending order.

    Only folders named as `save` names them count. Anything else, such as a `step_00000012.bak` that somebody set aside,
    is never loaded and never deleted.
    """
    named = ((path, re.fullmatch("step_([0-9]{8,})", path.name)) for path in (run / "checkpoints").glob("step_*"))
    return sorted(int(match[1]) for path, match in named if match and path.is_dir())


def held_out_errors(run: Path) -> dict[int, dict[str, float]]:
    """Return step -> errors on held-out episodes, of the checkpoints that have them."""
    metas = {step: _step_folder(run, step) / "meta.json" for step in steps(run)}
    read = {step: read_json(path) for step, path in metas.items() if path.is_file()}
    return {step: meta["held_out"] for step, meta in read.items() if isinstance(meta, dict) and meta.get("held_out")}


def best_step(run: Path) -> int | None:
    """Return the step with the least error on held-out episodes, the first of equal ones; None if none is measured."""
    errors = held_out_errors(run)
    return min(errors, key=lambda step: (errors[step]["policy"], step), default=None)


def default_step(run: Path) -> int | None:
    """Return the step that acts unless another is asked for: the best on held-out episodes, else the newest.

    None if there is no checkpoint.
    """
    best = best_step(run)
    return max(steps(run), default=None) if best is None else best


def best_line(run: Path) -> str | None:
    """Return a line on the step with the least held-out error, and on the newest; None if none is measured."""
    errors, best = held_out_errors(run), best_step(run)
    if best is None:
        return None
    newest = max(steps(run))
    known = f"{errors[newest]['policy']:.4g}" if newest in errors else "no measurement"
    other = "the newest" if newest == best else f"the newest, step {newest}: {known}"
    return f"best on held-out episodes is step {best}: {errors[best]['policy']:.4g} ({other}); it acts by default"


def save(run: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write a checkpoint, then delete all but the newest `keep` and the best on held-out episodes; return its folder.

    CheckpointError on a full disk, which leaves the older checkpoints.
    """
    folder = _step_folder(run, checkpoint.step)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    size = num_bytes((checkpoint.model, checkpoint.ema, checkpoint.training))
    with explain_disk_errors(folder, num_bytes=size):
        for torn in folder.parent.glob(".step_*"):  # left by a process that was killed while saving
            shutil.rmtree(torn, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            safetensors.torch.save_file(to_cpu(checkpoint.model), temporary / "model.safetensors")
            if checkpoint.ema is not None:
                safetensors.torch.save_file(to_cpu(checkpoint.ema), temporary / "ema.safetensors")
            with (temporary / TRAINING).open("wb") as file:
                torch.save(checkpoint.training, file)
            files = {path.name: _digest(path) for path in sorted(temporary.iterdir())}
            meta = {"format": FORMAT, "step": checkpoint.step, "files": files, "frozen": _frozen_digest(run)}
            meta |= {} if checkpoint.held_out is None else {"held_out": dict(checkpoint.held_out)}
            (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
            for path in temporary.iterdir():
                with path.open("rb") as written:
                    os.fsync(written.fileno())
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    with explain_disk_errors(folder.parent):
        best = best_step(run)
        for old in steps(run)[:-keep]:
            if old != best:
                shutil.rmtree(_step_folder(run, old))
    return folder


def checkpoint_dir(run: Path, step: int | None = None, where: object = None) -> Path:
    """Return the folder of a step's checkpoint (default: `default_step`); CheckpointError, at `where`, without one."""
    known = steps(run)
    if not known or (step is not None and step not in known):
        expected = known or "at least one step, as `lightwam train` saves them"
        raise CheckpointError("no such checkpoint", where=where or run, got=step, expected=expected)
    chosen = default_step(run) if step is None else step
    assert chosen is not None
    return _step_folder(run, chosen)


def verify(run: Path, step: int | None = None, *, training: bool = True) -> tuple[Path, dict[str, Any]]:
    """Check the digest of every file of a checkpoint; return its folder and its meta.json.

    `training=False` leaves out the optimiser's state, which a published run does not have. CheckpointError when there
    is no checkpoint, or a file is damaged.
    """
    folder = checkpoint_dir(run, step)
    meta: dict[str, Any] = read_json(folder / "meta.json")
    form = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
    if form != FORMAT:
        raise CheckpointError("unknown checkpoint format", where=folder, got=form, expected=FORMAT)
    _check_keys(meta, folder / "meta.json", ("files", "format", "step"), ("frozen", "held_out"))
    digests = {folder / name: digest for name, digest in meta["files"].items() if training or name != TRAINING}
    if meta.get("frozen"):
        digests[run / FROZEN] = meta["frozen"]
    for path, digest in digests.items():
        if not path.is_file() or _digest(path) != digest:
            only = path.name == FROZEN or len(steps(run)) == 1
            next_step = "copy the run again" if only else f"delete {folder}; an older checkpoint is used then"
            got = likely_cause(path) or _what_changed(path)
            raise CheckpointError("a checkpoint file is damaged", where=path, got=got, next_step=next_step)
    return folder, meta


def load(run: Path, step: int | None = None, *, training: bool = True) -> Checkpoint:
    """Load the checkpoint of `step` (default: `default_step`), checked by `verify`.

    `training=False` leaves out the optimiser's state. CheckpointError also when tensors contain NaN or inf.
    """
    folder, meta = verify(run, step, training=training)
    ema = read_tensors(folder / "ema.safetensors") if "ema.safetensors" in meta["files"] else None
    state = torch.load(folder / TRAINING, weights_only=True) if training else {}
    check_finite(dict(named_tensors(state)), folder / TRAINING)
    return Checkpoint(meta["step"], read_tensors(folder / "model.safetensors"), ema, state)


def run_weights(run: Path, saved: Checkpoint, *, ema: bool = True) -> Weights:
    """Return all weights of a run's model: the frozen ones, and a checkpoint's (with `ema` their average, if any)."""
    return read_tensors(run / FROZEN) | (saved.ema if ema and saved.ema is not None else saved.model)


def _step_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def _check_keys(data: Any, path: Path, names: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(data, dict) or sorted({*data} - {*optional}) != sorted(names):
        what, step = "a file of the run has an unknown layout", "copy the run again, or train into another --run"
        got = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise CheckpointError(what, where=path, got=got, expected=sorted(names), next_step=step)
    return data


def _frozen_digest(run: Path) -> str | None:
    """Return the digest of the frozen weights, which never change: an earlier checkpoint's, if there is one."""
    if known := steps(run):
        return read_json(_step_folder(run, known[-1]) / "meta.json").get("frozen")
    return _digest(run / FROZEN) if (run / FROZEN).exists() else None


def _what_changed(path: Path) -> str:
    if not path.is_file():
        return "no such file"
    with contextlib.suppress(safetensors.SafetensorError, OSError):
        if path.suffix == ".safetensors" and (lines := not_finite(safetensors.torch.load_file(path))):
            return f"other bytes than were written; {lines[0]}"
    return "other bytes than were written"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_json(recipe: Recipe) -> dict[str, Any]:
    return json.loads(json.dumps(to_dict(recipe)))
