"""Conversion of RoboTwin's demonstrations, in either layout, into one dataset.

Every file is read, checked and encoded by one of several processes; episodes are kept in the source's order. The
dataset depends on the source and the settings only: an interruption or the number of processes changes no episode.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightwam.config.commands import RobotwinConvertConfig
from lightwam.config.robotwin_tasks import FRAME_HZ, joint_names
from lightwam.data.lerobot.video import encode_video
from lightwam.data.lerobot.writer import EpisodeVectors, LeRobotWriter, picture_stats, sample
from lightwam.data.robotwin import hdf5
from lightwam.data.robotwin.sources import NO_SENTENCE, EpisodeFile, differences, find_episodes
from lightwam.errors import DatasetError
from lightwam.system.files import explain_disk_errors
from lightwam.system.jobs import job_runner
from lightwam.system.progress import Progress

FPS = round(FRAME_HZ)
"""LeRobot's rate is a whole number; every episode's `extra` has the true one"""
ROBOT = "robotwin"
MAX_LISTED = 5
"""problems of a file in an error"""


@dataclass(frozen=True)
class ConvertReport:
    """The counts of a conversion."""

    root: Path
    episodes: int
    frames: int
    new_episodes: int
    tasks: int
    sentences: int
    """different ones"""


def convert(
    source: Path, root: Path, config: RobotwinConvertConfig | None = None, say: Callable[[str], None] = print
) -> ConvertReport:
    """Convert the demonstrations in `source` into the dataset `root`, or continue an earlier conversion.

    Ctrl-C closes the dataset with all finished episodes and raises KeyboardInterrupt; the same call continues.
    DatasetError when a file is broken or differs from the first, or `root` holds something else; finished episodes are
    kept then too.
    """
    config = config or RobotwinConvertConfig()
    files = find_episodes(source, config.configs)
    first = hdf5.scan(files[0].path)
    _refuse(files[0], first.problems)
    names = joint_names(first.arm_joints)
    writer = LeRobotWriter(root, FPS, ROBOT, first.sizes, names, names)
    before = writer.num_episodes
    try:
        try:
            missing = files[_num_done(writer, files, config) :]
            work = _Encoder(writer.incoming, config.instructions, first.arm_joints, dict(first.sizes))
            _run(writer, missing, work, config.workers, say)
        finally:
            writer.close()
    except KeyboardInterrupt:
        say(f"convert: stopped; {writer.num_episodes} episodes are saved in {root}, the same command continues")
        raise
    notes = writer.notes
    return ConvertReport(
        root=root,
        episodes=len(notes),
        frames=sum(note.length for note in notes),
        new_episodes=len(notes) - before,
        tasks=len({note.extra["task"] for note in notes}),
        sentences=len({note.task for note in notes}),
    )


@dataclass(frozen=True)
class _Encoded:
    """An episode whose videos are in `folder`."""

    folder: Path
    vectors: EpisodeVectors
    pictures: Mapping[str, Any]
    extra: Mapping[str, Any]


@dataclass(frozen=True)
class _Encoder:
    """A worker that turns one file at a time into videos and numbers."""

    incoming: Path
    split: hdf5.Split
    arm_joints: int
    sizes: Mapping[str, tuple[int, int]]

    def __call__(self, job: tuple[int, EpisodeFile]) -> _Encoded:
        index, file = job
        found = hdf5.scan(file.path)
        _refuse(file, found.problems or differences(found, self.arm_joints, self.sizes))
        said = hdf5.sentences(file.path, self.split)
        _refuse(file, [] if said else [f"{self.split} {NO_SENTENCE}"])
        assert found.layout is not None
        folder = self.incoming / f"convert_{index:06d}.draft"
        shutil.rmtree(folder, ignore_errors=True)
        pictures = {}
        with explain_disk_errors(folder, DatasetError):
            folder.mkdir(parents=True)
            for camera in self.sizes:
                clip = hdf5.frames(file.path, found.layout, camera, found.length)
                encode_video(folder / f"{camera}.mp4", clip, FPS)
                pictures[camera] = picture_stats(sample(clip))
        extra = {
            **_identity(file, self.split),
            "layout": found.layout.name,
            "task": file.task,
            "config": file.config,
            "frame_hz": FRAME_HZ,
            "source_label_hz": found.label_hz,
        }
        sentence = said[hdf5.episode_number(file.path) % len(said)]
        return _Encoded(folder, EpisodeVectors(found.state, found.action, sentence, {}), pictures, extra)


def _run(
    writer: LeRobotWriter, files: Sequence[EpisodeFile], work: _Encoder, workers: int, say: Callable[[str], None]
) -> None:
    """Convert the files and keep them in their order; an episode that is finished early waits in its folder."""
    if not files:
        return
    done, waiting = writer.num_episodes, dict[int, _Encoded]()
    todo = [(index, file) for index, file in enumerate(files, done)]
    with (
        Progress("convert", done + len(files), done=done, unit="ep", say=say) as progress,
        job_runner("convert", work, min(workers, len(files)), say=say) as jobs,
    ):
        for finished in jobs.run(todo):
            waiting[finished.job[0]] = finished.answer
            while (episode := waiting.pop(writer.num_episodes, None)) is not None:
                writer.keep(episode.folder, episode.vectors, episode.pictures, episode.extra)
                progress.advance(episode.extra["file"])


def _identity(file: EpisodeFile, split: hdf5.Split) -> dict[str, Any]:
    """Return what an earlier conversion must have had in common with this one."""
    return {"file": file.name, "bytes": file.path.stat().st_size, "instructions": split}


def _num_done(writer: LeRobotWriter, files: Sequence[EpisodeFile], config: RobotwinConvertConfig) -> int:
    """Return how many files were converted; DatasetError when the dataset is of others, or of other settings."""
    for index, note in enumerate(writer.notes):
        expected = _identity(files[index], config.instructions) if index < len(files) else None
        got = {key: note.extra.get(key) for key in ("file", "bytes", "instructions")}
        if got != expected:
            what, where = "this dataset has another source or settings", f"{writer.root} episode {index}"
            step = "convert into another folder, or remove this one"
            raise DatasetError(what, where=where, got=got, expected=expected or "no more episodes", next_step=step)
    return len(writer.notes)


def _refuse(file: EpisodeFile, problems: Sequence[str]) -> None:
    """Raise DatasetError for a file with problems."""
    if problems:
        step = "lightwam check dataset SOURCE lists all problems of all files; correct them, or remove those files"
        got = "\n    ".join(problems[:MAX_LISTED])
        raise DatasetError("a demonstration cannot be converted", where=file.path, got=got, next_step=step)
