"""The check of a whole LeRobotDataset (`lightwam check dataset`): all problems at once, notes on harmless oddities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

NUM_ALIKE = 5
"""problems of one kind that are printed in full"""


@dataclass(frozen=True)
class CheckResult:
    """The result of `check_dataset`."""

    problems: tuple[DatasetError, ...]
    notes: tuple[str, ...]
    """oddities that are not problems"""
    dataset: LeRobotDataset | None
    """None where too little can be read to open it"""

    def lines(self) -> list[str]:
        """Format the problems, each with its fix; of one kind only the first few and a count."""
        kinds: dict[str, list[DatasetError]] = {}
        for problem in self.problems:
            kinds.setdefault(problem.what, []).append(problem)
        lines = []
        for what, alike in kinds.items():
            lines += [str(problem) for problem in alike[:NUM_ALIKE]]
            if len(alike) > NUM_ALIKE:
                lines.append(f"{what}: {len(alike) - NUM_ALIKE} more of this kind")
        return lines


def check_dataset(
    root: Path, names: FeatureNames | None = None, progress: Callable[[int, int], None] | None = None
) -> CheckResult:
    """Read every table and picture of the dataset at `root`, continuing after each problem as far as possible.

    `progress` is called with the pictures done and their total.
    """
    problems: list[DatasetError] = []
    try:
        dataset = LeRobotDataset(root, names, problems.append)
    except DatasetError as problem:
        every = [*problems, problem, *_unreadable(root)]
        return CheckResult(tuple({str(one): one for one in every}.values()), (), None)
    try:
        rows = dataset.rows(problems.append)
    except DatasetError as problem:
        return CheckResult((*problems, problem), (), None)
    problems += dataset.problems(rows, progress)
    once = {str(problem): problem for problem in problems}
    return CheckResult(tuple(once.values()), tuple(_notes(dataset, rows)), dataset)


def _unreadable(root: Path) -> Iterator[DatasetError]:
    """Yield a problem for every table and video that cannot be opened, where too little else can be read."""
    for path in tables_in(root / "data"):
        try:
            columns_of(path)
        except DatasetError as problem:
            yield problem
    for path in sorted((root / "videos").rglob("[!.]*.mp4")):
        try:
            VideoReader(path).close()
        except DatasetError as problem:
            yield problem


def _order_notes(dataset: LeRobotDataset, camera: str) -> Iterator[str]:
    """Say where the episodes lie in another order in a camera's videos: two of equal length may have been exchanged."""
    clips = [episode.clips[camera] for episode in dataset.episodes if camera in episode.clips]
    for number, (before, clip) in enumerate(pairwise(clips)):
        if (clip.path, clip.start) < (before.path, before.start):
            yield (f"episode {number + 1} lies before episode {number} in the videos of camera {camera}: look whether "
                   "its pictures are its own")  # fmt: skip
            return


def _notes(dataset: LeRobotDataset, rows: Rows) -> list[str]:
    notes = [f"camera {name} is left out: {left.reason.what} ({left.reason.got})"
             for name, left in dataset.left_out.items() if not left.broken]  # fmt: skip
    if not dataset.state_dim:
        proposal = dataset.state_proposal()
        more = f"; if it has one, {proposal}" if proposal else ""
        notes.append(f"there is no observation.state: a robot without a state{more}")
    notes += [note for camera in dataset.cameras for note in _order_notes(dataset, camera)]
    used = {episode.data_path for episode in dataset.episodes}
    for path in tables_in(dataset.root / "data"):
        if path not in used:
            notes.append(f"{path} belongs to no episode and is not read (LeRobot reads it)")
    for task in [] if rows.broken else sorted({*rows.vectors.frame_task.tolist()}):
        if 0 <= task < len(dataset.tasks) and not dataset.tasks[task].strip():
            notes.append(f"task {task} is an empty sentence, which training refuses: describe it in meta/tasks")
    if not rows.broken and rows.vectors.timestamp is not None:
        notes += time_notes(rows.vectors.timestamp, dataset.episode_start, dataset.fps)
    return notes
