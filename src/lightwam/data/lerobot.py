"""Read a LeRobotDataset, v3.0, v2.1 or v2.0, every key typed and checked.

The tables (state, action, episodes, tasks) are small and are read whole; pictures are decoded when asked for. The
layouts are in docs/data.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64, UInt8

from lightwam.data.files import file_fingerprint, read_json
from lightwam.data.images import ImageReader
from lightwam.data.lerobot_meta import (
    ACTION,
    STATE,
    Camera,
    ColumnKind,
    Episode,
    FeatureNames,
    read_cameras,
    read_episodes,
    read_table,
    read_tasks,
    vector_feature,
)
from lightwam.data.video import VideoReader
from lightwam.errors import DatasetError, did_you_mean
from lightwam.stats import FeatureStats, measure

VERSIONS = ("v3.0", "v2.1", "v2.0")
CHECKED_AT_ONCE = 16
"""pictures in memory while all of them are checked"""


@dataclass(frozen=True)
class Vectors:
    """The numbers of all frames, episodes one behind the other, in robot units."""

    state: Float32[np.ndarray, "N P"]
    action: Float32[np.ndarray, "N A"]
    task_index: Int64[np.ndarray, " episodes"]


class LeRobotDataset:
    """A dataset on disk. Opening checks the meta folder and that every file is there; `check` checks all of it.

    Attributes: root, info (info.json), version, fps, robot_type, cameras (name -> (height, width)), state_dim,
    state_names, action_dim, action_names, tasks (sentences by index), episodes. `names`: for datasets that call their
    features otherwise than LeRobot does.
    """

    def __init__(self, root: Path | str, names: FeatureNames | None = None) -> None:
        self.root, self._names = Path(root), names or FeatureNames()
        info_path = self.root / "meta" / "info.json"
        if not info_path.is_file():
            torn = (self.root / "incoming").is_dir()
            hint = (
                "its writer was not closed: collect again to finish it" if torn else "give the folder that holds meta/"
            )
            raise DatasetError("no dataset here", where=self.root, expected="meta/info.json", next_step=hint)
        self.info = read_json(info_path)
        self.version = str(self._info("codebase_version", str))
        if self.version not in VERSIONS:
            raise DatasetError("unknown codebase_version", where=info_path, got=self.version, expected=VERSIONS,
                               next_step="convert it with LeRobot's own converters")  # fmt: skip
        self.fps = float(self._info("fps", (int, float)))
        self.robot_type = str(self.info.get("robot_type"))
        features = self._info("features", dict)
        self.state_dim, self.state_names = vector_feature(features, self._names.state, str(info_path))
        self.action_dim, self.action_names = vector_feature(features, self._names.action, str(info_path))
        self._cameras = read_cameras(features, self._names.cameras, str(info_path))
        self.cameras = {name: camera.size for name, camera in self._cameras.items()}
        self.tasks = read_tasks(self.root, self.version)
        self.episodes = read_episodes(self.root, self.version, self.info, self._cameras)
        self._check_totals_and_files()

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
        """State, action and task of everything, checked: widths, finite values, rising frame_index, whole episodes."""
        state = np.empty((self.num_frames, self.state_dim), np.float32)
        action = np.empty((self.num_frames, self.action_dim), np.float32)
        task_index = np.empty(self.num_episodes, np.int64)
        table: _Table | None = None
        for episode, start in zip(self.episodes, self.episode_start[:-1], strict=True):
            if table is None or table.path != episode.data_path:
                names = {self._names.state: self.state_dim, self._names.action: self.action_dim}
                table = _Table(episode.data_path, names)
            rows, span = table.rows(episode), slice(start, start + episode.length)
            state[span], action[span] = rows.state, rows.action
            task_index[episode.index] = self._task_of(rows.task_index, episode)
        return Vectors(state, action, task_index)

    @cached_property
    def stats(self) -> dict[str, FeatureStats]:
        """Statistics of "observation.state" and "action", measured from the tables (stats.json is not trusted)."""
        return {STATE: measure(self.vectors.state), ACTION: measure(self.vectors.action)}

    def frames(self, episode: int, camera: str) -> UInt8[np.ndarray, "T height width 3"]:
        """All pictures of one episode from one camera, decoded in order."""
        if camera not in self.cameras:
            raise DatasetError("unknown camera", where=self.root, got=repr(camera), expected=sorted(self.cameras),
                               next_step=did_you_mean(camera, self.cameras))  # fmt: skip
        with self.pictures() as pictures:
            return pictures.clip(self.episodes[episode], camera)

    def pictures(self) -> Pictures:
        """The same for episode after episode, which is faster: files stay open."""
        return Pictures(self._cameras, self.fps)

    def check(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Read every table and decode every picture once; DatasetError names the first thing that is wrong.

        `progress` is called with the frames done and the frames in all.
        """
        assert self.vectors is not None
        with self.pictures() as pictures:
            for number, camera in enumerate(self.cameras):
                for episode in self.episodes:
                    for _ in pictures.stream(episode, camera, CHECKED_AT_ONCE):
                        pass
                    if progress is not None:
                        done = number * self.num_frames + int(self.episode_start[episode.index + 1])
                        progress(done, len(self.cameras) * self.num_frames)

    def fingerprint(self) -> dict[str, str]:
        """What the dataset is made of: every file of tables and pictures with its size and hash."""
        meta = self.root / "meta"
        paths = {
            meta / "info.json",
            *meta.glob("tasks.*"),
            *meta.glob("episodes.jsonl"),
            *meta.glob("episodes/*/*.parquet"),
        }
        for episode in self.episodes:
            paths |= {episode.data_path, *(clip.path for clip in episode.clips.values())}
        return {str(path.relative_to(self.root)): file_fingerprint(path) for path in sorted(paths)}

    def _info(self, key: str, kind: Any) -> Any:
        value = self.info.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise DatasetError("a key of info.json is missing or mistyped", where=self.root / "meta" / "info.json",
                               got=f"{key} = {value!r}", expected=kind)  # fmt: skip
        return value

    def _check_totals_and_files(self) -> None:
        got = self._info("total_episodes", int), self._info("total_frames", int)
        if got != (self.num_episodes, self.num_frames):
            raise DatasetError("info.json disagrees with the episodes table", where=self.root / "meta",
                               got=f"{got[0]} episodes, {got[1]} frames",
                               expected=f"{self.num_episodes} episodes, {self.num_frames} frames")  # fmt: skip
        for path in sorted(
            {p for e in self.episodes for p in (e.data_path, *(clip.path for clip in e.clips.values()))}
        ):
            if not path.is_file() or path.stat().st_size == 0:
                raise DatasetError("a file of the dataset is missing or empty", where=path,
                                   next_step="copy the dataset again")  # fmt: skip

    def _task_of(self, task_index: Int64[np.ndarray, " T"], episode: Episode) -> int:
        where, task = f"{episode.data_path} episode {episode.index}", int(task_index[0])
        if (task_index != task).any():
            raise DatasetError("the task changes within an episode", where=where, got=np.unique(task_index).tolist(),
                               expected="one task_index", next_step="split such episodes")  # fmt: skip
        if not 0 <= task < len(self.tasks):
            expected = f"0..{len(self.tasks) - 1}"
            raise DatasetError("a task_index has no sentence", where=where, got=task, expected=expected)
        if self.tasks[task] not in episode.tasks:
            got = self.tasks[task]
            raise DatasetError("tables disagree on an episode's task", where=where, got=got, expected=episode.tasks)
        return task


class Pictures:
    """Decodes the pictures of one episode after another; of every camera the latest file stays open.

    For one thread, in a `with` block.
    """

    def __init__(self, cameras: Mapping[str, Camera], fps: float) -> None:
        self._cameras, self._fps = cameras, fps
        self._open: dict[str, VideoReader | ImageReader] = {}

    def clip(self, episode: Episode, camera: str) -> UInt8[np.ndarray, "T height width 3"]:
        """All pictures of one episode from one camera."""
        return next(self.stream(episode, camera, episode.length))

    def stream(self, episode: Episode, camera: str, batch: int) -> Iterator[UInt8[np.ndarray, "T height width 3"]]:
        """The same pictures, at most `batch` of them in memory at a time.

        Streams of several cameras may be read in turns; of one camera, one must end before the next begins.
        """
        about, clip = self._cameras[camera], episode.clips.get(camera)
        path = episode.data_path if clip is None else clip.path
        reader = self._open.get(camera)
        if reader is None or reader.path != path:
            if reader is not None:
                reader.close()
            reader = ImageReader(path, about.key, about.size) if clip is None else VideoReader(path)
            self._open[camera] = reader
        if isinstance(reader, ImageReader):
            return reader.stream(episode.index, episode.length, batch)
        if (reader.height, reader.width) != about.size:
            raise DatasetError("a video has another size than info.json says", where=reader.path,
                               got=(reader.height, reader.width), expected=about.size)  # fmt: skip
        assert clip is not None
        return reader.stream(clip.start, episode.length, self._fps, batch)

    def close(self) -> None:
        """Let go of the files."""
        for reader in self._open.values():
            reader.close()
        self._open.clear()

    def __enter__(self) -> Pictures:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Rows:
    state: Float32[np.ndarray, "T P"]
    action: Float32[np.ndarray, "T A"]
    task_index: Int64[np.ndarray, " T"]


class _Table:
    """One data file, read whole."""

    def __init__(self, path: Path, dims: Mapping[str, int]) -> None:
        """`dims`: the state's feature and the action's, each with its width."""
        indices: dict[str, ColumnKind] = dict.fromkeys(("episode_index", "frame_index", "task_index"), "integer")
        vectors: dict[str, ColumnKind] = dict.fromkeys(dims, "any")
        table = read_table(path, vectors | indices)
        self.path = path
        self._state, self._action = (_matrix(table, name, dim, path) for name, dim in dims.items())
        self._frame, self._task = table["frame_index"].to_numpy(), table["task_index"].to_numpy()
        episode = table["episode_index"].to_numpy()
        self._order = np.argsort(episode, kind="stable")
        self._episode = episode[self._order]

    def rows(self, episode: Episode) -> _Rows:
        first, last = np.searchsorted(self._episode, [episode.index, episode.index + 1])
        found, where = self._order[first:last], f"{self.path} episode {episode.index}"
        if len(found) != episode.length:
            raise DatasetError(
                "an episode has another length than the episodes table says",
                where=where,
                got=len(found),
                expected=episode.length,
            )
        if (bad := np.flatnonzero(self._frame[found] != np.arange(episode.length))).size:
            raise DatasetError("frame_index does not count 0, 1, 2, ...", where=f"{where} row {int(bad[0])}",
                               got=int(self._frame[found[bad[0]]]), expected=int(bad[0]))  # fmt: skip
        state, action = self._state[found].astype(np.float32), self._action[found].astype(np.float32)
        for name, values in ((STATE, state), (ACTION, action)):
            check_finite(values, f"{where} {name}")
        return _Rows(state, action, self._task[found].astype(np.int64))


def check_finite(values: np.ndarray, where: str) -> None:
    """Raise DatasetError naming the first frame and dimension of values [T, D] that is NaN or infinite."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        frame, dim = map(int, bad[0])
        raise DatasetError(
            "a value is not finite",
            where=f"{where} frame {frame} dim {dim}",
            got=float(values[frame, dim]),
            expected="a finite number",
            next_step="repair or leave out this episode",
        )


def _matrix(table: pa.Table, name: str, dim: int, path: Path) -> np.ndarray:
    """A column of numbers (dim 1) or of lists of `dim` numbers as an array [rows, dim]."""
    pieces, where, kind = [], f"{path} column {name}", table.schema.field(name).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    number = kind.value_type if is_list else kind
    if not (pa.types.is_floating(number) or pa.types.is_integer(number)):
        raise DatasetError("a column is not of numbers", where=where, got=kind, expected=f"lists of {dim} numbers",
                           next_step="write the dataset again with this feature as numbers")  # fmt: skip
    for chunk in table.column(name).chunks:
        rows = len(chunk)
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            widths = np.unique(chunk.value_lengths().to_numpy(zero_copy_only=False))
        else:
            widths = np.array([kind.list_size if pa.types.is_fixed_size_list(kind) else 1])
        if chunk.null_count or widths.tolist() not in ([], [dim]):
            got = "rows without a value" if chunk.null_count else f"widths {widths.tolist()}"
            raise DatasetError("a column has another width than info.json says", where=where, got=got, expected=dim)
        values = chunk.flatten() if is_list else chunk
        if values.null_count:
            raise DatasetError("a column has gaps", where=where, got=f"{values.null_count} empty", expected="numbers")
        pieces.append(values.to_numpy(zero_copy_only=False).reshape(rows, dim))
    return np.concatenate(pieces) if pieces else np.empty((0, dim), np.float32)
