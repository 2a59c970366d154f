"""What people have of LIBERO, read alike: its own HDF5 files, and LeRobot datasets as they were published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from lightwam.data.lerobot.features import ACTION, STATE, FeatureNames
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.libero import hdf5
from lightwam.errors import DatasetError
from lightwam.system.files import file_fingerprint, read_json

Orientation = Literal["upright", "upside-down"]
STATE_DIM, ACTION_DIM = 8, 7
CAMERA_FEATURES = {
    "agentview": ("observation.images.agentview", "observation.images.image", "image"),
    "wrist": ("observation.images.wrist", "observation.images.wrist_image", "observation.images.image2", "wrist_image"),
}
"""camera -> what published datasets call it"""
STATE_FEATURES, ACTION_FEATURES = ("observation.state", "state"), ("action", "actions")
NUM_NAMED = 10
"""so many problems are spelled out in an error"""


@dataclass(frozen=True)
class DemoName:
    """Which demonstration of a source."""

    file: str
    """relative to the source"""
    demo: str

    def __str__(self) -> str:
        return f"{self.file} {self.demo}"


@dataclass(frozen=True)
class SourceDemo:
    """One demonstration as the source has it; row t is what was seen before action t."""

    frames: Mapping[str, UInt8[np.ndarray, "T height width 3"]]
    state: Float32[np.ndarray, "T 8"]
    action: Float32[np.ndarray, "T 7"]
    instruction: str
    failed: bool = False


@runtime_checkable
class Source(Protocol):
    """Demonstrations of LIBERO, wherever they come from."""

    path: Path
    kind: str
    orientation: Orientation
    """of its pictures, as published"""
    sizes: dict[str, tuple[int, int]]
    """camera -> (height, width)"""
    names: tuple[DemoName, ...]
    remarks: tuple[str, ...]
    """what a person should know of it"""

    def gripper(self) -> Float32[np.ndarray, " N"]:
        """The gripper's action in all demonstrations, as stored."""
        ...

    def read(self, name: DemoName) -> SourceDemo:
        """One demonstration."""
        ...

    def fingerprint(self, file: str) -> str:
        """Of what a demonstration of that file depends on."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...


def open_source(path: Path, names: FeatureNames | None = None) -> Source:
    """The source at `path`, its tables and shapes checked; DatasetError when it is broken or none that is known.

    `names`: the feature names of a LeRobot dataset that has none of the published sets of names.
    """
    if (path / "meta" / "info.json").is_file():
        return LeRobotSource(path, names or FeatureNames())
    if hdf5.demo_files(path):
        if names is not None and names.pairs():
            raise DatasetError("--names does not apply to LIBERO's own files", where=path, got=" ".join(names.pairs()),
                               next_step="omit --names")  # fmt: skip
        return Hdf5Source(path)
    inside = sorted(item.name for item in path.iterdir())[:NUM_NAMED] if path.is_dir() else None
    raise DatasetError(
        "no demonstrations of LIBERO here",
        where=path,
        got="no such file or folder" if not path.exists() else inside or "nothing",
        expected=f"one *{hdf5.SUFFIX}, a folder of them, or a LeRobot dataset (meta/info.json)",
        next_step="give the folder that holds them",
    )


class Hdf5Source:
    """LIBERO's own files: one, a folder of them (a suite), or a folder of suites."""

    kind = "LIBERO HDF5"
    orientation: Orientation = "upside-down"

    def __init__(self, path: Path) -> None:
        self.path = path
        folder = path if path.is_dir() else path.parent
        self._files = {str(file.relative_to(folder)): file for file in hdf5.demo_files(path)}
        self._sentences = {name: hdf5.sentence(file) for name, file in self._files.items()}
        scans = {name: hdf5.scan(file) for name, file in self._files.items()}
        if problems := [problem for scan in scans.values() for problem in scan.problems]:
            raise DatasetError("the demonstrations are broken", where=path, got="\n    ".join(problems[:NUM_NAMED]),
                               expected=f"no problem, but there are {len(problems)}",
                               next_step=f"copy those files again; lightwam check dataset {path}")  # fmt: skip
        sizes = frozenset[tuple[str, int, int]]().union(*(scan.sizes for scan in scans.values()))
        if len(sizes) != len(hdf5.CAMERAS):
            raise DatasetError("pictures of one camera differ in size", where=path, got=sorted(sizes),
                               expected="one size a camera", next_step="convert them one by one")  # fmt: skip
        self.sizes = {camera: (height, width) for camera, height, width in sorted(sizes)}
        self.names = tuple(DemoName(name, demo) for name, scan in scans.items() for demo in scan.lengths)
        self._gripper = np.concatenate([scan.gripper for scan in scans.values()])
        noted = {name: hdf5.noted_sentence(file) for name, file in self._files.items()}
        self.remarks = tuple(
            f"{name}: inside it says {noted[name]!r}; its name's {words!r} is used, as evaluation gives policies that"
            for name, words in self._sentences.items()
            if noted[name] not in ("", words)
        )

    def gripper(self) -> Float32[np.ndarray, " N"]:
        """The gripper's action in all demonstrations, as stored."""
        return self._gripper

    def read(self, name: DemoName) -> SourceDemo:
        """One demonstration."""
        demo = hdf5.read_demo(self._files[name.file], name.demo)
        return SourceDemo(demo.frames, demo.state, demo.action, self._sentences[name.file], not demo.succeeded)

    def fingerprint(self, file: str) -> str:
        """Size and hash of the file."""
        return file_fingerprint(self._files[file])

    def close(self) -> None:
        """Nothing stays open."""


class LeRobotSource:
    """A LeRobot dataset of LIBERO, with videos or with pictures in its tables, under any of the published names."""

    orientation: Orientation = "upright"
    remarks: tuple[str, ...] = ()

    def __init__(self, path: Path, names: FeatureNames) -> None:
        self.path = path
        info_path = path / "meta" / "info.json"
        features = read_json(info_path).get("features")
        named = _feature_names(features if isinstance(features, dict) else {}, info_path, names)
        self._data = LeRobotDataset(path, named)
        got = self._data.state_dim, self._data.action_dim
        if got != (STATE_DIM, ACTION_DIM):
            raise DatasetError("not LIBERO's state and action", where=info_path, got=f"widths {got[0]} and {got[1]}",
                               expected="8 (position 3, axis-angle 3, fingers 2) and 7 (motion 6, gripper)",
                               next_step="convert a dataset with this state and action")  # fmt: skip
        self.kind, self.sizes = f"LeRobot {self._data.version}", self._data.cameras
        self._decoder = self._data.decoder()
        self._episodes = {
            DemoName(str(episode.data_path.relative_to(path)), f"episode {episode.index}"): episode
            for episode in self._data.episodes
        }
        self.names = tuple(self._episodes)

    def gripper(self) -> Float32[np.ndarray, " N"]:
        """The gripper's action in all demonstrations, as stored."""
        return self._data.vectors.action[:, -1]

    def read(self, name: DemoName) -> SourceDemo:
        """One demonstration."""
        episode, vectors = self._episodes[name], self._data.vectors
        rows = slice(*self._data.episode_start[episode.index : episode.index + 2])
        if len(sentences := {self._data.tasks[task] for task in vectors.frame_task[rows]}) > 1:
            raise DatasetError("a LIBERO demonstration must have one sentence", where=str(name), got=sorted(sentences),
                               expected="one", next_step="split the episode where its task changes")  # fmt: skip
        return SourceDemo(
            frames={camera: self._decoder.clip(episode, camera) for camera in self.sizes},
            state=vectors.state[rows],
            action=vectors.action[rows],
            instruction=self._data.tasks[vectors.task_index[episode.index]],
        )

    def fingerprint(self, file: str) -> str:
        """Of the dataset's description, which names every episode and sentence, and of the file that holds some."""
        return f"{self._description}; {file_fingerprint(self.path / file)}"

    def close(self) -> None:
        """Let go of the videos."""
        self._decoder.close()

    @cached_property
    def _description(self) -> str:
        meta = self.path / "meta"
        tables = ("tasks.*", "episodes.jsonl", "episodes/*/*.parquet")
        files = [meta / "info.json", *(file for table in tables for file in sorted(meta.glob(table)))]
        return "; ".join(file_fingerprint(file) for file in files)


def _feature_names(features: Mapping[str, object], where: Path, given: FeatureNames) -> FeatureNames:
    def first(known: tuple[str, ...], what: str, own: str | None) -> str:
        for key in known if own is None else (own,):
            if key in features:
                return key
        raise DatasetError(f"no feature is known to be LIBERO's {what}", where=where, got=sorted(features),
                           expected=" or ".join(known) if own is None else own,
                           next_step="name it: --names FEATURE=NAME, where NAME is agentview, wrist, "
                           "observation.state or action")  # fmt: skip

    state = first(STATE_FEATURES, "state", None if given.state == STATE else given.state)
    action = first(ACTION_FEATURES, "action", None if given.action == ACTION else given.action)
    cameras = {
        camera: first(known, f"camera {camera}", given.renamed.get(camera)) for camera, known in CAMERA_FEATURES.items()
    }
    return FeatureNames(state, action, cameras)
