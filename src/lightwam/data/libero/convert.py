"""Conversion of LIBERO's demonstrations, from any source, into one dataset, preprocessed as in the paper.

Pictures are upright, the gripper is 1 open and 0 closed, steps that do nothing are removed, failed demonstrations are
skipped. The dataset depends on the source and the settings only: an interruption changes no episode and no order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32

from lightwam.config.commands import ConvertConfig
from lightwam.config.libero_protocols import ACTION_NAMES, FPS, ROBOT, STATE_NAMES
from lightwam.data.lerobot.features import FeatureNames
from lightwam.data.lerobot.writer import EpisodeNote, LeRobotWriter
from lightwam.data.libero.hdf5 import Demo
from lightwam.data.libero.sources import DemoName, Orientation, Source, open_source
from lightwam.errors import DatasetError
from lightwam.system.progress import Progress
from lightwam.system.workers import interrupt_as_flag

STILL = 1e-4
"""norm below which an action is no motion (OpenVLA's threshold)"""
SLACK = 1e-3
"""tolerance of the range of a gripper's action"""

Gripper = Literal["zero-one", "minus-one-one"]


@dataclass(frozen=True)
class ConvertReport:
    """The counts of a conversion."""

    root: Path
    episodes: int
    frames: int
    no_ops: int
    """steps removed"""
    skipped: int
    """demonstrations that were not converted"""
    new_episodes: int


def convert(
    path: Path,
    root: Path,
    config: ConvertConfig | None = None,
    say: Callable[[str], None] = print,
    names: FeatureNames | None = None,
) -> ConvertReport:
    """Convert the source at `path` into the dataset `root`, or continue an earlier conversion.

    Ctrl-C finishes the current demonstration, closes the dataset, and raises KeyboardInterrupt; the same call continues
    it. DatasetError when the source is broken or contradicts `config`, or when `root` holds something else; episodes
    that are finished are kept.
    """
    if root.resolve() == path.resolve():
        raise DatasetError("a dataset cannot be converted into itself", where=root, next_step="give another folder")
    with closing(open_source(path, names)) as source:
        conversion = _Conversion(source, root, config or ConvertConfig(), say)
        before = conversion.writer.num_episodes
        try:
            try:
                conversion.run()
            finally:
                conversion.writer.close()
        except KeyboardInterrupt:
            saved = conversion.writer.num_episodes
            say(f"convert: stopped; {saved} episodes are saved in {root}, the same command continues")
            raise
        return conversion.report(before)


def gripper_convention(values: Float32[np.ndarray, " N"], stated: str, where: str) -> Gripper:
    """Return the convention of these actions; DatasetError when they contradict the `stated` one or fit both.

    Values below -0.5 mean -1 open, 1 closed; values around 0 without such ones mean 1 open, 0 closed.
    """
    low, high = float(values.min()), float(values.max())
    possible, got = set[Gripper](), f"{low:g} to {high:g}"
    if low >= -1 - SLACK and high <= 1 + SLACK:
        possible |= {"minus-one-one"} if low < -0.5 or low > 0.5 else set()
        possible |= {"zero-one"} if low >= -SLACK else set()
    if stated in possible or (stated == "auto" and len(possible) == 1):
        return "zero-one" if stated == "zero-one" or possible == {"zero-one"} else "minus-one-one"
    if stated == "auto" and possible:
        step = "--gripper zero-one or minus-one-one"
        raise DatasetError("the gripper's actions fit two conventions", where=where, got=got, next_step=step)
    what, expected = "the gripper's actions do not follow the convention", "0 to 1, or -1 to 1"
    step = f"--gripper {min(possible)}" if possible else "correct the source's actions"
    raise DatasetError(what, where=where, got=got, expected=expected if stated == "auto" else stated, next_step=step)


def no_ops(action: Float32[np.ndarray, "T 7"]) -> Bool[np.ndarray, " T"]:
    """Return which steps do nothing: no motion, and the gripper's action is that of the last step that is kept.

    Before the first kept step, no motion is enough. The rule is OpenVLA's, whose data Light-WAM was trained on.
    """
    still = np.linalg.norm(action[:, :-1], axis=1) < STILL
    idle = np.zeros(len(action), bool)
    last: float | None = None
    for step, gripper in enumerate(action[:, -1].tolist()):
        idle[step] = still[step] and last in (None, gripper)
        last = last if idle[step] else gripper
    return idle


class _Conversion:
    """The state of one call of `convert`."""

    def __init__(self, source: Source, root: Path, config: ConvertConfig, say: Callable[[str], None]) -> None:
        self.source, self.root, self.config, self.say = source, root, config, say
        self.orientation: Orientation = source.orientation if config.orientation == "auto" else config.orientation
        self.gripper = gripper_convention(source.gripper, config.gripper, str(source.path))
        resolved = {"source": source.kind, "orientation": self.orientation, "gripper": self.gripper}
        self.settings = asdict(config) | resolved
        self.writer = LeRobotWriter(root, FPS, ROBOT, source.sizes, STATE_NAMES, ACTION_NAMES)
        self.skipped: list[DemoName] = []
        """since the last episode"""
        self.done = self._done(self.writer.notes)

    def run(self) -> None:
        """Convert the demonstrations that are not done; KeyboardInterrupt after the current one on Ctrl-C."""
        missing = [name for name in self.source.names if name not in self.done]
        if not missing:
            return
        for note in self.source.notes:
            self.say(note)
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
        """Count what is in the dataset, which had `before` episodes before `run`."""
        notes = self.writer.notes
        if not notes:
            what, got = "no demonstration was kept", f"{len(self.skipped)} skipped, which fail or never move"
            raise DatasetError(what, where=self.source.path, got=got, next_step="--keep-failures keeps failed ones")
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
        extra = {**asdict(name), "no_ops": int(idle.sum()), "skipped": [asdict(other) for other in self.skipped]}
        extra |= {"fingerprint": self.source.fingerprint(name.file), "settings": self.settings}
        self._add(demo, ~idle, extra)
        self.skipped = []

    def _add(self, demo: Demo, kept: Bool[np.ndarray, " T"], extra: dict[str, Any]) -> None:
        frames = {camera: clip[kept] for camera, clip in demo.frames.items()}
        if self.orientation == "upside-down":
            frames = {camera: clip[:, ::-1, ::-1] for camera, clip in frames.items()}
        action = demo.action[kept]
        if self.gripper == "minus-one-one":
            action[:, -1] = (1 - action[:, -1]) / 2
        self.writer.add_episode(frames, demo.state[kept], action, demo.instruction, extra)

    def _done(self, notes: Sequence[EpisodeNote]) -> set[DemoName]:
        """Return the demonstrations that were converted or skipped; DatasetError when they are of another source."""
        done: set[DemoName] = set()
        known, fingerprint = set(self.source.names), cache(self.source.fingerprint)
        for index, note in enumerate(notes):
            extra, where = note.extra, f"{self.root} episode {index}"
            if extra.get("settings") != self.settings:
                raise _other_settings(where, extra.get("settings"), self.settings)
            name = DemoName(extra["file"], extra["demo"])
            if name not in known:
                raise _other_settings(where, name, f"a demonstration of {self.source.path}")
            if extra["fingerprint"] != (now := fingerprint(name.file)):
                raise _other_settings(f"{where}, from {name}", extra["fingerprint"], now)
            done |= {name, *(DemoName(**other) for other in extra["skipped"])}
        return done


def _other_settings(where: str, got: object, expected: object) -> DatasetError:
    what, step = "this dataset has another source or settings", "convert into another folder, or remove this one"
    return DatasetError(what, where=where, got=got, expected=expected, next_step=step)
