"""A cache of decoded pictures: every picture of a dataset on the codec's canvas, in a memory-mapped file.

Random windows are read from it at thousands a second, from the videos at tens (docs/data.md).
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from lightwam.config.schema import CodecConfig
from lightwam.data.cache import base, location
from lightwam.data.cache.base import Cache, CanvasReader, Files
from lightwam.data.cache.location import LOCK, check_free_space, temporary_folder
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.errors import DatasetError, LightwamError
from lightwam.system.files import disk_error, read_json, write_atomically
from lightwam.system.progress import OnProgress, no_progress

_fingerprint = partial(base.source_fingerprint, 1)  # the version of the format
NUM_THREADS = 2
EPISODES_A_JOB = 8
FRAMES_A_JOB = 512
"""a thread's job ends with the episode that reaches this number of frames"""
JOURNAL = "done.json"
RESUME_HINT = f"run the same command again: decoded episodes are kept; {location.CACHE_HINT}"


@dataclass(frozen=True, eq=False, kw_only=True)
class FrameCache(Cache):
    """A dataset decoded: one picture for each control step."""

    frames: UInt8[np.ndarray, "N height width 3"]

    def video(self, frame: Int64[np.ndarray, "B F"]) -> UInt8[np.ndarray, "B F height width 3"]:
        """Return the pictures of these control steps."""
        clips = np.empty((*frame.shape, *self.frames.shape[1:]), np.uint8)
        np.take(self.frames, frame, axis=0, out=clips, mode="clip")
        return clips

    def check_window(self, config: CodecConfig, horizon: int, shift_pixels: int) -> None:
        """Raise ConfigError unless its canvas is the codec's; any window can be cut from it, and shifted."""
        base.check_canvas(self.path, self.frames.shape[1:3], config)

    @classmethod
    def build(
        cls,
        dataset: LeRobotDataset,
        codec_config: CodecConfig,
        path: Path | str,
        progress: OnProgress = no_progress,
        files: Files | None = None,
    ) -> None:
        """Decode all pictures into the folder `path`, unless it holds a cache of this dataset and codec.

        A cache of another dataset or codec is replaced when the new one is complete. A build that was killed, or ran
        out of disk space, resumes after the last decoded episode. When several processes build the same cache, one
        decodes and the others wait. `progress` counts frames; `files` is the dataset's fingerprint, if known.
        DatasetError when the dataset is broken, the codec places a camera that it lacks, `path` holds other files, or
        the cache cannot be written.
        """
        path, fingerprint = Path(path), _fingerprint(dataset, codec_config, files)
        if _is_current(path, fingerprint):
            return
        _check_replaceable(path)
        base.check_cameras(dataset, codec_config)
        draft, total = temporary_folder(path, fingerprint), dataset.num_frames
        location.remove_leftovers(path.parent, path.name, keep=draft)
        check_free_space(path, _bytes_missing(dataset, codec_config, draft))
        is_first = not path.parent.exists()

        def waiting() -> None:
            progress(int(dataset.episode_start[_episodes_done(draft)]), total)

        with _disk_errors(dataset, codec_config, draft), location.locked_folder(draft, waiting) as waited:
            if waited and _is_current(path, fingerprint):
                shutil.rmtree(draft, ignore_errors=True)  # a third process may have just opened its lock
                return
            try:
                _write(dataset, codec_config, draft, fingerprint, progress)
                _replace_folder(draft, path)
                (path / LOCK).unlink(missing_ok=True)
            except LightwamError:  # the dataset is broken; a repair changes its fingerprint
                shutil.rmtree(draft, ignore_errors=True)
                if is_first and not any(path.parent.iterdir()):
                    path.parent.rmdir()
                raise

    @classmethod
    def open(
        cls, path: Path | str, dataset: LeRobotDataset | None = None, codec_config: CodecConfig | None = None
    ) -> FrameCache:
        """Open the cache at `path`; DatasetError when it is torn, or of another dataset or codec than those given."""
        path = Path(path)
        if not (path / "cache.json").is_file():
            raise DatasetError("there is no complete cache", where=path, expected="cache.json", next_step="build it")
        about = read_json(path / "cache.json")
        if problems := base.first_problems(_problems(path, about, _fingerprint(dataset, codec_config))):
            raise DatasetError("the cache is torn or stale", where=path, got=problems, next_step="build it again")
        frames = np.load(path / "frames.npy", mmap_mode="r")
        return cls(path=path, frames=frames, **base.read_tables(path), tasks=tuple(about["tasks"]), fps=about["fps"])

    @classmethod
    def check_writable(
        cls, dataset: LeRobotDataset, codec_config: CodecConfig, path: Path, files: Files | None = None
    ) -> None:
        """Raise DatasetError when `build` would have to decode and cannot write: no permission, or no disk space."""
        fingerprint = _fingerprint(dataset, codec_config, files)
        if not _is_current(path, fingerprint):
            check_free_space(path, _bytes_missing(dataset, codec_config, temporary_folder(path, fingerprint)))


def frames_folder(folder: Path, dataset: LeRobotDataset, codec_config: CodecConfig, files: Files) -> Path:
    """Return the subfolder of `folder` for this codec's cache.

    Its name has cameras, canvas and a digest; outside the dataset's own folder the digest includes the dataset's files,
    so that datasets of the same name do not overwrite each other. A cache at `folder` itself, where earlier versions
    put it, is used if it is current.
    """
    if _is_current(folder, _fingerprint(dataset, codec_config, files)):
        return folder
    canvas = base.canvas_fingerprint(codec_config)
    if folder.parent != dataset.root:
        canvas["dataset"] = dict(files)
    height, width = codec_config.canvas
    cameras = dict.fromkeys(place.camera for place in codec_config.places)
    return folder / location.folder_name(f"{height}x{width}-{'+'.join(cameras)}", canvas)


def is_current(path: Path, dataset: LeRobotDataset, codec_config: CodecConfig, files: Files) -> bool:
    """Return whether the folder holds the complete cache of this dataset and codec."""
    return _is_current(path, _fingerprint(dataset, codec_config, files))


def temporary_frames(dataset: LeRobotDataset, codec_config: CodecConfig, path: Path, files: Files) -> Path:
    """Return the temporary folder that the cache is written to before it is renamed to `path`."""
    return temporary_folder(path, _fingerprint(dataset, codec_config, files))


def _check_replaceable(path: Path) -> None:
    """Raise DatasetError when the folder holds anything besides a cache."""
    own = {"cache.json", "frames.npy", LOCK, *(f"{name}.npy" for name in base.TABLES)}
    if others := sorted({file.name for file in path.iterdir()} - own) if path.is_dir() else []:
        got, step = base.first_problems(others), "give another folder"
        raise DatasetError("the folder holds something else than a cache", where=path, got=got, next_step=step)


def _is_current(path: Path, fingerprint: Mapping[str, Any]) -> bool:
    """Return whether the cache at `path` is complete and has this fingerprint."""
    about = path / "cache.json"
    return about.is_file() and not _problems(path, read_json(about), fingerprint)


def _problems(path: Path, about: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> list[str]:
    """List why the cache cannot be used: files of another size, another fingerprint."""
    problems = []
    for name, size in about["files"].items():
        got = (path / name).stat().st_size if (path / name).is_file() else "no"
        if got != size:
            problems.append(f"{name} has {got} bytes, not {size}")
    return problems + base.mismatches(about["fingerprint"], fingerprint)


def _write(
    dataset: LeRobotDataset, config: CodecConfig, draft: Path, fingerprint: dict[str, Any], progress: OnProgress
) -> None:
    """Write the complete cache into `draft`."""
    arrays = base.dataset_arrays(dataset)
    _decode(dataset, config, draft, progress)
    for name, array in arrays.items():
        np.save(draft / f"{name}.npy", array)
    (draft / JOURNAL).unlink(missing_ok=True)
    sizes = {file.name: file.stat().st_size for file in sorted(draft.iterdir()) if file.name != LOCK}
    about = {"fingerprint": fingerprint, "files": sizes, "tasks": list(dataset.tasks), "fps": dataset.fps}
    write_atomically(draft / "cache.json", json.dumps(about, indent=1).encode())


def _decode(dataset: LeRobotDataset, config: CodecConfig, draft: Path, progress: OnProgress) -> None:
    """Decode all pictures into frames.npy; the journal counts the first episodes that are safely on the disk."""
    # Written through files, not a memory map: a full disk is then an error and not a bus fault.
    path, begun, file_header = draft / "frames.npy", _episodes_done(draft), io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": (dataset.num_frames, *config.canvas, 3)}
    np.lib.format.write_array_header_1_0(file_header, about)
    header = file_header.getvalue()
    if not path.is_file() or path.stat().st_size < len(header) + dataset.episode_start[begun] * _picture_bytes(config):
        begun = 0
    if not begun:
        path.write_bytes(header)
    done, lock, stop = int(dataset.episode_start[begun]), Lock(), Event()

    def advance(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            progress(done, dataset.num_frames)

    def decode_some(episodes: range) -> int:
        with path.open("r+b") as file, closing(CanvasReader(dataset, config)) as canvases:
            file.seek(len(header) + int(dataset.episode_start[episodes[0]]) * _picture_bytes(config))
            for episode in episodes:
                for clip in canvases.stream(episode):
                    if stop.is_set():
                        return episodes.start
                    file.write(clip.data)
                    advance(len(clip))
        return episodes.stop

    advance(0)
    with ThreadPoolExecutor(NUM_THREADS) as pool, path.open("r+b") as frames:
        try:
            for finished in pool.map(decode_some, _jobs(dataset, begun)):
                os.fsync(frames.fileno())  # before the journal counts them, so that it holds after a power failure
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
    """Return how many of the first episodes an earlier process has decoded."""
    return int(read_json(draft / JOURNAL)["episodes"]) if (draft / JOURNAL).is_file() else 0


def _picture_bytes(config: CodecConfig) -> int:
    return config.canvas[0] * config.canvas[1] * 3


def _bytes_missing(dataset: LeRobotDataset, config: CodecConfig, draft: Path) -> int:
    """Return the number of bytes still to be written."""
    return (dataset.num_frames - int(dataset.episode_start[_episodes_done(draft)])) * _picture_bytes(config)


@contextmanager
def _disk_errors(dataset: LeRobotDataset, config: CodecConfig, draft: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        num_bytes, path = _bytes_missing(dataset, config, draft), Path(error.filename or draft / "frames.npy")
        raise disk_error(path, error, DatasetError, num_bytes=num_bytes, resume_hint=RESUME_HINT) from error


def _replace_folder(new: Path, path: Path) -> None:
    old = path.with_name(f"{path.name}.old-{os.getpid()}")
    if path.exists():
        os.rename(path, old)
    os.rename(new, path)
    if old.exists():
        shutil.rmtree(old)
