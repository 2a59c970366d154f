"""The meta folder of a LeRobotDataset, v3.0 or v2.1: features, tasks and episodes, every key typed and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lightwam.errors import DatasetError

STATE, ACTION, CAMERA_PREFIX = "observation.state", "action", "observation.images."
EXTRA = "lightwam/extra"
"""our own column of the episodes table: a JSON object an episode"""

ColumnKind = Literal["integer", "number", "text", "texts", "any"]


@dataclass(frozen=True)
class FeatureNames:
    """What a dataset calls the features that are read; the defaults are LeRobot's, some publications have their own."""

    state: str = STATE
    action: str = ACTION
    cameras: Mapping[str, str] | None = None
    """camera -> feature; None: every feature whose name begins with "observation.images." """


@dataclass(frozen=True)
class Camera:
    """One camera's feature."""

    key: str
    size: tuple[int, int]
    """height, width"""
    stored: Literal["video", "image"]
    """in mp4 files, or as PNG or JPEG bytes in the table"""


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
    """camera -> pictures, of those that are stored as video"""
    extra: Mapping[str, Any]
    """what the collector noted, for example {"seed": 7}"""


def read_table(path: Path, columns: Mapping[str, ColumnKind]) -> pa.Table:
    """Those columns of a parquet file; DatasetError when it is broken, or a column is missing, mistyped or has gaps."""
    try:
        known = pq.read_schema(path).names
        if missing := [name for name in columns if name not in known]:
            raise DatasetError("columns are missing", where=path, got=known, expected=missing)
        table = pq.read_table(path, columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise DatasetError("a table cannot be read", where=path, got=error, expected="a whole parquet file",
                           next_step="it was cut short or overwritten: copy the dataset again") from error  # fmt: skip
    for name, kind in columns.items():
        column = table.column(name)
        if column.null_count or not _is_kind(column.type, kind):
            got = f"{column.type}, {column.null_count} empty"
            raise DatasetError(
                "a column is mistyped or has gaps", where=f"{path} column {name}", got=got, expected=kind
            )
    return table


def _is_kind(arrow: pa.DataType, kind: ColumnKind) -> bool:
    is_text = pa.types.is_string(arrow) or pa.types.is_large_string(arrow)
    is_list = pa.types.is_list(arrow) or pa.types.is_large_list(arrow)
    return {
        "integer": pa.types.is_integer(arrow),
        "number": pa.types.is_integer(arrow) or pa.types.is_floating(arrow),
        "text": is_text,
        "texts": is_list and _is_kind(arrow.value_type, "text"),
        "any": True,
    }[kind]


def vector_feature(features: Mapping[str, Any], key: str, where: str) -> tuple[int, tuple[str, ...]]:
    """Dimensions and their names of a feature that is one vector a frame; unnamed ones are called by their number."""
    if key not in features:
        raise DatasetError("a feature is missing", where=where, got=sorted(features), expected=key)
    feature, where = features[key], f"{where} {key}"
    shape = feature.get("shape") if isinstance(feature, dict) else None
    if not isinstance(shape, list) or len(shape) != 1 or type(shape[0]) is not int or shape[0] < 1:
        raise DatasetError("a feature is not a vector", where=where, got=feature, expected='"shape": [dims]')
    if feature.get("dtype") not in ("float32", "float64"):
        raise DatasetError("a feature has the wrong dtype", where=where, got=feature.get("dtype"), expected="float32")
    names = feature.get("names")
    if isinstance(names, dict) and len(names) == 1:  # LeRobot's older form {"motors": [...]}
        names = next(iter(names.values()))
    named = isinstance(names, list) and len(names) == shape[0]
    return shape[0], tuple(map(str, names if named else range(shape[0])))


def read_cameras(features: Mapping[str, Any], names: Mapping[str, str] | None, where: str) -> dict[str, Camera]:
    """Every camera by name, those that `names` (camera -> feature) lists or all; each must be RGB."""
    if names is None:
        names = {key.removeprefix(CAMERA_PREFIX): key for key in features if key.startswith(CAMERA_PREFIX)}
    if not names or not features.keys() >= set(names.values()):
        expected = sorted(names.values()) or CAMERA_PREFIX + "NAME"
        raise DatasetError("a dataset without a camera", where=where, got=sorted(features), expected=expected)
    return {name: _camera(key, features[key], f"{where} {key}") for name, key in names.items()}


def _camera(key: str, feature: Any, where: str) -> Camera:
    if not isinstance(feature, dict) or feature.get("dtype") not in ("video", "image"):
        raise DatasetError("a camera is stored neither as video nor as images", where=where, got=feature,
                           expected='"dtype": "video" or "image"')  # fmt: skip
    shape = feature.get("shape")
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        raise DatasetError("a camera has no shape", where=where, got=shape, expected="[height, width, 3]")
    if 3 not in (shape[0], shape[2]):
        raise DatasetError("a camera is not RGB", where=where, got=shape, expected="[height, width, 3]")
    height, width = shape[:2] if shape[2] == 3 else shape[1:]
    return Camera(key, (height, width), feature["dtype"])


def read_tasks(root: Path, version: str) -> tuple[str, ...]:
    """Task sentences in the order of their index."""
    if version.startswith("v2"):
        path = root / "meta" / "tasks.jsonl"
        tasks = {row["task_index"]: row["task"] for row in _json_lines(path, {"task_index": int, "task": str})}
    else:
        path = root / "meta" / "tasks.parquet"
        if not path.is_file():
            raise DatasetError("a file of the dataset is missing", where=path)
        # pandas stores the sentences as a named or as a nameless index
        text = "__index_level_0__" if "__index_level_0__" in pq.read_schema(path).names else "task"
        table = read_table(path, {text: "text", "task_index": "integer"})
        tasks = dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))
    if not tasks or sorted(tasks) != list(range(len(tasks))):
        raise DatasetError("tasks are not numbered without gaps from 0", where=path, got=sorted(tasks))
    return tuple(tasks[i] for i in range(len(tasks)))


def read_episodes(
    root: Path, version: str, info: Mapping[str, Any], cameras: Mapping[str, Camera]
) -> tuple[Episode, ...]:
    """All episodes, by index; DatasetError when they are not numbered without gaps from 0 or one is empty."""
    videos = {name: camera.key for name, camera in cameras.items() if camera.stored == "video"}
    episodes = (_v30_episodes if version == "v3.0" else _v2_episodes)(root, info, videos)
    episodes.sort(key=lambda episode: episode.index)
    indices = [episode.index for episode in episodes]
    if not indices or indices != list(range(len(indices))):
        gap = next((i for i, index in enumerate(indices) if i != index), 0)
        raise DatasetError("episodes are not numbered without gaps from 0", where=root / "meta",
                           got=f"{indices[gap : gap + 1] or 'none'} in place {gap}", expected=gap,
                           next_step="renumber the episodes, or copy the dataset again")  # fmt: skip
    if empty := [episode.index for episode in episodes if episode.length < 1]:
        raise DatasetError(
            "an episode is empty", where=root / "meta", got=f"episode {empty[0]}", expected="1 frame or more"
        )
    return tuple(episodes)


def _v30_episodes(root: Path, info: Mapping[str, Any], videos: Mapping[str, str]) -> list[Episode]:
    paths = sorted((root / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    if not paths:
        where = root / "meta" / "episodes"
        raise DatasetError("the episodes table is missing", where=where, expected="chunk-*/file-*.parquet")
    columns: dict[str, ColumnKind] = {"episode_index": "integer", "tasks": "texts", "length": "integer",
                                      "data/chunk_index": "integer", "data/file_index": "integer"}  # fmt: skip
    for key in videos.values():
        spot = f"videos/{key}/"
        columns |= {spot + "chunk_index": "integer", spot + "file_index": "integer", spot + "from_timestamp": "number"}
    episodes = []
    for path in paths:
        own: dict[str, ColumnKind] = {EXTRA: "text"} if EXTRA in pq.read_schema(path).names else {}
        for row in read_table(path, columns | own).to_pylist():
            episodes.append(_v30_episode(root, info, videos, row))
    return episodes


def _v30_episode(root: Path, info: Mapping[str, Any], videos: Mapping[str, str], row: dict[str, Any]) -> Episode:
    clips = {}
    for camera, key in videos.items():
        spot = f"videos/{key}/"
        path = _path_of(root, info, "video_path", video_key=key,
                        chunk_index=row[spot + "chunk_index"], file_index=row[spot + "file_index"])  # fmt: skip
        clips[camera] = Clip(path, float(row[spot + "from_timestamp"]))
    data_path = _path_of(
        root, info, "data_path", chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
    )
    try:
        extra = json.loads(row.get(EXTRA, "{}"))
    except ValueError as error:
        where = f"{root / 'meta' / 'episodes'} {EXTRA} of episode {row['episode_index']}"
        raise DatasetError("an episode's note is not JSON", where=where, got=row[EXTRA]) from error
    return Episode(row["episode_index"], row["length"], tuple(row["tasks"]), data_path, clips, extra)


def _v2_episodes(root: Path, info: Mapping[str, Any], videos: Mapping[str, str]) -> list[Episode]:
    per_chunk = info.get("chunks_size")
    if type(per_chunk) is not int or per_chunk < 1:
        raise DatasetError("a key of info.json is missing or mistyped", where=root / "meta" / "info.json",
                           got=f"chunks_size = {per_chunk!r}", expected="int >= 1")  # fmt: skip
    episodes = []
    for row in _json_lines(root / "meta" / "episodes.jsonl", {"episode_index": int, "tasks": list, "length": int}):
        index = row["episode_index"]
        spot = {"episode_chunk": index // per_chunk, "episode_index": index}
        clips = {
            camera: Clip(_path_of(root, info, "video_path", video_key=key, **spot), 0.0)
            for camera, key in videos.items()
        }
        data_path = _path_of(root, info, "data_path", **spot)
        episodes.append(Episode(index, row["length"], tuple(map(str, row["tasks"])), data_path, clips, {}))
    return episodes


def _path_of(root: Path, info: Mapping[str, Any], key: str, **parts: Any) -> Path:
    pattern, where = info.get(key), f"{root / 'meta' / 'info.json'} {key}"
    if not isinstance(pattern, str):
        raise DatasetError(
            "a key of info.json is missing or mistyped", where=where, got=repr(pattern), expected="a path"
        )
    try:
        return root / pattern.format(**parts)
    except (KeyError, ValueError, IndexError) as error:
        expected = sorted(parts)
        raise DatasetError("a path pattern has an unknown part", where=where, got=pattern, expected=expected) from error


def _json_lines(path: Path, kinds: Mapping[str, type]) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DatasetError("a file of the dataset is missing", where=path)
    rows = []
    for number, line in enumerate(path.read_bytes().decode().rstrip("\n").split("\n"), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DatasetError("a line is not JSON", where=f"{path}:{number}", got=line[:100]) from error
        if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in kinds.items()):
            expected = {key: kind.__name__ for key, kind in kinds.items()}
            raise DatasetError(
                "a key is missing or mistyped", where=f"{path}:{number}", got=line[:200], expected=expected
            )
        rows.append(row)
    return rows
