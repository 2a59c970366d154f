"""Read a LeRobotDataset, v3.0, v2.1 or v2.0, every key typed and checked.

The tables (state, action, episodes, tasks) are small and are read whole; pictures are decoded when asked for. The
layouts are in docs/data.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from lightwam.data.lerobot.columns import column_problems, table_problems, task_order_problem, total_problem
from lightwam.data.lerobot.features import (
    ACTION,
    STATE,
    Camera,
    FeatureNames,
    UnusableCamera,
    proposal,
    read_cameras,
    vector_feature,
)
from lightwam.data.lerobot.images import ImageReader
from lightwam.data.lerobot.meta import EpisodeRow, missing_file, read_episodes, read_tasks, tables_in
from lightwam.data.lerobot.rows import (
    Layout,
    OnProblem,
    Rows,
    Vectors,
    check_finite,
    raise_problem,
    read_rows,
    span_place,
    span_problems,
)
from lightwam.data.lerobot.video import VideoReader
from lightwam.data.statistics import FeatureStats, measure
from lightwam.errors import DatasetError, did_you_mean
from lightwam.system.files import file_fingerprint, read_json

__all__ = ["FrameDecoder", "LeRobotDataset", "Vectors", "check_finite"]
VERSIONS = ("v3.0", "v2.1", "v2.0")
NAMED = {str: "text", dict: "an object"}
CHECKED_AT_ONCE = 16
"""pictures that `check` decodes at a time"""
Read = TypeVar("Read")


class LeRobotDataset:
    """A dataset on disk. Opening checks the meta folder and that the tables are there; `check` checks all of it.

    Attributes: root, info (info.json), version, fps, robot_type, names, cameras (name -> (height, width)), left_out
    (cameras that cannot be used), state_dim, state_names, action_dim, action_names, tasks (sentences by index, ""
    where an index is missing), episodes. `names`: for datasets without LeRobot's feature names. A camera's files are
    checked when it is used. `tell` gets every problem after which reading can continue; by default it raises the first.
    """

    def __init__(self, root: Path | str, names: FeatureNames | None = None, tell: OnProblem = raise_problem) -> None:
        self.root, self.names = Path(root), names or FeatureNames()
        info_path = self.root / "meta" / "info.json"
        if not info_path.is_file():
            torn = (self.root / "incoming").is_dir()
            hint = (
                "its writer was not closed: collect again to finish it" if torn else "give the folder that holds meta/"
            )
            raise DatasetError("no dataset here", where=self.root, expected="meta/info.json", next_step=hint)
        self.info = read_json(info_path)
        self.version = f"v{str(self._info('codebase_version', str)).removeprefix('v')}"
        if self.version not in VERSIONS:
            raise DatasetError("unknown codebase_version", where=info_path, got=self.version, expected=VERSIONS,
                               next_step="convert it with LeRobot's own converters")  # fmt: skip
        self.fps = float(self._info("fps", (int, float)))
        if not 0 < self.fps < float("inf"):
            raise DatasetError("a key of info.json is missing or mistyped", where=info_path, got=f"fps = {self.fps}",
                               expected="frames a second, above 0",
                               next_step="correct meta/info.json, or copy it again")  # fmt: skip
        self.robot_type = str(self.info.get("robot_type"))
        self._read_meta(self._info("features", dict), info_path, tell)
        self._checked_cameras: set[str] = set()
        for key, expected in (("total_episodes", self.num_episodes), ("total_frames", self.num_frames)):
            for problem in total_problem(self.info, key, expected, self.root):
                tell(problem)
        for path in sorted({episode.data_path for episode in self.episodes}):
            if not path.is_file():
                tell(missing_file(path, self.root, "data_path"))

    def _read_meta(self, features: Mapping[str, Any], where: Path, tell: OnProblem) -> None:
        """Read features, tasks and episodes; raises the first problem once all of them were tried."""
        lost: list[DatasetError] = []

        def part(read: Callable[[], Read], nothing: Read) -> Read:
            try:
                return read()
            except DatasetError as problem:
                tell(problem)
                lost.append(problem)
                return nothing

        names, nowhere = self.names, (0, tuple[str, ...]())
        self.state_dim, self.state_names = part(
            lambda: vector_feature(features, names.state, names, str(where)), nowhere
        )
        self.action_dim, self.action_names = part(
            lambda: vector_feature(features, names.action, names, str(where)), nowhere
        )
        no_cameras = dict[str, Camera](), dict[str, UnusableCamera]()
        cameras, self.left_out = part(lambda: read_cameras(features, names, str(where)), no_cameras)
        self._task_table = part(lambda: read_tasks(self.root, self.version), dict[int, str]())
        self.tasks = tuple(self._task_table.get(i, "") for i in range(max(self._task_table, default=-1) + 1))
        no_episodes = tuple[EpisodeRow, ...](), dict[str, UnusableCamera]()
        self.episodes, broken = part(lambda: read_episodes(self.root, self.version, self.info, cameras), no_episodes)
        if lost:
            raise lost[0]
        self.left_out = self.left_out | broken
        self._cameras = {name: camera for name, camera in cameras.items() if name not in broken}
        self.cameras = {name: camera.size for name, camera in self._cameras.items()}
        if not self.cameras:
            raise next(iter(broken.values())).reason

    @property
    def num_episodes(self) -> int:
        """Episodes."""
        return len(self.episodes)

    @property
    def num_frames(self) -> int:
        """Frames of all episodes."""
        return int(self.episode_start[-1])

    @cached_property
    def episode_start(self) -> Int64[np.ndarray, " episodes_and_1"]:
        """First frame of every episode among all frames, and the number of frames at the end."""
        return np.cumsum([0] + [episode.length for episode in self.episodes]).astype(np.int64)

    @cached_property
    def vectors(self) -> Vectors:
        """State, action, task and time of all rows, checked: widths, finite values, order of time, whole episodes."""
        return self.rows().vectors

    @cached_property
    def used_tasks(self) -> tuple[int, ...]:
        """The indices of the tasks that some row has: the others' sentences are read by nobody."""
        return tuple(np.unique(self.vectors.frame_task).tolist())

    @cached_property
    def stats(self) -> dict[str, FeatureStats]:
        """Statistics of "observation.state" and "action", measured from the tables (stats.json is not trusted)."""
        return {STATE: measure(self.vectors.state), ACTION: measure(self.vectors.action)}

    def frames(self, episode: int, camera: str) -> UInt8[np.ndarray, "T height width 3"]:
        """All pictures of one episode from one camera, decoded in order."""
        with self.decoder() as decoder:
            return decoder.clip(self.episodes[episode], camera)

    def decoder(self) -> FrameDecoder:
        """The same for episode after episode, which is faster: files stay open."""
        return FrameDecoder(self._cameras, self._times(self.vectors), self.check_camera)

    def check_camera(self, name: str) -> None:
        """Raise DatasetError when a camera is unknown or unusable, a video is missing, or its episodes' times clash."""
        if name in self._checked_cameras:
            return
        if name in self.left_out:
            raise self.left_out[name].reason
        if name not in self.cameras:
            raise DatasetError("unknown camera", where=self.root, got=repr(name), expected=sorted(self.cameras),
                               next_step=did_you_mean(name, self.cameras))  # fmt: skip
        for problem in self._camera_problems(name, self.vectors, frozenset()):
            raise problem
        self._checked_cameras.add(name)

    def check(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Read every table and decode every picture once; DatasetError names the first thing that is wrong.

        `progress` is called with the frames done and the frames in all.
        """
        for problem in self.problems(self.rows(), progress):
            raise problem

    def rows(self, tell: OnProblem = raise_problem) -> Rows:
        """Read all rows; every problem in them goes to `tell`."""
        has_videos = any(camera.stored == "video" for camera in self._cameras.values())
        layout = Layout(self.root, self.episodes, self.episode_start, self.names, self.state_dim, self.action_dim,
                        self._task_table, has_videos)  # fmt: skip
        return read_rows(layout, tell)

    def problems(self, rows: Rows, progress: Callable[[int, int], None] | None = None) -> Iterator[DatasetError]:
        """Yield what is wrong with the columns of `rows` and with the pictures, decoding all that can be decoded."""
        yield from column_problems(rows, self.episodes, self.episode_start)
        yield from total_problem(self.info, "total_tasks", len(self._task_table), self.root)
        yield from task_order_problem(self.root, self.version, self._task_table)
        yield from table_problems(self.root)
        for left in self.left_out.values():
            if left.broken:
                yield left.reason
        with FrameDecoder(self._cameras, self._times(rows.vectors), lambda name: None) as pictures:
            for number, camera in enumerate(self.cameras):
                problems = [*self._camera_problems(camera, rows.vectors, rows.broken)]
                yield from problems
                lost = {problem.where for problem in problems}
                for episode in self.episodes:
                    if episode.index not in rows.broken and not lost & self._places(episode, camera):
                        yield from pictures.problems(episode, camera)
                    if progress is not None:
                        done = number * self.num_frames + int(self.episode_start[episode.index + 1])
                        progress(done, len(self.cameras) * self.num_frames)

    def fingerprint(self) -> dict[str, str]:
        """What the dataset is made of: every file of tables and pictures with its size and hash.

        It also includes --names, and whether pictures are selected by uneven timestamps: caches made by versions
        without either hold other pictures.
        """
        meta = self.root / "meta"
        paths = {
            meta / "info.json",
            *meta.glob("tasks.*"),
            *meta.glob("episodes.jsonl"),
            *tables_in(meta / "episodes"),
        }
        for episode in self.episodes:
            clips = (episode.clips[name] for name, camera in self._cameras.items() if camera.stored == "video")
            paths |= {episode.data_path, *(clip.path for clip in clips)}
        known = {str(path.relative_to(self.root)): file_fingerprint(path) if path.is_file() else "no such file"
                 for path in sorted(paths)}  # fmt: skip
        if pairs := self.names.pairs():
            known["names"] = " ".join(pairs)
        if self._uneven():
            known["pictures"] = "by the rows' timestamp"
        return known

    def feature_of(self, camera: str) -> str:
        """The feature that a camera's pictures come from."""
        return self._cameras[camera].key

    def state_proposal(self) -> str:
        """Guess the `--names` option that would give a missing state; "" without a guess."""
        return "" if self.state_dim else proposal(self.info["features"], self.names)

    def _uneven(self) -> bool:
        """Whether some row's picture is not the one with the row's number in the episode's video."""
        if self.vectors.timestamp is None or all(camera.stored == "image" for camera in self._cameras.values()):
            return False
        number = np.arange(self.num_frames) - np.repeat(self.episode_start[:-1], np.diff(self.episode_start))
        return bool((np.abs(self.vectors.timestamp * self.fps - number) >= 0.5).any())

    def _times(self, vectors: Vectors) -> Callable[[EpisodeRow], Float64[np.ndarray, " T"]]:
        """Return the function episode -> times of its rows; row / fps without timestamps, where it does not matter."""

        def times(episode: EpisodeRow) -> Float64[np.ndarray, " T"]:
            if vectors.timestamp is None:
                return np.arange(episode.length) / self.fps
            return vectors.timestamp[slice(*self.episode_start[episode.index : episode.index + 2])]

        return times

    def _places(self, episode: EpisodeRow, camera: str) -> set[object]:
        """Return the locations at which a problem prevents decoding an episode's pictures."""
        if self._cameras[camera].stored == "image":
            return set()
        return {episode.clips[camera].path, span_place(episode, camera)}

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
            yield from span_problems(self.episodes, name, last, 1 / self.fps)

    def _info(self, key: str, kind: Any) -> Any:
        value = self.info.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise DatasetError("a key of info.json is missing or mistyped", where=self.root / "meta" / "info.json",
                               got=f"{key} = {value!r}",
                               expected="a number" if isinstance(kind, tuple) else NAMED[kind],
                               next_step="correct meta/info.json, or copy it again")  # fmt: skip
        return value


class FrameDecoder:
    """A decoder of episodes' pictures that keeps the latest file of every camera open.

    For one thread, in a `with` block. `times` returns the times of an episode's rows; `check` is called with every
    camera before it is read.
    """

    def __init__(
        self,
        cameras: Mapping[str, Camera],
        times: Callable[[EpisodeRow], Float64[np.ndarray, " T"]],
        check: Callable[[str], None],
    ) -> None:
        self._cameras, self._times, self._check = cameras, times, check
        self._open: dict[str, VideoReader | ImageReader] = {}

    def clip(self, episode: EpisodeRow, camera: str) -> UInt8[np.ndarray, "T height width 3"]:
        """Decode all pictures of one episode from one camera."""
        return next(self.stream(episode, camera, episode.length))

    def stream(self, episode: EpisodeRow, camera: str, batch: int) -> Iterator[UInt8[np.ndarray, "n height width 3"]]:
        """Yield the same pictures, at most `batch` of them at a time.

        Streams of several cameras may be interleaved; a camera's stream must end before its next one begins.
        """
        self._check(camera)
        about, clip = self._cameras[camera], episode.clips.get(camera)
        path = episode.data_path if clip is None else clip.path
        reader = self._open.get(camera)
        if reader is None or reader.path != path:
            if reader is not None:
                reader.close()
                del self._open[camera]
            reader = ImageReader(path, about.key, about.size) if clip is None else VideoReader(path)
            self._open[camera] = reader
        if isinstance(reader, ImageReader):
            return reader.stream(episode.index, episode.length, batch)
        if (reader.height, reader.width) != about.size:
            raise DatasetError("a video has another size than info.json says", where=reader.path,
                               got=(reader.height, reader.width), expected=about.size,
                               next_step="write the true size into the shape in meta/info.json")  # fmt: skip
        assert clip is not None
        return reader.stream(clip.start + self._times(episode), batch, f"episode {episode.index} ")

    def problems(self, episode: EpisodeRow, camera: str) -> Iterator[DatasetError]:
        """Decode an episode's pictures and yield the first problem, if any."""
        try:
            for _ in self.stream(episode, camera, CHECKED_AT_ONCE):
                pass
        except DatasetError as problem:
            yield problem

    def close(self) -> None:
        """Close the files."""
        for reader in self._open.values():
            reader.close()
        self._open.clear()

    def __enter__(self) -> FrameDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
