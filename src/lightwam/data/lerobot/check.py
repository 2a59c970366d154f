"""The check of all of a LeRobotDataset (`lightwam check dataset`): every problem, and notes on harmless oddities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from lightwam.data.lerobot.columns import time_notes
from lightwam.data.lerobot.features import FeatureNames
from lightwam.data.lerobot.meta import columns_of, tables_in
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.lerobot.rows import Rows
from lightwam.data.lerobot.video import VideoReader
from lightwam.errors import DatasetError
from lightwam.system.progress import OnProgress, no_progress

MAX_ALIKE = 5
"""problems of one kind that are printed in full"""


@dataclass(frozen=True)
class CheckResult:
    """The result of `check_dataset`."""

    problems: tuple[DatasetError, ...]
    notes: tuple[str, ...]
    """oddities that are not problems"""
    dataset: LeRobotDataset | None
    """None if too little can be read to open it"""

    def lines(self) -> list[str]:
        """Format the problems, each with its fix; of one kind only the first few and a count."""
        lines = []
        for what in dict.fromkeys(problem.what for problem in self.problems):
            alike = [str(problem) for problem in self.problems if problem.what == what]
            more = [f"{what}: {len(alike) - MAX_ALIKE} more of this kind"] if len(alike) > MAX_ALIKE else []
            lines += alike[:MAX_ALIKE] + more
        return lines


def check_dataset(root: Path, names: FeatureNames | None = None, progress: OnProgress = no_progress) -> CheckResult:
    """Read every table and picture of the dataset at `root`, continuing after each problem as far as possible.

    `progress` counts pictures.
    """
    problems: list[DatasetError] = []
    try:
        dataset = LeRobotDataset(root, names, problems.append)
    except DatasetError as problem:
        return CheckResult(_distinct([*problems, problem, *_unreadable(root)]), (), None)
    try:
        rows = dataset.rows(problems.append)
    except DatasetError as problem:
        return CheckResult((*problems, problem), (), None)
    problems += dataset.problems(rows, progress)
    return CheckResult(_distinct(problems), tuple(_notes(dataset, rows)), dataset)


def _distinct(problems: list[DatasetError]) -> tuple[DatasetError, ...]:
    return tuple({str(problem): problem for problem in problems}.values())


def _unreadable(root: Path) -> Iterator[DatasetError]:
    """Yield a problem for every table and video that cannot be opened."""
    for path in [*tables_in(root / "data"), *sorted((root / "videos").rglob("[!.]*.mp4"))]:
        try:
            if path.suffix == ".mp4":
                VideoReader(path).close()
            else:
                columns_of(path)
        except DatasetError as problem:
            yield problem


def _order_notes(dataset: LeRobotDataset, camera: str) -> list[str]:
    """Note if episodes are in another order in a camera's videos: two of one length may have been exchanged."""
    starts = [(e.clips[camera].path, e.clips[camera].start) for e in dataset.episodes if camera in e.clips]
    late = [number for number, (before, start) in enumerate(pairwise(starts)) if start < before]
    order = "episode {} is before episode {} in the videos of camera {}: check that its pictures are its own"
    return [order.format(number + 1, number, camera) for number in late[:1]]


def _notes(dataset: LeRobotDataset, rows: Rows) -> list[str]:
    unused = [(name, left.reason) for name, left in dataset.left_out.items() if not left.broken]
    notes = [f"camera {name} is left out: {reason.what} ({reason.got})" for name, reason in unused]
    if not dataset.state_dim:
        proposal = dataset.state_proposal()
        more = f"; if it has one, {proposal}" if proposal else ""
        notes.append(f"there is no observation.state: a robot without a state{more}")
    notes += [note for camera in dataset.cameras for note in _order_notes(dataset, camera)]
    used = {episode.data_path for episode in dataset.episodes}
    unused_tables = [path for path in tables_in(dataset.root / "data") if path not in used]
    notes += [f"{path} belongs to no episode and is not used (LeRobot uses it)" for path in unused_tables]
    for task in [] if rows.broken else sorted({*rows.vectors.frame_task.tolist()}):
        if 0 <= task < len(dataset.tasks) and not dataset.tasks[task].strip():
            notes.append(f"task {task} is an empty sentence, which training refuses: describe it in meta/tasks")
    if not rows.broken and rows.vectors.timestamp is not None:
        notes += time_notes(rows.vectors.timestamp, dataset.episode_start, dataset.fps)
    return notes
