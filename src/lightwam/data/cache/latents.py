"""A cache of latents: of every window of a dataset just what the loss reads, in a third of the published cache's bytes.

The published cache keeps the clip of every window at full resolution. The action pass sees the first frame alone, and
the video pass sees the clip averaged 2x2. So the first frame at full resolution and the later frames averaged are kept,
half the numbers, and compressed without loss (`record`) to two thirds of that. docs/data.md has the layout.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from lightwam.config.schema import CodecConfig
from lightwam.data.cache import base
from lightwam.data.cache.base import Cache, first_problems, mismatches
from lightwam.data.cache.encoder import ClipEncoder, WindowEncoder
from lightwam.data.cache.location import CACHE_HINT, check_free_space, folder_name
from lightwam.data.cache.record import DTYPES
from lightwam.data.cache.shards import SampleReader, Shard, npy_bytes, plan_shards, remove_unfinished, write_complete
from lightwam.data.lerobot.merge import group_by_size
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.errors import ConfigError, DatasetError, first_few
from lightwam.system.files import explain_disk_errors, file_fingerprint, read_json
from lightwam.system.progress import OnProgress, no_progress
from lightwam.types import SINGLE_PROCESS, Latents, Rank, pool

FORMAT = "latents 1"
SHARD_WINDOWS = 1024
"""the most windows that a shard's episodes have together, unless it is one long episode"""
SPOOL_BYTES = 256 * 2**20
"""a shard is held in memory up to this size, then in a temporary file"""
RERUN = "run `lightwam cache` again: it makes only what is missing"
RESUME_HINT = f"run the same command again: finished shards are kept; {CACHE_HINT}"
_writing = partial(explain_disk_errors, kind=DatasetError, resume_hint=RESUME_HINT)


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentCache(Cache):
    """A dataset encoded: window i begins at control step i, and its checksum is verified whenever it is read."""

    canvas: tuple[int, ...]
    horizon: int
    video_stride: int
    samples: SampleReader

    @property
    def bytes_per_sample(self) -> float:
        """Bytes on disk for each window, checksums and index included."""
        return self.samples.num_bytes / self.num_steps

    def video(self, frame: Int64[np.ndarray, "B F"]) -> Latents:
        """Return the latents, in float32, of the windows that begin at `frame[:, 0]`; the other columns follow from it.

        DatasetError naming the sample that is damaged.
        """
        assert frame.shape[1] == 1 + self.horizon // self.video_stride, frame.shape
        assert frame[:, 0].min() >= 0 and frame[:, 0].max() < self.num_steps, frame[:, 0]
        shape = self.samples.shape
        values = torch.stack([self.samples.read(window) for window in frame[:, 0].tolist()]).float()
        present, later = values.split([math.prod(shape.present), math.prod(shape.later)], dim=1)
        present, later = present.unflatten(1, shape.present), later.unflatten(1, shape.later)
        return Latents(present.contiguous(), torch.cat((pool(present), later), dim=2))

    def check_window(self, config: CodecConfig, horizon: int, shift_pixels: int) -> None:
        """Raise ConfigError when it was made for another canvas or window, or when pictures are to be shifted."""
        if shift_pixels:
            step = "set it to 0, or train from decoded pictures"
            raise ConfigError("latents cannot be shifted", where="shift_pixels", got=shift_pixels, next_step=step)
        base.check_canvas(self.path, self.canvas, config)
        got = f"horizon {self.horizon}, video_stride {self.video_stride}"
        expected = f"horizon {horizon}, video_stride {config.video_stride}"
        if got != expected:
            raise ConfigError("the cache was made for another window", where=self.path, got=got, expected=expected)

    def problems(self, progress: OnProgress = no_progress) -> list[str]:
        """Read all of its files and list everything that is wrong; `progress` counts windows."""
        problems = _table_problems(self.path, read_json(self.path / "cache.json"))
        for window in range(self.num_steps):
            progress(window, self.num_steps)
            try:
                self.samples.read(window)
            except DatasetError as error:
                problems.append(f"{error.where}: {error.got}")
        progress(self.num_steps, self.num_steps)
        return problems

    @classmethod
    def build(
        cls,
        dataset: LeRobotDataset,
        codec_config: CodecConfig,
        horizon: int,
        encoder: ClipEncoder,
        path: Path | str,
        progress: OnProgress = no_progress,
        share: Rank = SINGLE_PROCESS,
    ) -> None:
        """Encode every window into the folder `path`, unless it holds the complete cache; finished shards are kept.

        Process `share.rank` of `share.size` makes every size-th shard, and `progress` counts its windows; the cache is
        complete when all processes have returned. DatasetError when the dataset is broken, `path` holds another cache,
        the encoder gives numbers that are not finite, or the disk is full.
        """
        assert 0 <= share.rank < share.size and horizon % codec_config.video_stride == 0
        path, (rank, world) = Path(path), share
        base.check_cameras(dataset, codec_config)
        arrays, lengths = base.dataset_arrays(dataset), [episode.length for episode in dataset.episodes]
        parts = group_by_size(lengths, SHARD_WINDOWS)
        windows = [sum(lengths[episode] for episode in part) for part in parts]
        fingerprint = _fingerprint(dataset, codec_config, horizon, encoder.about, encoder.dtype)
        for then in _fingerprints(path):
            _refuse_another(path, then, fingerprint)
        if _is_complete(path):
            return
        check_free_space(path, 0)
        with _writing(path, num_bytes=2**16):
            (path / "shards").mkdir(parents=True, exist_ok=True)
            for folder in (path, path / "shards"):
                remove_unfinished(folder, rank, world)
            _write_json(path / "begun.json", {"fingerprint": fingerprint, "shards": [[n] for n in windows]}, rank)
            (path / "cache.json").unlink(missing_ok=True)
        shards = plan_shards(path / "shards", windows, fingerprint)
        window_encoder = WindowEncoder(dataset, codec_config, horizon, encoder)
        _encode(window_encoder, list(zip(shards, parts, strict=True))[rank::world], path, rank, progress)
        if all(shard.is_complete() for shard in shards):
            with _writing(path, num_bytes=sum(array.nbytes for array in arrays.values())):
                _finish(path, dataset, arrays, fingerprint, shards, rank)

    @classmethod
    def open(
        cls,
        path: Path | str,
        dataset: LeRobotDataset | None = None,
        codec_config: CodecConfig | None = None,
        horizon: int | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> LatentCache:
        """Open the cache at `path`.

        DatasetError when it is torn, not finished (with how much of it is there), or made from another dataset, codec,
        horizon or encoder (`about`) than those given.
        """
        path, wanted = Path(path), _fingerprint(dataset, codec_config, horizon, about)
        header = _read_header(path, wanted)
        then = header.get("fingerprint", {})
        _refuse_another(path, then, wanted)
        if torn := first_problems(_table_problems(path, header)):
            raise DatasetError("a table of the latent cache is missing or torn", where=path, got=torn, next_step=RERUN)
        counts, sizes = zip(*header["shards"], strict=True)
        samples = SampleReader(plan_shards(path / "shards", counts, then), DTYPES[then["dtype"]])
        if others := first_few([f"shard {i}" for i, size in enumerate(sizes) if samples.sizes[i] != size]):
            raise DatasetError("shards of the latent cache were replaced", where=path, got=others, next_step=RERUN)
        return cls(
            path=path,
            **base.read_tables(path),
            tasks=tuple(header["tasks"]),
            fps=header["fps"],
            canvas=tuple(then["codec"]["canvas"]),
            horizon=then["horizon"],
            video_stride=then["video_stride"],
            samples=samples,
        )


def latents_folder(
    folder: Path,
    dataset: LeRobotDataset,
    codec_config: CodecConfig,
    horizon: int,
    about: Mapping[str, Any],
    files: Mapping[str, str] | None = None,
) -> Path:
    """Return the subfolder of `folder` for the latents (bfloat16) of this dataset, codec, horizon and encoder.

    `files` is the dataset's fingerprint, if known. A matching cache at `folder` itself, where earlier versions put it,
    is used, complete or not.
    """
    fingerprint = _fingerprint(dataset, codec_config, horizon, about, torch.bfloat16, files)
    if any(not mismatches(then, fingerprint) for then in _fingerprints(folder)):
        return folder
    (height, width), kind = codec_config.canvas, about.get("kind", "latents")
    return folder / folder_name(f"{kind}-{height}x{width}-{horizon}steps", fingerprint)


def find_latent_caches(folder: Path) -> list[Path]:
    """List the latent caches in `folder`, complete or not."""
    paths = [folder, *sorted(folder.iterdir())] if folder.is_dir() else []
    return [path for path in paths if any(then.get("format") == FORMAT for then in _fingerprints(path))]


def _fingerprints(path: Path) -> list[dict[str, Any]]:
    """Read the fingerprints of the caches at `path`: a complete one, an unfinished one."""
    files = [path / name for name in ("cache.json", "begun.json") if (path / name).is_file()]
    return [read_json(file).get("fingerprint", {}) for file in files]


def _encode(
    encoder: WindowEncoder, own: list[tuple[Shard, list[int]]], path: Path, rank: int, progress: OnProgress
) -> None:
    """Encode those of this process's shards, each with its episodes, that are not complete."""
    missing = [(shard, episodes) for shard, episodes in own if not shard.is_complete()]
    total = sum(shard.windows for shard, _ in own)
    done = total - sum(shard.windows for shard, _ in missing)
    progress(done, total)
    for shard, episodes in missing:
        lengths: list[int] = []
        # a long episode is a shard by itself and may not fit in memory; the file has no name, so a kill removes it
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=str(shard.folder)) as spool:
            for records in encoder.records(episodes):
                to_write = (total - done + shard.windows) * len(records[0])
                if shard is missing[0][0] and not lengths:
                    check_free_space(shard.data, to_write)
                with _writing(path, num_bytes=to_write):
                    spool.writelines(records)
                lengths += map(len, records)
                done += len(records)
                progress(done, total)
            spool.seek(0)
            with _writing(path, num_bytes=to_write):
                assert encoder.shape is not None
                shard.write(encoder.shape, iter(partial(spool.read, 2**20), b""), lengths, rank)


def _fingerprint(
    dataset: LeRobotDataset | None,
    codec_config: CodecConfig | None,
    horizon: int | None,
    about: Mapping[str, Any] | None,
    dtype: torch.dtype | None = None,
    files: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return what the latents depend on, without the parts that are None; this excludes normalisation."""
    parts = {
        "video_stride": None if codec_config is None else codec_config.video_stride,
        "horizon": horizon,
        "encoder": None if about is None else json.loads(json.dumps(dict(about))),
        "dtype": next((name for name, known in DTYPES.items() if known is dtype), None),
    }
    fingerprint = base.source_fingerprint(FORMAT, dataset, codec_config, files)
    return fingerprint | {name: part for name, part in parts.items() if part is not None}


def _read_header(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Read cache.json of a complete cache; DatasetError when there is none, with what is there instead."""
    if (path / "cache.json").is_file():
        return read_json(path / "cache.json")
    if (path / "begun.json").is_file():
        begun = read_json(path / "begun.json")
        shards = plan_shards(path / "shards", [count for (count,) in begun["shards"]], begun["fingerprint"])
        got = f"{sum(shard.is_complete() for shard in shards)} of {len(shards)} shards"
        raise DatasetError("the latent cache is not finished", where=path, got=got, next_step=RERUN)
    caches = find_latent_caches(path.parent)
    others = [f"{other.name}: {first_problems(mismatches(_fingerprints(other)[0], wanted))}" for other in caches]
    what, step = "there is no latent cache here", "make it: `lightwam cache`"
    raise DatasetError(what, where=path, got="; ".join(others[:5]) or None, next_step=step)


def _is_complete(path: Path) -> bool:
    try:
        LatentCache.open(path)
    except DatasetError:
        return False
    return True


def _refuse_another(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise DatasetError when the cache there is another one: it may have taken hours, so it is never replaced."""
    if problems := first_problems(mismatches(then, now)):
        step = "give another folder, or delete this cache"
        raise DatasetError("the latent cache was made from something else", where=path, got=problems, next_step=step)


def _table_problems(path: Path, header: Mapping[str, Any]) -> list[str]:
    names = [f"{name}.npy" for name in base.TABLES]
    sizes = {name: file_fingerprint(path / name) if (path / name).is_file() else "no such file" for name in names}
    expected = header["files"]
    return [f"{name}: {got}, not {expected[name]}" for name, got in sizes.items() if got != expected[name]]


def _finish(
    path: Path,
    dataset: LeRobotDataset,
    arrays: Mapping[str, np.ndarray],
    fingerprint: Mapping[str, Any],
    shards: Sequence[Shard],
    rank: int,
) -> None:
    """Write the tables and then cache.json; processes that finish at once write the same bytes."""
    files = {f"{name}.npy": array for name, array in arrays.items()}
    for name, array in files.items():
        write_complete(path / name, [npy_bytes(array)], rank)
    header = {
        "fingerprint": fingerprint,
        "tasks": list(dataset.tasks),
        "fps": dataset.fps,
        "episodes": dataset.num_episodes,
        "windows": dataset.num_frames,
        "shape": shards[0].read_index()[0]._asdict(),
        "shards": [[shard.windows, shard.data.stat().st_size] for shard in shards],
        "files": {name: file_fingerprint(path / name) for name in files},
    }
    _write_json(path / "cache.json", header, rank)
    (path / "begun.json").unlink(missing_ok=True)


def _write_json(path: Path, value: Mapping[str, Any], rank: int) -> None:
    write_complete(path, [json.dumps(value, indent=1).encode()], rank)
