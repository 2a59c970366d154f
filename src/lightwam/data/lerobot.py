"""Read a LeRobotDataset, v3.0 or v2.1, every key typed and checked.

The tables (state, action, episodes, tasks) are small and are read whole; pictures are decoded when asked for. Layouts:
docs/data.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64, UInt8

from lightwam.data.files import file_fingerprint, read_json
from lightwam.data.video import VideoReader
from lightwam.errors import DatasetError, did_you_mean

STATE, ACTION, CAMERA_PREFIX = "observation.state", "action", "observation.images."
EXTRA = "lightwam/extra"
"""our own column of the episodes table: a JSON object an episode"""
VERSIONS = ("v3.0", "v2.1")


@dataclass(frozen=True)
class Clip:
    """Where one episode's pictures of one camera lie."""

    path: Path
    start: float
    """seconds from the start of the file"""


@dataclass(frozen=True)
class Episode:
    """One episode's row."""

    index: int
    length: int
    """frames"""
    tasks: tuple[str, ...]
    data_path: Path
    clips: Mapping[str, Clip]
    """camera -> pictures"""
    extra: Mapping[str, Any]
    """what the collector noted, for example {"seed": 7}"""


@dataclass(frozen=True)
class Vectors:
    """The numbers of all frames, episodes one behind the other."""

    state: Float32[np.ndarray, "N P"]
    action: Float32[np.ndarray, "N A"]
    task_index: Int64[np.ndarray, " episodes"]


class LeRobotDataset:
    """A dataset on disk. Opening checks the meta folder and that every file is there; `vectors` checks the tables."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        info_path = self.root / "meta" / "info.json"
        if not info_path.is_file():
            torn = (self.root / "incoming").is_dir()
            hint = "its writer was not closed: collect again to go on and close it" if torn else "give the folder that holds meta/"
            raise DatasetError("no dataset here", where=self.root, expected="meta/info.json", next_step=hint)
        self.info = read_json(info_path)
        self.version = self._info("codebase_version", str)
        if self.version not in VERSIONS:
            raise DatasetError("unknown codebase_version", where=info_path, got=self.version, expected=" or ".join(VERSIONS),
                               next_step="convert it with LeRobot's own converters")  # fmt: skip
        self.fps = float(self._info("fps", (int, float)))
        self.robot_type = str(self.info.get("robot_type"))
        self._read_features(self._info("features", dict))
        layout = _v30_episodes if self.version == "v3.0" else _v21_episodes
        self.tasks: tuple[str, ...] = _v30_tasks(self.root) if self.version == "v3.0" else _v21_tasks(self.root)
        self.episodes: tuple[Episode, ...] = tuple(layout(self.root, self.info, list(self.cameras)))
        self._check_episodes()

    @property
    def num_episodes(self) -> int:
        """Episodes."""
        return len(self.episodes)

    @property
    def num_frames(self) -> int:
        """Frames of all episodes."""
        return int(self.episode_start[-1])

    @cached_property
    def episode_start(self) -> Int64[np.ndarray, " episodes_and_1"]:
        """First frame of every episode among all frames, and the number of frames at the end."""
        return np.cumsum([0] + [episode.length for episode in self.episodes]).astype(np.int64)

    @cached_property
    def vectors(self) -> Vectors:
        """State, action and task of everything, checked: widths, finite values, rising frame_index, whole episodes."""
        state = np.empty((self.num_frames, self.state_dim), np.float32)
        action = np.empty((self.num_frames, self.action_dim), np.float32)
        task_index = np.empty(self.num_episodes, np.int64)
        tables: dict[Path, _Table] = {}
        for episode, start in zip(self.episodes, self.episode_start[:-1], strict=True):
            if episode.data_path not in tables:
                tables = {episode.data_path: _Table(episode.data_path, self.state_dim, self.action_dim)}
            rows, span = tables[episode.data_path].rows(episode), slice(start, start + episode.length)
            state[span], action[span] = rows.state, rows.action
            task_index[episode.index] = self._task_of(rows.task_index, episode)
        return Vectors(state, action, task_index)

    def frames(self, episode: int, camera: str) -> UInt8[np.ndarray, "T height width 3"]:
        """All pictures of one episode from one camera, decoded in order."""
        if camera not in self.cameras:
            raise DatasetError("unknown camera", where=self.root, got=repr(camera), expected=sorted(self.cameras),
                               next_step=did_you_mean(camera, self.cameras))  # fmt: skip
        clip = self.episodes[episode].clips[camera]
        with VideoReader(clip.path) as reader:
            return self.clip(reader, episode, camera)

    def clip(self, reader: VideoReader, episode: int, camera: str) -> UInt8[np.ndarray, "T height width 3"]:
        """The same from a reader that is open on the clip's file (faster for episode after episode)."""
        row = self.episodes[episode]
        if (reader.height, reader.width) != self.cameras[camera]:
            raise DatasetError("a video has another size than info.json says", where=reader.path,
                               got=(reader.height, reader.width), expected=self.cameras[camera])  # fmt: skip
        return reader.read(row.clips[camera].start, row.length, self.fps)

    def fingerprint(self) -> dict[str, str]:
        """What the dataset is made of: every file of tables and pictures with its size and hash."""
        paths = {self.root / "meta" / "info.json"}
        for episode in self.episodes:
            paths |= {episode.data_path, *(clip.path for clip in episode.clips.values())}
        paths |= {path for path in (self.root / "meta").rglob("*") if "episodes" in str(path) or "tasks" in path.name}
        return {str(p.relative_to(self.root)): file_fingerprint(p) for p in sorted(paths) if p.is_file()}

    def _info(self, key: str, kind: Any) -> Any:
        value = self.info.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise DatasetError("a key of info.json is missing or mistyped", where=self.root / "meta" / "info.json",
                               got=f"{key} = {value!r}", expected=kind)  # fmt: skip
        return value

    def _read_features(self, features: dict[str, Any]) -> None:
        where = self.root / "meta" / "info.json"
        for key in (STATE, ACTION):
            if key not in features:
                raise DatasetError("a feature is missing", where=where, got=sorted(features), expected=key)
        self.state_dim, self.state_names = _vector_feature(features[STATE], f"{where} {STATE}")
        self.action_dim, self.action_names = _vector_feature(features[ACTION], f"{where} {ACTION}")
        self.cameras: dict[str, tuple[int, int]] = {}
        for key, feature in features.items():
            if key.startswith(CAMERA_PREFIX):
                self.cameras[key.removeprefix(CAMERA_PREFIX)] = _camera_size(feature, f"{where} {key}")
        if not self.cameras:
            raise DatasetError("a dataset without a camera", where=where, got=sorted(features), expected=CAMERA_PREFIX + "...")

    def _check_episodes(self) -> None:
        where, total = self.root / "meta", self._info("total_episodes", int)
        indices = [episode.index for episode in self.episodes]
        if not indices or indices != list(range(len(indices))):
            gap = next((i for i, index in enumerate(indices) if i != index), 0)
            raise DatasetError("episodes are not numbered without gaps from 0", where=where, got=indices[gap : gap + 3],
                               expected=f"{gap} next")  # fmt: skip
        if total != len(indices) or self._info("total_frames", int) != self.num_frames:
            raise DatasetError("info.json disagrees with the episodes table", where=where,
                               got=f"{total} episodes, {self.info['total_frames']} frames",
                               expected=f"{len(indices)} episodes, {self.num_frames} frames")  # fmt: skip
        for path in {p for e in self.episodes for p in (e.data_path, *(clip.path for clip in e.clips.values()))}:
            if not path.is_file() or path.stat().st_size == 0:
                raise DatasetError("a file of the dataset is missing or empty", where=path,
                                   next_step="copy the dataset again")  # fmt: skip

    def _task_of(self, task_index: Int64[np.ndarray, " T"], episode: Episode) -> int:
        where = f"{episode.data_path} episode {episode.index}"
        task = int(task_index[0])
        if (task_index != task).any():
            raise DatasetError("the task changes within an episode", where=where, got=np.unique(task_index).tolist(),
                               expected="one task_index", next_step="split such episodes")  # fmt: skip
        if not 0 <= task < len(self.tasks):
            raise DatasetError("a task_index has no sentence", where=where, got=task, expected=f"0..{len(self.tasks) - 1}")
        if episode.tasks and self.tasks[task] not in episode.tasks:
            raise DatasetError("tables disagree on an episode's task", where=where, got=self.tasks[task], expected=episode.tasks)
        return task


@dataclass(frozen=True)
class _Rows:
    state: Float32[np.ndarray, "T P"]
    action: Float32[np.ndarray, "T A"]
    task_index: Int64[np.ndarray, " T"]


class _Table:
    """One data file, read whole."""

    def __init__(self, path: Path, state_dim: int, action_dim: int) -> None:
        table = _parquet(path, [STATE, ACTION, "episode_index", "frame_index", "task_index"])
        self._path = path
        self._state = _matrix(table, STATE, state_dim, path)
        self._action = _matrix(table, ACTION, action_dim, path)
        self._episode, self._frame, self._task = (
            _matrix(table, name, 1, path).astype(np.int64)[:, 0] for name in ("episode_index", "frame_index", "task_index")
        )

    def rows(self, episode: Episode) -> _Rows:
        found = np.flatnonzero(self._episode == episode.index)
        where = f"{self._path} episode {episode.index}"
        if len(found) != episode.length:
            raise DatasetError("an episode has another length than the episodes table says", where=where, got=len(found),
                               expected=episode.length)  # fmt: skip
        if (bad := np.flatnonzero(self._frame[found] != np.arange(episode.length))).size:
            raise DatasetError("frame_index does not count 0, 1, 2, ...", where=f"{where} row {int(bad[0])}",
                               got=int(self._frame[found[bad[0]]]), expected=int(bad[0]))  # fmt: skip
        state, action = self._state[found], self._action[found]
        for name, values in ((STATE, state), (ACTION, action)):
            check_finite(values, f"{where} {name}")
        return _Rows(state.astype(np.float32), action.astype(np.float32), self._task[found])


def check_finite(values: np.ndarray, where: str) -> None:
    """Raise DatasetError naming the first frame and dimension that is NaN or infinite."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        frame, dim = map(int, bad[0])
        raise DatasetError("a value is not finite", where=f"{where} frame {frame} dim {dim}", got=float(values[frame, dim]),
                           expected="a finite number", next_step="repair or leave out this episode")  # fmt: skip


def _parquet(path: Path, columns: Sequence[str]) -> pa.Table:
    try:
        known = pq.read_schema(path).names
        if missing := [name for name in columns if name not in known]:
            raise DatasetError("columns are missing", where=path, got=known, expected=missing)
        return pq.read_table(path, columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise DatasetError("a table cannot be read", where=path, got=error, expected="a whole parquet file",
                           next_step="it was cut short or overwritten: copy the dataset again") from error  # fmt: skip


def _matrix(table: pa.Table, name: str, dim: int, path: Path) -> np.ndarray:
    """A column of numbers (dim 1) or of lists of `dim` numbers as an array [rows, dim]."""
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # an empty table stays chunked
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    where = f"{path} column {name}"
    rows, kind = len(column), column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        column = column.flatten()
    if column.null_count or not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DatasetError("a column is not of numbers", where=where, got=kind, expected="numbers, none missing")
    uneven = pa.types.is_list(kind) and len(set(table.column(name).combine_chunks().value_lengths().to_pylist())) > 1
    if len(column) != rows * dim or uneven:
        raise DatasetError("a column has another width than info.json says", where=where,
                           got="rows that differ" if uneven else len(column) / max(rows, 1), expected=dim)  # fmt: skip
    return column.to_numpy(zero_copy_only=False).reshape(rows, dim)


def _vector_feature(feature: Any, where: str) -> tuple[int, tuple[str, ...]]:
    shape = feature.get("shape") if isinstance(feature, dict) else None
    if not isinstance(shape, list) or len(shape) != 1 or type(shape[0]) is not int or shape[0] < 1:
        raise DatasetError("a feature is not a vector", where=where, got=feature, expected='"shape": [dims]')
    if feature.get("dtype") not in ("float32", "float64"):
        raise DatasetError("a feature has the wrong dtype", where=where, got=feature.get("dtype"), expected="float32")
    names = feature.get("names")
    if isinstance(names, dict) and len(names) == 1:  # LeRobot's older form {"motors": [...]}
        names = next(iter(names.values()))
    good = isinstance(names, list) and len(names) == shape[0]
    return shape[0], tuple(map(str, names)) if good else tuple(f"{i}" for i in range(shape[0]))


def _camera_size(feature: Any, where: str) -> tuple[int, int]:
    if not isinstance(feature, dict) or feature.get("dtype") != "video":
        raise DatasetError("a camera is not stored as video", where=where, got=feature, expected='"dtype": "video"',
                           next_step="write the dataset again with use_videos=True")  # fmt: skip
    shape = feature.get("shape")
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        raise DatasetError("a camera has no shape", where=where, got=shape, expected="[height, width, 3]")
    sizes = tuple(shape[:2]) if shape[2] == 3 else tuple(shape[1:])
    if 3 not in (shape[0], shape[2]):
        raise DatasetError("a camera is not RGB", where=where, got=shape, expected="[height, width, 3]")
    return sizes[0], sizes[1]


def _v30_tasks(root: Path) -> tuple[str, ...]:
    path = root / "meta" / "tasks.parquet"
    if not path.is_file():
        raise DatasetError("a file of the dataset is missing", where=path)
    names = pq.read_schema(path).names
    index = next((name for name in ("task", "__index_level_0__") if name in names), "task")
    table = _parquet(path, [index, "task_index"])
    return _ordered_tasks(dict(zip(table["task_index"].to_pylist(), table[index].to_pylist(), strict=True)), path)


def _v21_tasks(root: Path) -> tuple[str, ...]:
    path = root / "meta" / "tasks.jsonl"
    rows = _json_lines(path, {"task_index": int, "task": str})
    return _ordered_tasks({row["task_index"]: row["task"] for row in rows}, path)


def _ordered_tasks(tasks: dict[int, str], path: Path) -> tuple[str, ...]:
    if not tasks or sorted(tasks) != list(range(len(tasks))):
        raise DatasetError("tasks are not numbered without gaps from 0", where=path, got=sorted(tasks))
    return tuple(tasks[i] for i in range(len(tasks)))


def _v30_episodes(root: Path, info: dict[str, Any], cameras: Sequence[str]) -> list[Episode]:
    paths = sorted((root / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    if not paths:
        raise DatasetError("the episodes table is missing", where=root / "meta" / "episodes", expected="chunk-000/file-000.parquet")
    spots = [f"videos/{CAMERA_PREFIX}{camera}/" for camera in cameras]
    columns = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
    columns += [spot + part for spot in spots for part in ("chunk_index", "file_index", "from_timestamp")]
    rows: list[dict[str, Any]] = []
    for path in paths:
        own = [EXTRA] if EXTRA in pq.read_schema(path).names else []
        rows += _parquet(path, columns + own).to_pylist()
    episodes = []
    for row in sorted(rows, key=lambda row: row["episode_index"]):
        clips = {}
        for camera, spot in zip(cameras, spots, strict=True):
            path = root / _path_of(info, "video_path", video_key=CAMERA_PREFIX + camera,
                                   chunk_index=row[spot + "chunk_index"], file_index=row[spot + "file_index"])  # fmt: skip
            clips[camera] = Clip(path, float(row[spot + "from_timestamp"]))
        data_path = root / _path_of(info, "data_path", chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        extra = json.loads(row[EXTRA]) if row.get(EXTRA) else {}
        episodes.append(Episode(row["episode_index"], row["length"], tuple(row["tasks"]), data_path, clips, extra))
    return episodes


def _v21_episodes(root: Path, info: dict[str, Any], cameras: Sequence[str]) -> list[Episode]:
    episodes = []
    per_chunk = int(info.get("chunks_size", 1000))
    for row in _json_lines(root / "meta" / "episodes.jsonl", {"episode_index": int, "tasks": list, "length": int}):
        index = row["episode_index"]
        spot = {"episode_chunk": index // per_chunk, "episode_index": index}
        clips = {
            camera: Clip(root / _path_of(info, "video_path", video_key=CAMERA_PREFIX + camera, **spot), 0.0) for camera in cameras
        }
        data_path = root / _path_of(info, "data_path", **spot)
        episodes.append(Episode(index, row["length"], tuple(row["tasks"]), data_path, clips, {}))
    return sorted(episodes, key=lambda episode: episode.index)


def _path_of(info: dict[str, Any], key: str, **parts: Any) -> str:
    pattern = info.get(key)
    if not isinstance(pattern, str):
        raise DatasetError("a key of info.json is missing or mistyped", where="meta/info.json", got=f"{key} = {pattern!r}")
    try:
        return pattern.format(**parts)
    except (KeyError, ValueError, IndexError) as error:
        raise DatasetError("a path pattern of info.json has an unknown part", where=f"meta/info.json {key}", got=pattern,
                           expected=sorted(parts)) from error  # fmt: skip


def _json_lines(path: Path, kinds: Mapping[str, type]) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DatasetError("a file of the dataset is missing", where=path)
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DatasetError("a line is not JSON", where=f"{path}:{number}", got=line[:100]) from error
        for key, kind in kinds.items():
            if not isinstance(row, dict) or not isinstance(row.get(key), kind):
                raise DatasetError("a key is missing or mistyped", where=f"{path}:{number}", got=line[:200], expected=f"{key}: {kind}")
        rows.append(row)
    return rows
