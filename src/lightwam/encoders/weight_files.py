"""Where the pieces of a pretrained Wan2.1 lie, and how their tensors are read.

One source holds them all: a local folder or a Hugging Face Hub repo ("owner/name"), in one of two layouts that are told
apart by what lies there. Official (Wan-AI/Wan2.1-T2V-1.3B): everything beside one another. diffusers'
(Wan-AI/Wan2.1-T2V-1.3B-Diffusers): a folder a part. A source that holds a part in both is refused, never guessed at.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lightwam.errors import CheckpointError, first_few
from lightwam.system.file_damage import likely_cause

Part = Literal["backbone", "vae", "text_encoder", "tokenizer"]

INDEX = ".safetensors.index.json"
PICKLED = (".pth", ".pt")
OFFICIAL: dict[Part, tuple[str, ...]] = {
    "backbone": (
        "diffusion_pytorch_model*.safetensors",
        f"diffusion_pytorch_model*{INDEX}",
        "diffusion_pytorch_model.pth",
    ),
    "vae": ("Wan2.1_VAE.pth",),
    "text_encoder": ("models_t5_umt5-xxl-enc-bf16.pth",),
    "tokenizer": ("google/umt5-xxl/*",),
}
DIFFUSERS: dict[Part, str] = {
    "backbone": "transformer",
    "vae": "vae",
    "text_encoder": "text_encoder",
    "tokenizer": "tokenizer",
}
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SHARD = re.compile(r"-\d+-of-\d+\.")
NUM_LISTED = 12
NUM_TENSORS_LISTED = 5
"""tensors that do not fit that an error lists; it counts the rest"""
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""accepted dtypes; 8-bit floats and integers are quantised, and useless without their scales"""


def locate(source: str | Path, part: Part) -> Path:
    """Where `part` of the pretrained model lies: a file, or a folder of files (every tokenizer is one).

    `source` is a local folder, or as a string also a Hub repo id, of which only this part is fetched. Weights in shards
    are given as their index file in the official layout, as their folder in diffusers'; `read_tensors` reads both.
    CheckpointError when the source is neither, cannot be fetched, or holds the part not at all or twice.
    """
    assert part in get_args(Part), part
    folder = _folder(source, part)
    official = sorted(path for pattern in OFFICIAL[part] for path in folder.glob(pattern) if path.is_file())
    diffusers = folder / DIFFUSERS[part]
    wanted = f"{', '.join(OFFICIAL[part])} (official layout) or {DIFFUSERS[part]}/ (diffusers')"
    if official and diffusers.is_dir():
        raise CheckpointError(
            f"the {part} lies there twice, in two layouts",
            where=folder,
            got=f"{official[0].relative_to(folder)} and {DIFFUSERS[part]}/",
            expected=f"one of {wanted}",
            next_step="keep one layout a folder",
        )
    if diffusers.is_dir():
        return diffusers
    if official:
        return official[0].parent if part == "tokenizer" else _one_file(folder, part, official)
    raise CheckpointError(
        f"no {part} lies there",
        where=source if folder == Path(source) else f"{source} ({folder})",
        got=_listing(folder),
        expected=wanted,
        next_step="name the folder or Hub repo of a whole Wan2.1, for example Wan-AI/Wan2.1-T2V-1.3B",
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a .safetensors file, a .pth or .pt, an index with its shards, or a folder of safetensors.

    On the CPU, in the dtypes of the file, and mapped from the disk where the format allows it. CheckpointError when a
    file is missing, torn or holds anything but tensors, or when shards are absent or do not hold what the index says.
    """
    if path.is_dir():
        path = _one_file(path, "weights", sorted((*path.glob("*.safetensors"), *path.glob(f"*{INDEX}"))))
    if path.name.endswith(INDEX):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PICKLED:
        return _table(read_pickled(path), path)
    raise CheckpointError(
        "not a weights file", where=path, got=path.name, expected=f"*.safetensors, *{INDEX}, *.pth, *.pt or a folder"
    )


def read_pickled(path: Path) -> Any:
    """What torch.save wrote: tensors and plain values, nothing that runs code. CheckpointError when torn or other."""
    try:
        # Mapping spares the memory of a copy, but only the zip form of torch.save allows it.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a torn pickle can raise anything
        raise CheckpointError(
            "the file cannot be read as weights",
            where=path,
            # Its further lines advise to load it unsafely.
            got=likely_cause(path) or f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
            expected="tensors, saved by torch.save",
            next_step="fetch it again: it may be torn",
        ) from error


def digest(path: Path) -> str:
    """16 hex digits of sha256 over names, sizes and contents, for fingerprints.

    Of a folder all files below it count, but for hidden ones; of an index the index and its shards. Every byte is read.
    """
    files = [path]
    if path.is_dir():
        names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        files = [path / name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    elif path.name.endswith(INDEX):
        files += [path.with_name(name) for name in sorted(set(_read_index(path).values()))]
    total = hashlib.sha256()
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        if not file.is_file():
            raise CheckpointError("a weights file is missing", where=file)
        total.update(json.dumps([name, file.stat().st_size]).encode())
        with file.open("rb") as content:
            total.update(hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()[:16]


def check_tensors(
    what: str,
    path: Path | str,
    found: Mapping[str, Tensor],
    wanted: Mapping[str, torch.Size],
    next_step: str,
    integers: Collection[str] = (),
) -> None:
    """Raise the CheckpointError `what` unless `found` has exactly the `wanted` tensors, with finite numbers.

    `integers` names those that are counters, not weights.
    """
    if lines := tensor_differences(found, wanted, integers=integers):
        raise mismatch_error(what, path, lines, next_step)
    check_finite(found, path)


def check_finite(found: Mapping[str, Tensor], path: Path | str) -> None:
    """Raise CheckpointError naming the tensors that hold NaN or inf."""
    if lines := not_finite(found):
        raise mismatch_error("the weights are not finite", path, lines, "take an older checkpoint, or copy it again")


def tensor_differences(
    found: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], where: str = "", integers: Collection[str] = ()
) -> list[str]:
    """List every tensor that is missing, unknown, of another shape, or not of floating point with 16 bits or more.

    `integers` need not be of floating point. A prefix that all names have, or all lack, is listed once, with the fix;
    the names are then compared without it. `where` goes before every name.
    """
    lines = []
    if prefix := shared_prefix(found, wanted):
        lines.append(f"{where}{prefix_hint(prefix)}")
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    elif prefix := shared_prefix(wanted, found):
        lines.append(f"{where}no name begins with {prefix!r}, and all should: add it to each")
        found = {f"{prefix}{name}": tensor for name, tensor in found.items()}
    lines += [f"missing: {where}{name}" for name in wanted if name not in found]
    lines += [f"unknown: {where}{name}" for name in found if name not in wanted]
    lines += [
        f"of another shape: {where}{name} {list(found[name].shape)}, expected {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != shape
    ]
    weights = ((name, tensor) for name, tensor in found.items() if name not in integers)
    return lines + [_odd_dtype(where + name, tensor) for name, tensor in weights if tensor.dtype not in FLOATS]


def prefix_hint(prefix: str) -> str:
    """Say that all names of a file begin with `prefix` and should not, and what to do."""
    by = {"module.": ", as DataParallel saves them", "_orig_mod.": ", as torch.compile saves them"}.get(prefix, "")
    return f"all names begin with {prefix!r}{by}: remove it from each name and save the file again"


def shared_prefix(found: Iterable[str], wanted: Iterable[str]) -> str:
    """Return the dotted prefix that all `found` names share and that turns them into `wanted` names when removed."""
    names, known = list(found), set(wanted)
    if not names or any(name in known for name in names):
        return ""
    words = names[0].split(".")
    prefixes = [".".join(words[:count]) + "." for count in range(1, len(words))]
    prefixes = [prefix for prefix in prefixes if all(name.startswith(prefix) for name in names)]
    fitting = {prefix: sum(name.removeprefix(prefix) in known for name in names) for prefix in prefixes}
    best = max(fitting, key=lambda prefix: fitting[prefix], default="")
    return best if fitting.get(best) else ""


def not_finite(found: Mapping[str, Tensor], where: str = "") -> list[str]:
    """List the tensors that hold NaN or inf. Reads every value once, from the disk if the file is memory-mapped."""
    return [line for name, tensor in found.items() if (line := describe_not_finite(where + name, tensor))]


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
        got=f"{len(lines)} differences\n    " + first_few(mixed, NUM_TENSORS_LISTED, separator="\n    "),
        expected="exactly the tensors of the config's model, with finite numbers",
        next_step=next_step,
    )


def _odd_dtype(name: str, tensor: Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_floating_point():
        return f"in 8-bit floating point, which is quantised: {name} {kind}"
    return f"not of floating point: {name} {kind}"


def _folder(source: str | Path, part: Part) -> Path:
    folder = Path(os.path.expanduser(source))
    if str(source) and folder.is_dir():
        return folder
    if isinstance(source, str) and REPO.fullmatch(source) and not folder.exists():
        return _fetched(source, part)
    raise CheckpointError(
        "the source of pretrained weights is neither a folder nor a Hub repo",
        where="weights",
        got=repr(str(source)) + (", a file" if folder.is_file() else ""),
        expected="an existing folder, or a repo id such as Wan-AI/Wan2.1-T2V-1.3B",
        next_step="name the folder that the files lie in",
    )


def _fetched(repo: str, part: Part) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            "what fetches weights from the Hub is not installed",
            where=f"weights {repo!r}",
            got=error,
            expected="huggingface_hub, or a folder of that name",
            next_step="pip install 'lightwam[wan]'",
        ) from error
    kinds = ("*",) if part == "tokenizer" else ("*.safetensors", "*.json")
    patterns = [*OFFICIAL[part], *(f"{DIFFUSERS[part]}/{kind}" for kind in kinds)]
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns))
    except Exception as error:  # the HTTP library below, and so its errors, changes with the version
        raise CheckpointError(
            f"the {part} cannot be fetched from the Hub",
            where=repo,
            got=f"{type(error).__name__}: {error}",
            expected="a local folder of that name, or a Hub repo that can be reached",
            next_step="check the name and the network, or download the repo elsewhere and name its folder",
        ) from error


def _one_file(folder: Path, what: str, found: list[Path]) -> Path:
    """The one file, or the one index, that stands for all weights found in the folder."""
    indices = [path for path in found if path.name.endswith(INDEX)]
    if len(found) == 1 and not SHARD.search(found[0].name):
        return found[0]
    if len(indices) == 1:
        listed = set(_read_index(indices[0]).values())
        found = [path for path in found if path.name not in listed]
        if found == indices:
            return indices[0]
    raise CheckpointError(
        f"not one set of {what} files" if found else f"no {what} files lie there",
        where=folder,
        got=", ".join(path.name for path in found[:NUM_LISTED]) if found else _listing(folder),
        expected=f"one .safetensors file, or shards with one *{INDEX} that lists them all",
        next_step="keep one set a folder, or fetch the missing files",
    )


def _listing(folder: Path) -> str:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir()) if folder.is_dir() else []
    return first_few(names, NUM_LISTED) or "nothing"


def _table(found: Any, path: Path) -> dict[str, Tensor]:
    pairs = found.items() if isinstance(found, dict) else [("the whole file", found)]
    odd = [f"{name}: {type(value).__name__}" for name, value in pairs if not isinstance(value, Tensor)]
    odd += [f"{name!r} for a name" for name, _ in pairs if not isinstance(name, str)]
    if odd:
        inside = [name for name, value in pairs if _holds_tensors(value)]
        way = f"save what is under {inside[0]!r} as a file of its own" if inside else ""
        raise CheckpointError("not a table of tensors", where=path, got=first_few(odd),
                              expected="only name -> tensor", next_step=way)  # fmt: skip
    return dict(found)


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(one, Tensor) for one in value.values())


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            "the file cannot be read as safetensors",
            where=path,
            got=likely_cause(path) or _cut_short(path) or error,
            expected="a whole file",
            next_step="fetch it again: it may be torn",
        ) from error


def _cut_short(path: Path) -> str:
    """Say how many bytes a safetensors file lacks by its own header; "" when it is complete or has no header."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, 100_000_000)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole, there = 8 + length + max(ends), path.stat().st_size
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):  # the header cannot be read
        return ""
    return f"{there} of {whole} bytes: the file was cut short" if there < whole else ""


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name -> name of the shard beside the index that holds it."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError("the index of the shards cannot be read", where=path, got=likely_cause(path) or error,
                              next_step="fetch it again") from error  # fmt: skip
    places = index.get("weight_map") if isinstance(index, dict) else None
    # A name with a slash would lead out of the folder.
    plain = isinstance(places, dict) and all(isinstance(v, str) and Path(v).name == v for v in places.values())
    if not places or not plain:
        got = sorted(index) if isinstance(index, dict) else type(index).__name__
        raise CheckpointError(
            "not an index of shards", where=path, got=got, expected="weight_map: tensor -> a file beside the index"
        )
    return places


def _read_shards(index: Path) -> dict[str, Tensor]:
    """All tensors of the shards; each shard holds what the index places in it, and nothing else."""
    places = _read_index(index)
    shards = sorted(set(places.values()))
    if absent := [name for name in shards if not index.with_name(name).is_file()]:
        raise CheckpointError(
            "shards are missing",
            where=index,
            got=f"{len(shards) - len(absent)} of {len(shards)} shards; not there: {', '.join(absent)}",
            next_step="fetch the missing files",
        )
    state: dict[str, Tensor] = {}
    for name in shards:
        tensors = _read_safetensors(index.with_name(name))
        placed = {tensor for tensor, shard in places.items() if shard == name}
        if odd := sorted(placed ^ set(tensors)):
            listed = [f"{tensor} ({'absent' if tensor in placed else 'not listed here'})" for tensor in odd]
            raise CheckpointError(
                "a shard does not hold what the index says",
                where=index.with_name(name),
                got=first_few(listed),
                expected=f"the {len(placed)} tensors that {index.name} places in it",
                next_step="fetch index and shards again, from one place",
            )
        state |= tensors
    return state
