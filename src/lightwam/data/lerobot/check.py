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
        kinds: dict[str, list[DatasetError]] = {}
        for problem in self.problems:
            kinds.setdefault(problem.what, []).append(problem)
        lines = []
        for what, alike in kinds.items():
            lines += [str(problem) for problem in alike[:MAX_ALIKE]]
            if len(alike) > MAX_ALIKE:
                lines.append(f"{what}: {len(alike) - MAX_ALIKE} more of this kind")
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
    """Yield a note if episodes are in another order in a camera's videos: two of one length may have been exchanged."""
    clips = [episode.clips[camera] for episode in dataset.episodes if camera in episode.clips]
    for number, (before, clip) in enumerate(pairwise(clips)):
        if (clip.path, clip.start) < (before.path, before.start):
            order = f"episode {number + 1} is before episode {number} in the videos of camera {camera}"
            yield f"{order}: check that its pictures are its own"
            return


def _notes(dataset: LeRobotDataset, rows: Rows) -> list[str]:
    unused = [(name, left.reason) for name, left in dataset.left_out.items() if not left.broken]
    notes = [f"camera {name} is left out: {reason.what} ({reason.got})" for name, reason in unused]
    if not dataset.state_dim:
        proposal = dataset.state_proposal()
        more = f"; if it has one, {proposal}" if proposal else ""
        notes.append(f"there is no observation.state: a robot without a state{more}")
    notes += [note for camera in dataset.cameras for note in _order_notes(dataset, camera)]
    used = {episode.data_path for episode in dataset.episodes}
    for path in tables_in(dataset.root / "data"):
        if path not in used:
            notes.append(f"{path} belongs to no episode and is not used (LeRobot uses it)")
    for task in [] if rows.broken else sorted({*rows.vectors.frame_task.tolist()}):
        if 0 <= task < len(dataset.tasks) and not dataset.tasks[task].strip():
            notes.append(f"task {task} is an empty sentence, which training refuses: describe it in meta/tasks")
    if not rows.broken and rows.vectors.timestamp is not None:
        notes += time_notes(rows.vectors.timestamp, dataset.episode_start, dataset.fps)
    return notes
