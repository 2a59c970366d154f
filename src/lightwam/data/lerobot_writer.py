"""Write a LeRobotDataset v3.0 that survives being killed at any moment.

Every episode is first a folder of its own under `incoming/`, renamed into place when it is whole. `close` packs them:
clips joined without encoding again, tables, and the meta folder last, swapped in by a rename. Opening the writer again on
the same root keeps what is whole and goes on, also behind a dataset that was closed.
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
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, UInt8

from lightwam.data.files import read_json, write_atomically
from lightwam.data.lerobot import ACTION, CAMERA_PREFIX, EXTRA, STATE, LeRobotDataset, check_finite
from lightwam.data.video import PIXEL_FORMAT, encode_video, join_videos
from lightwam.errors import DatasetError
from lightwam.stats import RunningStats, measure

CHUNK_FILES, DATA_MB, VIDEO_MB = 1000, 100, 200
STAT_FRAMES = 16
"""pictures an episode that the picture statistics look at"""
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


@dataclass(frozen=True)
class EpisodeNote:
    """What is known of an episode without opening it."""

    task: str
    length: int
    extra: Mapping[str, Any]


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
        self.fps, self.robot_type, self.cameras = fps, robot_type, dict(cameras)
        self.state_names, self.action_names = tuple(state_names), tuple(action_names)
        self._check_arguments()
        _finish_swap(self.root)
        self._packed = LeRobotDataset(self.root) if (self.root / "meta").is_dir() else None
        if self._packed is not None:
            self._check_same(self._packed.info["features"], self._packed.info, self.root / "meta" / "info.json")
        self._notes = [EpisodeNote(e.tasks[0], e.length, e.extra) for e in self._packed.episodes] if self._packed else []
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
        frames: Mapping[str, UInt8[np.ndarray, "T _h _w 3"]],
        state: Float[np.ndarray, "T P"],
        action: Float[np.ndarray, "T A"],
        task: str,
        extra: Mapping[str, Any] | None = None,
    ) -> int:
        """Put one episode safely on disk and give its index.

        Raises DatasetError when shapes differ from the declared ones, a number is not finite, or the disk is full.
        """
        index = self.num_episodes
        self._check_episode(frames, state, action, task, f"episode {index}")
        folder, draft = self.incoming / f"episode_{index:06d}", self.incoming / f"episode_{index:06d}.draft"
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            for camera, clip in frames.items():
                encode_video(draft / f"{camera}.mp4", clip, self.fps)
            np.savez(draft / "vectors.npz", state=np.asarray(state, np.float32), action=np.asarray(action, np.float32))
            pictures = {camera: _picture_stats(clip) for camera, clip in frames.items()}
            note = {"task": task, "length": len(state), "extra": dict(extra or {}), "picture_stats": pictures}
            write_atomically(draft / "episode.json", json.dumps(note).encode())
            os.rename(draft, folder)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise DatasetError("an episode could not be written", where=draft, got=error, expected="a writable disk with room",
                               next_step="free some space and go on: all earlier episodes are kept") from error  # fmt: skip
        self._notes.append(EpisodeNote(task, len(state), dict(extra or {})))
        return index

    def close(self) -> None:
        """Pack the incoming episodes into the dataset; with nothing incoming, nothing is touched.

        Killed while closing, nothing is lost: opening the writer and closing it does it again.
        """
        if self._incoming_folders():
            try:
                meta = _Packer(self).pack()
                _swap_meta(self.root, meta)
            except OSError as error:
                raise DatasetError("the dataset could not be packed", where=self.root, got=error,
                                   expected="a writable disk with room (twice the size of incoming/)",
                                   next_step="free some space and go on: all episodes are kept") from error  # fmt: skip
        shutil.rmtree(self.incoming, ignore_errors=True)
        self._packed = LeRobotDataset(self.root) if self._notes else None

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()

    def _open_incoming(self) -> None:
        contract = {"fps": self.fps, "robot_type": self.robot_type, "features": self.features()}
        path = self.incoming / "writer.json"
        self.incoming.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            self._check_same(read_json(path)["features"], read_json(path), path)
        else:
            write_atomically(path, json.dumps(contract).encode())
        packed = len(self._notes)
        for draft in self.incoming.glob("*.draft"):
            shutil.rmtree(draft, ignore_errors=True)
        for folder in sorted(self.incoming.glob("episode_*")):
            if int(folder.name[-6:]) < packed:  # closing was cut short after the swap
                shutil.rmtree(folder)
        for index, folder in enumerate(self._incoming_folders(), packed):
            if folder.name != f"episode_{index:06d}":
                raise DatasetError("an incoming episode is missing", where=self.incoming, got=folder.name,
                                   expected=f"episode_{index:06d}", next_step="rename the folders to close the gap")  # fmt: skip
            note = read_json(folder / "episode.json")
            self._notes.append(EpisodeNote(note["task"], note["length"], note["extra"]))

    def _incoming_folders(self) -> list[Path]:
        return sorted(path for path in self.incoming.glob("episode_*") if path.suffix != ".draft")

    def features(self) -> dict[str, Any]:
        """The features table of info.json."""
        video = {"video.codec": "h264", "video.pix_fmt": PIXEL_FORMAT, "video.is_depth_map": False, "has_audio": False,
                 "video.fps": self.fps, "video.channels": 3}  # fmt: skip
        table: dict[str, Any] = {}
        for camera, (height, width) in self.cameras.items():
            table[CAMERA_PREFIX + camera] = {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"],
                                             "info": {"video.height": height, "video.width": width, **video}}  # fmt: skip
        table[STATE] = {"dtype": "float32", "shape": [len(self.state_names)], "names": list(self.state_names)}
        table[ACTION] = {"dtype": "float32", "shape": [len(self.action_names)], "names": list(self.action_names)}
        table["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
        for name in ("frame_index", "episode_index", "index", "task_index"):
            table[name] = {"dtype": "int64", "shape": [1], "names": None}
        return table

    def _check_arguments(self) -> None:
        good = type(self.fps) is int and self.fps > 0
        if not good or not self.cameras or not self.state_names or not self.action_names:
            raise DatasetError("a dataset needs a whole fps, cameras, state and action names", where="LeRobotWriter",
                               got=(self.fps, self.cameras, self.state_names, self.action_names))  # fmt: skip
        for camera in self.cameras:
            if not camera or set(camera) & set("/\\. "):
                raise DatasetError("not a camera name", where="LeRobotWriter", got=repr(camera), expected="no / \\ . or space")

    def _check_same(self, features: dict[str, Any], other: dict[str, Any], where: Path) -> None:
        mine = {"fps": self.fps, "robot_type": self.robot_type, **self.features()}
        theirs = {"fps": other["fps"], "robot_type": other["robot_type"], **features}
        for key in sorted(mine.keys() | theirs.keys()):
            if mine.get(key) != theirs.get(key):
                raise DatasetError("this root holds another dataset", where=f"{where} {key}", got=theirs.get(key),
                                   expected=mine.get(key), next_step="write to another folder, or remove this one")  # fmt: skip

    def _check_episode(self, frames: Mapping[str, Any], state: Any, action: Any, task: Any, where: str) -> None:
        if not isinstance(task, str) or not task.strip():
            raise DatasetError("an episode has no task sentence", where=where, got=repr(task), expected="a sentence")
        if sorted(frames) != sorted(self.cameras):
            raise DatasetError("an episode has other cameras", where=where, got=sorted(frames), expected=sorted(self.cameras))
        length = len(state)
        if length == 0:
            raise DatasetError("an episode is empty", where=where, got="0 frames", expected="1 frame or more")
        for name, values, dim in ((STATE, state, len(self.state_names)), (ACTION, action, len(self.action_names))):
            if np.shape(values) != (length, dim):
                raise DatasetError("an array has the wrong shape", where=f"{where} {name}", got=np.shape(values), expected=(length, dim))
            check_finite(np.asarray(values), f"{where} {name}")
        for camera, size in self.cameras.items():
            clip = frames[camera]
            if clip.dtype != np.uint8 or clip.shape != (length, *size, 3):
                raise DatasetError("pictures have the wrong shape or dtype", where=f"{where} camera {camera!r}",
                                   got=(clip.dtype, clip.shape), expected=("uint8", (length, *size, 3)))  # fmt: skip


class _Packer:
    """Turns the incoming episodes of a writer into files of the dataset and a new meta folder."""

    def __init__(self, writer: LeRobotWriter) -> None:
        self.writer, self.root = writer, writer.root
        self.folders = writer._incoming_folders()
        self.notes = [read_json(folder / "episode.json") for folder in self.folders]
        packed = writer._packed
        self.old = packed.num_episodes if packed else 0
        self.frames_before = packed.num_frames if packed else 0
        self.tasks = list(packed.tasks) if packed else []
        for note in self.notes:
            if note["task"] not in self.tasks:
                self.tasks.append(note["task"])
        self.rows: list[dict[str, Any]] = []
        start = self.frames_before
        for index, note in enumerate(self.notes, self.old):
            self.rows.append({"episode_index": index, "tasks": [note["task"]], "length": note["length"],
                              "dataset_from_index": start, "dataset_to_index": start + note["length"],
                              "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0,
                              EXTRA: json.dumps(note["extra"])})  # fmt: skip
            start += note["length"]

    def pack(self) -> Path:
        for camera in self.writer.cameras:
            self._pack_videos(camera)
        self._pack_data()
        meta = self.writer.incoming / "meta.new"
        shutil.rmtree(meta, ignore_errors=True)
        (meta / "episodes" / "chunk-000").mkdir(parents=True)
        table = pa.Table.from_pylist(self.rows)
        if self.writer._packed is not None:
            paths = sorted((self.root / "meta" / "episodes").rglob("*.parquet"))
            table = pa.concat_tables([*(pq.read_table(path) for path in paths), table], promote_options="default")
        pq.write_table(table, meta / "episodes" / "chunk-000" / "file-000.parquet")
        _write_tasks(self.tasks, meta / "tasks.parquet")
        write_atomically(meta / "stats.json", json.dumps(self._stats(table), indent=1).encode())
        write_atomically(meta / "info.json", json.dumps(self._info(table), indent=2).encode())
        return meta

    def _pack_videos(self, camera: str) -> None:
        key = CAMERA_PREFIX + camera
        sizes = [(folder / f"{camera}.mp4").stat().st_size for folder in self.folders]
        number = _next_file(self.root / "videos" / key, "mp4", self._used(f"videos/{key}"))
        for group in _groups(sizes, VIDEO_MB * 2**20):
            chunk, file = divmod(number, CHUNK_FILES)
            path = self.root / VIDEO_PATH.format(video_key=key, chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            lengths = [self.notes[i]["length"] for i in group]
            join_videos([self.folders[i] / f"{camera}.mp4" for i in group], lengths, self.writer.fps, path)
            frame = 0
            for i, length in zip(group, lengths, strict=True):
                stats = {f"stats/{key}/{name}": value for name, value in self.notes[i]["picture_stats"][camera].items()}
                self.rows[i] |= {f"videos/{key}/chunk_index": chunk, f"videos/{key}/file_index": file,
                                 f"videos/{key}/from_timestamp": frame / self.writer.fps,
                                 f"videos/{key}/to_timestamp": (frame + length) / self.writer.fps, **stats}  # fmt: skip
                frame += length
            number += 1

    def _pack_data(self) -> None:
        width = 4 * (len(self.writer.state_names) + len(self.writer.action_names)) + 36
        number = _next_file(self.root / "data", "parquet", self._used("data"))
        for group in _groups([note["length"] * width for note in self.notes], DATA_MB * 2**20):
            chunk, file = divmod(number, CHUNK_FILES)
            path = self.root / DATA_PATH.format(chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.concat_tables([self._data_table(i) for i in group]), path)
            for i in group:
                self.rows[i] |= {"data/chunk_index": chunk, "data/file_index": file}
            number += 1

    def _data_table(self, i: int) -> pa.Table:
        row = self.rows[i]
        length, start = row["length"], row["dataset_from_index"]
        with np.load(self.folders[i] / "vectors.npz") as vectors:
            state, action = vectors["state"], vectors["action"]
        frame = np.arange(length, dtype=np.int64)
        columns = {
            STATE: state, ACTION: action, "timestamp": (frame / self.writer.fps).astype(np.float32), "frame_index": frame,
            "episode_index": np.full(length, row["episode_index"]), "index": frame + start,
            "task_index": np.full(length, self.tasks.index(row["tasks"][0])),
        }  # fmt: skip
        for name, values in columns.items():
            stats = measure(values.reshape(length, -1)).to_dict()
            row |= {f"stats/{name}/{key}": value if key != "count" else [value] for key, value in stats.items()}
        return pa.table({name: _arrow(values) for name, values in columns.items()})

    def _used(self, spot: str) -> int:
        """The number of the first file behind those that the closed dataset uses."""
        if self.writer._packed is None:
            return 0
        used = 0
        for path in (self.root / "meta" / "episodes").rglob("*.parquet"):
            table = pq.read_table(path, columns=[f"{spot}/chunk_index", f"{spot}/file_index"])
            used = max([used, *(c * CHUNK_FILES + f + 1 for c, f in zip(*table.to_pydict().values(), strict=True))])
        return used

    def _stats(self, episodes: pa.Table) -> dict[str, Any]:
        """Of the vectors exactly, in one pass over all data files; of the pictures, merged from the episodes' own."""
        stats: dict[str, Any] = {}
        features = self.writer.features()
        paths = sorted((self.root / "data").rglob("*.parquet"))
        for name, feature in features.items():
            if name.startswith(CAMERA_PREFIX):
                stats[name] = _merge_picture_stats(episodes, name)
                continue
            running = RunningStats(feature["shape"][0])
            for path in paths:
                column = pq.read_table(path, columns=[name]).column(name).combine_chunks()
                running.update(_numpy(column).reshape(-1, feature["shape"][0]))
            finished = running.finish().to_dict()
            stats[name] = finished | {"count": [finished["count"]]}
        return stats

    def _info(self, episodes: pa.Table) -> dict[str, Any]:
        total = len(episodes)
        return {
            "codebase_version": "v3.0", "robot_type": self.writer.robot_type, "total_episodes": total,
            "total_frames": self.rows[-1]["dataset_to_index"], "total_tasks": len(self.tasks), "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_MB, "video_files_size_in_mb": VIDEO_MB, "fps": self.writer.fps,
            "splits": {"train": f"0:{total}"}, "data_path": DATA_PATH, "video_path": VIDEO_PATH,
            "features": self.writer.features(),
        }  # fmt: skip


def _arrow(values: np.ndarray) -> pa.Array:
    if values.ndim == 1 or values.shape[1] == 1:
        return pa.array(values.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _numpy(column: Any) -> np.ndarray:
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    flat = [chunk.flatten() if pa.types.is_fixed_size_list(chunk.type) else chunk for chunk in chunks]
    return np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in flat])


def _groups(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Neighbouring indices, as many as fit under `limit` together (at least one)."""
    groups: list[list[int]] = []
    filled = limit + 1
    for i, size in enumerate(sizes):
        if not groups or filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(i)
        filled += size
    return groups


def _next_file(folder: Path, suffix: str, used: int) -> int:
    """`used`, after removing the files from there on: left by a close that was cut short, nothing refers to them."""
    for path in folder.rglob(f"*.{suffix}"):
        if int(path.parent.name[6:]) * CHUNK_FILES + int(path.stem[5:]) >= used:
            path.unlink()
    return used


def _write_tasks(tasks: Sequence[str], path: Path) -> None:
    """The table that LeRobot reads with pandas: the sentence is the index, so the schema says so in pandas' words."""
    index = "__index_level_0__"
    kinds = [("task_index", "task_index", "int64", "int64"), (None, index, "unicode", "object")]
    pandas = {
        "index_columns": [index], "pandas_version": "2.2.0", "creator": {"library": "pyarrow", "version": pa.__version__},
        "column_indexes": [{"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object",
                            "metadata": {"encoding": "UTF-8"}}],
        "columns": [{"name": name, "field_name": field, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
                    for name, field, kind, numpy in kinds],
    }  # fmt: skip
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), index: pa.array(tasks, pa.string())})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


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


def _merge_picture_stats(episodes: pa.Table, key: str) -> dict[str, Any]:
    """Range, mean and deviation exactly; quantiles as the episodes' average weighted by count, as LeRobot does it."""
    names = ("min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99")
    rows = {name: np.array(episodes[f"stats/{key}/{name}"].to_pylist())[..., 0, 0] for name in names}
    counts = np.array(episodes[f"stats/{key}/count"].to_pylist())[:, 0]
    weights = (counts / counts.sum())[:, None]
    merged = {name: (values * weights).sum(0) for name, values in rows.items()}
    merged["std"] = np.sqrt(((rows["std"] ** 2 + (rows["mean"] - merged["mean"]) ** 2) * weights).sum(0))
    merged["min"], merged["max"] = rows["min"].min(0), rows["max"].max(0)
    return {name: value.reshape(3, 1, 1).tolist() for name, value in merged.items()} | {"count": [int(counts.sum())]}


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
