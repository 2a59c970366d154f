"""Write a LeRobotDataset v3.0 that survives being killed at any moment.

Every episode is first a folder under `incoming/`, which gets its final name when it is complete. `close` merges them:
it joins the clips without encoding again, writes the tables, and replaces the meta folder by a rename, last. Opening
the writer again on the same root keeps complete episodes and continues, also after a dataset that was closed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True)
class EpisodeNote:
    """The summary of an episode."""

    task: str
    length: int
    extra: Mapping[str, Any]


class LeRobotWriter:
    """A writer of episodes: add them, then close. Only one writer may use a root at a time.

    `cameras`: name -> (height, width). On a root that already holds episodes (closed or not) it continues after them,
    and raises DatasetError if robot, cameras or names differ.
    """

    def __init__(
        self,
        root: Path | str,
        fps: int,
        robot_type: str,
        cameras: Mapping[str, tuple[int, int]],
        state_names: Sequence[str],
        action_names: Sequence[str],
    ) -> None:
        self.root, self.incoming = Path(root), Path(root) / "incoming"
        self.robot = DatasetSchema(fps, robot_type, dict(cameras), tuple(state_names), tuple(action_names))
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
    ) -> int:
        """Write one episode safely to disk and return its index.

        `frames`: camera -> uint8 [T, height, width, 3]; `state` [T, P] and `action` [T, A] in robot units; `extra`: any
        JSON object, which `notes` and `LeRobotDataset.episodes` return. DatasetError when shapes differ from the
        declared ones, a number is not finite, or the disk is full.
        """
        index = self.num_episodes
        self._check_episode(frames, state, action, task, f"episode {index}")
        folder, draft = self.incoming / f"episode_{index:06d}", self.incoming / f"episode_{index:06d}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        try:
            with explain_disk_errors(draft, DatasetError, resume_hint="continue: all earlier episodes are kept"):
                draft.mkdir(parents=True)
                for camera, clip in frames.items():
                    encode_video(draft / f"{camera}.mp4", clip, self.robot.fps)
                numbers = {"state": np.asarray(state, np.float32), "action": np.asarray(action, np.float32)}
                np.savez(draft / "vectors.npz", **numbers)  # type: ignore[arg-type]
                pictures = {camera: _picture_stats(clip) for camera, clip in frames.items()}
                note = {"task": task, "length": len(state), "extra": dict(extra or {}), "picture_stats": pictures}
                write_atomically(draft / "episode.json", json.dumps(note).encode())
                os.rename(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._notes.append(EpisodeNote(task, len(state), dict(extra or {})))
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

    def _check_episode(self, frames: Mapping[str, Any], state: Any, action: Any, task: Any, where: str) -> None:
        if not isinstance(task, str) or not task.strip():
            raise DatasetError("an episode must have a task sentence", where=where, got=repr(task))
        robot, length = self.robot, len(state)
        if (names := sorted(robot.cameras)) != sorted(frames):
            raise DatasetError("an episode has other cameras", where=where, got=sorted(frames), expected=names)
        if length == 0:
            raise DatasetError("an episode is empty", where=where)
        for name, values, dim in ((STATE, state, len(robot.state_names)), (ACTION, action, len(robot.action_names))):
            at, got = f"{where} {name}", np.shape(values)
            if got != (length, dim):
                raise DatasetError("an array has the wrong shape", where=at, got=got, expected=(length, dim))
            for problem in not_finite(np.asarray(values), at):
                raise problem
        for camera, size in robot.cameras.items():
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


def _picture_stats(clip: UInt8[np.ndarray, "T _h _w 3"]) -> dict[str, Any]:
    """Measure some evenly spaced pictures: for each channel a number in [0, 1], shaped [3][1][1] as in LeRobot."""
    picked = clip[np.unique(np.linspace(0, len(clip) - 1, STAT_FRAMES).astype(int))]
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
