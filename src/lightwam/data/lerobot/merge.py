"""Turn whole episodes into the files and the meta folder of a LeRobotDataset v3.0 (used by its writer)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lightwam.data.lerobot.features import ACTION, CAMERA_PREFIX, STATE
from lightwam.data.lerobot.meta import EXTRA, read_parquet
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.lerobot.video import PIXEL_FORMAT, join_videos
from lightwam.data.statistics import QUANTILES, measure
from lightwam.system.files import read_json, write_atomically

CHUNK_FILES, DATA_BYTES, VIDEO_BYTES = 1000, 100 * 2**20, 200 * 2**20
"""files a chunk folder, and the size above which a new file is begun"""
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


@dataclass(frozen=True)
class DatasetSchema:
    """What all episodes of a dataset share."""

    fps: int
    robot_type: str
    cameras: Mapping[str, tuple[int, int]]
    """name -> (height, width)"""
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]

    def features(self) -> dict[str, Any]:
        """The features table of info.json."""
        video = {"video.codec": "h264", "video.pix_fmt": PIXEL_FORMAT, "video.is_depth_map": False,
                 "video.fps": self.fps, "video.channels": 3, "has_audio": False}  # fmt: skip
        table: dict[str, Any] = {}
        for camera, (height, width) in self.cameras.items():
            about = {"video.height": height, "video.width": width, **video}
            names = ["height", "width", "channels"]
            table[CAMERA_PREFIX + camera] = {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": names,
                "info": about,
            }
        for key, dims in ((STATE, self.state_names), (ACTION, self.action_names)):
            table[key] = {"dtype": "float32", "shape": [len(dims)], "names": list(dims)}
        table["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
        for key in ("frame_index", "episode_index", "index", "task_index"):
            table[key] = {"dtype": "int64", "shape": [1], "names": None}
        return table

    def contract(self) -> dict[str, Any]:
        """What must be equal for two episodes to stand in one dataset."""
        return {"fps": self.fps, "robot_type": self.robot_type, "features": self.features()}


def merge_episodes(root: Path, folders: Sequence[Path], packed: LeRobotDataset | None, robot: DatasetSchema) -> Path:
    """Put the episodes of `folders` behind those of `packed`; gives the finished new meta folder, not yet in its place.

    Files that nothing refers to yet, left by an earlier call that was cut short, are removed first.
    """
    return _Merger(root, folders, packed, robot).merge_episodes()


class _Merger:
    def __init__(
        self, root: Path, folders: Sequence[Path], packed: LeRobotDataset | None, robot: DatasetSchema
    ) -> None:
        self.root, self.folders, self.robot = root, folders, robot
        self.notes = [read_json(folder / "episode.json") for folder in folders]
        self.old = None if packed is None else _old_episodes(root)
        known: tuple[str, ...] = () if packed is None else packed.tasks
        self.tasks = list(dict.fromkeys((*known, *(note["task"] for note in self.notes))))
        self.rows: list[dict[str, Any]] = []
        """the new rows of the episodes table"""
        start = 0 if packed is None else packed.num_frames
        for index, note in enumerate(self.notes, 0 if packed is None else packed.num_episodes):
            self.rows.append({"episode_index": index, "tasks": [note["task"]], "length": note["length"],
                              "dataset_from_index": start, "dataset_to_index": start + note["length"],
                              "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0,
                              EXTRA: json.dumps(note["extra"])})  # fmt: skip
            start += note["length"]

    def merge_episodes(self) -> Path:
        for camera in self.robot.cameras:
            self._pack_videos(camera)
        self._pack_data()
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

    def _pack_videos(self, camera: str) -> None:
        key, fps = CAMERA_PREFIX + camera, self.robot.fps
        first = self._next_file(f"videos/{key}", "mp4")
        sizes = [(folder / f"{camera}.mp4").stat().st_size for folder in self.folders]
        for number, group in enumerate(_groups(sizes, VIDEO_BYTES), first):
            chunk, file = divmod(number, CHUNK_FILES)
            path = self.root / VIDEO_PATH.format(video_key=key, chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            lengths = [self.notes[i]["length"] for i in group]
            join_videos([self.folders[i] / f"{camera}.mp4" for i in group], lengths, fps, path)
            ends = np.cumsum(lengths).tolist()
            for i, length, end in zip(group, lengths, ends, strict=True):
                stats = {f"stats/{key}/{name}": value for name, value in self.notes[i]["picture_stats"][camera].items()}
                self.rows[i] |= {f"videos/{key}/chunk_index": chunk, f"videos/{key}/file_index": file,
                                 f"videos/{key}/from_timestamp": (end - length) / fps,
                                 f"videos/{key}/to_timestamp": end / fps, **stats}  # fmt: skip

    def _pack_data(self) -> None:
        row_bytes = 4 * (len(self.robot.state_names) + len(self.robot.action_names)) + 36
        first = self._next_file("data", "parquet")
        sizes = [note["length"] * row_bytes for note in self.notes]
        for number, group in enumerate(_groups(sizes, DATA_BYTES), first):
            chunk, file = divmod(number, CHUNK_FILES)
            path = self.root / DATA_PATH.format(chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_table(pa.concat_tables([self._data_table(i) for i in group]), path)
            for i in group:
                self.rows[i] |= {"data/chunk_index": chunk, "data/file_index": file}

    def _data_table(self, i: int) -> pa.Table:
        """The frames of one episode; its statistics go into its row."""
        row = self.rows[i]
        length, start = row["length"], row["dataset_from_index"]
        with np.load(self.folders[i] / "vectors.npz") as vectors:
            state, action = vectors["state"], vectors["action"]
        frame = np.arange(length, dtype=np.int64)
        columns = {
            STATE: state, ACTION: action,
            "timestamp": (frame / self.robot.fps).astype(np.float32), "frame_index": frame,
            "episode_index": np.full(length, row["episode_index"]), "index": frame + start,
            "task_index": np.full(length, self.tasks.index(row["tasks"][0])),
        }  # fmt: skip
        for name, values in columns.items():
            row |= {f"stats/{name}/{key}": value for key, value in _vector_stats(values.reshape(length, -1)).items()}
        return pa.table({name: _arrow(values) for name, values in columns.items()})

    def _next_file(self, spot: str, suffix: str) -> int:
        """The number of the first file behind those that the episodes so far use; files from there on are removed."""
        used = 0
        if self.old is not None:
            chunks, files = (self.old[f"{spot}/{part}_index"].to_pylist() for part in ("chunk", "file"))
            used = max(chunk * CHUNK_FILES + file + 1 for chunk, file in zip(chunks, files, strict=True))
        for path in (self.root / spot).glob(f"chunk-*/file-*.{suffix}"):
            if int(path.parent.name[6:]) * CHUNK_FILES + int(path.stem[5:]) >= used:
                path.unlink()
        return used

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
        return {
            "codebase_version": "v3.0", "robot_type": self.robot.robot_type, "total_episodes": num_episodes,
            "total_frames": self.rows[-1]["dataset_to_index"], "total_tasks": len(self.tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_BYTES // 2**20, "video_files_size_in_mb": VIDEO_BYTES // 2**20,
            "fps": self.robot.fps, "splits": {"train": f"0:{num_episodes}"}, "data_path": DATA_PATH,
            "video_path": VIDEO_PATH, "features": self.robot.features(),
        }  # fmt: skip


def _old_episodes(root: Path) -> pa.Table:
    paths = sorted((root / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    return pa.concat_tables([read_parquet(path) for path in paths])


def _groups(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Neighbouring indices, as many as fit under `limit` together (at least one)."""
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
    """A number a row for one dimension, else lists of fixed length: what LeRobot expects of shape [1] and [n]."""
    flat = pa.array(values.reshape(-1))
    return (
        flat if values.ndim == 1 or values.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    )


def _numpy(column: pa.ChunkedArray, dim: int) -> np.ndarray:
    flat = [chunk.flatten() if pa.types.is_fixed_size_list(chunk.type) else chunk for chunk in column.chunks]
    return np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in flat]).reshape(-1, dim)


def _vector_stats(values: np.ndarray) -> dict[str, Any]:
    """Measure values [T, D], in LeRobot's form."""
    return measure(values).to_dict() | {"count": [len(values)]}


def _merge_picture_stats(episodes: pa.Table, key: str) -> dict[str, Any]:
    """Range, mean and deviation exactly; quantiles as the episodes' average weighted by count, as LeRobot does it."""
    names = ("min", "max", "mean", "std", *QUANTILES)
    rows = {name: np.array(episodes[f"stats/{key}/{name}"].to_pylist())[..., 0, 0] for name in names}
    counts = np.array(episodes[f"stats/{key}/count"].to_pylist())[:, 0]
    weights = (counts / counts.sum())[:, None]
    merged = {name: (values * weights).sum(0) for name, values in rows.items()}
    merged["std"] = np.sqrt(((rows["std"] ** 2 + (rows["mean"] - merged["mean"]) ** 2) * weights).sum(0))
    merged["min"], merged["max"] = rows["min"].min(0), rows["max"].max(0)
    return {name: value.reshape(3, 1, 1).tolist() for name, value in merged.items()} | {"count": [int(counts.sum())]}


def _write_table(table: pa.Table, path: Path) -> None:
    with path.open("wb") as file:  # pyarrow takes a path's name for UTF-8, which the locale may not say
        pq.write_table(table, file)


def _write_tasks(tasks: Sequence[str], path: Path) -> None:
    """The table that LeRobot reads with pandas: the sentence is the index, so the schema says so in pandas' words."""
    index = "__index_level_0__"
    kinds = [("task_index", "task_index", "int64", "int64"), (None, index, "unicode", "object")]
    pandas = {
        "index_columns": [index], "pandas_version": "2.2.0",
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "column_indexes": [{"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object",
                            "metadata": {"encoding": "UTF-8"}}],
        "columns": [{"name": name, "field_name": field, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
                    for name, field, kind, numpy in kinds],
    }  # fmt: skip
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), index: pa.array(tasks, pa.string())})
    _write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)
