"""Write a LeRobotDataset v3.0 that survives being killed at any moment.

Every episode is first a folder under `incoming/`, which gets its final name when it is complete. `close` merges them:
it joins the clips without encoding again, writes the tables, and replaces the meta folder by a rename, last. Opening
the writer again on the same root keeps complete episodes and continues, also after a dataset that was closed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from lightwam.data.lerobot.features import ACTION, STATE
from lightwam.data.lerobot.merge import DatasetSchema, EpisodeMerge
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.lerobot.rows import not_finite
from lightwam.data.lerobot.video import encode_video
from lightwam.data.statistics import QUANTILES
from lightwam.errors import DatasetError
from lightwam.system.differences import differences
from lightwam.system.files import explain_disk_errors, read_json, write_atomically

STAT_FRAMES = 16
"""pictures of each episode that the picture statistics are measured on"""


@dataclass(frozen=True, eq=False)
class EpisodeVectors:
    """The numbers of an episode of T rows, and its sentence."""

    state: np.ndarray
    """[T, P]"""
    action: np.ndarray
    """[T, A]"""
    task: str
    flags: Mapping[str, np.ndarray]
    """name -> bool [T]"""


@dataclass(frozen=True)
class EpisodeNote:
    """The summary of an episode."""

    task: str
    length: int
    extra: Mapping[str, Any]


class LeRobotWriter:
    """A writer of episodes: add them, then close. Only one writer may use a root at a time.

    `cameras`: name -> (height, width); `flags`: names of columns with a truth value a row. On a root that already holds
    episodes (closed or not) it continues after them, and raises DatasetError if robot, cameras or names differ.
    """

    def __init__(
        self,
        root: Path | str,
        fps: int,
        robot_type: str,
        cameras: Mapping[str, tuple[int, int]],
        state_names: Sequence[str],
        action_names: Sequence[str],
        flags: Sequence[str] = (),
    ) -> None:
        self.root, self.incoming = Path(root), Path(root) / "incoming"
        names = tuple(state_names), tuple(action_names), tuple(flags)
        self.robot = DatasetSchema(fps, robot_type, dict(cameras), *names)
        _check_robot(self.robot)
        with explain_disk_errors(self.root, DatasetError):
            _finish_swap(self.root)
        self._dataset = data = LeRobotDataset(self.root) if (self.root / "meta").is_dir() else None
        self._notes: list[EpisodeNote] = []
        if data is not None:
            if data.version != "v3.0":
                raise DatasetError("only v3.0 can be written to", where=self.root, got=data.version)
            self._check_same(data.info, self.root / "meta" / "info.json")
            tasks = (data.tasks[task] for task in data.vectors.task_index)  # of each episode's first row
            self._notes += [EpisodeNote(task, e.length, e.extra) for task, e in zip(tasks, data.episodes, strict=True)]
        self._open_incoming()

    @property
    def num_episodes(self) -> int:
        """Number of complete episodes, merged or incoming."""
        return len(self._notes)

    @property
    def notes(self) -> tuple[EpisodeNote, ...]:
        """Task, length and extra of every complete episode, merged or not: enough to continue without repeating any."""
        return tuple(self._notes)

    def add_episode(
        self,
        frames: Mapping[str, np.ndarray],
        state: np.ndarray,
        action: np.ndarray,
        task: str,
        extra: Mapping[str, Any] | None = None,
        flags: Mapping[str, np.ndarray] | None = None,
    ) -> int:
        """Write one episode safely to disk and return its index.

        `frames`: camera -> uint8 [T, height, width, 3]; `state` [T, P] and `action` [T, A] in robot units; `extra`: any
        JSON object, which `notes` and `LeRobotDataset.episodes` return; `flags`: name -> bool [T]. DatasetError when
        shapes differ from the declared ones, a number is not finite, or the disk is full.
        """
        vectors = EpisodeVectors(state, action, task, dict(flags or {}))
        where = f"episode {self.num_episodes}"
        self._check_vectors(vectors, where)
        self._check_frames(frames, len(state), where)
        with self.draft() as draft:
            for camera, clip in frames.items():
                encode_video(draft / f"{camera}.mp4", clip, self.robot.fps)
            pictures = {camera: picture_stats(sample(clip)) for camera, clip in frames.items()}
            return self.keep(draft, vectors, pictures, extra)

    @contextlib.contextmanager
    def draft(self) -> Iterator[Path]:
        """Make an empty folder for the next episode's videos, which is deleted afterwards unless `keep` took it."""
        draft = self.incoming / f"episode_{self.num_episodes:06d}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        try:
            with explain_disk_errors(draft, DatasetError, resume_hint="continue: all earlier episodes are kept"):
                draft.mkdir(parents=True)
                yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def keep(
        self,
        draft: Path,
        vectors: EpisodeVectors,
        pictures: Mapping[str, Any],
        extra: Mapping[str, Any] | None = None,
    ) -> int:
        """Add the episode whose videos, CAMERA.mp4, are in the folder of `draft()`; return its index.

        `pictures`: camera -> `picture_stats` of some of its pictures. Raises as `add_episode`.
        """
        index, length = self.num_episodes, len(vectors.state)
        self._check_vectors(vectors, f"episode {index}")
        with explain_disk_errors(draft, DatasetError, resume_hint="continue: all earlier episodes are kept"):
            numbers = {"state": np.asarray(vectors.state, np.float32), "action": np.asarray(vectors.action, np.float32)}
            np.savez(draft / "vectors.npz", **numbers, **vectors.flags)  # type: ignore[arg-type]
            note = {"task": vectors.task, "length": length, "extra": dict(extra or {}), "picture_stats": dict(pictures)}
            write_atomically(draft / "episode.json", json.dumps(note).encode())
            os.rename(draft, self.incoming / f"episode_{index:06d}")
        self._notes.append(EpisodeNote(vectors.task, length, dict(extra or {})))
        return index

    def close(self) -> None:
        """Merge the incoming episodes into the dataset; without incoming episodes, nothing is changed.

        A kill during this loses nothing: opening and closing a writer does it again.
        """
        if folders := self._incoming_folders():
            sizes = [file.stat().st_size for folder in folders for file in folder.iterdir()]
            again = "continue: all episodes are kept"
            with explain_disk_errors(self.root, DatasetError, num_bytes=sum(sizes), resume_hint=again):
                _swap_meta(self.root, EpisodeMerge(self.root, folders, self._dataset, self.robot).run())
        shutil.rmtree(self.incoming, ignore_errors=True)
        self._dataset = LeRobotDataset(self.root) if self._notes else None

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if kind is None:
            self.close()

    def _open_incoming(self) -> None:
        path = self.incoming / "writer.json"
        if path.is_file():
            self._check_same(read_json(path), path)
        merged = len(self._notes)
        with explain_disk_errors(self.incoming, DatasetError):
            self.incoming.mkdir(parents=True, exist_ok=True)
            if not path.is_file():
                write_atomically(path, json.dumps(self.robot.contract()).encode())
            for draft in self.incoming.glob("*.draft"):
                shutil.rmtree(draft, ignore_errors=True)
            for folder in sorted(self.incoming.glob("episode_*")):
                if int(folder.name[-6:]) < merged:  # closing was interrupted after the swap
                    shutil.rmtree(folder)
        for index, folder in enumerate(self._incoming_folders(), merged):
            if folder.name != f"episode_{index:06d}":
                what, step = f"episode_{index:06d} is missing", "rename the folders to close the gap"
                raise DatasetError(what, where=self.incoming, got=folder.name, next_step=step)
            note = read_json(folder / "episode.json")
            self._notes.append(EpisodeNote(note["task"], note["length"], note["extra"]))

    def _incoming_folders(self) -> list[Path]:
        return sorted(path for path in self.incoming.glob("episode_*") if path.suffix != ".draft")

    def _check_same(self, other: dict[str, Any], where: Path) -> None:
        contract = self.robot.contract()
        for key, got, expected in differences({name: other.get(name) for name in contract}, contract):
            what, step = "this root holds another dataset", "write to another folder, or remove this one"
            raise DatasetError(what, where=f"{where} {key}", got=got, expected=expected, next_step=step)

    def _check_vectors(self, episode: EpisodeVectors, where: str) -> None:
        if not isinstance(episode.task, str) or not episode.task.strip():
            raise DatasetError("an episode must have a task sentence", where=where, got=repr(episode.task))
        robot, length = self.robot, len(episode.state)
        if length == 0:
            raise DatasetError("an episode is empty", where=where)
        dims = ((STATE, episode.state, len(robot.state_names)), (ACTION, episode.action, len(robot.action_names)))
        for name, values, dim in dims:
            at, got = f"{where} {name}", np.shape(values)
            if got != (length, dim):
                raise DatasetError("an array has the wrong shape", where=at, got=got, expected=(length, dim))
            for problem in not_finite(np.asarray(values), at):
                raise problem
        flags = {name: (flag.dtype.name, flag.shape) for name, flag in episode.flags.items()}
        if flags != (declared := {name: ("bool", (length,)) for name in robot.flags}):
            raise DatasetError("an episode has other flags", where=where, got=flags, expected=declared)

    def _check_frames(self, frames: Mapping[str, Any], length: int, where: str) -> None:
        if (names := sorted(self.robot.cameras)) != sorted(frames):
            raise DatasetError("an episode has other cameras", where=where, got=sorted(frames), expected=names)
        for camera, size in self.robot.cameras.items():
            at, pictures = f"{where} camera {camera!r}", (frames[camera].dtype, frames[camera].shape)
            if pictures != (expected := (np.dtype("uint8"), (length, *size, 3))):
                raise DatasetError("pictures have the wrong dtype or shape", where=at, got=pictures, expected=expected)


def _check_robot(robot: DatasetSchema) -> None:
    valid_fps, where = type(robot.fps) is int and robot.fps > 0, "LeRobotWriter"
    if not valid_fps or not robot.cameras or not robot.state_names or not robot.action_names:
        raise DatasetError("a dataset needs an integer fps, cameras, state and action names", where=where, got=robot)
    for camera in robot.cameras:
        if not camera or set(camera) & set("/\\. "):
            raise DatasetError("a camera's name must not have / \\ . or a space", where=where, got=repr(camera))


def sample(clip: UInt8[np.ndarray, "T _h _w 3"]) -> UInt8[np.ndarray, "n _h _w 3"]:
    """Return the evenly spaced pictures on which the statistics are measured."""
    return clip[np.unique(np.linspace(0, len(clip) - 1, STAT_FRAMES).astype(int))]


def picture_stats(picked: UInt8[np.ndarray, "n _h _w 3"]) -> dict[str, Any]:
    """Measure pictures: for each channel a number in [0, 1], shaped [3][1][1] as in LeRobot."""
    counts = np.stack([np.bincount(picked[..., c].reshape(-1), minlength=256) for c in range(3)])
    levels, total = np.arange(256) / 255, counts[0].sum()
    mean = counts @ levels / total
    std = np.sqrt(np.maximum(counts @ levels**2 / total - mean**2, 0))
    cumulated = np.cumsum(counts, 1)
    low, high = [levels[row > 0][0] for row in counts], [levels[row > 0][-1] for row in counts]
    stats = {"min": low, "max": high, "mean": mean.tolist(), "std": std.tolist()}
    for name, q in QUANTILES.items():
        stats[name] = [levels[np.searchsorted(row, q * total)] for row in cumulated]
    return {name: [[[float(value)]] for value in row] for name, row in stats.items()} | {"count": [len(picked)]}


def _swap_meta(root: Path, meta: Path) -> None:
    old = root / "incoming" / "meta.old"
    shutil.rmtree(old, ignore_errors=True)
    if (root / "meta").is_dir():
        os.rename(root / "meta", old)
    os.rename(meta, root / "meta")


def _finish_swap(root: Path) -> None:
    """Put the old meta folder back if a swap was interrupted between its two renames."""
    old = root / "incoming" / "meta.old"
    if old.is_dir() and not (root / "meta").is_dir():
        os.rename(old, root / "meta")
