"""A dataset encoded once: of every window just what the loss reads, in a third of the published layout's room.

The published cache keeps the whole clip of every window at full resolution. The action pass sees the first frame alone,
and the video pass sees the clip averaged 2x2; so the first frame at full resolution and the later frames averaged are
kept, half the numbers, and packed without loss (`latent_pack`) into two thirds of that. docs/data.md has the layout.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from lightwam.config.schema import CodecConfig
from lightwam.data.cache.base import (
    TABLES,
    Cache,
    Progress,
    canvas_fingerprint,
    check_cameras,
    check_canvas,
    dataset_arrays,
    first_problems,
    mismatches,
    read_tables,
)
from lightwam.data.cache.encoder import ClipEncoder, WindowEncoder
from lightwam.data.cache.location import CACHE_HINT, check_free_space, folder_name
from lightwam.data.cache.record import DTYPES
from lightwam.data.cache.shards import Samples, Shard, array_bytes, clear_parts, plan_shards, write_whole
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.errors import ConfigError, DatasetError
from lightwam.system.files import file_fingerprint, read_json, writing
from lightwam.types import SINGLE_PROCESS, Latents, Rank, pool

FORMAT = "latents 1"
RERUN = "run `lightwam cache` again: it makes only what is missing"
SHARD_WINDOWS = 1024
"""a shard's episodes have together at most so many windows, unless it is one long episode"""
KEPT = f"run the same command again: finished shards are kept; {CACHE_HINT}"
SPOOL_BYTES = 256 * 2**20
"""a shard is held in memory up to this size, then in a temporary file"""


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentCache(Cache):
    """An encoded dataset: a cache of latents. Window i begins at control step i, and is checked when it is read."""

    canvas: tuple[int, ...]
    horizon: int
    video_stride: int
    samples: Samples

    @property
    def bytes_per_sample(self) -> float:
        """What a window takes on disk, checksums and index included."""
        return self.samples.num_bytes / self.num_steps

    def video(self, frame: Int64[np.ndarray, "B F"]) -> Latents:
        """The latents, in float32, of the windows that begin at `frame[:, 0]` (the other columns follow from it).

        DatasetError naming the sample that is not what was written.
        """
        assert frame.shape[1] == 1 + self.horizon // self.video_stride, frame.shape
        assert frame[:, 0].min() >= 0 and frame[:, 0].max() < self.num_steps, frame[:, 0]
        shape = self.samples.shape
        values = torch.stack([self.samples.read(window) for window in frame[:, 0].tolist()]).float()
        present, later = values.split([math.prod(shape.present), math.prod(shape.later)], dim=1)
        present, later = present.unflatten(1, shape.present), later.unflatten(1, shape.later)
        return Latents(present.contiguous(), torch.cat((pool(present), later), dim=2))

    def check_window(self, config: CodecConfig, horizon: int, shift_pixels: int) -> None:
        """ConfigError when it was made for another canvas or window, or when pictures are to be shifted."""
        if shift_pixels:
            raise ConfigError("latents cannot be shifted", where="shift_pixels", got=shift_pixels, expected=0,
                              next_step="set it to 0, or train from decoded pictures")  # fmt: skip
        check_canvas(self.path, self.canvas, config)
        got = f"horizon {self.horizon}, video_stride {self.video_stride}"
        expected = f"horizon {horizon}, video_stride {config.video_stride}"
        if got != expected:
            raise ConfigError("the cache was made for another window", where=self.path, got=got, expected=expected)

    def problems(self, progress: Progress | None = None) -> list[str]:
        """Everything that is wrong with the files, after reading all of them; empty when the cache is sound."""
        found = _table_problems(self.path, read_json(self.path / "cache.json"))
        for window in range(self.num_steps):
            if progress is not None:
                progress(window, self.num_steps)
            try:
                self.samples.read(window)
            except DatasetError as error:
                found.append(f"{error.where}: {error.got}")
        if progress is not None:
            progress(self.num_steps, self.num_steps)
        return found

    @classmethod
    def build(
        cls,
        dataset: LeRobotDataset,
        codec_config: CodecConfig,
        horizon: int,
        encoder: ClipEncoder,
        path: Path | str,
        progress: Progress | None = None,
        share: Rank = SINGLE_PROCESS,
    ) -> None:
        """Encode every window into `path`, going on where it was stopped; a whole cache is left as it is.

        Process `share.rank` of `share.size` makes every size-th shard; the cache is done when all have returned. Raises
        DatasetError for what is wrong in the dataset, a folder that holds another cache, numbers that are not finite,
        and a disk that is full.
        """
        assert 0 <= share.rank < share.size and horizon % codec_config.video_stride == 0
        path, (rank, world) = Path(path), share
        check_cameras(dataset, codec_config)
        arrays, parts = dataset_arrays(dataset), _episodes_by_shard(dataset)
        windows = [sum(dataset.episodes[episode].length for episode in part) for part in parts]
        fingerprint = _fingerprint(dataset, codec_config, horizon, encoder.about, encoder.dtype)
        _refuse_another(path, fingerprint)
        if _is_whole(path):
            return
        check_free_space(path, 0)
        with _writing(path, 2**16):
            (path / "shards").mkdir(parents=True, exist_ok=True)
            for folder in (path, path / "shards"):
                clear_parts(folder, rank, world)
            begun = {"fingerprint": fingerprint, "shards": [[count] for count in windows]}
            write_whole(path / "begun.json", [_json(begun)], rank)
            (path / "cache.json").unlink(missing_ok=True)
        made = plan_shards(path / "shards", windows, fingerprint)
        windows_of = WindowEncoder(dataset, codec_config, horizon, encoder)
        _make(windows_of, list(zip(made, parts, strict=True))[rank::world], path, rank, progress)
        if all(shard.whole() for shard in made):
            with _writing(path, sum(array.nbytes for array in arrays.values())):
                _finish(path, dataset, arrays, fingerprint, made, rank)

    @classmethod
    def open(
        cls,
        path: Path | str,
        dataset: LeRobotDataset | None = None,
        codec_config: CodecConfig | None = None,
        horizon: int | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> LatentCache:
        """The cache at `path`. What is given is compared with what the cache was made from.

        Raises DatasetError saying what differs, what is torn, or how much of it there is when it is not finished.
        """
        path = Path(path)
        wanted = _fingerprint(dataset, codec_config, horizon, about)
        whole = _about(path, wanted)
        then = whole.get("fingerprint", {})
        if problems := mismatches(then, wanted):
            next_step = "make one of this in another folder, or delete it"
            raise DatasetError(
                "the latent cache was made from something else",
                where=path,
                got=first_problems(problems),
                next_step=next_step,
            )
        if problems := _table_problems(path, whole):
            raise DatasetError(
                "a table of the latent cache is missing or torn",
                where=path,
                got=first_problems(problems),
                next_step=RERUN,
            )
        counts = [count for count, _ in whole["shards"]]
        samples = Samples(plan_shards(path / "shards", counts, then), DTYPES[then["dtype"]])
        sizes = [size for _, size in whole["shards"]]
        if problems := [f"shard {i}" for i, size in enumerate(sizes) if samples.sizes[i] != size]:
            raise DatasetError("shards of the latent cache were replaced", where=path, got=first_problems(problems),
                               expected="the sizes of cache.json", next_step="run `lightwam cache` again")  # fmt: skip
        return cls(path=path, **read_tables(path), tasks=tuple(whole["tasks"]), fps=whole["fps"],
                   canvas=tuple(then["codec"]["canvas"]), horizon=then["horizon"], video_stride=then["video_stride"],
                   samples=samples)  # fmt: skip


def latents_folder(
    folder: Path,
    dataset: LeRobotDataset,
    codec_config: CodecConfig,
    horizon: int,
    about: Mapping[str, Any],
    files: Mapping[str, str] | None = None,
) -> Path:
    """Return the subfolder of `folder` for the latents (bfloat16) of this dataset, codec, horizon and encoder.

    `files` is the dataset's fingerprint, if known. A cache at `folder` itself, where earlier versions put it, is used
    when it fits, complete or not.
    """
    fingerprint = _fingerprint(dataset, codec_config, horizon, about, torch.bfloat16, files)
    if any(not mismatches(then, fingerprint) for then in _fingerprints(folder)):
        return folder
    (height, width), kind = codec_config.canvas, about.get("kind", "latents")
    return folder / folder_name(f"{kind}-{height}x{width}-{horizon}steps", fingerprint)


def find_latent_caches(folder: Path) -> list[Path]:
    """List the latent caches in `folder`, complete or not."""
    places = [folder, *sorted(folder.iterdir())] if folder.is_dir() else []
    return [place for place in places if _fingerprints(place)]


def _fingerprints(path: Path) -> list[dict[str, Any]]:
    """Read the fingerprints of the caches at `path`: a complete one, an unfinished one."""
    files = [path / name for name in ("cache.json", "begun.json") if (path / name).is_file()]
    fingerprints = [read_json(file).get("fingerprint", {}) for file in files]
    return [one for one in fingerprints if one.get("format") == FORMAT]


def _make(
    encoder: WindowEncoder, mine: list[tuple[Shard, list[int]]], path: Path, rank: int, progress: Progress | None
) -> None:
    """Those of our shards, each with its episodes, that are not whole yet. Progress counts our windows."""
    tell = progress or (lambda done, total: None)
    missing = [(shard, episodes) for shard, episodes in mine if not shard.whole()]
    total = sum(shard.windows for shard, _ in mine)
    done = total - sum(shard.windows for shard, _ in missing)
    tell(done, total)
    for shard, episodes in missing:
        lengths: list[int] = []
        # a long episode is a shard by itself and may not fit in memory; the file has no name, so a kill removes it
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=str(shard.folder)) as spool:
            for records in encoder.records(episodes):
                to_write = (total - done + shard.windows) * len(records[0])
                if shard is missing[0][0] and not lengths:
                    check_free_space(shard.data, to_write)
                with _writing(path, to_write):
                    spool.writelines(records)
                lengths += map(len, records)
                done += len(records)
                tell(done, total)
            spool.seek(0)
            with _writing(path, to_write):
                assert encoder.shape is not None
                shard.write(encoder.shape, iter(partial(spool.read, 2**20), b""), lengths, rank)


def _episodes_by_shard(dataset: LeRobotDataset) -> list[list[int]]:
    parts: list[list[int]] = []
    size = SHARD_WINDOWS
    for episode in dataset.episodes:
        if size + episode.length > SHARD_WINDOWS:
            parts.append([])
            size = 0
        parts[-1].append(episode.index)
        size += episode.length
    return parts


def _fingerprint(
    dataset: LeRobotDataset | None,
    codec_config: CodecConfig | None,
    horizon: int | None,
    about: Mapping[str, Any] | None,
    dtype: torch.dtype | None = None,
    files: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Everything that the cache's content depends on, of what is given; normalisation does not touch it."""
    print_: dict[str, Any] = {"format": FORMAT}
    if dataset is not None:
        print_["dataset"] = dict(dataset.fingerprint() if files is None else files)
    if codec_config is not None:
        print_ |= {"codec": canvas_fingerprint(codec_config), "video_stride": codec_config.video_stride}
    if horizon is not None:
        print_["horizon"] = horizon
    if about is not None:
        print_["encoder"] = json.loads(json.dumps(dict(about)))
    if dtype is not None:
        print_["dtype"] = next(name for name, one in DTYPES.items() if one is dtype)
    return print_


def _about(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """cache.json of a whole cache."""
    if (path / "cache.json").is_file():
        return read_json(path / "cache.json")
    if (path / "begun.json").is_file():
        begun = read_json(path / "begun.json")
        made = plan_shards(path / "shards", [count for (count,) in begun["shards"]], begun["fingerprint"])
        got = f"{sum(shard.whole() for shard in made)} of {len(made)} shards"
        raise DatasetError("the latent cache is not finished", where=path, got=got, expected="all of them",
                           next_step="`lightwam cache` goes on where it was stopped")  # fmt: skip
    others = [f"{other.name}: {first_problems(mismatches(_fingerprints(other)[0], wanted))}"
              for other in find_latent_caches(path.parent)]  # fmt: skip
    raise DatasetError("no latent cache here", where=path, got="; ".join(others[:5]) or None,
                       expected="one made from these", next_step="make it: `lightwam cache`")  # fmt: skip


def _is_whole(path: Path) -> bool:
    try:
        LatentCache.open(path)
    except DatasetError:
        return False
    return True


def _refuse_another(path: Path, now: Mapping[str, Any]) -> None:
    """Hours may have gone into what lies there, so it is never replaced."""
    for name in ("cache.json", "begun.json"):
        if (path / name).is_file() and (problems := mismatches(read_json(path / name).get("fingerprint", {}), now)):
            raise DatasetError("another cache lies here", where=path, got=first_problems(problems),
                               next_step="give another folder, or delete this one")  # fmt: skip


def _table_problems(path: Path, about: Mapping[str, Any]) -> list[str]:
    found = []
    for name in TABLES:
        file, expected = path / f"{name}.npy", about["files"][f"{name}.npy"]
        got = file_fingerprint(file) if file.is_file() else "no such file"
        if got != expected:
            found.append(f"{file.name}: {got}, not {expected}")
    return found


def _finish(
    path: Path,
    dataset: LeRobotDataset,
    arrays: Mapping[str, np.ndarray],
    fingerprint: Mapping[str, Any],
    made: Sequence[Shard],
    rank: int,
) -> None:
    """The tables and then cache.json; processes that finish at once write the same bytes."""
    for name, array in arrays.items():
        write_whole(path / f"{name}.npy", [array_bytes(array)], rank)
    about = {
        "fingerprint": fingerprint,
        "tasks": list(dataset.tasks),
        "fps": dataset.fps,
        "episodes": dataset.num_episodes,
        "windows": dataset.num_frames,
        "shape": made[0].load()[0]._asdict(),
        "shards": [[shard.windows, shard.data.stat().st_size] for shard in made],
        "files": {f"{name}.npy": file_fingerprint(path / f"{name}.npy") for name in TABLES},
    }
    write_whole(path / "cache.json", [_json(about)], rank)
    (path / "begun.json").unlink(missing_ok=True)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1).encode()


@contextmanager
def _writing(path: Path, num_bytes: int) -> Iterator[None]:
    with writing(path, DatasetError, num_bytes=num_bytes, goes_on=KEPT):
        yield
