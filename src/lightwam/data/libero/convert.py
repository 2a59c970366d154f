"""LIBERO's demonstrations, from whatever source, into one dataset of our own standard, preprocessed as in the paper.

Pictures upright, gripper 1 open and 0 closed, steps that do nothing left out, failed demonstrations skipped. The
dataset depends on the source and the settings only: an interruption changes neither an episode nor its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32

from lightwam.config.libero_protocols import ACTION_NAMES, FPS, ROBOT, STATE_NAMES
from lightwam.config.schema import ConvertConfig
from lightwam.data.lerobot.features import FeatureNames
from lightwam.data.lerobot.writer import EpisodeNote, LeRobotWriter
from lightwam.data.libero.sources import DemoName, Orientation, Source, SourceDemo, open_source
from lightwam.errors import DatasetError
from lightwam.system.progress import Progress
from lightwam.system.workers import interrupt_as_flag

STILL = 1e-4
"""a motion whose norm is below is none (OpenVLA's threshold)"""
SLACK = 1e-3
"""by so much may a gripper's action lie outside its convention's range"""

Gripper = Literal["zero-one", "minus-one-one"]


@dataclass(frozen=True)
class ConvertReport:
    """What is in the dataset, and what was left out of it."""

    root: Path
    episodes: int
    frames: int
    no_ops: int
    """steps removed"""
    skipped: int
    """demonstrations left out"""
    new_episodes: int


def convert(
    path: Path,
    root: Path,
    config: ConvertConfig | None = None,
    say: Callable[[str], None] = print,
    names: FeatureNames | None = None,
) -> ConvertReport:
    """Converts the source at `path` into the dataset `root`; goes on with what is there.

    Ctrl-C ends the demonstration in hand, closes the dataset with all that is done, and raises KeyboardInterrupt; the
    same call continues it. Raises DatasetError when the source is broken or contradicts `config`, and when `root` holds
    something else; what is done is kept then too.
    """
    if root.resolve() == path.resolve():
        raise DatasetError("a dataset cannot be converted into itself", where=root, next_step="give another folder")
    with closing(open_source(path, names)) as source:
        work = _Work(source, root, config or ConvertConfig(), say)
        before = work.writer.num_episodes
        try:
            try:
                work.run()
            finally:
                work.writer.close()
        except KeyboardInterrupt:
            say(f"convert: stopped; {work.writer.num_episodes} episodes are safe in {root}, the same command goes on")
            raise
        return work.report(before)


def gripper_convention(values: Float32[np.ndarray, " N"], stated: str, where: str) -> Gripper:
    """Which convention these actions follow; DatasetError when they contradict the `stated` one or cannot tell.

    Values below -0.5 are of -1 open, 1 closed; values around 0 without any such are of 1 open, 0 closed.
    """
    low, high = float(values.min()), float(values.max())
    possible, got = set[Gripper](), f"{low:g} to {high:g}"
    if low >= -1 - SLACK and high <= 1 + SLACK:
        possible |= {"minus-one-one"} if low < -0.5 or low > 0.5 else set()
        possible |= {"zero-one"} if low >= -SLACK else set()
    if stated in possible or (stated == "auto" and len(possible) == 1):
        return "zero-one" if stated == "zero-one" or possible == {"zero-one"} else "minus-one-one"
    if stated == "auto" and possible:
        raise DatasetError("the gripper's actions do not tell their convention", where=where, got=got,
                           expected="both open and closed",
                           next_step="--gripper zero-one or minus-one-one")  # fmt: skip
    raise DatasetError("the gripper's actions do not follow the convention", where=where, got=got,
                       expected="0 to 1, or -1 to 1" if stated == "auto" else stated,
                       next_step=f"--gripper {min(possible)}" if possible else "mend the source's actions")  # fmt: skip


def no_ops(action: Float32[np.ndarray, "T 7"]) -> Bool[np.ndarray, " T"]:
    """Which steps do nothing: no motion, and the gripper's action is that of the last step that is kept.

    Before any is kept, no motion is enough. The rule is OpenVLA's, whose data Light-WAM was trained on.
    """
    still = np.linalg.norm(action[:, :-1], axis=1) < STILL
    idle = np.zeros(len(action), bool)
    last: float | None = None
    for step, gripper in enumerate(action[:, -1].tolist()):
        idle[step] = still[step] and last in (None, gripper)
        last = last if idle[step] else gripper
    return idle


class _Work:
    """One call's state."""

    def __init__(self, source: Source, root: Path, config: ConvertConfig, say: Callable[[str], None]) -> None:
        self.source, self.root, self.config, self.say = source, root, config, say
        self.orientation: Orientation = source.orientation if config.orientation == "auto" else config.orientation
        self.gripper = gripper_convention(source.gripper(), config.gripper, str(source.path))
        self.settings = asdict(config) | {
            "source": source.kind,
            "orientation": self.orientation,
            "gripper": self.gripper,
        }
        self.writer = LeRobotWriter(root, FPS, ROBOT, source.sizes, STATE_NAMES, ACTION_NAMES)
        self.skipped: list[DemoName] = []
        """since the last episode"""
        self.settled = self._settled(self.writer.notes)

    def run(self) -> None:
        """Converts what is not yet settled; KeyboardInterrupt, between two demonstrations, when Ctrl-C came first."""
        missing = [name for name in self.source.names if name not in self.settled]
        if not missing:
            return
        for remark in self.source.remarks:
            self.say(remark)
        total = len(self.source.names)
        with (
            interrupt_as_flag() as interrupt,
            Progress("convert", total, done=total - len(missing), unit="demo", say=self.say) as progress,
        ):
            for name in missing:
                if interrupt.pressed:
                    raise KeyboardInterrupt
                self._convert(name)
                progress.advance(str(name))

    def report(self, before: int) -> ConvertReport:
        """After `run`, with `before` episodes before it."""
        notes = self.writer.notes
        if not notes:
            raise DatasetError("no demonstration was worth keeping", where=self.source.path,
                               got=f"{len(self.skipped)} skipped", expected="one that succeeds",
                               next_step="--keep-failures keeps them all the same")  # fmt: skip
        return ConvertReport(
            root=self.root,
            episodes=len(notes),
            frames=sum(note.length for note in notes),
            no_ops=sum(note.extra["no_ops"] for note in notes),
            skipped=sum(len(note.extra["skipped"]) for note in notes) + len(self.skipped),
            new_episodes=len(notes) - before,
        )

    def _convert(self, name: DemoName) -> None:
        demo = self.source.read(name)
        idle = np.zeros(len(demo.action), bool) if self.config.keep_no_ops else no_ops(demo.action)
        failed = demo.failed and not self.config.keep_failures
        if failed or idle.all():
            self.say(f"skipped {name}: it never {'succeeds' if failed else 'moves'}")
            self.skipped.append(name)
            return
        extra = {**asdict(name), "no_ops": int(idle.sum()), "skipped": [asdict(other) for other in self.skipped],
                 "fingerprint": self.source.fingerprint(name.file), "settings": self.settings}  # fmt: skip
        self._add(demo, ~idle, extra)
        self.skipped = []

    def _add(self, demo: SourceDemo, kept: Bool[np.ndarray, " T"], extra: dict[str, Any]) -> None:
        frames = {camera: clip[kept] for camera, clip in demo.frames.items()}
        if self.orientation == "upside-down":
            frames = {camera: clip[:, ::-1, ::-1] for camera, clip in frames.items()}
        action = demo.action[kept]
        if self.gripper == "minus-one-one":
            action[:, -1] = (1 - action[:, -1]) / 2
        self.writer.add_episode(frames, demo.state[kept], action, demo.instruction, extra)

    def _settled(self, notes: Sequence[EpisodeNote]) -> set[DemoName]:
        """The demonstrations that are in the dataset or were skipped; DatasetError when they are of another source."""
        settled: set[DemoName] = set()
        known, prints = set(self.source.names), dict[str, str]()
        for index, note in enumerate(notes):
            extra, where = note.extra, f"{self.root} episode {index}"
            if extra.get("settings") != self.settings:
                raise _made_otherwise(where, extra.get("settings"), self.settings)
            name = DemoName(extra["file"], extra["demo"])
            if name not in known:
                raise _made_otherwise(where, name, f"a demonstration of {self.source.path}")
            if name.file not in prints:
                prints[name.file] = self.source.fingerprint(name.file)
            if extra["fingerprint"] != prints[name.file]:
                raise _made_otherwise(f"{where}, from {name}", extra["fingerprint"], prints[name.file])
            settled |= {name, *(DemoName(**other) for other in extra["skipped"])}
        return settled


def _made_otherwise(where: str, got: object, expected: object) -> DatasetError:
    return DatasetError("this dataset was made otherwise", where=where, got=got, expected=expected,
                        next_step="convert into another folder, or remove this one")  # fmt: skip
