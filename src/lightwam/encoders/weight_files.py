"""The files of a pretrained Wan2.1: where its parts are, and how their tensors are read.

One source holds all parts: a local folder or a Hugging Face Hub repo ("owner/name"), in one of two layouts. Official
(Wan-AI/Wan2.1-T2V-1.3B): all files in one folder. diffusers' (Wan-AI/Wan2.1-T2V-1.3B-Diffusers): a folder for each
part. A source that has a part in both layouts is an error, never a guess.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lightwam.errors import CheckpointError, first_few
from lightwam.system.file_damage import likely_cause
from lightwam.system.hub import REPO

Part = Literal["backbone", "vae", "text_encoder", "tokenizer"]

INDEX = ".safetensors.index.json"
PICKLED = (".pth", ".pt")
_BACKBONE = "diffusion_pytorch_model"
OFFICIAL: dict[Part, tuple[str, ...]] = {
    "backbone": (f"{_BACKBONE}*.safetensors", f"{_BACKBONE}*{INDEX}", f"{_BACKBONE}.pth"),
    "vae": ("Wan2.1_VAE.pth",),
    "text_encoder": ("models_t5_umt5-xxl-enc-bf16.pth",),
    "tokenizer": ("google/umt5-xxl/*",),
}
DIFFUSERS: dict[Part, str] = {part: part for part in OFFICIAL} | {"backbone": "transformer"}
SHARD = re.compile(r"-\d+-of-\d+\.")
NUM_LISTED = 12
FETCH = "fetch it again: it may be torn"


def locate(source: str | Path, part: Part) -> Path:
    """Return the path of a part of the pretrained model: a file, or a folder of files (as every tokenizer).

    `source` is a local folder or, as a string, a Hub repo id, of which only this part is fetched. For weights in shards
    it is the index file in the official layout, and the folder in diffusers'; `read_tensors` reads both.
    CheckpointError when the source is neither, cannot be fetched, or has the part not at all or twice.
    """
    assert part in get_args(Part), part
    folder = _folder(source, part)
    official = sorted(path for pattern in OFFICIAL[part] for path in folder.glob(pattern) if path.is_file())
    diffusers = folder / DIFFUSERS[part]
    wanted = f"{', '.join(OFFICIAL[part])} (official layout) or {DIFFUSERS[part]}/ (diffusers')"
    if official and diffusers.is_dir():
        what, got = f"the {part} is there twice", f"{official[0].relative_to(folder)} and {diffusers.name}/"
        raise CheckpointError(what, where=folder, got=got, next_step="keep one layout in a folder")
    if diffusers.is_dir():
        return diffusers
    if official:
        return official[0].parent if part == "tokenizer" else _one_file(folder, part, official)
    where = source if folder == Path(source) else f"{source} ({folder})"
    step = "name the folder or Hub repo of a complete Wan2.1, for example Wan-AI/Wan2.1-T2V-1.3B"
    raise CheckpointError(f"there is no {part}", where=where, got=_listing(folder), expected=wanted, next_step=step)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a .safetensors file, a .pth or .pt, an index with its shards, or a folder of safetensors.

    On the CPU, in the dtypes of the file, and memory-mapped if the format allows it. CheckpointError when a file is
    missing, torn or holds anything but tensors, or when shards are missing or do not hold what the index says.
    """
    if path.is_dir():
        path = _one_file(path, "weights", sorted((*path.glob("*.safetensors"), *path.glob(f"*{INDEX}"))))
    if path.name.endswith(INDEX):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PICKLED:
        return _table(read_pickled(path), path)
    raise CheckpointError(f"not a weights file (*.safetensors, *{INDEX}, *.pth, *.pt) or a folder", where=path)


def read_pickled(path: Path) -> Any:
    """Read what torch.save wrote, tensors and plain values only, without running code; CheckpointError otherwise."""
    try:
        # A memory map saves a copy, but only the zip form of torch.save allows it.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a torn pickle can raise anything
        # Further lines of the error advise to load it unsafely.
        got = likely_cause(path) or f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise CheckpointError("the file cannot be read by torch.load", where=path, got=got, next_step=FETCH) from error


def digest(path: Path) -> str:
    """Return 16 hex digits of sha256 over names, sizes and contents, for fingerprints; every byte is read.

    A folder's digest covers all files below it except hidden ones; an index's covers the index and its shards.
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


def _folder(source: str | Path, part: Part) -> Path:
    folder = Path(os.path.expanduser(source))
    if str(source) and folder.is_dir():
        return folder
    if isinstance(source, str) and REPO.fullmatch(source) and not folder.exists():
        return _fetched(source, part)
    got = repr(str(source)) + (", a file" if folder.is_file() else "")
    what = "the source of pretrained weights must be a folder or a Hub repo"
    step = "name an existing folder, or a repo id such as Wan-AI/Wan2.1-T2V-1.3B"
    raise CheckpointError(what, where="weights", got=got, next_step=step)


def _fetched(repo: str, part: Part) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        step = "pip install 'lightwam[wan]', or name a local folder"
        raise CheckpointError("a Hub repo needs huggingface_hub", where=repo, got=error, next_step=step) from error
    kinds = ("*",) if part == "tokenizer" else ("*.safetensors", "*.json")
    patterns = [*OFFICIAL[part], *(f"{DIFFUSERS[part]}/{kind}" for kind in kinds)]
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns))
    except Exception as error:  # the HTTP library below, and so its errors, changes with the version
        what, got = f"the {part} cannot be fetched from the Hub", f"{type(error).__name__}: {error}"
        step = "check the name and the network, or download the repo elsewhere and name its folder"
        raise CheckpointError(what, where=repo, got=got, next_step=step) from error


def _one_file(folder: Path, what: str, files: list[Path]) -> Path:
    """Return the one weights file, or the one index of shards, among those `files` in the folder."""
    indices = [path for path in files if path.name.endswith(INDEX)]
    if len(files) == 1 and not SHARD.search(files[0].name):
        return files[0]
    if len(indices) == 1:
        listed = set(_read_index(indices[0]).values())
        files = [path for path in files if path.name not in listed]
        if files == indices:
            return indices[0]
    what = f"there must be one set of {what} files" if files else f"there are no {what} files"
    got = first_few([path.name for path in files], NUM_LISTED) or _listing(folder)
    expected = f"one .safetensors file, or shards with one *{INDEX} that lists them all"
    step = "keep one set in a folder, or fetch the missing files"
    raise CheckpointError(what, where=folder, got=got, expected=expected, next_step=step)


def _listing(folder: Path) -> str:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir()) if folder.is_dir() else []
    return first_few(names, NUM_LISTED) or "nothing"


def _table(content: Any, path: Path) -> dict[str, Tensor]:
    pairs = content.items() if isinstance(content, dict) else [("the file", content)]
    odd = [f"{name}: {type(value).__name__}" for name, value in pairs if not isinstance(value, Tensor)]
    odd += [f"{name!r} for a name" for name, _ in pairs if not isinstance(name, str)]
    if odd:
        tables = [(name, value) for name, value in pairs if isinstance(value, Mapping)]
        inside = [name for name, table in tables if any(isinstance(item, Tensor) for item in table.values())]
        step = f"save what is under {inside[0]!r} as a file of its own" if inside else ""
        raise CheckpointError("not a table name -> tensor", where=path, got=first_few(odd), next_step=step)
    return dict(content)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        what, got = "the file cannot be read as safetensors", likely_cause(path) or _cut_short(path) or error
        raise CheckpointError(what, where=path, got=got, next_step=FETCH) from error


def _cut_short(path: Path) -> str:
    """Say how many bytes a safetensors file lacks by its own header; "" when it is complete or has no header."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, 100_000_000)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected, size = 8 + length + max(ends), path.stat().st_size
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):  # the header cannot be read
        return ""
    return f"{size} of {expected} bytes: the file was cut short" if size < expected else ""


def _read_index(path: Path) -> dict[str, str]:
    """Read an index: tensor name -> name of its shard, a file in the same folder."""
    index = read_config(path, "the index of the shards")
    shards = index.get("weight_map")
    # A name with a slash would lead out of the folder.
    plain = isinstance(shards, dict) and all(isinstance(v, str) and Path(v).name == v for v in shards.values())
    if not shards or not plain:
        raise CheckpointError("not an index of shards: weight_map, tensor -> file", where=path, got=sorted(index))
    return shards


def read_config(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object; CheckpointError naming `what` when the file is missing, torn or holds something else."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        got = likely_cause(path) or error
        raise CheckpointError(f"{what} cannot be read", where=path, got=got, next_step=FETCH) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{what} must be a JSON object", where=path, got=type(config).__name__, next_step=FETCH)
    return config


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Read all tensors of the shards; each shard must hold what the index says, and nothing else."""
    shard_of = _read_index(index)
    shards = sorted(set(shard_of.values()))
    if absent := [name for name in shards if not index.with_name(name).is_file()]:
        got = f"{len(shards) - len(absent)} of {len(shards)} shards; missing: {', '.join(absent)}"
        raise CheckpointError("shards are missing", where=index, got=got, next_step="fetch the missing files")
    state: dict[str, Tensor] = {}
    for name in shards:
        tensors = _read_safetensors(index.with_name(name))
        listed = {tensor for tensor, shard in shard_of.items() if shard == name}
        if odd := sorted(listed ^ set(tensors)):
            got = first_few([f"{tensor} ({'absent' if tensor in listed else 'not listed here'})" for tensor in odd])
            what, step = "a shard does not hold what the index says", "fetch index and shards again, from one source"
            raise CheckpointError(what, where=index.with_name(name), got=got, next_step=step)
        state |= tensors
    return state
