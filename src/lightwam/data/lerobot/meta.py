"""Reading the meta folder of a LeRobotDataset, v3.0, v2.1 or v2.0: tasks and episodes, every key typed and checked."""

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
"""our own column of the episodes table: a JSON object an episode"""

MOST_TASKS = 1_000_000

ColumnKind = Literal["whole", "number", "text", "texts", "any"]
"""whole: integers, also when pandas stored them as floating-point numbers"""


@dataclass(frozen=True)
class Clip:
    """One episode's part of one camera's video."""

    path: Path
    start: float
    """seconds from the start of the file"""
    end: float | None = None
    """seconds from the start of the file to the clip's end; None where the episodes table does not have it"""


@dataclass(frozen=True)
class EpisodeRow:
    """One episode's row."""

    index: int
    length: int
    """frames"""
    tasks: tuple[str, ...]
    """the sentences in the episodes table; () if it has none"""
    data_path: Path
    clips: Mapping[str, Clip]
    """camera -> its clip; only cameras stored as video"""
    extra: Mapping[str, Any]
    """what the collector noted, for example {"seed": 7}"""
    rows: tuple[int, int] | None = None
    """first row among all rows, and last row + 1; None where the episodes table does not have them"""


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a parquet file, or some of its columns, in this thread; OSError or an error of Arrow's when it is broken.

    The file is opened by Python, as pyarrow takes a path's name for UTF-8, whatever the locale. A file of Python's must
    not be read by pyarrow's own threads (`pq.read_table` does): they can outlive the call, and one that still holds a
    buffer of Python's while the process ends aborts it.
    """
    with path.open("rb") as file:
        return pq.ParquetFile(file).read(columns, use_threads=False)


def read_table(path: Path, columns: Mapping[str, ColumnKind]) -> pa.Table:
    """Read columns of a parquet file; DatasetError when it is broken, or a column is missing, mistyped or has gaps."""
    known = columns_of(path)
    if missing := [name for name in columns if name not in known]:
        raise DatasetError("columns are missing", where=path, got=", ".join(known), expected=", ".join(missing),
                           next_step="add them, or copy the file again")  # fmt: skip
    try:
        table = read_parquet(path, list(columns))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    for name, kind in columns.items():
        column = _plain(table.column(name))
        table = table.set_column(table.schema.get_field_index(name), name, column)
        if (column.null_count and kind != "texts") or not _is_kind(column.type, kind):
            got = f"{column.type}, {column.null_count} empty"
            raise DatasetError(
                "a column is mistyped or has gaps",
                where=f"{path} column {name}",
                got=got,
                expected=kind,
                next_step="rewrite the column, without gaps",
            )
    return table


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column without pandas' categories and polars' views."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string()) if pa.types.is_string_view(column.type) else column


def tables_in(folder: Path) -> list[Path]:
    """The parquet files one folder below `folder`, sorted; hidden ones are macOS's or of a download."""
    return sorted(folder.glob("[!.]*/[!.]*.parquet"))


def columns_of(path: Path) -> list[str]:
    """Read the names of a parquet file's columns; DatasetError when it is broken."""
    try:
        with path.open("rb") as file:
            names: list[str] = pq.read_schema(file).names
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    return names


def _unreadable(path: Path, error: Exception) -> DatasetError:
    return DatasetError("a table cannot be read", where=path, got=likely_cause(path) or error,
                        expected="a whole parquet file", next_step="copy it again")  # fmt: skip


def missing_file(path: Path, root: Path, named_by: str = "") -> DatasetError:
    """Return the error for a missing file of the dataset at `root`; `named_by`: the key of info.json for its path."""
    expected = str(path.relative_to(root)) + (f" (by {named_by} in meta/info.json)" if named_by else "")
    return DatasetError("a file of the dataset is missing", where=path, got=list_neighbours(path, root),
                        expected=expected, next_step="copy it again, or rename it back")  # fmt: skip


def _is_text(arrow: pa.DataType) -> bool:
    return pa.types.is_string(arrow) or pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow)


def _is_kind(arrow: pa.DataType, kind: ColumnKind) -> bool:
    is_text = _is_text(arrow)
    is_list = pa.types.is_list(arrow) or pa.types.is_large_list(arrow)
    is_number = pa.types.is_integer(arrow) or pa.types.is_floating(arrow)
    return {
        "whole": is_number,
        "number": is_number,
        "text": is_text,
        "texts": is_text or pa.types.is_null(arrow) or (is_list and _is_text(arrow.value_type)),
        "any": True,
    }[kind]


def _whole(value: int | float, where: object) -> int:
    """Convert a number to int; DatasetError when it is not whole."""
    if not float(value).is_integer():
        raise DatasetError("a number is not whole", where=where, got=value, expected="an integer",
                           next_step="write the true number")  # fmt: skip
    return int(value)


def read_tasks(root: Path, version: str) -> dict[int, str]:
    """Task sentences by their index, in the table's order. Indices may have gaps, as where a task was taken out."""
    if version.startswith("v2"):
        path = root / "meta" / "tasks.jsonl"
        rows = _json_lines(path, root, {"task_index": int, "task": str})
        pairs = [(row["task_index"], row["task"]) for _, row in rows]
    else:
        path = root / "meta" / "tasks.parquet"
        if not path.is_file():
            raise missing_file(path, root)
        # pandas stores the sentences as an index, nameless or under any name
        known = columns_of(path)
        others = [name for name in known if name != "task_index"]
        named = next((name for name in ("__index_level_0__", "task") if name in known), "task")
        text = others[0] if len(others) == 1 else named
        table = read_table(path, {text: "text", "task_index": "whole"})
        indices = [_whole(value, f"{path} task_index") for value in table["task_index"].to_pylist()]
        pairs = list(zip(indices, table[text].to_pylist(), strict=True))
    numbers = [index for index, _ in pairs]
    if not pairs or len({*numbers}) < len(numbers) or not 0 <= min(numbers) <= max(numbers) < MOST_TASKS:
        raise DatasetError("tasks are not numbered", where=path, got=sorted(numbers)[:20] or "no tasks",
                           expected=f"each its own task_index, 0 to {MOST_TASKS - 1}",
                           next_step="renumber them, in the rows' task_index too")  # fmt: skip
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
        got = f"{indices[gap : gap + 1] or 'none'} in place {gap}"
        if gap and indices[gap] == indices[gap - 1]:
            got = f"episode {indices[gap]} twice, in {rows[gap - 1][0]} and in {rows[gap][0]}"
        raise DatasetError("episodes are not numbered without gaps from 0", where=root / "meta", got=got, expected=gap,
                           next_step="renumber the episodes, or copy the dataset again")  # fmt: skip
    if empty := [episode.index for _, episode in rows if episode.length < 1]:
        raise DatasetError("an episode is empty", where=root / "meta", got=f"episode {empty[0]}",
                           expected="1 frame or more",
                           next_step="leave it out of the tables, and renumber the episodes after it")  # fmt: skip
    return tuple(episode for _, episode in rows), {name: UnusableCamera(error, True) for name, error in broken.items()}


EpisodeRows = tuple[list[tuple[str, EpisodeRow]], dict[str, DatasetError]]
"""every episode with the location of its row, and the broken cameras"""


def _v30_episodes(root: Path, info: Mapping[str, Any], videos: Mapping[str, str]) -> EpisodeRows:
    folder = root / "meta" / "episodes"
    paths = tables_in(folder)
    if not paths:
        raise DatasetError("the episodes table is missing", where=folder, expected="chunk-*/file-*.parquet",
                           got=sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))[:5] or "nothing",
                           next_step="copy it again, or give it back its name if it was renamed")  # fmt: skip
    episodes: list[tuple[str, EpisodeRow]] = []
    broken: dict[str, DatasetError] = {}
    for path in paths:
        known = columns_of(path)
        columns: dict[str, ColumnKind] = {"episode_index": "whole", "data/chunk_index": "whole",
                                          "data/file_index": "whole"}  # fmt: skip
        columns |= {"length": "whole"} if "length" in known or "dataset_to_index" not in known else {}
        maybe: dict[str, ColumnKind] = {EXTRA: "text", "tasks": "texts", "dataset_from_index": "whole",
                                        "dataset_to_index": "whole"}  # fmt: skip
        rows = read_table(path, columns | {key: maybe[key] for key in maybe if key in known}).to_pylist()
        clips: list[dict[str, Clip]] = [{} for _ in rows]
        for camera, key in videos.items():
            try:
                for some, clip in zip(clips, _v30_clips(root, info, key, path, known), strict=True):
                    some[camera] = clip
            except DatasetError as error:
                broken.setdefault(camera, error)
        for row, some in zip(rows, clips, strict=True):
            episodes.append((str(path), _v30_episode(root, info, path, row, some)))
    return episodes, broken


def _v30_clips(root: Path, info: Mapping[str, Any], key: str, path: Path, known: list[str]) -> Iterator[Clip]:
    """Yield one camera's clip of every row; `to_timestamp` is optional."""
    spot = f"videos/{key}/"
    columns: dict[str, ColumnKind] = {spot + "chunk_index": "whole", spot + "file_index": "whole",
                                      spot + "from_timestamp": "number"}  # fmt: skip
    columns |= {spot + "to_timestamp": "number"} if spot + "to_timestamp" in known else {}
    for row in read_table(path, columns).to_pylist():
        chunk, file = (_whole(row[spot + part], f"{path} {spot}{part}") for part in ("chunk_index", "file_index"))
        start, end = row[spot + "from_timestamp"], row.get(spot + "to_timestamp")
        yield Clip(_path_of(root, info, "video_path", video_key=key, chunk_index=chunk, file_index=file),
                   float(start), None if end is None else float(end))  # fmt: skip


def _v30_episode(
    root: Path, info: Mapping[str, Any], path: Path, row: dict[str, Any], clips: Mapping[str, Clip]
) -> EpisodeRow:
    parts = ("episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index")
    whole = {key: _whole(row[key], f"{path} {key}") for key in parts if key in row}
    span = (whole["dataset_from_index"], whole["dataset_to_index"]) if len(whole.keys() & parts[4:]) == 2 else None
    length = whole["length"] if "length" in whole or span is None else span[1] - span[0]
    data_path = _path_of(
        root, info, "data_path", chunk_index=whole["data/chunk_index"], file_index=whole["data/file_index"]
    )
    try:
        extra = json.loads(row.get(EXTRA, "{}"))
    except ValueError as error:
        where = f"{path} {EXTRA} of episode {row['episode_index']}"
        raise DatasetError("an episode's note is not JSON", where=where, got=row[EXTRA],
                           next_step="write a JSON object there, as {}") from error  # fmt: skip
    named = row.get("tasks") or ()
    tasks = (named,) if isinstance(named, str) else tuple(named)
    return EpisodeRow(whole["episode_index"], length, tasks, data_path, clips, extra, span)


def _v2_episodes(root: Path, info: Mapping[str, Any], videos: Mapping[str, str]) -> EpisodeRows:
    per_chunk = info.get("chunks_size")
    if type(per_chunk) is not int or per_chunk < 1:
        raise DatasetError("a key of info.json is missing or mistyped", where=root / "meta" / "info.json",
                           got=f"chunks_size = {per_chunk!r}", expected="int >= 1",
                           next_step="correct meta/info.json, or copy it again")  # fmt: skip
    episodes: list[tuple[str, EpisodeRow]] = []
    broken: dict[str, DatasetError] = {}
    for place, row in _json_lines(root / "meta" / "episodes.jsonl", root, {"episode_index": int, "length": int}):
        index, tasks = row["episode_index"], row.get("tasks") or []
        tasks = [tasks] if isinstance(tasks, str) else tasks
        if not isinstance(tasks, list):
            raise DatasetError("a key is missing or mistyped", where=place, got=f"tasks = {tasks!r}", expected="a list",
                               next_step="correct the line, or copy the file again")  # fmt: skip
        spot = {"episode_chunk": index // per_chunk, "episode_index": index}
        clips = {}
        for camera, key in videos.items():
            try:
                clips[camera] = Clip(_path_of(root, info, "video_path", video_key=key, **spot), 0.0)
            except DatasetError as error:
                broken.setdefault(camera, error)
        data_path = _path_of(root, info, "data_path", **spot)
        episodes.append((place, EpisodeRow(index, row["length"], tuple(map(str, tasks)), data_path, clips, {})))
    return episodes, broken


def _path_of(root: Path, info: Mapping[str, Any], key: str, **parts: Any) -> Path:
    pattern, where = info.get(key), f"{root / 'meta' / 'info.json'} {key}"
    if not isinstance(pattern, str):
        raise DatasetError(
            "a key of info.json is missing or mistyped",
            where=where,
            got=repr(pattern),
            expected="a path",
            next_step="correct meta/info.json, or copy it again",
        )
    try:
        # names of files are UTF-8, too, where the locale does not say so
        path = Path(os.fsdecode(pattern.format(**parts).encode()))
    except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
        expected = sorted(parts)
        raise DatasetError("a path pattern has an unknown part", where=where, got=pattern, expected=expected,
                           next_step="correct the pattern in meta/info.json") from error  # fmt: skip
    if path.is_absolute():
        raise DatasetError("a path pattern leads out of the dataset", where=where, got=pattern,
                           expected="a path within the dataset's folder",
                           next_step="correct the pattern in meta/info.json")  # fmt: skip
    return root / path


def _json_lines(path: Path, root: Path, kinds: Mapping[str, type]) -> list[tuple[str, dict[str, Any]]]:
    r"""Read every line's location and object. Only \n ends a line: a sentence may contain U+2028 and the like."""
    if not path.is_file():
        raise missing_file(path, root)
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DatasetError("a file of the dataset is not UTF-8", where=path, got=likely_cause(path) or error,
                           expected="JSON lines in UTF-8", next_step="save it as UTF-8") from error  # fmt: skip
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DatasetError("a line is not JSON", where=place, got=likely_cause(path) or repr(line[:100]),
                               expected="a JSON object a line", next_step="copy it again") from error  # fmt: skip
        if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in kinds.items()):
            expected = {key: kind.__name__ for key, kind in kinds.items()}
            raise DatasetError("a key is missing or mistyped", where=place, got=line[:200], expected=expected,
                               next_step="correct the line, or copy the file again")  # fmt: skip
        rows.append((place, row))
    return rows
