"""Write a LeRobotDataset v3.0 that survives being killed at any moment.

Every episode is first a folder of its own under `incoming/`, renamed into place when it is whole. `close` packs them:
clips joined without encoding again, tables, and the meta folder last, swapped in by a rename. Opening the writer again
on the same root keeps what is whole and goes on, also behind a dataset that was closed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from lightwam.data.lerobot.features import ACTION, STATE
from lightwam.data.lerobot.merge import DatasetSchema, merge_episodes
from lightwam.data.lerobot.reader import LeRobotDataset, check_finite
from lightwam.data.lerobot.video import encode_video
from lightwam.errors import DatasetError
from lightwam.system.files import explain_disk_errors, read_json, write_atomically

STAT_FRAMES = 16
"""pictures an episode that the picture statistics look at"""


@dataclass(frozen=True)
class EpisodeNote:
    """What is known of an episode without opening it."""

    task: str
    length: int
    extra: Mapping[str, Any]


def _notes(packed: LeRobotDataset) -> list[EpisodeNote]:
    """Return a note for every episode of a dataset; the sentence is its first row's."""
    first = (packed.tasks[task] for task in packed.vectors.task_index)
    return [EpisodeNote(task, e.length, e.extra) for task, e in zip(first, packed.episodes, strict=True)]


class LeRobotWriter:
    """Add episodes, then close. One writer a root at a time.

    `cameras`: name -> (height, width). Opened on a root that holds episodes already (closed or not) it goes on behind
    them, and refuses a root whose robot, cameras or names differ.
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
        self._dataset = LeRobotDataset(self.root) if (self.root / "meta").is_dir() else None
        if self._dataset is not None:
            if self._dataset.version != "v3.0":
                raise DatasetError("only v3.0 can be written to", where=self.root, got=self._dataset.version)
            self._check_same(self._dataset.info, self.root / "meta" / "info.json")
        self._notes = _notes(self._dataset) if self._dataset else []
        self._open_incoming()

    @property
    def num_episodes(self) -> int:
        """Whole episodes, packed or incoming."""
        return len(self._notes)

    @property
    def notes(self) -> tuple[EpisodeNote, ...]:
        """Task, length and extra of every whole episode: what a collector needs to go on without repeating a seed."""
        return tuple(self._notes)

    @property
    def episodes_per_task(self) -> dict[str, int]:
        """Task sentence -> whole episodes."""
        counts: dict[str, int] = {}
        for note in self._notes:
            counts[note.task] = counts.get(note.task, 0) + 1
        return counts

    def add_episode(
        self,
        frames: Mapping[str, np.ndarray],
        state: np.ndarray,
        action: np.ndarray,
        task: str,
        extra: Mapping[str, Any] | None = None,
    ) -> int:
        """Put one episode safely on disk and give its index.

        `frames`: camera -> uint8 [T, height, width, 3]; `state` [T, P] and `action` [T, A] in robot units; `extra`: any
        JSON object, given back by `notes` and `LeRobotDataset.episodes`. Raises DatasetError when shapes differ from
        the declared ones, a number is not finite, or the disk is full.
        """
        index = self.num_episodes
        self._check_episode(frames, state, action, task, f"episode {index}")
        folder, draft = self.incoming / f"episode_{index:06d}", self.incoming / f"episode_{index:06d}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        try:
            with explain_disk_errors(draft, DatasetError, resume_hint="go on: all earlier episodes are kept"):
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
        """Pack the incoming episodes into the dataset; with nothing incoming, nothing is touched.

        Killed while closing, nothing is lost: opening the writer and closing it does it again.
        """
        if folders := self._incoming_folders():
            sizes = [file.stat().st_size for folder in folders for file in folder.iterdir()]
            again = "go on: all episodes are kept"
            with explain_disk_errors(self.root, DatasetError, num_bytes=sum(sizes), resume_hint=again):
                _swap_meta(self.root, merge_episodes(self.root, folders, self._dataset, self.robot))
        shutil.rmtree(self.incoming, ignore_errors=True)
        self._dataset = LeRobotDataset(self.root) if self._notes else None

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    def _open_incoming(self) -> None:
        path = self.incoming / "writer.json"
        if path.is_file():
            self._check_same(read_json(path), path)
        packed = len(self._notes)
        with explain_disk_errors(self.incoming, DatasetError):
            self.incoming.mkdir(parents=True, exist_ok=True)
            if not path.is_file():
                write_atomically(path, json.dumps(self.robot.contract()).encode())
            for draft in self.incoming.glob("*.draft"):
                shutil.rmtree(draft, ignore_errors=True)
            for folder in sorted(self.incoming.glob("episode_*")):
                if int(folder.name[-6:]) < packed:  # closing was cut short after the swap
                    shutil.rmtree(folder)
        for index, folder in enumerate(self._incoming_folders(), packed):
            if folder.name != f"episode_{index:06d}":
                raise DatasetError(
                    "an incoming episode is missing",
                    where=self.incoming,
                    got=folder.name,
                    expected=f"episode_{index:06d}",
                    next_step="rename the folders to close the gap",
                )
            note = read_json(folder / "episode.json")
            self._notes.append(EpisodeNote(note["task"], note["length"], note["extra"]))

    def _incoming_folders(self) -> list[Path]:
        return sorted(path for path in self.incoming.glob("episode_*") if path.suffix != ".draft")

    def _check_same(self, other: dict[str, Any], where: Path) -> None:
        mine, theirs = _flat(self.robot.contract()), _flat(other)
        for key in mine.keys() | {key for key in theirs if key.startswith("features ")}:
            if mine.get(key) != theirs.get(key):
                raise DatasetError(
                    "this root holds another dataset",
                    where=f"{where} {key}",
                    got=theirs.get(key),
                    expected=mine.get(key),
                    next_step="write to another folder, or remove this one",
                )

    def _check_episode(self, frames: Mapping[str, Any], state: Any, action: Any, task: Any, where: str) -> None:
        if not isinstance(task, str) or not task.strip():
            raise DatasetError("an episode has no task sentence", where=where, got=repr(task), expected="a sentence")
        robot, length = self.robot, len(state)
        if sorted(frames) != sorted(robot.cameras):
            expected = sorted(robot.cameras)
            raise DatasetError("an episode has other cameras", where=where, got=sorted(frames), expected=expected)
        if length == 0:
            raise DatasetError("an episode is empty", where=where, got="0 frames", expected="1 frame or more")
        for name, values, dim in ((STATE, state, len(robot.state_names)), (ACTION, action, len(robot.action_names))):
            got = np.shape(values)
            if got != (length, dim):
                raise DatasetError(
                    "an array has the wrong shape", where=f"{where} {name}", got=got, expected=(length, dim)
                )
            check_finite(np.asarray(values), f"{where} {name}")
        for camera, size in robot.cameras.items():
            clip = frames[camera]
            if clip.dtype != np.uint8 or clip.shape != (length, *size, 3):
                raise DatasetError("pictures have the wrong shape or dtype", where=f"{where} camera {camera!r}",
                                   got=(clip.dtype, clip.shape), expected=("uint8", (length, *size, 3)))  # fmt: skip


def _check_robot(robot: DatasetSchema) -> None:
    whole = type(robot.fps) is int and robot.fps > 0
    if not whole or not robot.cameras or not robot.state_names or not robot.action_names:
        raise DatasetError(
            "a dataset needs a whole fps, cameras, state and action names", where="LeRobotWriter", got=robot
        )
    for camera in robot.cameras:
        if not camera or set(camera) & set("/\\. "):
            raise DatasetError(
                "not a camera name", where="LeRobotWriter", got=repr(camera), expected="no / \\ . or space"
            )


def _flat(contract: dict[str, Any]) -> dict[str, Any]:
    """The contract of a dataset with a key of its own for every feature, so that a difference can be named."""
    features = {f"features {key}": value for key, value in contract["features"].items()}
    return {"fps": contract["fps"], "robot_type": contract["robot_type"], **features}


def _picture_stats(clip: UInt8[np.ndarray, "T _h _w 3"]) -> dict[str, Any]:
    """Of some evenly spaced pictures, a number a channel in [0, 1], shaped [3][1][1] as LeRobot does it."""
    picked = clip[np.unique(np.linspace(0, len(clip) - 1, STAT_FRAMES).astype(int))]
    counts = np.stack([np.bincount(picked[..., c].reshape(-1), minlength=256) for c in range(3)])
    levels, total = np.arange(256) / 255, counts[0].sum()
    mean = counts @ levels / total
    std = np.sqrt(np.maximum(counts @ levels**2 / total - mean**2, 0))
    cumulated = np.cumsum(counts, 1)
    stats = {"min": [levels[row > 0][0] for row in counts], "max": [levels[row > 0][-1] for row in counts],
             "mean": mean.tolist(), "std": std.tolist()}  # fmt: skip
    for name, q in (("q01", 0.01), ("q10", 0.1), ("q50", 0.5), ("q90", 0.9), ("q99", 0.99)):
        stats[name] = [levels[np.searchsorted(row, q * total)] for row in cumulated]
    return {name: [[[float(value)]] for value in row] for name, row in stats.items()} | {"count": [len(picked)]}


def _swap_meta(root: Path, meta: Path) -> None:
    old = root / "incoming" / "meta.old"
    shutil.rmtree(old, ignore_errors=True)
    if (root / "meta").is_dir():
        os.rename(root / "meta", old)
    os.rename(meta, root / "meta")


def _finish_swap(root: Path) -> None:
    """A swap cut short between its two renames left no meta folder: put the old one back."""
    old = root / "incoming" / "meta.old"
    if old.is_dir() and not (root / "meta").is_dir():
        os.rename(old, root / "meta")
