"""All pictures of a dataset decoded once, on the codec's canvas, in a memory-mapped file that is checked before use.

Random windows come from it at thousands a second, from the videos at tens (docs/data.md).
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from lightwam.config.schema import CodecConfig
from lightwam.data.cache.base import (
    TABLES,
    Cache,
    CanvasReader,
    Progress,
    canvas_fingerprint,
    check_cameras,
    check_canvas,
    dataset_arrays,
    first_problems,
    mismatches,
    read_tables,
)
from lightwam.data.cache.location import (
    CACHE_HINT,
    LOCK,
    check_free_space,
    folder_name,
    locked_folder,
    remove_leftovers,
    temporary_folder,
)
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.errors import DatasetError, LightwamError
from lightwam.system.files import read_json, refused, write_atomically

FORMAT = 1
NUM_THREADS = 2
EPISODES_A_JOB = 8
FRAMES_A_JOB = 512
"""frames after which a thread's job ends, at the end of that episode"""
JOURNAL = "done.json"
KEPT = f"run the same command again: decoded episodes are kept; {CACHE_HINT}"
Files = Mapping[str, str]
"""a dataset's fingerprint: every file with size and hash"""


@dataclass(frozen=True, eq=False, kw_only=True)
class FrameCache(Cache):
    """A decoded dataset: a cache of pictures, one a control step."""

    frames: UInt8[np.ndarray, "N height width 3"]

    def video(self, frame: Int64[np.ndarray, "B F"]) -> UInt8[np.ndarray, "B F height width 3"]:
        """The pictures of these control steps."""
        clips = np.empty((*frame.shape, *self.frames.shape[1:]), np.uint8)
        np.take(self.frames, frame, axis=0, out=clips, mode="clip")
        return clips

    def check_window(self, config: CodecConfig, horizon: int, shift_pixels: int) -> None:
        """ConfigError when its canvas is not the codec's; whatever window is cut from it, and shifted, is fine."""
        check_canvas(self.path, self.frames.shape[1:3], config)

    @classmethod
    def build(
        cls,
        dataset: LeRobotDataset,
        codec_config: CodecConfig,
        path: Path | str,
        progress: Progress | None = None,
        files: Files | None = None,
    ) -> FrameCache:
        """Decode everything into `path` (a folder), replacing what is there once the new one is whole.

        A build that was killed, or ran out of disk space, resumes after the last decoded episode. When several
        processes build the same cache, one decodes and the others wait. `files` is the dataset's fingerprint, if known.
        Raises DatasetError for whatever is wrong in the dataset, when the codec places a camera it lacks, when `path`
        holds something else, and when it cannot be written.
        """
        path = Path(path)
        if others := _others(path):
            got, step = first_problems(others), "give another folder"
            raise DatasetError("the folder holds something else than a cache", where=path, got=got, next_step=step)
        check_cameras(dataset, codec_config)
        fingerprint = _fingerprint(dataset, codec_config, files)
        draft, total = temporary_folder(path, fingerprint), dataset.num_frames

        def waiting() -> None:
            if progress is not None:
                progress(int(dataset.episode_start[_episodes_done(draft)]), total)

        remove_leftovers(path.parent, path.name, keep=draft)
        check_free_space(path, _bytes_missing(dataset, codec_config, draft))
        first = not path.parent.exists()
        with _disk_errors(dataset, codec_config, draft), locked_folder(draft, waiting) as waited:
            if waited and cls.fits(path, dataset, codec_config, files):
                shutil.rmtree(draft)
                return cls.open(path)
            try:
                _make(dataset, codec_config, draft, fingerprint, progress)
                _replace_folder(draft, path)
                (path / LOCK).unlink(missing_ok=True)
            except LightwamError:  # the dataset is broken; fixing it changes its fingerprint
                shutil.rmtree(draft, ignore_errors=True)
                if first and not any(path.parent.iterdir()):
                    path.parent.rmdir()
                raise
        return cls.open(path)

    @classmethod
    def open(
        cls, path: Path | str, dataset: LeRobotDataset | None = None, codec_config: CodecConfig | None = None
    ) -> FrameCache:
        """The cache at `path`. What is given of dataset and codec is compared with what the cache was made from.

        Raises DatasetError saying what is torn or what differs.
        """
        path = Path(path)
        if not (path / "cache.json").is_file():
            raise DatasetError("no whole cache here", where=path, expected="cache.json", next_step="build it")
        about = read_json(path / "cache.json")
        if problems := _problems(path, about, _fingerprint(dataset, codec_config)):
            raise DatasetError("the cache is torn, or was made from something else", where=path,
                               got=first_problems(problems), next_step="build it again")  # fmt: skip
        frames = np.load(path / "frames.npy", mmap_mode="r")
        return cls(path=path, frames=frames, **read_tables(path), tasks=tuple(about["tasks"]), fps=about["fps"])

    @classmethod
    def fits(
        cls, path: Path | str, dataset: LeRobotDataset, codec_config: CodecConfig, files: Files | None = None
    ) -> bool:
        """Return whether the cache at `path` is complete and was made from this dataset and codec."""
        path = Path(path)
        if not (path / "cache.json").is_file():
            return False
        return not _problems(path, read_json(path / "cache.json"), _fingerprint(dataset, codec_config, files))

    @classmethod
    def fresh(
        cls,
        dataset: LeRobotDataset,
        codec_config: CodecConfig,
        path: Path | str,
        progress: Progress | None = None,
        files: Files | None = None,
    ) -> FrameCache:
        """Open the cache at `path` if it fits, else build it."""
        if cls.fits(path, dataset, codec_config, files):
            return cls.open(path)
        return cls.build(dataset, codec_config, path, progress, files)

    @classmethod
    def check_writable(
        cls, dataset: LeRobotDataset, codec_config: CodecConfig, path: Path, files: Files | None = None
    ) -> None:
        """Raise DatasetError when `fresh` would have to build and cannot: no permission, or no space on the disk."""
        if not cls.fits(path, dataset, codec_config, files):
            check_free_space(
                path, _bytes_missing(dataset, codec_config, temporary_frames(dataset, codec_config, path, files))
            )


def frames_folder(folder: Path, dataset: LeRobotDataset, codec_config: CodecConfig, files: Files) -> Path:
    """Return the subfolder of `folder` for this codec's cache.

    Its name has cameras, canvas and a digest; outside the dataset's own folder the digest includes the dataset's files,
    so that datasets of the same name do not overwrite each other. A cache at `folder` itself, where earlier versions
    put it, is used when it fits.
    """
    if FrameCache.fits(folder, dataset, codec_config, files):
        return folder
    canvas: dict[str, Any] = canvas_fingerprint(codec_config)
    if folder.parent != dataset.root:
        canvas["dataset"] = dict(files)
    height, width = codec_config.canvas
    cameras = dict.fromkeys(place.camera for place in codec_config.places)
    return folder / folder_name(f"{height}x{width}-{'+'.join(cameras)}", canvas)


def temporary_frames(
    dataset: LeRobotDataset, codec_config: CodecConfig, path: Path, files: Files | None = None
) -> Path:
    """Return the temporary folder that the cache is written to before it is renamed to `path`."""
    return temporary_folder(path, _fingerprint(dataset, codec_config, files))


def _others(path: Path) -> list[str]:
    """What would be lost if the folder were replaced."""
    ours = {"cache.json", "frames.npy", LOCK, *(f"{name}.npy" for name in TABLES)}
    return sorted({file.name for file in path.iterdir()} - ours) if path.is_dir() else []


def _problems(path: Path, about: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> list[str]:
    """List why the cache cannot be used: files of another size, another fingerprint."""
    problems = []
    for name, size in about["files"].items():
        got = (path / name).stat().st_size if (path / name).is_file() else "no"
        if got != size:
            problems.append(f"{name} has {got} bytes, not {size}")
    return problems + mismatches(about["fingerprint"], fingerprint)


def _fingerprint(
    dataset: LeRobotDataset | None, codec_config: CodecConfig | None, files: Files | None = None
) -> dict[str, Any]:
    """Everything that the cache's content depends on; normalisation and stride do not touch it."""
    print_: dict[str, Any] = {"format": FORMAT}
    if dataset is not None:
        print_["dataset"] = dict(dataset.fingerprint() if files is None else files)
    if codec_config is not None:
        print_["codec"] = canvas_fingerprint(codec_config)
    return print_


def _make(
    dataset: LeRobotDataset, config: CodecConfig, draft: Path, fingerprint: dict[str, Any], progress: Progress | None
) -> None:
    """Write the whole cache into `draft`."""
    arrays = dataset_arrays(dataset)
    _decode(dataset, config, draft, progress)
    for name, array in arrays.items():
        np.save(draft / f"{name}.npy", array)
    (draft / JOURNAL).unlink(missing_ok=True)
    sizes = {file.name: file.stat().st_size for file in sorted(draft.iterdir()) if file.name != LOCK}
    about = {"fingerprint": fingerprint, "files": sizes, "tasks": list(dataset.tasks), "fps": dataset.fps}
    write_atomically(draft / "cache.json", json.dumps(about, indent=1).encode())


def _decode(dataset: LeRobotDataset, config: CodecConfig, draft: Path, progress: Progress | None) -> None:
    """Decode all pictures into frames.npy; the journal counts the first episodes that are safely on the disk."""
    # Written through files, not a memory map: a full disk is then an error and not a bus fault.
    path, header, begun = draft / "frames.npy", _header(dataset, config), _episodes_done(draft)
    if not path.is_file() or path.stat().st_size < len(header) + dataset.episode_start[begun] * _picture_bytes(config):
        begun = 0
    if not begun:
        path.write_bytes(header)
    done, lock, stop = int(dataset.episode_start[begun]), Lock(), Event()

    def tell(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            if progress is not None:
                progress(done, dataset.num_frames)

    def decode_some(episodes: range) -> int:
        with path.open("r+b") as file, CanvasReader(dataset, config) as canvases:
            file.seek(len(header) + int(dataset.episode_start[episodes[0]]) * _picture_bytes(config))
            for episode in episodes:
                for clip in canvases.stream(episode):
                    if stop.is_set():
                        return episodes.start
                    file.write(clip.data)
                    tell(len(clip))
        return episodes.stop

    tell(0)
    with ThreadPoolExecutor(NUM_THREADS) as pool, path.open("r+b") as whole:
        try:
            for finished in pool.map(decode_some, _jobs(dataset, begun)):
                os.fsync(whole.fileno())  # before the journal counts them: holds after a power failure too
                write_atomically(draft / JOURNAL, json.dumps({"episodes": finished}).encode())
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _jobs(dataset: LeRobotDataset, first: int) -> Iterator[range]:
    """Yield ranges of episodes from `first` on; few at a time where they are long, so that both threads have work."""
    frames = 0
    for episode in dataset.episodes[first:]:
        frames += episode.length
        if episode.index + 1 - first >= EPISODES_A_JOB or frames >= FRAMES_A_JOB:
            yield range(first, episode.index + 1)
            first, frames = episode.index + 1, 0
    if first < dataset.num_episodes:
        yield range(first, dataset.num_episodes)


def _episodes_done(draft: Path) -> int:
    """Count the first episodes that an earlier process has decoded."""
    return int(read_json(draft / JOURNAL)["episodes"]) if (draft / JOURNAL).is_file() else 0


def _header(dataset: LeRobotDataset, config: CodecConfig) -> bytes:
    file, shape = io.BytesIO(), (dataset.num_frames, *config.canvas, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _picture_bytes(config: CodecConfig) -> int:
    return config.canvas[0] * config.canvas[1] * 3


def _bytes_missing(dataset: LeRobotDataset, config: CodecConfig, draft: Path) -> int:
    """Bytes that are still to be written."""
    return (dataset.num_frames - int(dataset.episode_start[_episodes_done(draft)])) * _picture_bytes(config)


@contextmanager
def _disk_errors(dataset: LeRobotDataset, config: CodecConfig, draft: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        num_bytes, path = _bytes_missing(dataset, config, draft), Path(error.filename or draft / "frames.npy")
        raise refused(path, error, DatasetError, num_bytes=num_bytes, goes_on=KEPT) from error


def _replace_folder(new: Path, path: Path) -> None:
    if path.exists():
        old = path.with_name(f"{path.name}.old-{os.getpid()}")
        os.rename(path, old)
        os.rename(new, path)
        shutil.rmtree(old)
    else:
        os.rename(new, path)
