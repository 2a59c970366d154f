"""Tensors in files of a run: written atomically, and checked when they are read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from lightwam.encoders.tensor_check import check_finite, check_tensors
from lightwam.errors import CheckpointError
from lightwam.system.file_damage import likely_cause
from lightwam.system.files import replace_file

Weights = dict[str, Tensor]


def write_tensors(path: Path, tensors: Weights, metadata: dict[str, str] | None = None) -> None:
    """Write tensors, and `metadata` with them, to a safetensors file atomically."""
    with replace_file(path, num_bytes=num_bytes(tensors)) as temporary:
        safetensors.torch.save_file(to_cpu(tensors), temporary, metadata)


def read_tensors(path: Path) -> Weights:
    """Read what `write_tensors` wrote; {} when there is no such file.

    CheckpointError when the file is damaged, or when tensors contain NaN or inf, naming them.
    """
    if not path.exists():
        return {}
    try:
        weights = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        got = likely_cause(path) or error
        raise CheckpointError("a file is damaged", where=path, got=got, next_step="copy the run again") from error
    check_finite(weights, path)
    return weights


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata that `write_tensors` wrote; {} when there is no such file."""
    if not path.exists():
        return {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise CheckpointError("a file is damaged", where=path, got=error, next_step=f"delete {path}") from error


def load_strict(module: torch.nn.Module, weights: Weights, where: Path) -> None:
    """Copy `weights` into `module`; CheckpointError, listing the differences, unless all names and shapes fit.

    `where` is the source of the weights in that error.
    """
    state = module.state_dict()
    shapes = {name: value.shape for name, value in state.items()}
    integers = [name for name, value in state.items() if not value.is_floating_point()]
    step = "was it trained with another recipe?"
    check_tensors("the weights do not fit the model", where, weights, shapes, step, integers)
    module.load_state_dict(weights)


def to_cpu(weights: Weights) -> Weights:
    """Return the weights on the CPU, contiguous, as safetensors requires."""
    return {name: value.detach().cpu().contiguous() for name, value in weights.items()}


def named_tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in nested mappings and sequences with its path, such as optimizer.state.3.exp_avg."""
    if isinstance(tree, Tensor):
        yield name.removeprefix("."), tree
    elif isinstance(tree, Mapping | list | tuple):
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from named_tensors(value, f"{name}.{key}")


def num_bytes(tree: Any) -> int:
    """Return the size of all tensors in nested mappings and sequences."""
    return sum(tensor.nbytes for _, tensor in named_tensors(tree))


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
        what = "the weights must have a safetensors header"
        step = "delete this checkpoint and resume training from the one before"
        raise CheckpointError(what, where=weights, got=repr(error), next_step=step) from error
