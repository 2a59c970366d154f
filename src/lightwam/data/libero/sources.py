"""Sources of LIBERO's demonstrations behind one interface: its own HDF5 files, and published LeRobot datasets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32

from lightwam.data.lerobot.features import ACTION, STATE, FeatureNames
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.libero import hdf5
from lightwam.data.libero.hdf5 import Demo
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
class Source:
    """A source of LIBERO's demonstrations: LIBERO's own files, or a LeRobot dataset."""

    path: Path
    kind: str
    orientation: Orientation
    """of its pictures, as published"""
    sizes: Mapping[str, tuple[int, int]]
    """camera -> (height, width)"""
    names: tuple[DemoName, ...]
    gripper: Float32[np.ndarray, " N"]
    """the gripper's action in all demonstrations, as stored"""
    read: Callable[[DemoName], Demo]
    """reads one demonstration"""
    fingerprint: Callable[[str], str]
    """returns the fingerprint of everything that the demonstrations of a file depend on"""
    notes: tuple[str, ...] = ()
    """for the user"""
    close: Callable[[], None] = lambda: None
    """closes its files"""


def open_source(path: Path, names: FeatureNames | None = None) -> Source:
    """Open the source at `path` and check its tables and shapes; DatasetError when it is broken or of no known kind.

    `names`: the feature names of a LeRobot dataset that does not have published ones.
    """
    if (path / "meta" / "info.json").is_file():
        return _open_lerobot(path, names or FeatureNames())
    if hdf5.demo_files(path):
        if names is not None and names.pairs():
            what = "--names does not apply to LIBERO's own files"
            raise DatasetError(what, where=path, got=" ".join(names.pairs()), next_step="omit --names")
        return _open_hdf5(path)
    inside = sorted(item.name for item in path.iterdir())[:MAX_LISTED] if path.is_dir() else None
    got = "no such file or folder" if not path.exists() else inside or "nothing"
    what, step = "no demonstrations of LIBERO here", "give the file or folder that holds them"
    expected = f"one *{hdf5.SUFFIX}, a folder of them, or a LeRobot dataset (meta/info.json)"
    raise DatasetError(what, where=path, got=got, expected=expected, next_step=step)


def _open_hdf5(path: Path) -> Source:
    """Open LIBERO's own files: one, a folder of them (a suite), or a folder of suites."""
    folder = path if path.is_dir() else path.parent
    files = {str(file.relative_to(folder)): file for file in hdf5.demo_files(path)}
    sentences = {name: hdf5.sentence(file) for name, file in files.items()}
    scans = {name: hdf5.scan(file) for name, file in files.items()}
    if problems := [problem for scan in scans.values() for problem in scan.problems]:
        got, step = "\n    ".join(problems[:MAX_LISTED]), f"copy those files again; lightwam check dataset {path}"
        raise DatasetError(f"the demonstrations have {len(problems)} problems", where=path, got=got, next_step=step)
    sizes = sorted(frozenset[tuple[str, int, int]]().union(*(scan.sizes for scan in scans.values())))
    if len(sizes) != len(hdf5.CAMERAS):
        raise DatasetError("pictures of one camera differ in size", where=path, got=sizes, next_step="split the folder")
    stored = {name: hdf5.stored_sentence(file) for name, file in files.items()}
    return Source(
        path=path,
        kind="LIBERO HDF5",
        orientation="upside-down",
        sizes={camera: (height, width) for camera, height, width in sizes},
        names=tuple(DemoName(name, demo) for name, scan in scans.items() for demo in scan.lengths),
        gripper=np.concatenate([scan.gripper for scan in scans.values()]),
        read=lambda name: hdf5.read_demo(files[name.file], name.demo),
        fingerprint=lambda file: file_fingerprint(files[file]),
        notes=tuple(
            f"{name}: inside it says {stored[name]!r}; its name's {words!r} is used, as evaluation gives policies that"
            for name, words in sentences.items()
            if stored[name] not in ("", words)
        ),
    )


def _open_lerobot(path: Path, names: FeatureNames) -> Source:
    """Open a LeRobot dataset with videos or with pictures in its tables, under any of the published names."""
    info_path = path / "meta" / "info.json"
    features = read_json(info_path).get("features")
    data = LeRobotDataset(path, _feature_names(features if isinstance(features, dict) else {}, path, names))
    if (data.state_dim, data.action_dim) != (STATE_DIM, ACTION_DIM):
        what, got = "not LIBERO's state and action", f"widths {data.state_dim} and {data.action_dim}"
        expected = "8 (position 3, axis-angle 3, fingers 2) and 7 (motion 6, gripper)"
        raise DatasetError(what, where=info_path, got=got, expected=expected, next_step="convert another dataset")
    decoder = data.decoder()
    episodes = {
        DemoName(str(episode.data_path.relative_to(path)), f"episode {episode.index}"): episode
        for episode in data.episodes
    }
    tables = ("tasks.*", "episodes.jsonl", "episodes/*/*.parquet")
    meta = [info_path, *(file for table in tables for file in sorted((path / "meta").glob(table)))]
    description = "; ".join(file_fingerprint(file) for file in meta)

    def read(name: DemoName) -> Demo:
        episode, vectors = episodes[name], data.vectors
        rows = slice(*data.episode_start[episode.index : episode.index + 2])
        if len(sentences := {data.tasks[task] for task in vectors.frame_task[rows]}) > 1:
            what, step = "a LIBERO demonstration must have one sentence", "split the episode where its task changes"
            raise DatasetError(what, where=str(name), got=sorted(sentences), next_step=step)
        frames = {camera: decoder.clip(episode, camera) for camera in data.cameras}
        return Demo(frames, vectors.state[rows], vectors.action[rows], data.tasks[vectors.task_index[episode.index]])

    return Source(
        path=path,
        kind=f"LeRobot {data.version}",
        orientation="upright",
        sizes=data.cameras,
        names=tuple(episodes),
        gripper=data.vectors.action[:, -1],
        read=read,
        fingerprint=lambda file: f"{description}; {file_fingerprint(path / file)}",
        close=decoder.close,
    )


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
