"""Sources of LIBERO's demonstrations behind one interface: its own HDF5 files, and published LeRobot datasets."""

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
"""camera -> its names in published datasets"""
STATE_FEATURES, ACTION_FEATURES = ("observation.state", "state"), ("action", "actions")
MAX_LISTED = 10
"""problems listed in an error"""


@dataclass(frozen=True)
class DemoName:
    """The name of a demonstration in a source."""

    file: str
    """relative to the source"""
    demo: str

    def __str__(self) -> str:
        return f"{self.file} {self.demo}"


@dataclass(frozen=True)
class SourceDemo:
    """One demonstration as stored; row t is the observation before action t."""

    frames: Mapping[str, UInt8[np.ndarray, "T height width 3"]]
    state: Float32[np.ndarray, "T 8"]
    action: Float32[np.ndarray, "T 7"]
    instruction: str
    failed: bool = False


@runtime_checkable
class Source(Protocol):
    """A source of LIBERO's demonstrations."""

    path: Path
    kind: str
    orientation: Orientation
    """of its pictures, as published"""
    sizes: dict[str, tuple[int, int]]
    """camera -> (height, width)"""
    names: tuple[DemoName, ...]
    notes: tuple[str, ...]
    """for the user"""

    def gripper(self) -> Float32[np.ndarray, " N"]:
        """Return the gripper's action in all demonstrations, as stored."""
        ...

    def read(self, name: DemoName) -> SourceDemo:
        """Read one demonstration."""
        ...

    def fingerprint(self, file: str) -> str:
        """Return the fingerprint of everything that a demonstration of that file depends on."""
        ...

    def close(self) -> None:
        """Close files."""
        ...


def open_source(path: Path, names: FeatureNames | None = None) -> Source:
    """Open the source at `path` and check its tables and shapes; DatasetError when it is broken or of no known kind.

    `names`: the feature names of a LeRobot dataset that does not have published ones.
    """
    if (path / "meta" / "info.json").is_file():
        return LeRobotSource(path, names or FeatureNames())
    if hdf5.demo_files(path):
        if names is not None and names.pairs():
            what, step = "--names does not apply to LIBERO's own files", "omit --names"
            raise DatasetError(what, where=path, got=" ".join(names.pairs()), next_step=step)
        return Hdf5Source(path)
    inside = sorted(item.name for item in path.iterdir())[:MAX_LISTED] if path.is_dir() else None
    got = "no such file or folder" if not path.exists() else inside or "nothing"
    what, step = "no demonstrations of LIBERO here", "give the file or folder that holds them"
    expected = f"one *{hdf5.SUFFIX}, a folder of them, or a LeRobot dataset (meta/info.json)"
    raise DatasetError(what, where=path, got=got, expected=expected, next_step=step)


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
            got, step = "\n    ".join(problems[:MAX_LISTED]), f"copy those files again; lightwam check dataset {path}"
            what = f"the demonstrations have {len(problems)} problems"
            raise DatasetError(what, where=path, got=got, next_step=step)
        sizes = frozenset[tuple[str, int, int]]().union(*(scan.sizes for scan in scans.values()))
        if len(sizes) != len(hdf5.CAMERAS):
            what, step = "pictures of one camera differ in size", "convert them one by one"
            raise DatasetError(what, where=path, got=sorted(sizes), next_step=step)
        self.sizes = {camera: (height, width) for camera, height, width in sorted(sizes)}
        self.names = tuple(DemoName(name, demo) for name, scan in scans.items() for demo in scan.lengths)
        self._gripper = np.concatenate([scan.gripper for scan in scans.values()])
        stored = {name: hdf5.stored_sentence(file) for name, file in self._files.items()}
        self.notes = tuple(
            f"{name}: inside it says {stored[name]!r}; its name's {words!r} is used, as evaluation gives policies that"
            for name, words in self._sentences.items()
            if stored[name] not in ("", words)
        )

    def gripper(self) -> Float32[np.ndarray, " N"]:
        """Return the gripper's action in all demonstrations, as stored."""
        return self._gripper

    def read(self, name: DemoName) -> SourceDemo:
        """Read one demonstration."""
        demo = hdf5.read_demo(self._files[name.file], name.demo)
        return SourceDemo(demo.frames, demo.state, demo.action, self._sentences[name.file], not demo.succeeded)

    def fingerprint(self, file: str) -> str:
        """Return size and hash of the file."""
        return file_fingerprint(self._files[file])

    def close(self) -> None:
        """Do nothing: no file stays open."""


class LeRobotSource:
    """A LeRobot dataset of LIBERO, with videos or with pictures in its tables, under any of the published names."""

    orientation: Orientation = "upright"
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, names: FeatureNames) -> None:
        self.path = path
        info_path = path / "meta" / "info.json"
        features = read_json(info_path).get("features")
        self._data = LeRobotDataset(path, _feature_names(features if isinstance(features, dict) else {}, path, names))
        got = self._data.state_dim, self._data.action_dim
        if got != (STATE_DIM, ACTION_DIM):
            what, widths = "not LIBERO's state and action", f"widths {got[0]} and {got[1]}"
            expected = "8 (position 3, axis-angle 3, fingers 2) and 7 (motion 6, gripper)"
            step = "convert a dataset with this state and action"
            raise DatasetError(what, where=info_path, got=widths, expected=expected, next_step=step)
        self.kind, self.sizes = f"LeRobot {self._data.version}", self._data.cameras
        self._decoder = self._data.decoder()
        self._episodes = {
            DemoName(str(episode.data_path.relative_to(path)), f"episode {episode.index}"): episode
            for episode in self._data.episodes
        }
        self.names = tuple(self._episodes)

    def gripper(self) -> Float32[np.ndarray, " N"]:
        """Return the gripper's action in all demonstrations, as stored."""
        return self._data.vectors.action[:, -1]

    def read(self, name: DemoName) -> SourceDemo:
        """Read one demonstration."""
        episode, vectors = self._episodes[name], self._data.vectors
        rows = slice(*self._data.episode_start[episode.index : episode.index + 2])
        if len(sentences := {self._data.tasks[task] for task in vectors.frame_task[rows]}) > 1:
            what, step = "a LIBERO demonstration must have one sentence", "split the episode where its task changes"
            raise DatasetError(what, where=str(name), got=sorted(sentences), next_step=step)
        return SourceDemo(
            frames={camera: self._decoder.clip(episode, camera) for camera in self.sizes},
            state=vectors.state[rows],
            action=vectors.action[rows],
            instruction=self._data.tasks[vectors.task_index[episode.index]],
        )

    def fingerprint(self, file: str) -> str:
        """Return the fingerprint of the dataset's description, with every episode and sentence, and of the file."""
        return f"{self._description}; {file_fingerprint(self.path / file)}"

    def close(self) -> None:
        """Close the videos."""
        self._decoder.close()

    @cached_property
    def _description(self) -> str:
        meta = self.path / "meta"
        tables = ("tasks.*", "episodes.jsonl", "episodes/*/*.parquet")
        files = [meta / "info.json", *(file for table in tables for file in sorted(meta.glob(table)))]
        return "; ".join(file_fingerprint(file) for file in files)


def _feature_names(features: Mapping[str, object], root: Path, names: FeatureNames) -> FeatureNames:
    """Find the features under the given names, or else under published ones."""

    def first(what: str, published: tuple[str, ...], given: str | None) -> str:
        keys = published if given is None else (given,)
        for key in keys:
            if key in features:
                return key
        what, where = f"no feature is known to be LIBERO's {what}", root / "meta" / "info.json"
        step = "name it: --names FEATURE=NAME, where NAME is agentview, wrist, observation.state or action"
        raise DatasetError(what, where=where, got=sorted(features), expected=" or ".join(keys), next_step=step)

    state = first("state", STATE_FEATURES, None if names.state == STATE else names.state)
    action = first("action", ACTION_FEATURES, None if names.action == ACTION else names.action)
    cameras = {name: first(f"camera {name}", known, names.renamed.get(name)) for name, known in CAMERA_FEATURES.items()}
    return FeatureNames(state, action, cameras)
