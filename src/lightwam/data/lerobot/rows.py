"""The rows of a LeRobotDataset: state, action, task and time of every frame, and checks that they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Float64, Int64

from lightwam.data.lerobot.features import ACTION, STATE, FeatureNames
from lightwam.data.lerobot.meta import ColumnKind, EpisodeRow, columns_of, missing_file, read_table
from lightwam.errors import DatasetError, first_few

OnProblem = Callable[[DatasetError], None]
"""handles a problem: raises it, or collects it so that reading continues"""
INDICES = ("episode_index", "task_index")
OPTIONAL = ("timestamp", "frame_index", "index")
"""columns that may be missing"""


def raise_problem(problem: DatasetError) -> None:
    """Raise the problem: the `OnProblem` for using a dataset, not checking it."""
    raise problem


@dataclass(frozen=True)
class Vectors:
    """The numbers of all frames, episode after episode, in robot units."""

    state: Float32[np.ndarray, "N P"]
    action: Float32[np.ndarray, "N A"]
    task_index: Int64[np.ndarray, " episodes"]
    """task of every episode's first frame"""
    frame_task: Int64[np.ndarray, " N"]
    """task of every frame: it may change within an episode"""
    timestamp: Float64[np.ndarray, " N"] | None
    """seconds from the episode's start in its videos; None for a dataset without videos and timestamps"""


@dataclass(frozen=True)
class Rows:
    """The result of `read_rows`."""

    vectors: Vectors
    index: Int64[np.ndarray, " N"] | None
    """the column `index`, if every data file has it"""
    broken: frozenset[int]
    """episodes with a problem; their values stay zero"""
    unlisted: Mapping[Path, tuple[int, ...]]
    """data file -> episodes with rows in it, but not by the episodes table"""


@dataclass(frozen=True)
class Layout:
    """The parts of a dataset that `read_rows` uses."""

    root: Path
    episodes: Sequence[EpisodeRow]
    starts: Int64[np.ndarray, " episodes_and_1"]
    """first row of every episode, and the number of rows"""
    names: FeatureNames
    state_dim: int
    action_dim: int
    tasks: Mapping[int, str]
    """sentences by task_index"""
    has_videos: bool


def read_rows(layout: Layout, on_problem: OnProblem = raise_problem) -> Rows:
    """Read every data file's rows; problems go to `on_problem`, and an episode with a problem keeps zeros."""
    count = int(layout.starts[-1])
    try:
        state = np.zeros((count, layout.state_dim), np.float32)
        action = np.zeros((count, layout.action_dim), np.float32)
    except MemoryError as error:
        longest = max(layout.episodes, key=lambda episode: episode.length)
        got, step = f"{count}, of which {longest.length} in episode {longest.index}", "correct length in meta/episodes"
        raise DatasetError("more frames than memory holds", where=layout.root, got=got, next_step=step) from error
    task, time, index = np.zeros(count, np.int64), np.zeros(count, np.float64), np.zeros(count, np.int64)
    has_time = has_index = True
    broken: set[int] = set()
    unlisted: dict[Path, tuple[int, ...]] = {}
    for path, episodes in groupby(layout.episodes, lambda episode: episode.data_path):
        try:
            table = _Table(path, layout)
        except DatasetError as error:
            on_problem(error)
            broken |= {episode.index for episode in episodes}
            continue
        unlisted |= table.unlisted()
        has_time, has_index = has_time and table.time is not None, has_index and table.index is not None
        for episode in episodes:
            if problems := [*table.problems(episode)]:
                broken.add(episode.index)
                for problem in problems:
                    on_problem(problem)
                continue
            rows, span = table.rows_of(episode), slice(*layout.starts[episode.index : episode.index + 2])
            state[span], action[span], task[span] = table.state[rows], table.action[rows], table.task[rows]
            time[span] = 0 if table.time is None else table.time[rows]
            index[span] = 0 if table.index is None else table.index[rows]
    vectors = Vectors(state, action, task[layout.starts[:-1]], task, time if has_time else None)
    return Rows(vectors, index if has_index else None, frozenset(broken), unlisted)


class _Table:
    """The rows of one data file."""

    def __init__(self, path: Path, layout: Layout) -> None:
        if not path.is_file():
            raise missing_file(path, layout.root, "data_path")
        names = layout.names
        dims = {names.state: layout.state_dim} if layout.state_dim else {}
        dims |= {names.action: layout.action_dim} if layout.action_dim else {}
        known = columns_of(path)
        optional = [name for name in OPTIONAL if name in known]
        numbers: dict[str, ColumnKind] = {**dict.fromkeys(INDICES, "integer"), **dict.fromkeys(optional, "any")}
        vectors: dict[str, ColumnKind] = dict.fromkeys(dims, "any")
        table = read_table(path, vectors | numbers)
        self.path, self._layout = path, layout
        columns = {name: _matrix(table, name, dim, path) for name, dim in dims.items()}
        columns |= {name: _matrix(table, name, 1, path)[:, 0] for name in numbers}
        nothing = np.zeros((len(table), 0), np.float32)
        self.state, self.action = columns.get(names.state, nothing), columns.get(names.action, nothing)
        self.time = columns["timestamp"].astype(np.float64) if "timestamp" in columns else None
        integers = {name: _integers(columns[name], f"{path} column {name}") for name in numbers if name != "timestamp"}
        self.task, self.frame, self.index = integers["task_index"], integers.get("frame_index"), integers.get("index")
        self._order = np.argsort(integers["episode_index"], kind="stable")
        self._episode = integers["episode_index"][self._order]
        if self.time is None and layout.has_videos:
            step = "add the row's seconds in the episode's video (frame_index / fps, if no row was removed)"
            raise DatasetError("the column timestamp is missing", where=path, got=known, next_step=step)

    def rows_of(self, episode: EpisodeRow) -> Int64[np.ndarray, " T"]:
        """Return the numbers of the episode's rows, in the file's order."""
        first, last = np.searchsorted(self._episode, [episode.index, episode.index + 1])
        return self._order[first:last]

    def unlisted(self) -> dict[Path, tuple[int, ...]]:
        """Return {this file: episodes with rows in it that the episodes table puts elsewhere}; {} without such rows."""
        listed = [episode.index for episode in self._layout.episodes if episode.data_path == self.path]
        others = np.setdiff1d(self._episode, listed).tolist()
        return {self.path: tuple(others)} if others else {}

    def problems(self, episode: EpisodeRow) -> Iterator[DatasetError]:
        """Yield everything that is wrong with an episode's rows."""
        rows, where = self.rows_of(episode), f"{self.path} episode {episode.index}"
        if len(rows) != episode.length:
            yield self._other_length(episode, len(rows), where)
            return
        if self.time is not None:
            yield from _time_problems(self.time[rows], None if self.frame is None else self.frame[rows], where)
        for name, values in ((STATE, self.state[rows]), (ACTION, self.action[rows])):
            yield from not_finite(values, f"{where} {name}")
        yield from self._task_problems(self.task[rows], episode, where)

    def _other_length(self, episode: EpisodeRow, got: int, where: str) -> DatasetError:
        if got:
            return other_length(where, got, episode.length)
        others = {other.data_path for other in self._layout.episodes} - {self.path}
        for path in sorted(path for path in others if path.is_file()):
            if (read_table(path, {"episode_index": "integer"})["episode_index"].to_numpy() == episode.index).any():
                what = "an episode's rows are in another file than the tables say"
                return DatasetError(what, where=where, got=path, expected=self.path, next_step="rename the file back")
        rows = f"rows of episodes {np.unique(self._episode)[:5].tolist()}"
        what, step = "a data file lacks an episode", "was a file renamed or swapped? else copy the dataset again"
        return DatasetError(what, where=where, got=rows, expected=episode.index, next_step=step)

    def _task_problems(self, task: Int64[np.ndarray, " T"], episode: EpisodeRow, where: str) -> Iterator[DatasetError]:
        tasks = self._layout.tasks
        for index in np.unique(task).tolist():
            if index not in tasks:
                expected = "one of " + first_few([*map(str, sorted(tasks))], 20)
                what, step = "a task_index has no sentence", "add it to meta/tasks, or correct the rows' task_index"
                yield DatasetError(what, where=where, got=index, expected=expected, next_step=step)
            elif episode.tasks and tasks[index] not in episode.tasks:
                what, got = "tables disagree on an episode's task", f"task_index {index}, {tasks[index]!r}"
                step = f"correct it, or meta/episodes, where it is {' or '.join(map(repr, episode.tasks))}"
                yield DatasetError(what, where=where, got=got, next_step=step)


def read_flag(layout: Layout, columns: Sequence[str]) -> Bool[np.ndarray, " N"]:
    """Read a column of booleans (or 0 and 1) of all frames: the first of `columns` that the data files have.

    DatasetError when they have none of them, or it holds other values.
    """
    flags = np.zeros(int(layout.starts[-1]), np.bool_)
    for path, episodes in groupby(layout.episodes, lambda episode: episode.data_path):
        known = columns_of(path)
        name = next((name for name in columns if name in known), "")
        if not name:
            raise DatasetError("a column is missing", where=path, got=known, expected=" or ".join(columns))
        table = read_table(path, {name: "any", "episode_index": "integer"})
        values, owner = _flat(table.column(name)), table["episode_index"].to_numpy()
        if len(values) != len(owner) or not np.isin(values, (0, 1)).all():
            raise DatasetError("a column must hold true or false", where=f"{path} column {name}", got=values[:5])
        for episode in episodes:
            rows = np.flatnonzero(owner == episode.index)
            if len(rows) != episode.length:
                raise other_length(f"{path} episode {episode.index}", len(rows), episode.length)
            flags[slice(*layout.starts[episode.index : episode.index + 2])] = values[rows] != 0
    return flags


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of numbers or booleans, or of lists of one each, without gaps, as an array."""
    plain = column.combine_chunks()
    if pa.types.is_list(plain.type) or pa.types.is_large_list(plain.type) or pa.types.is_fixed_size_list(plain.type):
        plain = plain.flatten()
    return np.asarray([] if plain.null_count else plain.to_numpy(zero_copy_only=False))


def _time_problems(
    time: Float64[np.ndarray, " T"], frame: Int64[np.ndarray, " T"] | None, where: str
) -> Iterator[DatasetError]:
    """Yield what is wrong with the times of an episode's rows, and where frame_index contradicts them.

    frame_index may count the rows, or grow with time where rows were cut out later and it was not renumbered.
    """
    if (bad := np.flatnonzero(~np.isfinite(time))).size:
        where, step = f"{where} row {int(bad[0])}", "write the row's seconds from the episode's start"
        yield DatasetError("a timestamp is not finite", where=where, got=float(time[bad[0]]), next_step=step)
        return
    if (bad := np.flatnonzero(np.diff(time) < 0)).size:
        row = int(bad[0]) + 1
        got, step = f"timestamp {time[row]:.4f} s after {time[row - 1]:.4f} s", "sort by episode_index and timestamp"
        yield DatasetError("rows must be in order of time", where=f"{where} row {row}", got=got, next_step=step)
        return
    if frame is None or not (bad := np.flatnonzero(frame != np.arange(len(frame)))).size:
        return
    rate = frame[-1] / time[-1] if time[-1] > 0 else 0.0
    if (np.diff(frame) > 0).all() and np.abs(time * rate - frame).max() < 0.25:
        return
    row = int(bad[0])
    what, got = "frame_index and timestamp disagree", f"frame_index {frame[row]} at {time[row]:.4f} s"
    step = "timestamp selects a row's picture (as in LeRobot): correct it, or write frame_index as 0, 1, 2, ..."
    expected = f"{row}, or a frame_index that grows with timestamp"
    yield DatasetError(what, where=f"{where} row {row}", got=got, expected=expected, next_step=step)


def not_finite(values: np.ndarray, where: str) -> Iterator[DatasetError]:
    """Yield a problem naming the first frame and dimension of values [T, D] that is NaN or infinite."""
    if len(bad := np.argwhere(~np.isfinite(values))):
        frame, dim = map(int, bad[0])
        where, got = f"{where} frame {frame} dim {dim}", f"{values[frame, dim]}, the first of {len(bad)} such"
        yield DatasetError("a value is not finite", where=where, got=got, next_step="repair or leave out this episode")


def other_length(where: str, got: int, expected: int) -> DatasetError:
    """Return the problem that a file's rows of an episode are not as many as in the episodes table."""
    what = "an episode has another length than the episodes table says"
    step = "set length in meta/episodes, or copy the file again if it was cut short"
    return DatasetError(what, where=where, got=got, expected=expected, next_step=step)


def _integers(values: np.ndarray, where: str) -> Int64[np.ndarray, " rows"]:
    if (bad := np.flatnonzero(~np.isfinite(values) | (values != np.rint(values)))).size:
        where, got = f"{where} row {bad[0]}", float(values[bad[0]])
        raise DatasetError("a column must hold integers", where=where, got=got, next_step="write it as int64")
    return values.astype(np.int64)


def _matrix(table: pa.Table, name: str, dim: int, path: Path) -> np.ndarray:
    """Convert a column of numbers (dim 1) or of lists of `dim` numbers to an array [rows, dim]."""
    pieces, where, kind = [], f"{path} column {name}", table.schema.field(name).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    number = kind.value_type if is_list else kind
    if not (pa.types.is_floating(number) or pa.types.is_integer(number)):
        what = f"a column must hold lists of {dim} numbers"
        raise DatasetError(what, where=where, got=kind, next_step="write the dataset again with them")
    for chunk in table.column(name).chunks:
        widths = [kind.list_size if pa.types.is_fixed_size_list(kind) else 1]
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            widths = np.unique(chunk.value_lengths().to_numpy(zero_copy_only=False)).tolist()
        if chunk.null_count or widths not in ([], [dim]):
            got = "rows without a value" if chunk.null_count else f"widths {widths}"
            what, step = "a column has another width than info.json says", "correct the shape there, or the rows"
            raise DatasetError(what, where=where, got=got, expected=dim, next_step=step)
        values = chunk.flatten() if is_list else chunk
        if values.null_count:
            got, step = f"{values.null_count} empty values", "fill them, or leave those episodes out"
            raise DatasetError("a column has gaps", where=where, got=got, next_step=step)
        pieces.append(values.to_numpy(zero_copy_only=False).reshape(len(chunk), dim))
    return np.concatenate(pieces) if pieces else np.empty((0, dim), np.float32)
