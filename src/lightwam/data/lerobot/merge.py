"""Merge episodes into the files and the meta folder of a LeRobotDataset v3.0 (used by its writer)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lightwam.data.lerobot.features import ACTION, CAMERA_PREFIX, STATE
from lightwam.data.lerobot.meta import EXTRA, FILE_NUMBERS, read_parquet
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.lerobot.video import PIXEL_FORMAT, join_videos
from lightwam.data.statistics import QUANTILES, measure
from lightwam.system.files import read_json, write_atomically

CHUNK_FILES, DATA_BYTES, VIDEO_BYTES = 1000, 100 * 2**20, 200 * 2**20
"""files in a chunk folder, and the sizes above which a new file is begun"""


@dataclass(frozen=True)
class DatasetSchema:
    """The properties that all episodes of a dataset share."""

    fps: int
    robot_type: str
    cameras: Mapping[str, tuple[int, int]]
    """name -> (height, width)"""
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    flags: tuple[str, ...] = ()
    """names of columns with a truth value a row"""

    def features(self) -> dict[str, Any]:
        """Return the features table of info.json."""
        coded = {"video.codec": "h264", "video.pix_fmt": PIXEL_FORMAT, "video.is_depth_map": False}
        video = {**coded, "video.fps": self.fps, "video.channels": 3, "has_audio": False}
        table: dict[str, Any] = {}
        for camera, (height, width) in self.cameras.items():
            shape, names = [height, width, 3], ["height", "width", "channels"]
            info = {"video.height": height, "video.width": width, **video}
            table[CAMERA_PREFIX + camera] = {"dtype": "video", "shape": shape, "names": names, "info": info}
        for key, dims in ((STATE, self.state_names), (ACTION, self.action_names)):
            table[key] = {"dtype": "float32", "shape": [len(dims)], "names": list(dims)}
        for key in self.flags:
            table[key] = {"dtype": "bool", "shape": [1], "names": None}
        table["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
        for key in ("frame_index", "episode_index", "index", "task_index"):
            table[key] = {"dtype": "int64", "shape": [1], "names": None}
        return table

    def contract(self) -> dict[str, Any]:
        """Return what must be equal for episodes to be in one dataset."""
        return {"fps": self.fps, "robot_type": self.robot_type, "features": self.features()}


class EpisodeMerge:
    """The merge of the episodes in `folders` into the dataset at `root`, after those of `dataset`."""

    def __init__(
        self, root: Path, folders: Sequence[Path], dataset: LeRobotDataset | None, robot: DatasetSchema
    ) -> None:
        self.root, self.folders, self.robot = root, folders, robot
        self.notes = [read_json(folder / "episode.json") for folder in folders]
        tables = sorted((root / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
        self.old = None if dataset is None else pa.concat_tables([read_parquet(path) for path in tables])
        known: tuple[str, ...] = () if dataset is None else dataset.tasks
        self.tasks = list(dict.fromkeys((*known, *(note["task"] for note in self.notes))))
        self.rows: list[dict[str, Any]] = []
        """the new rows of the episodes table"""
        start = 0 if dataset is None else dataset.num_frames
        for index, note in enumerate(self.notes, 0 if dataset is None else dataset.num_episodes):
            row = {"episode_index": index, "tasks": [note["task"]], "length": note["length"]}
            row |= {"dataset_from_index": start, "dataset_to_index": start + note["length"]}
            row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0, EXTRA: json.dumps(note["extra"])}
            self.rows.append(row)
            start += note["length"]

    def run(self) -> Path:
        """Write all files and return the new meta folder, which is not yet in place.

        Files that an earlier, interrupted call left without references are removed first.
        """
        for camera in self.robot.cameras:
            self._write_videos(camera)
        self._write_data()
        meta = self.root / "incoming" / "meta.new"
        shutil.rmtree(meta, ignore_errors=True)
        (meta / "episodes" / "chunk-000").mkdir(parents=True)
        episodes = pa.Table.from_pylist(self.rows)
        if self.old is not None:
            episodes = pa.concat_tables([self.old, episodes], promote_options="default")
        _write_table(episodes, meta / "episodes" / "chunk-000" / "file-000.parquet")
        _write_tasks(self.tasks, meta / "tasks.parquet")
        write_atomically(meta / "stats.json", json.dumps(self._stats(episodes), indent=1).encode())
        write_atomically(meta / "info.json", json.dumps(self._info(len(episodes)), indent=2).encode())
        return meta

    def _write_videos(self, camera: str) -> None:
        key, fps = CAMERA_PREFIX + camera, self.robot.fps
        sizes = [(folder / f"{camera}.mp4").stat().st_size for folder in self.folders]
        for path, numbers, group in self._new_files(f"videos/{key}", "mp4", sizes, VIDEO_BYTES):
            lengths = [self.notes[i]["length"] for i in group]
            join_videos([self.folders[i] / f"{camera}.mp4" for i in group], lengths, fps, path)
            for i, length, end in zip(group, lengths, accumulate(lengths), strict=True):
                clip = {**numbers, "from_timestamp": (end - length) / fps, "to_timestamp": end / fps}
                self.rows[i] |= {f"videos/{key}/{name}": value for name, value in clip.items()}
                stats = self.notes[i]["picture_stats"][camera]
                self.rows[i] |= {f"stats/{key}/{name}": value for name, value in stats.items()}

    def _write_data(self) -> None:
        row_bytes = 4 * (len(self.robot.state_names) + len(self.robot.action_names)) + 36
        sizes = [note["length"] * row_bytes for note in self.notes]
        for path, numbers, group in self._new_files("data", "parquet", sizes, DATA_BYTES):
            _write_table(pa.concat_tables([self._data_table(i) for i in group]), path)
            for i in group:
                self.rows[i] |= {f"data/{name}": number for name, number in numbers.items()}

    def _data_table(self, i: int) -> pa.Table:
        """Return the rows of one episode; its statistics go into its row of the episodes table."""
        row = self.rows[i]
        length, start = row["length"], row["dataset_from_index"]
        with np.load(self.folders[i] / "vectors.npz") as vectors:
            state, action = vectors["state"], vectors["action"]
            flags = {name: vectors[name] for name in self.robot.flags}
        frame = np.arange(length, dtype=np.int64)
        columns = {STATE: state, ACTION: action, **flags, "timestamp": (frame / self.robot.fps).astype(np.float32)}
        columns |= {"frame_index": frame, "episode_index": np.full(length, row["episode_index"])}
        columns |= {"index": frame + start, "task_index": np.full(length, self.tasks.index(row["tasks"][0]))}
        for name, values in columns.items():
            row |= {f"stats/{name}/{key}": value for key, value in _vector_stats(values.reshape(length, -1)).items()}
        return pa.table({name: _arrow(values) for name, values in columns.items()})

    def _new_files(
        self, folder: str, suffix: str, sizes: Sequence[int], limit: int
    ) -> Iterator[tuple[Path, dict[str, int], list[int]]]:
        """Yield path, numbers and episodes of every new file, after removing those that no episode uses."""
        used = 0
        if self.old is not None:
            chunks, files = (self.old[f"{folder}/{name}"].to_pylist() for name in FILE_NUMBERS)
            used = max(chunk * CHUNK_FILES + file + 1 for chunk, file in zip(chunks, files, strict=True))
        for path in (self.root / folder).glob(f"chunk-*/file-*.{suffix}"):
            if int(path.parent.name[6:]) * CHUNK_FILES + int(path.stem[5:]) >= used:
                path.unlink()
        for number, group in enumerate(group_by_size(sizes, limit), used):
            chunk, file = divmod(number, CHUNK_FILES)
            path = self.root / folder / f"chunk-{chunk:03d}" / f"file-{file:03d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            yield path, {"chunk_index": chunk, "file_index": file}, group

    def _stats(self, episodes: pa.Table) -> dict[str, Any]:
        """Measure the vectors over all data files, a column at a time; merge the pictures' from the episodes' own."""
        paths = sorted((self.root / "data").glob("chunk-*/file-*.parquet"))
        stats: dict[str, Any] = {}
        for name, feature in self.robot.features().items():
            if name.startswith(CAMERA_PREFIX):
                stats[name] = _merge_picture_stats(episodes, name)
            else:
                columns = [_numpy(read_parquet(path, [name])[name], feature["shape"][0]) for path in paths]
                stats[name] = _vector_stats(np.concatenate(columns))
        return stats

    def _info(self, num_episodes: int) -> dict[str, Any]:
        totals = {"episodes": num_episodes, "frames": self.rows[-1]["dataset_to_index"], "tasks": len(self.tasks)}
        return {
            "codebase_version": "v3.0",
            "robot_type": self.robot.robot_type,
            **{f"total_{name}": total for name, total in totals.items()},
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_BYTES // 2**20,
            "video_files_size_in_mb": VIDEO_BYTES // 2**20,
            "fps": self.robot.fps,
            "splits": {"train": f"0:{num_episodes}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
            "features": self.robot.features(),
        }


def group_by_size(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Group neighbouring indices, as many as fit under `limit` together (at least one)."""
    groups: list[list[int]] = []
    filled = 0
    for i, size in enumerate(sizes):
        if not groups or filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(i)
        filled += size
    return groups


def _arrow(values: np.ndarray) -> pa.Array:
    """Convert to a column of numbers (shape [1]) or of lists of fixed length (shape [n]), as LeRobot expects."""
    flat, dims = pa.array(values.reshape(-1)), 1 if values.ndim == 1 else values.shape[1]
    return flat if dims == 1 else pa.FixedSizeListArray.from_arrays(flat, dims)


def _numpy(column: pa.ChunkedArray, dim: int) -> np.ndarray:
    flat = [chunk.flatten() if pa.types.is_fixed_size_list(chunk.type) else chunk for chunk in column.chunks]
    return np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in flat]).reshape(-1, dim)


def _vector_stats(values: np.ndarray) -> dict[str, Any]:
    """Measure values [T, D], in LeRobot's form."""
    return measure(values).to_dict() | {"count": [len(values)]}


def _merge_picture_stats(episodes: pa.Table, key: str) -> dict[str, Any]:
    """Merge the episodes' statistics: exactly, but quantiles as the average weighted by count, as LeRobot does it."""
    names = ("min", "max", "mean", "std", *QUANTILES)
    rows = {name: np.array(episodes[f"stats/{key}/{name}"].to_pylist())[..., 0, 0] for name in names}
    counts = np.array(episodes[f"stats/{key}/count"].to_pylist())[:, 0]
    weights = (counts / counts.sum())[:, None]
    merged = {name: (values * weights).sum(0) for name, values in rows.items()}
    merged["std"] = np.sqrt(((rows["std"] ** 2 + (rows["mean"] - merged["mean"]) ** 2) * weights).sum(0))
    merged["min"], merged["max"] = rows["min"].min(0), rows["max"].max(0)
    return {name: value.reshape(3, 1, 1).tolist() for name, value in merged.items()} | {"count": [int(counts.sum())]}


def _write_table(table: pa.Table, path: Path) -> None:
    with path.open("wb") as file:  # pyarrow assumes that paths are UTF-8, whatever the locale
        pq.write_table(table, file)


def _write_tasks(tasks: Sequence[str], path: Path) -> None:
    """Write the table that LeRobot reads with pandas; by pandas' own metadata, the sentence is the index."""
    index = "__index_level_0__"
    kinds = [("task_index", "task_index", "int64", "int64"), (None, index, "unicode", "object")]
    keys = ("name", "field_name", "pandas_type", "numpy_type", "metadata")
    pandas = {
        "index_columns": [index],
        "pandas_version": "2.2.0",
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "column_indexes": [dict(zip(keys, (None, None, "unicode", "object", {"encoding": "UTF-8"}), strict=True))],
        "columns": [dict(zip(keys, (*kind, None), strict=True)) for kind in kinds],
    }
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), index: pa.array(tasks, pa.string())})
    _write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)
