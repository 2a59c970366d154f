"""Shards, the files of a latent cache: written completely or not at all, and read by any number of threads.

A shard is two files. `00012.bin`: a header (magic, identity of cache and shard, shape of a sample), then the records of
consecutive windows. `00012.npy`: where each record begins, and where the last one ends (int64). The index is written
after the data, so a shard whose index exists and fits its data is complete.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import os
import secrets
import struct
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightwam.data.cache.record import damaged_sample, decode_record
from lightwam.errors import DatasetError

MAGIC = b"LATENTS1"
OPEN_FILES = 128
_HEADER = struct.Struct("<8s16s4i")


class SampleShape(NamedTuple):
    """The shape of a window's latents, before the later frames are pooled."""

    channels: int
    frames: int
    height: int
    width: int

    @property
    def present(self) -> tuple[int, int, int, int]:
        """[C, 1, h, w] of the first frame."""
        return self.channels, 1, self.height, self.width

    @property
    def later(self) -> tuple[int, int, int, int]:
        """[C, T - 1, h/2, w/2] of the pooled rest."""
        return self.channels, self.frames - 1, self.height // 2, self.width // 2

    @property
    def num_values(self) -> int:
        """Count of numbers in a sample."""
        return int(np.prod(self.present) + np.prod(self.later))


@dataclass(frozen=True)
class Shard:
    """Windows `first` to `first + windows` of a cache; `identity` is a hash of what they were made from."""

    folder: Path
    number: int
    first: int
    windows: int
    identity: bytes

    @property
    def data(self) -> Path:
        """The file of records."""
        return self.folder / f"{self.number:05d}.bin"

    @property
    def index(self) -> Path:
        """The file of their offsets."""
        return self.folder / f"{self.number:05d}.npy"

    def read_index(self) -> tuple[SampleShape, Int64[np.ndarray, " windows_and_1"]]:
        """Read shape and offsets; DatasetError when a file is missing, truncated or another cache's."""
        for path in (self.data, self.index):
            if not path.is_file():
                raise self._broken(path, "no such file", "a shard")
        try:
            offsets = np.load(self.index, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise self._broken(self.index, error, "an array of offsets") from error
        rising = offsets.shape == (self.windows + 1,) and offsets.dtype == np.int64 and (np.diff(offsets) > 0).all()
        if not rising or offsets[0] != _HEADER.size:
            raise self._broken(self.index, f"{offsets.dtype} {offsets.shape}", f"{self.windows + 1} rising offsets")
        if (size := self.data.stat().st_size) != offsets[-1]:
            raise self._broken(self.data, f"{size} bytes", f"{offsets[-1]} bytes")
        with self.data.open("rb") as file:
            magic, identity, *shape = _HEADER.unpack(file.read(_HEADER.size))
        if (magic, identity) != (MAGIC, self.identity):
            raise self._broken(self.data, "the shard of another cache", "one of this cache")
        return SampleShape(*shape), offsets

    def is_complete(self) -> bool:
        """Return whether both files are there and fit each other."""
        try:
            self.read_index()
        except DatasetError:
            return False
        return True

    def write(self, shape: SampleShape, records: Iterable[bytes], lengths: Sequence[int], rank: int) -> None:
        """Write the shard's data, then its index; `records` is their concatenation, in pieces of any size."""
        header = _HEADER.pack(MAGIC, self.identity, *shape)
        self.index.unlink(missing_ok=True)
        write_complete(self.data, itertools.chain([header], records), rank)
        offsets = np.cumsum([len(header), *lengths], dtype=np.int64)
        write_complete(self.index, [npy_bytes(offsets)], rank)

    def _broken(self, path: Path, got: object, expected: object) -> DatasetError:
        what, step = "a shard of the latent cache is missing or torn", "run `lightwam cache` again"
        return DatasetError(what, where=path, got=got, expected=expected, next_step=step)


def plan_shards(folder: Path, windows: Iterable[int], fingerprint: dict[str, Any]) -> list[Shard]:
    """Return the shards, with these numbers of windows, of a cache with this fingerprint."""
    shards, first = [], 0
    for number, count in enumerate(windows):
        text = json.dumps([fingerprint, first, count], sort_keys=True)
        identity = hashlib.blake2b(text.encode(), digest_size=16).digest()
        shards.append(Shard(folder, number, first, count, identity))
        first += count
    return shards


class SampleReader:
    """The samples of complete shards, by the number of their window; any number of threads may read at once."""

    def __init__(self, shards: Sequence[Shard], dtype: torch.dtype) -> None:
        """Raise DatasetError naming the first shard that is not complete, or of another shape."""
        assert shards, "a cache has at least one shard"
        self.dtype, self._shards = dtype, shards
        shapes, self._offsets = zip(*(shard.read_index() for shard in shards), strict=True)
        self.shape: SampleShape = shapes[0]
        for shard, shape in zip(shards, shapes, strict=True):
            if shape != self.shape:
                what = "all shards of a latent cache must have one shape of sample"
                raise DatasetError(what, where=shard.data, got=shape, expected=self.shape, next_step="make it again")
        self._first = np.array([shard.first for shard in shards])
        self.sizes = [int(offsets[-1]) for offsets in self._offsets]
        self.num_bytes = sum(self.sizes) + sum(shard.index.stat().st_size for shard in shards)
        # Paper-sized caches have thousands of shards, more than a process may hold open.
        self._open = functools.lru_cache(OPEN_FILES)(_OpenFile)

    def read(self, window: int) -> Float[Tensor, " n"]:
        """Return the values of one sample, present then later; DatasetError when they are not what was written."""
        number = int(np.searchsorted(self._first, window, side="right")) - 1
        shard, row = self._shards[number], window - self._shards[number].first
        begin, end = self._offsets[number][row : row + 2].tolist()
        where = f"{shard.data} sample {row} (window {window})"
        try:
            opened = self._open(shard.data)  # a reference keeps it open while it is read
            record = os.pread(opened.file, end - begin, begin)
        except OSError as error:
            raise damaged_sample(where, error) from error
        return decode_record(record, self.shape.num_values, self.dtype, window, where)


class _OpenFile:
    """A file descriptor, closed with the last reference to it."""

    def __init__(self, path: Path) -> None:
        self.file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.file)


def npy_bytes(array: np.ndarray) -> bytes:
    """Return the array as the bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_complete(path: Path, chunks: Iterable[bytes], rank: int) -> None:
    """Write a file completely or not at all, also when other processes write the same one; OSError."""
    part = path.with_name(f"{path.name}.{rank}-{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with part.open("wb") as file:
            file.writelines(chunks)  # one at a time, never all in memory
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def remove_unfinished(folder: Path, rank: int, world: int) -> None:
    """Remove what killed processes left half written; process `rank` of `world` removes what is of its own ranks."""
    for part in folder.glob("*.part"):
        owner = part.name.split(".")[-2].split("-")[0]
        if owner.isdecimal() and int(owner) % world == rank:
            part.unlink(missing_ok=True)
