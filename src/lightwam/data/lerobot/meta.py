"""The meta folder of a LeRobotDataset, v3.0, v2.1 or v2.0: tasks and episodes, every key typed and checked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lightwam.data.lerobot.features import Camera, UnusableCamera
from lightwam.errors import DatasetError
from lightwam.system.file_damage import likely_cause, list_neighbours

EXTRA = "lightwam/extra"
"""our own column of the episodes table: a JSON object for each episode"""
ROW_RANGE, FILE_NUMBERS = ("dataset_from_index", "dataset_to_index"), ("chunk_index", "file_index")
MAX_TASKS = 1_000_000
ColumnKind = Literal["integer", "number", "text", "texts", "any"]
"""integer: also when pandas stored them as floating-point numbers"""


@dataclass(frozen=True)
class Clip:
    """One episode's part of one camera's video."""

    path: Path
    start: float
    """seconds from the start of the file"""
    end: float | None = None
    """seconds from the start of the file to the clip's end; None if the episodes table does not have it"""


@dataclass(frozen=True)
class EpisodeRow:
    """One episode's row of the episodes table."""

    index: int
    length: int
    """frames"""
    tasks: tuple[str, ...]
    """its sentences in the episodes table; () if it has none"""
    data_path: Path
    clips: Mapping[str, Clip]
    """camera -> its clip, for cameras stored as video"""
    extra: Mapping[str, Any]
    """the writer's own values, for example {"seed": 7}"""
    rows: tuple[int, int] | None = None
    """first row among all rows, and last row + 1; None if the episodes table does not have them"""


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a parquet file, or some of its columns, in this thread; OSError or an error of Arrow's when it is broken.

    Python opens the file, as pyarrow assumes that paths are UTF-8, whatever the locale. Then pyarrow's own threads must
    not read it (as in `pq.read_table`): they can outlive the call, and a thread that still holds a buffer of Python's
    when the process ends aborts it.
    """
    with path.open("rb") as file:
        return pq.ParquetFile(file).read(columns, use_threads=False)


def read_table(path: Path, columns: Mapping[str, ColumnKind]) -> pa.Table:
    """Read columns of a parquet file; DatasetError when it is broken, or a column is missing, mistyped or has gaps."""
    known = columns_of(path)
    if missing := [name for name in columns if name not in known]:
        raise DatasetError("columns are missing", where=path, got=known, expected=missing, next_step="add them")
    try:
        table = read_parquet(path, list(columns))
    except (pa.ArrowException, OSError) as error:
        raise unreadable_table(path, error) from error
    for name, kind in columns.items():
        column = _plain(table.column(name))
        table = table.set_column(table.schema.get_field_index(name), name, column)
        if (column.null_count and kind != "texts") or not _is_kind(column.type, kind):
            where, got = f"{path} column {name}", f"{column.type}, {column.null_count} empty"
            what, step = "a column is mistyped or has gaps", "rewrite the column, without gaps"
            raise DatasetError(what, where=where, got=got, expected=kind, next_step=step)
    return table


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert pandas' categories and polars' views to plain columns."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string()) if pa.types.is_string_view(column.type) else column


def tables_in(folder: Path) -> list[Path]:
    """List the parquet files one folder below `folder`; hidden ones are macOS's, or of a download."""
    return sorted(folder.glob("[!.]*/[!.]*.parquet"))


def columns_of(path: Path) -> list[str]:
    """Read the names of a parquet file's columns; DatasetError when it is broken."""
    try:
        with path.open("rb") as file:
            names: list[str] = pq.read_schema(file).names
    except (pa.ArrowException, OSError) as error:
        raise unreadable_table(path, error) from error
    return names


def unreadable_table(path: Path, error: Exception) -> DatasetError:
    """Return the error for a parquet file that is broken."""
    got = likely_cause(path) or error
    return DatasetError("a table cannot be read", where=path, got=got, next_step="copy it again")


def missing_file(path: Path, root: Path, key: str = "") -> DatasetError:
    """Return the error for a missing file of the dataset at `root`; `key`: of info.json, for its path."""
    what, got = "a file of the dataset is missing", list_neighbours(path, root)
    expected = str(path.relative_to(root)) + (f" (by {key} in meta/info.json)" if key else "")
    return DatasetError(what, where=path, got=got, expected=expected, next_step="copy it again, or rename it back")


def other_size(what: str, where: object, got: tuple[int, ...], expected: tuple[int, int]) -> DatasetError:
    """Return the error for a picture or video (`what`) of another (height, width) than declared."""
    what, step = f"{what} has another size than info.json says", "correct the camera's shape in meta/info.json"
    return DatasetError(what, where=where, got=got, expected=expected, next_step=step)


def bad_info_key(root: Path, key: str, value: object, expected: object, what: str = "") -> DatasetError:
    """Return the error for a key of info.json; by default that it is missing or mistyped."""
    what, where = what or "a key of info.json is missing or mistyped", root / "meta" / "info.json"
    step = "correct meta/info.json, or copy it again"
    return DatasetError(what, where=where, got=f"{key} = {value!r}", expected=expected, next_step=step)


def _is_text(arrow: pa.DataType) -> bool:
    return pa.types.is_string(arrow) or pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow)


def _is_kind(arrow: pa.DataType, kind: ColumnKind) -> bool:
    if kind in ("integer", "number"):
        return pa.types.is_integer(arrow) or pa.types.is_floating(arrow)
    is_list = pa.types.is_list(arrow) or pa.types.is_large_list(arrow)
    texts = kind == "texts" and (pa.types.is_null(arrow) or (is_list and _is_text(arrow.value_type)))
    return kind == "any" or texts or _is_text(arrow)


def _integer(value: int | float, where: object) -> int:
    if not float(value).is_integer():
        raise DatasetError("a number must be an integer", where=where, got=value, next_step="write the true number")
    return int(value)


def read_version(root: Path, info: Mapping[str, Any]) -> str:
    """Read the layout's version from info.json, such as v3.0; DatasetError for one that is not supported."""
    version = info.get("codebase_version")
    if not isinstance(version, str):
        raise bad_info_key(root, "codebase_version", version, "text")
    version = f"v{version.removeprefix('v')}"
    if version not in ("v3.0", "v2.1", "v2.0"):
        what, step = "codebase_version must be v3.0, v2.1 or v2.0", "convert it with LeRobot's own converters"
        raise DatasetError(what, where=root / "meta" / "info.json", got=version, next_step=step)
    return version


def read_tasks(root: Path, version: str) -> dict[int, str]:
    """Read the task sentences by their index, in the table's order; indices may have gaps where a task was removed."""
    if version.startswith("v2"):
        path = root / "meta" / "tasks.jsonl"
        lines = read_json_lines(path, root, {"task_index": int, "task": str})
        pairs = [(row["task_index"], row["task"]) for _, row in lines]
    else:
        path = root / "meta" / "tasks.parquet"
        if not path.is_file():
            raise missing_file(path, root)
        # pandas stores the sentences as an index, nameless or under any name
        known = columns_of(path)
        others = [name for name in known if name != "task_index"]
        named = next((name for name in ("__index_level_0__", "task") if name in known), "task")
        text = others[0] if len(others) == 1 else named
        table = read_table(path, {text: "text", "task_index": "integer"})
        indices = [_integer(value, f"{path} task_index") for value in table["task_index"].to_pylist()]
        pairs = list(zip(indices, table[text].to_pylist(), strict=True))
    numbers = [index for index, _ in pairs]
    if not pairs or len({*numbers}) < len(numbers) or not 0 <= min(numbers) <= max(numbers) < MAX_TASKS:
        what, got = f"each task must have its own task_index, below {MAX_TASKS}", sorted(numbers)[:20] or "no tasks"
        raise DatasetError(what, where=path, got=got, next_step="renumber them, in the rows' task_index too")
    return dict(pairs)


def read_episodes(
    root: Path, version: str, info: Mapping[str, Any], cameras: Mapping[str, Camera]
) -> tuple[tuple[EpisodeRow, ...], dict[str, UnusableCamera]]:
    """Read all episodes, by index, and the cameras whose clips cannot be read from the episodes table.

    DatasetError when episodes are not numbered without gaps from 0, or one is empty.
    """
    videos = {name: camera.key for name, camera in cameras.items() if camera.stored == "video"}
    rows, broken = (_v30_episodes if version == "v3.0" else _v2_episodes)(root, info, videos)
    rows.sort(key=lambda pair: pair[1].index)
    indices = [episode.index for _, episode in rows]
    if not indices or indices != list(range(len(indices))):
        gap = next((i for i, index in enumerate(indices) if i != index), 0)
        got = f"{indices[gap : gap + 1] or 'no episode'} in row {gap}"
        if gap and indices[gap] == indices[gap - 1]:
            got = f"episode {indices[gap]} twice, in {rows[gap - 1][0]} and in {rows[gap][0]}"
        what, step = "episodes must be numbered without gaps from 0", "renumber them, or copy the dataset again"
        raise DatasetError(what, where=root / "meta", got=got, expected=gap, next_step=step)
    if empty := [episode.index for _, episode in rows if episode.length < 1]:
        what, step = f"episode {empty[0]} must have a frame", "leave it out of the tables, and renumber those after it"
        raise DatasetError(what, where=root / "meta", next_step=step)
    return tuple(episode for _, episode in rows), {name: UnusableCamera(error, True) for name, error in broken.items()}


EpisodeRows = tuple[list[tuple[str, EpisodeRow]], dict[str, DatasetError]]
"""the episodes, each with the location of its row, and the broken cameras"""


def _v30_episodes(root: Path, info: Mapping[str, Any], videos: Mapping[str, str]) -> EpisodeRows:
    folder = root / "meta" / "episodes"
    paths = tables_in(folder)
    if not paths:
        got = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))[:5] or "nothing"
        what, step = "the episodes table is missing", "copy chunk-*/file-*.parquet again, or rename it back"
        raise DatasetError(what, where=folder, got=got, next_step=step)
    episodes: list[tuple[str, EpisodeRow]] = []
    broken: dict[str, DatasetError] = {}
    for path in paths:
        known = columns_of(path)
        optional: dict[str, ColumnKind] = {EXTRA: "text", "tasks": "texts", **dict.fromkeys(ROW_RANGE, "integer")}
        columns = {key: kind for key, kind in optional.items() if key in known}
        columns |= dict.fromkeys(("episode_index", "data/chunk_index", "data/file_index"), "integer")
        columns |= {"length": "integer"} if "length" in known or "dataset_to_index" not in known else {}
        rows = read_table(path, columns).to_pylist()
        clips: list[dict[str, Clip]] = [{} for _ in rows]
        for camera, key in videos.items():
            try:
                for by_camera, clip in zip(clips, _v30_clips(root, info, key, path, known), strict=True):
                    by_camera[camera] = clip
            except DatasetError as error:
                broken.setdefault(camera, error)
        for row, by_camera in zip(rows, clips, strict=True):
            episodes.append((str(path), _v30_episode(root, info, path, row, by_camera)))
    return episodes, broken


def _v30_clips(root: Path, info: Mapping[str, Any], key: str, path: Path, known: list[str]) -> Iterator[Clip]:
    """Yield one camera's clip of every row; `to_timestamp` is optional."""
    start, end = f"videos/{key}/from_timestamp", f"videos/{key}/to_timestamp"
    columns: dict[str, ColumnKind] = {f"videos/{key}/{part}": "integer" for part in FILE_NUMBERS}
    columns |= {start: "number", end: "number"} if end in known else {start: "number"}
    for row in read_table(path, columns).to_pylist():
        video = path_of(root, info, "video_path", video_key=key, **_file_numbers(row, f"videos/{key}", path))
        yield Clip(video, float(row[start]), None if row.get(end) is None else float(row[end]))


def _file_numbers(row: Mapping[str, Any], folder: str, path: Path) -> dict[str, int]:
    """Return the numbers in a row's file of `folder`, by their names in the path patterns of info.json."""
    return {name: _integer(row[f"{folder}/{name}"], f"{path} {folder}/{name}") for name in FILE_NUMBERS}


def _v30_episode(
    root: Path, info: Mapping[str, Any], path: Path, row: dict[str, Any], clips: Mapping[str, Clip]
) -> EpisodeRow:
    parts = ("episode_index", "length", *ROW_RANGE)
    numbers = {key: _integer(row[key], f"{path} {key}") for key in parts if key in row}
    rows = (numbers[ROW_RANGE[0]], numbers[ROW_RANGE[1]]) if numbers.keys() >= {*ROW_RANGE} else None
    length = numbers["length"] if "length" in numbers or rows is None else rows[1] - rows[0]
    data_path = path_of(root, info, "data_path", **_file_numbers(row, "data", path))
    try:
        extra = json.loads(row.get(EXTRA, "{}"))
    except ValueError as error:
        what, where = "a column must hold JSON objects, as {}", f"{path} {EXTRA} of episode {row['episode_index']}"
        raise DatasetError(what, where=where, got=row[EXTRA], next_step="correct the column") from error
    tasks = row.get("tasks") or ()
    tasks = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    return EpisodeRow(numbers["episode_index"], length, tasks, data_path, clips, extra, rows)


def _v2_episodes(root: Path, info: Mapping[str, Any], videos: Mapping[str, str]) -> EpisodeRows:
    per_chunk = info.get("chunks_size")
    if type(per_chunk) is not int or per_chunk < 1:
        raise bad_info_key(root, "chunks_size", per_chunk, "int >= 1")
    episodes: list[tuple[str, EpisodeRow]] = []
    broken: dict[str, DatasetError] = {}
    for where, row in read_json_lines(root / "meta" / "episodes.jsonl", root, {"episode_index": int, "length": int}):
        index, tasks = row["episode_index"], row.get("tasks") or []
        tasks = [tasks] if isinstance(tasks, str) else tasks
        if not isinstance(tasks, list):
            raise _bad_line(where, f"tasks = {tasks!r}", "a list")
        parts = {"episode_chunk": index // per_chunk, "episode_index": index}
        clips = {}
        for camera, key in videos.items():
            try:
                clips[camera] = Clip(path_of(root, info, "video_path", video_key=key, **parts), 0.0)
            except DatasetError as error:
                broken.setdefault(camera, error)
        data_path = path_of(root, info, "data_path", **parts)
        episodes.append((where, EpisodeRow(index, row["length"], tuple(map(str, tasks)), data_path, clips, {})))
    return episodes, broken


def path_of(root: Path, info: Mapping[str, Any], key: str, **parts: Any) -> Path:
    """Fill in a path pattern of info.json, `data_path` or `video_path`; DatasetError when it cannot be one."""
    pattern = info.get(key)
    if not isinstance(pattern, str):
        raise bad_info_key(root, key, pattern, "a path")
    try:
        # file names are UTF-8 even if the locale's encoding is another
        path = Path(os.fsdecode(pattern.format(**parts).encode()))
    except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
        raise bad_info_key(root, key, pattern, sorted(parts), "a path pattern has an unknown part") from error
    if path.is_absolute():
        raise bad_info_key(
            root, key, pattern, "a relative path", "a path pattern must stay within the dataset's folder"
        )
    return root / path


def read_json_lines(path: Path, root: Path, kinds: Mapping[str, type]) -> list[tuple[str, dict[str, Any]]]:
    r"""Read every line's location and object, which has values of these `kinds`; `root`: the dataset's folder.

    Only \n ends a line: a sentence may contain U+2028 and the like. DatasetError when the file is missing or broken.
    """
    if not path.is_file():
        raise missing_file(path, root)
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        what, got = "a file of the dataset is not UTF-8", likely_cause(path) or error
        raise DatasetError(what, where=path, got=got, next_step="save it as UTF-8") from error
    rows = []
    for where, line in ((f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            got = likely_cause(path) or repr(line[:100])
            raise DatasetError("a line is not JSON", where=where, got=got, next_step="copy the file again") from error
        if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in kinds.items()):
            raise _bad_line(where, line[:200], {key: kind.__name__ for key, kind in kinds.items()})
        rows.append((where, row))
    return rows


def _bad_line(where: str, got: str, expected: object) -> DatasetError:
    what, step = "a key is missing or mistyped", "correct the line, or copy the file again"
    return DatasetError(what, where=where, got=got, expected=expected, next_step=step)
