"""A run directory, saved and loaded whole.

    recipe.json      the config; of a begun run only what is FREE may change
    dataset.json     what it was trained on: path, and every file with size and hash
    processing.json  what was measured on the data: the codec's and the latents' statistics
    start.json       with --start-from: the run it started from, and where its statistics come from
    listeners.json   its id in W&B or trackio, when it logs to them
    frozen.safetensors    weights that training leaves alone, when there are such
    prompts.safetensors   token states of the prompts, when a pretrained text encoder made them
    checkpoints/step_00000500/
        model.safetensors   the trained weights, by parameter name
        ema.safetensors     their moving average, when the recipe has one
        training.pt         optimiser and loader, so that training goes on to the same bits
        meta.json           step, file sizes and digests; written last

A checkpoint is written beside its place and renamed into it, so it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from lightwam.config.schema import Recipe
from lightwam.config.strict_json import from_dict, to_dict
from lightwam.data.codec import Codec
from lightwam.encoders.frozen import open_latents
from lightwam.encoders.weight_files import check_finite, check_tensors, not_finite
from lightwam.errors import CheckpointError, first_few
from lightwam.system.file_damage import likely_cause
from lightwam.system.files import explain_disk_errors, replace_file, write_file
from lightwam.types import LatentCodec

FORMAT = 1
FROZEN, PROMPTS, TRAINING = "frozen.safetensors", "prompts.safetensors", "training.pt"
MUTABLE_SETTINGS = ("notes", "weights", "train.micro_batch", "train.checkpointing", "train.loggers")
"""settings that may change while a run goes on: they do not touch what is learnt"""
Weights = dict[str, Tensor]

OPTIONAL_KEYS = ("episodes", "names")
"""keys of dataset.json that may be missing: "episodes" in older runs, "names" where features have LeRobot's names"""


@dataclass(frozen=True)
class Checkpoint:
    """Everything of one step."""

    step: int
    model: Weights
    ema: Weights | None
    training: dict[str, Any]
    """optimiser, loader and counters; tensors and plain values only"""


def write_json(path: Path, data: Any) -> None:
    """`data` at `path`, atomically: a reader sees the old file or the new one."""
    write_file(path, json.dumps(data, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The JSON at `path`; CheckpointError when it is missing or broken."""
    if not path.is_file():
        raise CheckpointError(
            "a file of the run is missing", where=path, next_step="is this a run directory? `lightwam train` makes one"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise CheckpointError("a file of the run is not JSON", where=path, got=likely_cause(path) or error,
                              next_step="copy the run again") from error  # fmt: skip


def start_run(run: Path, recipe: Recipe) -> None:
    """Write the recipe into a new run directory; one that holds another recipe is refused, naming what differs.

    Settings that are FREE to change are written anew.
    """
    wanted = _as_json(recipe)
    began = _as_json(read_recipe(run)) if (run / "recipe.json").exists() else None
    if began is not None and (differences := list(_differences(began, wanted))):
        raise CheckpointError(
            "the run directory belongs to another config",
            where=run,
            got="; ".join(differences[:8]),
            expected="the same recipe, to go on with it",
            next_step="choose another --run, or delete this one",
        )
    if began != wanted:
        write_json(run / "recipe.json", wanted)


def read_recipe(run: Path) -> Recipe:
    """The recipe of a run."""
    return from_dict(Recipe, read_json(run / "recipe.json"), where=str(run / "recipe.json"))


def write_dataset(
    run: Path, dataset: Path, episodes: int, fingerprint: Mapping[str, str], names: Sequence[str] = ()
) -> None:
    """Note what a new run is trained on; `fingerprint` is the dataset's, every file with size and hash.

    `names`: the pairs FEATURE=NAME of a dataset whose features do not have LeRobot's names.
    """
    about = {"path": str(dataset.absolute()), "episodes": episodes, "fingerprint": dict(fingerprint)}
    write_json(run / "dataset.json", about | ({"names": list(names)} if names else {}))


def feature_names(run: Path, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the pairs FEATURE=NAME that the run uses: its own, or `asked` for a new run.

    CheckpointError when `asked` differs from the run's own.
    """
    path = run / "dataset.json"
    if not path.is_file():
        return tuple(asked)
    known = tuple(_read_table(path, ("fingerprint", "path"), maybe=OPTIONAL_KEYS).get("names", ()))
    if asked and tuple(asked) != known:
        raise CheckpointError("--names must be those the run was trained with", where=path,
                              got="--names " + " ".join(asked), expected=" ".join(known) or "LeRobot's own names",
                              next_step="omit --names: the run keeps its own")  # fmt: skip
    return known


def check_dataset(run: Path, dataset: Path, fingerprint: Mapping[str, str]) -> None:
    """Refuse to go on with other data than the run began with; the same data may lie at another place."""
    began = _read_table(run / "dataset.json", ("fingerprint", "path"), maybe=OPTIONAL_KEYS)
    differences = list(_differences(began["fingerprint"], dict(fingerprint)))
    if differences:
        raise CheckpointError(
            "the run was trained on another dataset",
            where=run,
            got=f"{dataset.absolute()} ({first_few(differences, 4, '; ')})",
            expected=f"{began['path']}, as it was when the run began",
            next_step="give that dataset, or choose another --run",
        )


def write_processing(run: Path, codec: Codec, latents: Mapping[str, Any]) -> None:
    """Save what was measured on the data."""
    write_json(run / "processing.json", {"codec": codec.to_dict(), "latents": dict(latents)})


def read_processing(run: Path) -> tuple[Codec, Any]:
    """The codec that the run was trained with, and what was measured of its latents; ConfigError or CheckpointError."""
    path = run / "processing.json"
    data = _read_table(path, ("codec", "latents"))
    return Codec.from_dict(data["codec"], f"{path} codec"), data["latents"]


def open_processing(run: Path, recipe: Recipe, device: torch.device | str = "cpu") -> tuple[Codec, LatentCodec]:
    """The codec and the latents that a run was trained with; ConfigError or CheckpointError naming an odd key."""
    codec, measured = read_processing(run)
    return codec, open_latents(recipe, measured, f"{run / 'processing.json'} latents", device)


def write_tensors(path: Path, tensors: Weights, about: dict[str, str] | None = None) -> None:
    """Tensors that a run has once, such as its frozen weights; there whole or not at all. `about` goes with them."""
    with replace_file(path, num_bytes=_num_bytes(tensors)) as beside:
        safetensors.torch.save_file(_to_cpu(tensors), beside, about)


def read_tensors(path: Path) -> Weights:
    """Read what `write_tensors` wrote; {} when there is no such file.

    CheckpointError when the file is damaged, and when tensors hold NaN or inf, naming them.
    """
    return _read_weights(path) if path.exists() else {}


def steps(run: Path) -> list[int]:
    """The steps that have a checkpoint, rising.

    Only folders named as `save` names them count. Whatever else lies there, such as a `step_00000012.bak` that a person
    set aside, is never loaded and never deleted.
    """
    named = ((path, re.fullmatch("step_([0-9]{8,})", path.name)) for path in (run / "checkpoints").glob("step_*"))
    return sorted(int(match[1]) for path, match in named if match and path.is_dir())


def save(run: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write a checkpoint, then drop all but the newest `keep`; CheckpointError on a full disk leaves the older ones."""
    place = run / "checkpoints" / f"step_{checkpoint.step:08d}"
    beside = place.with_name(f".{place.name}.{os.getpid()}")
    num_bytes = _num_bytes(checkpoint.model) + _num_bytes(checkpoint.ema or {}) + _num_bytes(checkpoint.training)
    with explain_disk_errors(place, num_bytes=num_bytes):
        for torn in place.parent.glob(".step_*"):  # of a process that was killed while it saved
            shutil.rmtree(torn, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            safetensors.torch.save_file(_to_cpu(checkpoint.model), beside / "model.safetensors")
            if checkpoint.ema is not None:
                safetensors.torch.save_file(_to_cpu(checkpoint.ema), beside / "ema.safetensors")
            with (beside / TRAINING).open("wb") as file:
                torch.save(checkpoint.training, file)
            files = {path.name: _digest(path) for path in sorted(beside.iterdir())}
            about = {"format": FORMAT, "step": checkpoint.step, "files": files, "frozen": _frozen_digest(run)}
            (beside / "meta.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            for path in beside.iterdir():
                with path.open("rb") as written:
                    os.fsync(written.fileno())
            shutil.rmtree(place, ignore_errors=True)
            os.replace(beside, place)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    with explain_disk_errors(place.parent):
        for old in steps(run)[:-keep]:
            shutil.rmtree(run / "checkpoints" / f"step_{old:08d}")
    return place


def checkpoint_dir(run: Path, step: int | None = None) -> Path:
    """The folder of a step's checkpoint (the newest by default); CheckpointError when there is none."""
    known = steps(run)
    if not known or (step is not None and step not in known):
        raise CheckpointError(
            "no such checkpoint", where=run, got=step, expected=known or "at least one step", next_step="lightwam train"
        )
    return run / "checkpoints" / f"step_{known[-1] if step is None else step:08d}"


def verify(run: Path, step: int | None = None, *, training: bool = True) -> tuple[Path, dict[str, Any]]:
    """The folder of a step's checkpoint and its meta.json, once every file has the digest that it was written with.

    `training=False` leaves out the optimiser's state, which then need not be there: a published run is without it.
    CheckpointError when there is no checkpoint, or a file is torn.
    """
    place = checkpoint_dir(run, step)
    meta: dict[str, Any] = read_json(place / "meta.json")
    form = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
    if form != FORMAT:
        raise CheckpointError("unknown checkpoint format", where=place, got=form, expected=FORMAT)
    _check_keys(meta, place / "meta.json", ("files", "format", "step"), maybe=("frozen",))
    expected = {place / name: digest for name, digest in meta["files"].items() if training or name != TRAINING}
    if meta.get("frozen"):
        expected[run / FROZEN] = meta["frozen"]
    for path, digest in expected.items():
        if not path.is_file() or _digest(path) != digest:
            raise CheckpointError(
                "a checkpoint file is damaged",
                where=path,
                got=likely_cause(path) or _what_changed(path),
                expected=digest,
                next_step="copy the run again"
                if path.name == FROZEN or checkpoint_dir(run) == place == checkpoint_dir(run, steps(run)[0])
                else f"delete {place}; an older checkpoint is used then",
            )
    return place, meta


def load(run: Path, step: int | None = None, *, training: bool = True) -> Checkpoint:
    """The checkpoint of `step` (the newest by default), every file checked as by `verify`.

    CheckpointError also when tensors hold NaN or inf, naming them.
    """
    place, meta = verify(run, step, training=training)
    ema = _read_weights(place / "ema.safetensors") if "ema.safetensors" in meta["files"] else None
    state = torch.load(place / TRAINING, weights_only=True) if training else {}
    check_finite(dict(_tensors(state)), place / TRAINING)
    return Checkpoint(meta["step"], _read_weights(place / "model.safetensors"), ema, state)


def read_about(path: Path) -> dict[str, str]:
    """What `write_tensors` was told about them; nothing when there is no such file."""
    if not path.exists():
        return {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise CheckpointError("a file is damaged", where=path, got=error, next_step=f"delete {path}") from error


def run_weights(run: Path, saved: Checkpoint, *, ema: bool = True) -> Weights:
    """All weights of a run's model: a checkpoint's (their average, where there is one and `ema`) and the frozen."""
    return read_tensors(run / FROZEN) | (saved.ema if ema and saved.ema is not None else saved.model)


def load_strict(module: torch.nn.Module, weights: Weights, where: Path) -> None:
    """Copy `weights` into `module`, every name and shape accounted for, else CheckpointError listing what differs."""
    state = module.state_dict()
    wanted = {name: value.shape for name, value in state.items()}
    integers = [name for name, value in state.items() if not value.is_floating_point()]
    step = "was it trained with another recipe?"
    check_tensors("the weights do not fit the model", where, weights, wanted, step, integers)
    module.load_state_dict(weights)


def _read_weights(path: Path) -> Weights:
    try:
        weights = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError("a file of the run is damaged", where=path, got=likely_cause(path) or error,
                              next_step="copy the run again") from error  # fmt: skip
    check_finite(weights, path)
    return weights


def _read_table(path: Path, names: tuple[str, ...], maybe: tuple[str, ...] = ()) -> dict[str, Any]:
    """The JSON object at `path`, with just these keys; those of `maybe` may be missing."""
    return _check_keys(read_json(path), path, names, maybe)


def _check_keys(data: Any, path: Path, names: tuple[str, ...], maybe: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(data, dict) or sorted({*data} - {*maybe}) != sorted(names):
        raise CheckpointError(
            "a file of the run has an unknown layout",
            where=path,
            got=sorted(data) if isinstance(data, dict) else type(data).__name__,
            expected=sorted(names),
            next_step="copy the run again, or train into another --run",
        )
    return data


def _frozen_digest(run: Path) -> str | None:
    """Of the frozen weights; from an older checkpoint, where there is one, since they never change."""
    if known := steps(run):
        digest: str | None = read_json(run / "checkpoints" / f"step_{known[-1]:08d}" / "meta.json").get("frozen")
        return digest
    return _digest(run / FROZEN) if (run / FROZEN).exists() else None


def _what_changed(path: Path) -> str:
    """What is wrong with a file that has not the digest it was written with."""
    if not path.is_file():
        return "no such file"
    try:
        lines = not_finite(safetensors.torch.load_file(path)) if path.suffix == ".safetensors" else []
    except (safetensors.SafetensorError, OSError):
        lines = []
    return "; ".join(["other bytes than were written", *lines[:1]])


def _tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested tables with its place there, as optimizer.state.3.exp_avg."""
    if isinstance(tree, Tensor):
        yield name.removeprefix("."), tree
    elif isinstance(tree, Mapping | list | tuple):
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _tensors(value, f"{name}.{key}")


def _num_bytes(tree: Any) -> int:
    """Count the bytes of all tensors in nested dictionaries and lists."""
    if isinstance(tree, Tensor):
        return tree.nbytes
    if isinstance(tree, Mapping):
        return sum(map(_num_bytes, tree.values()))
    return sum(map(_num_bytes, tree)) if isinstance(tree, (list, tuple)) else 0


def _to_cpu(weights: Weights) -> Weights:
    return {name: value.detach().cpu().contiguous() for name, value in weights.items()}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_json(recipe: Recipe) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(to_dict(recipe)))
    return values


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            name = f"{path}.{key}" if path else key
            if name not in MUTABLE_SETTINGS:
                yield from _differences(old.get(key), new.get(key), name)
    elif old != new:
        yield f"{path}: run has {old!r}, asked {new!r}"
