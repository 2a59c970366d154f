"""Consistency checks of a LeRobotDataset's redundant columns and totals, and notes on the times of its rows.

lightwam does not use these values, but LeRobot uses some: `lightwam check dataset` reports them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from lightwam.data.lerobot.meta import Clip, EpisodeRow, columns_of, read_table
from lightwam.data.lerobot.rows import Rows
from lightwam.errors import DatasetError, first_few

SLACK = 1e-3
"""seconds: tolerance when times in the tables are compared"""


def total_problem(info: Mapping[str, Any], key: str, expected: int, root: Path) -> Iterator[DatasetError]:
    """Yield a problem when a total in info.json, such as "total_frames", differs from the tables."""
    got, noun = info.get(key, expected), key.removeprefix("total_")
    if got != expected or isinstance(got, bool):
        table, where = "tasks" if noun == "tasks" else "episodes", f"{root / 'meta' / 'info.json'} {key}"
        step = f"write {key} {expected}, or copy meta/ again if {table} are missing"
        what, expected_count = f"info.json disagrees with the {table} table", f"{expected} {noun}"
        yield DatasetError(what, where=where, got=f"{got} {noun}", expected=expected_count, next_step=step)


def task_order_problem(root: Path, version: str, tasks: Mapping[int, str]) -> Iterator[DatasetError]:
    """Yield a problem when a v3.0 table's rows are not in the order of task_index, which LeRobot takes for row numbers.

    LeRobot then uses another sentence, without an error.
    """
    if version == "v3.0" and [*tasks] != list(range(len(tasks))):
        where, step = root / "meta" / "tasks.parquet", "sort and renumber them, in the rows too: LeRobot needs it"
        yield DatasetError("tasks are not in the order of task_index", where=where, got=[*tasks][:20], next_step=step)


def column_problems(
    rows: Rows, episodes: Sequence[EpisodeRow], starts: Int64[np.ndarray, " episodes_and_1"]
) -> Iterator[DatasetError]:
    """Yield where the column `index`, or the episodes table's dataset_from_index and dataset_to_index, are wrong.

    `index` may have gaps where rows were cut out, but must rise.
    """
    for episode in episodes:
        first, last = int(starts[episode.index]), int(starts[episode.index + 1])
        if episode.rows is not None and episode.rows != (first, last):
            what = "dataset_from_index disagrees with the lengths of the episodes before"
            if episode.rows[1] - episode.rows[0] != episode.length:
                what = "dataset_from_index, dataset_to_index and length disagree"
            got = f"{episode.rows[0]} to {episode.rows[1]}, length {episode.length}"
            where, step = f"meta/episodes, episode {episode.index}", "correct dataset_from_index and dataset_to_index"
            yield DatasetError(what, where=where, got=got, expected=f"{first} to {last}", next_step=step)
    for path, others in rows.unlisted.items():
        what = "a data file has rows of episodes that the episodes table puts elsewhere"
        got, step = first_few([*map(str, others)]), "add those episodes to the table, or remove their rows"
        yield DatasetError(what, where=path, got=f"episode_index {got}", next_step=step)
    if rows.index is None or rows.broken:
        return
    if (bad := np.flatnonzero(np.diff(rows.index) <= 0)).size:
        row = int(bad[0]) + 1
        episode = episodes[int(np.searchsorted(starts, row, side="right")) - 1]
        where = f"{episode.data_path} episode {episode.index} row {row - int(starts[episode.index])}"
        what, got = "the column index must rise from row to row", f"{rows.index[row]} after {rows.index[row - 1]}"
        yield DatasetError(what, where=where, got=got, expected=row, next_step="renumber all rows 0, 1, 2, ...")


def clip_location(episode: EpisodeRow, camera: str) -> str:
    """Name the row of the episodes table that has an episode's part of a camera's video, for errors."""
    return f"meta/episodes, episode {episode.index}, camera {camera}"


def clip_problems(
    episodes: Sequence[EpisodeRow], camera: str, last: Mapping[int, float], frame_time: float
) -> Iterator[DatasetError]:
    """Yield where an episode's part of a camera's video contradicts its end, its rows, or the next episode's part.

    `last`: episode -> timestamp of its last row, for episodes without problems. Every row's picture must come before
    the next episode's first one; a clip may be longer than its rows, so its true end is not known here.
    """
    files: dict[Path, list[tuple[Clip, EpisodeRow]]] = {}
    for episode in episodes:
        clip, where = episode.clips[camera], clip_location(episode, camera)
        if not np.isfinite([clip.start, clip.end or 0.0]).all():
            got, step = f"from_timestamp {clip.start}, to_timestamp {clip.end}", "write seconds from the file's start"
            yield DatasetError("an episode's time in its video is not finite", where=where, got=got, next_step=step)
            continue
        files.setdefault(clip.path, []).append((clip, episode))
        if clip.end is not None and episode.index in last and clip.start + last[episode.index] > clip.end + SLACK:
            what, expected = (
                "from_timestamp, to_timestamp and timestamp disagree",
                f"before to_timestamp, {clip.end:.4f} s",
            )
            got, step = f"{clip.start:.4f} s + {last[episode.index]:.4f} s of the last row", "correct the wrong one"
            yield DatasetError(what, where=where, got=got, expected=expected, next_step=step)
    for path, clips in files.items():
        clips.sort(key=lambda pair: pair[0].start)
        for (clip, episode), (after, other) in pairwise(clips):
            row = clip.start + last.get(episode.index, 0.0)
            end = row if clip.end is None else max(row, clip.end)
            if row > after.start - SLACK or end > after.start + 0.25 * frame_time:
                got = f"episode {episode.index} {clip.start:.4f} to {end:.4f} s, episode {other.index} from "
                got, step = f"{got}{after.start:.4f} s", "correct from_timestamp and to_timestamp in meta/episodes"
                yield DatasetError("two episodes overlap in a video", where=str(path), got=got, next_step=step)


def table_problems(root: Path) -> Iterator[DatasetError]:
    """Yield where a table of episodes (v3.0) is in a file with other numbers than its own columns have."""
    names = ("meta/episodes/chunk_index", "meta/episodes/file_index")
    for path in sorted((root / "meta" / "episodes").glob("chunk-*/file-*.parquet")):
        if not {*names} <= {*columns_of(path)}:
            continue
        table = read_table(path, dict.fromkeys(names, "integer"))
        stated = {tuple(map(int, pair)) for pair in zip(*(table[name].to_pylist() for name in names), strict=True)}
        numbers = re.findall(r"\d+", f"{path.parent.name} {path.stem}")
        if others := sorted(stated - {tuple(map(int, numbers))}):
            got, step = f"chunk_index, file_index {others[0]}", "rename the file back, or correct the columns"
            yield DatasetError("a table of episodes has another file's numbers", where=path, got=got, next_step=step)


def time_notes(
    timestamp: Float64[np.ndarray, " N"], starts: Int64[np.ndarray, " episodes_and_1"], fps: float
) -> Iterator[str]:
    """Yield notes on rows that are not 1 / fps apart: training takes each row for one control step."""
    steps = np.diff(timestamp)
    inside = np.ones(len(steps), bool)
    inside[starts[1:-1] - 1] = False  # from one episode to the next
    if not inside.any():
        return
    usual = float(np.median(steps[inside]))
    if abs(usual * fps - 1) > 0.1 and usual > 0:
        apart = f"rows are {usual:.4f} s apart, {1 / usual:.4g} a second, but info.json says {fps:g} fps"
        yield f"{apart}: each row is one control step"
    uneven = np.flatnonzero(inside & (np.abs(steps - usual) > 0.1 / fps))
    if uneven.size:
        episodes = np.searchsorted(starts, uneven, side="right") - 1
        first, row = int(episodes[0]), int(uneven[0] - starts[episodes[0]])
        many = f"rows of {len(np.unique(episodes))} of {len(starts) - 1} episodes are not evenly spaced in time"
        example = f"in episode {first} row {row + 1} comes {steps[uneven[0]]:.4f} s after row {row}, not {usual:.4f} s"
        yield f"{many} ({example}): training treats each gap as one control step"
    late = np.flatnonzero(timestamp[starts[:-1]] > 0.5 / fps)
    if late.size:
        example = f"episode {int(late[0])} at {timestamp[starts[late[0]]]:.4f} s"
        many = f"rows of {len(late)} of {len(starts) - 1} episodes begin later than their video"
        yield f"{many} ({example}): earlier pictures are not read"
