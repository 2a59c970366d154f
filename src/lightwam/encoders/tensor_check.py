"""Checks of a file's tensors against those that a model expects: names, shapes, dtypes, finite numbers."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lightwam.errors import CheckpointError, first_few

MAX_LISTED = 5
"""wrong tensors listed in an error, which counts the rest"""
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""accepted dtypes; 8-bit floats and integers are quantised, and useless without their scales"""


def check_tensors(
    what: str,
    path: Path | str,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    next_step: str,
    integers: Collection[str] = (),
) -> None:
    """Raise the CheckpointError `what` unless `tensors` has exactly the `shapes` tensors, with finite numbers.

    `integers` names tensors that are counters, not weights.
    """
    if lines := tensor_differences(tensors, shapes, integers=integers):
        raise mismatch_error(what, path, lines, next_step)
    check_finite(tensors, path)


def check_finite(tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """Raise CheckpointError naming the tensors that hold NaN or inf."""
    if lines := not_finite(tensors):
        raise mismatch_error("the weights are not finite", path, lines, "take an older checkpoint, or copy it again")


def tensor_differences(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], where: str = "", integers: Collection[str] = ()
) -> list[str]:
    """List every tensor that is missing, unknown, of another shape, or not of floating point with 16 bits or more.

    `integers` need not be of floating point. A prefix that all names have, or all lack, is listed once, with the fix;
    the names are then compared without it. `where` goes before every name.
    """
    lines = []
    if prefix := shared_prefix(tensors, shapes):
        lines.append(f"{where}{prefix_hint(prefix)}")
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    elif prefix := shared_prefix(shapes, tensors):
        lines.append(f"{where}no name begins with {prefix!r}, and all should: add it to each")
        tensors = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    lines += [f"missing: {where}{name}" for name in shapes if name not in tensors]
    lines += [f"unknown: {where}{name}" for name in tensors if name not in shapes]
    lines += [
        f"of another shape: {where}{name} {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape
    ]
    weights = ((name, tensor) for name, tensor in tensors.items() if name not in integers)
    return lines + [_odd_dtype(where + name, tensor) for name, tensor in weights if tensor.dtype not in FLOATS]


def describe_names(names: Collection[str], *expected: Iterable[str]) -> str:
    """Say which names a file has where it should have one of the `expected` sets: with a prefix, or quite others."""
    prefix = next(filter(None, (shared_prefix(names, known) for known in expected)), "")
    return prefix_hint(prefix) if prefix else first_few(sorted(names))


def prefix_hint(prefix: str) -> str:
    """Say that all names of a file begin with `prefix` and should not, and what to do."""
    by = {"module.": ", as DataParallel saves them", "_orig_mod.": ", as torch.compile saves them"}.get(prefix, "")
    return f"all names begin with {prefix!r}{by}: remove it from each name and save the file again"


def shared_prefix(names: Iterable[str], expected: Iterable[str]) -> str:
    """Return the dotted prefix that all names share and that turns them into expected ones when removed."""
    names, known = list(names), set(expected)
    if not names or any(name in known for name in names):
        return ""
    words = names[0].split(".")
    prefixes = [".".join(words[:count]) + "." for count in range(1, len(words))]
    prefixes = [prefix for prefix in prefixes if all(name.startswith(prefix) for name in names)]
    fitting = {prefix: sum(name.removeprefix(prefix) in known for name in names) for prefix in prefixes}
    best = max(fitting, key=lambda prefix: fitting[prefix], default="")
    return best if fitting.get(best) else ""


def not_finite(tensors: Mapping[str, Tensor], where: str = "") -> list[str]:
    """List the tensors that hold NaN or inf. Reads every value once, from the disk if the file is memory-mapped."""
    return [line for name, tensor in tensors.items() if (line := describe_not_finite(where + name, tensor))]


def describe_not_finite(name: str, tensor: Tensor) -> str:
    """Say how many NaN and inf a tensor holds; "" when all its numbers are finite."""
    # minimum and maximum are NaN when any number is; isfinite().all() takes 25 times as long
    if not tensor.numel() or tensor.dtype not in FLOATS or all(bool(end.isfinite()) for end in tensor.aminmax()):
        return ""
    nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    return f"not finite: {name} ({nan} NaN and {inf} inf of {tensor.numel()} numbers)"


def mismatch_error(what: str, path: Path | str, lines: list[str], next_step: str) -> CheckpointError:
    """Return the error that lists the first differences of a file from the model, some of each kind, and a count."""
    kinds: dict[str, list[str]] = {}
    for line in lines:
        kinds.setdefault(line.partition(":")[0], []).append(line)
    mixed = [line for row in itertools.zip_longest(*kinds.values()) for line in row if line is not None]
    return CheckpointError(
        what,
        where=path,
        got=f"{len(lines)} differences\n    " + first_few(mixed, MAX_LISTED, separator="\n    "),
        expected="exactly the tensors of the config's model, with finite numbers",
        next_step=next_step,
    )


def _odd_dtype(name: str, tensor: Tensor) -> str:
    quantised = tensor.is_floating_point()
    what = "in 8-bit floating point, which is quantised" if quantised else "not of floating point"
    return f"{what}: {name} {str(tensor.dtype).removeprefix('torch.')}"
