"""Read a LeRobotDataset, v3.0, v2.1 or v2.0, every key typed and checked.

The tables (state, action, episodes, tasks) are small and are read completely; pictures are decoded on request. The
layouts are in docs/data.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from lightwam.data.lerobot import columns
from lightwam.data.lerobot.decoder import FrameDecoder
from lightwam.data.lerobot.features import (
    ACTION,
    STATE,
    FeatureNames,
    guessed_names,
    names_step,
    read_cameras,
    vector_feature,
)
from lightwam.data.lerobot.meta import (
    EpisodeRow,
    bad_info_key,
    missing_file,
    read_episodes,
    read_tasks,
    read_version,
    tables_in,
)
from lightwam.data.lerobot.rows import Layout, OnProblem, Rows, Vectors, raise_problem, read_flag, read_rows
from lightwam.data.statistics import FeatureStats, measure
from lightwam.errors import DatasetError, did_you_mean
from lightwam.system.files import file_fingerprint, read_json
from lightwam.system.progress import OnProgress, no_progress

Part = TypeVar("Part")


class LeRobotDataset:
    """A dataset on disk. Opening it checks the meta folder and that the tables are there; `check` checks all of it.

    Attributes: root, info (info.json), version, fps, robot_type, names, cameras (name -> (height, width)), left_out
    (cameras that cannot be used), state_dim, state_names, action_dim, action_names, tasks (sentences by index, ""
    where an index is missing), episodes. `names`: for datasets without LeRobot's feature names. A camera's files are
    checked when it is used. `on_problem` gets every problem after which reading can continue, and by default raises it.
    `used`: the only cameras whose files are part of the fingerprint, as the others may not have been fetched.
    `optional`: features that may be missing, and have 0 dimensions then.
    """

    def __init__(
        self,
        root: Path | str,
        names: FeatureNames | None = None,
        on_problem: OnProblem = raise_problem,
        optional: Collection[str] = (STATE,),
        used: Collection[str] | None = None,
    ) -> None:
        self.root, self.names, self._optional, self._used = Path(root), names or FeatureNames(), optional, used
        info_path = self.root / "meta" / "info.json"
        if not info_path.is_file():
            unfinished = (self.root / "incoming").is_dir()
            step = "collect again: its writer was not closed" if unfinished else "give the folder that holds meta/"
            raise DatasetError("no dataset here", where=self.root, expected="meta/info.json", next_step=step)
        self.info = read_json(info_path)
        self.version = read_version(self.root, self.info)
        self.fps = float(self._info("fps", (int, float), "a number"))
        if not 0 < self.fps < float("inf"):
            raise bad_info_key(self.root, "fps", self.fps, "frames a second, above 0")
        self.robot_type = str(self.info.get("robot_type"))
        self._read_meta(self._info("features", dict, "an object"), str(info_path), on_problem)
        self._checked_cameras: set[str] = set()
        for key, expected in (("total_episodes", self.num_episodes), ("total_frames", self.num_frames)):
            for problem in columns.total_problem(self.info, key, expected, self.root):
                on_problem(problem)
        for path in sorted({episode.data_path for episode in self.episodes}):
            if not path.is_file():
                on_problem(missing_file(path, self.root, "data_path"))

    def _read_meta(self, features: Mapping[str, Any], where: str, on_problem: OnProblem) -> None:
        """Read features, tasks and episodes; raise the first problem after all of them were tried."""
        lost: list[DatasetError] = []

        def attempt(read: Callable[[], Part]) -> Part | None:
            try:
                return read()
            except DatasetError as problem:
                on_problem(problem)
                lost.append(problem)
                return None

        names, optional = self.names, self._optional
        state = attempt(lambda: vector_feature(features, names.state, names, where, optional))
        action = attempt(lambda: vector_feature(features, names.action, names, where, optional))
        known = attempt(lambda: read_cameras(features, names, where))
        tasks = attempt(lambda: read_tasks(self.root, self.version))
        cameras, left_out = known or ({}, {})
        table = attempt(lambda: read_episodes(self.root, self.version, self.info, cameras))
        if state is None or action is None or tasks is None or table is None or lost:
            raise lost[0]
        (self.state_dim, self.state_names), (self.action_dim, self.action_names) = state, action
        self._task_table, (self.episodes, broken) = tasks, table
        self.tasks = tuple(tasks.get(i, "") for i in range(max(tasks) + 1))
        self.left_out = left_out | broken
        self._cameras = {name: camera for name, camera in cameras.items() if name not in broken}
        self.cameras = {name: camera.size for name, camera in self._cameras.items()}
        if not self.cameras:
            raise next(iter(broken.values())).reason

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self.episodes)

    @property
    def num_frames(self) -> int:
        """Number of frames of all episodes."""
        return int(self.episode_start[-1])

    @cached_property
    def episode_start(self) -> Int64[np.ndarray, " episodes_and_1"]:
        """First frame of every episode among all frames, and the number of frames at the end."""
        return np.cumsum([0] + [episode.length for episode in self.episodes]).astype(np.int64)

    @cached_property
    def vectors(self) -> Vectors:
        """State, action, task and time of all rows, checked: widths, finite values, order of time, lengths."""
        return self.rows().vectors

    @cached_property
    def used_tasks(self) -> tuple[int, ...]:
        """The indices of the tasks that some row has; the sentences of other tasks are not used."""
        return tuple(np.unique(self.vectors.frame_task).tolist())

    @cached_property
    def stats(self) -> dict[str, FeatureStats]:
        """Statistics of "observation.state" and "action", measured from the tables (stats.json is not trusted)."""
        return {STATE: measure(self.vectors.state), ACTION: measure(self.vectors.action)}

    def frames(self, episode: int, camera: str) -> UInt8[np.ndarray, "T height width 3"]:
        """Decode all pictures of one episode from one camera, in order."""
        with closing(self.decoder()) as decoder:
            return decoder.clip(self.episodes[episode], camera)

    def decoder(self) -> FrameDecoder:
        """Return a decoder for the pictures of many episodes, which is faster: files stay open."""
        return FrameDecoder(self._cameras, self._times(self.vectors), self.check_camera)

    def check_camera(self, name: str) -> None:
        """Raise DatasetError when a camera is unknown or unusable, a video is missing, or its episodes' times clash."""
        if name in self._checked_cameras:
            return
        if name in self.left_out:
            raise self.left_out[name].reason
        if name not in self.cameras:
            raise DatasetError(f"unknown camera {name!r}", where=self.root, next_step=did_you_mean(name, self.cameras))
        for problem in self._camera_problems(name, self.vectors, frozenset()):
            raise problem
        self._checked_cameras.add(name)

    def check(self, progress: OnProgress = no_progress) -> None:
        """Read every table and decode every picture, which `progress` counts; DatasetError for the first problem."""
        for problem in self.problems(self.rows(), progress):
            raise problem

    def rows(self, on_problem: OnProblem = raise_problem) -> Rows:
        """Read all rows; every problem in them goes to `on_problem`."""
        return read_rows(self._layout(), on_problem)

    def flag(self, columns: Sequence[str]) -> Bool[np.ndarray, " N"]:
        """Read a column of booleans of all rows, the first of `columns` that exists; DatasetError without one."""
        return read_flag(self._layout(), columns)

    def _layout(self) -> Layout:
        has_videos = any(camera.stored == "video" for camera in self._cameras.values())
        dims = self.state_dim, self.action_dim
        return Layout(self.root, self.episodes, self.episode_start, self.names, *dims, self._task_table, has_videos)

    def problems(self, rows: Rows, progress: OnProgress = no_progress) -> Iterator[DatasetError]:
        """Yield what is wrong with the columns of `rows` and with the pictures, decoding all that can be decoded."""
        yield from columns.column_problems(rows, self.episodes, self.episode_start)
        yield from columns.total_problem(self.info, "total_tasks", len(self._task_table), self.root)
        yield from columns.task_order_problem(self.root, self.version, self._task_table)
        yield from columns.table_problems(self.root)
        for left in self.left_out.values():
            if left.broken:
                yield left.reason
        with closing(FrameDecoder(self._cameras, self._times(rows.vectors), lambda name: None)) as decoder:
            for number, camera in enumerate(self.cameras):
                problems = [*self._camera_problems(camera, rows.vectors, rows.broken)]
                yield from problems
                lost = {problem.where for problem in problems}
                for episode in self.episodes:
                    if episode.index not in rows.broken and not lost & self._locations(episode, camera):
                        yield from decoder.problems(episode, camera)
                    done = number * self.num_frames + int(self.episode_start[episode.index + 1])
                    progress(done, len(self.cameras) * self.num_frames)

    def fingerprint(self) -> dict[str, str]:
        """Return every file of tables and pictures with its size and hash; of pictures those of the cameras in `used`.

        It also includes --names, and whether pictures are selected by uneven timestamps: caches made by versions
        without either hold other pictures.
        """
        paths = sorted(self._files())
        fingerprints = {path: file_fingerprint(path) if path.is_file() else "no such file" for path in paths}
        known = {str(path.relative_to(self.root)): fingerprint for path, fingerprint in fingerprints.items()}
        if pairs := self.names.pairs():
            known["names"] = " ".join(pairs)
        if self._uneven():
            known["pictures"] = "by the rows' timestamp"
        return known

    def num_bytes(self) -> int:
        """Return the size of the files of tables and pictures."""
        return sum(path.stat().st_size for path in self._files() if path.is_file())

    def feature_of(self, camera: str) -> str:
        """Return the feature that a camera's pictures come from."""
        return self._cameras[camera].key

    def state_proposal(self) -> str:
        """Guess the `--names` option that would give a missing state; "" without a guess."""
        guessed = () if self.state_dim else guessed_names(self.info["features"], self.names)
        return names_step(guessed) if any(pair.endswith(f"={STATE}") for pair in guessed) else ""

    def _files(self) -> set[Path]:
        meta = self.root / "meta"
        paths = {meta / "info.json", *meta.glob("tasks.*"), *meta.glob("episodes.jsonl")}
        paths |= {*tables_in(meta / "episodes")}
        videos = [name for name, camera in self._cameras.items() if camera.stored == "video"]
        videos = [name for name in videos if self._used is None or name in self._used]
        for episode in self.episodes:
            paths |= {episode.data_path, *(episode.clips[name].path for name in videos)}
        return paths

    def _uneven(self) -> bool:
        """Return whether some row's picture is not the one with the row's number in the episode's video."""
        if self.vectors.timestamp is None or all(camera.stored == "image" for camera in self._cameras.values()):
            return False
        number = np.arange(self.num_frames) - np.repeat(self.episode_start[:-1], np.diff(self.episode_start))
        return bool((np.abs(self.vectors.timestamp * self.fps - number) >= 0.5).any())

    def _times(self, vectors: Vectors) -> Callable[[EpisodeRow], Float64[np.ndarray, " T"]]:
        """Return the function episode -> times of its rows; row / fps without timestamps, which only videos need."""

        def times(episode: EpisodeRow) -> Float64[np.ndarray, " T"]:
            if vectors.timestamp is None:
                return np.arange(episode.length) / self.fps
            return vectors.timestamp[slice(*self.episode_start[episode.index : episode.index + 2])]

        return times

    def _locations(self, episode: EpisodeRow, camera: str) -> set[object]:
        """Return the locations at which a problem prevents decoding an episode's pictures."""
        if self._cameras[camera].stored == "image":
            return set()
        return {episode.clips[camera].path, columns.clip_location(episode, camera)}

    def _camera_problems(self, name: str, vectors: Vectors, broken: frozenset[int]) -> Iterator[DatasetError]:
        """Yield what is wrong with a camera's files, without decoding pictures."""
        if self._cameras[name].stored == "image":
            return
        for path in sorted({episode.clips[name].path for episode in self.episodes}):
            if not path.is_file():
                yield missing_file(path, self.root, "video_path")
        if self.version == "v3.0" and vectors.timestamp is not None:
            ends = vectors.timestamp[self.episode_start[1:] - 1].tolist()
            last = {index: end for index, end in enumerate(ends) if index not in broken}
            yield from columns.clip_problems(self.episodes, name, last, 1 / self.fps)

    def _info(self, key: str, kind: Any, expected: str) -> Any:
        value = self.info.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise bad_info_key(self.root, key, value, expected)
        return value
