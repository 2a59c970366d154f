"""A folder of videos with a sentence each, as a LeRobotDataset (v2.1) without states and actions.

The folder has `metadata.jsonl`, as in Hugging Face's VideoFolder, with a line for each video, such as
{"file_name": "a.mp4", "task": "..."}. The dataset is a few tables and a link to every video, in a folder for caches:
the videos are neither copied nor encoded again. Its rate is that of the first video, rounded, and a row has the nearest
frame of its video, so rates may differ and vary.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64

from lightwam.data.lerobot.features import CAMERA_PREFIX
from lightwam.data.lerobot.meta import read_json_lines
from lightwam.errors import DatasetError, first_few
from lightwam.system.files import explain_disk_errors, file_fingerprint

METADATA = "metadata.jsonl"
CAMERA = "video"
"""the name of the camera"""
KEY = CAMERA_PREFIX + CAMERA
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
CHUNK = 1000
ROUNDING = 1e-6
"""seconds; of two frames equally near, the later one is taken"""


@dataclass(frozen=True, eq=False)
class _Video:
    path: Path
    task: str
    size: tuple[int, int]
    times: Float64[np.ndarray, " frames"]
    """of its frames, in seconds from the start of the file, rising"""


def is_footage(folder: Path) -> bool:
    """Return whether the folder is one of videos with sentences, and not a LeRobotDataset."""
    return (folder / METADATA).is_file() and not (folder / "meta" / "info.json").is_file()


def footage_dataset(folder: Path, home: Path) -> Path:
    """Return the LeRobotDataset of a folder of videos, made below `home` if it is not there.

    DatasetError when a line of its metadata is broken, a video is missing, broken or of another size than the first
    one, or the disk is full.
    """
    rows = _read_metadata(folder)
    files = {name: file_fingerprint(folder / name) for name in [METADATA, *rows]}
    digest = hashlib.blake2b(json.dumps([str(folder.resolve()), files]).encode(), digest_size=8).hexdigest()
    root = home / f"footage-{digest}"
    if (root / "meta" / "info.json").is_file():
        return root
    videos = [_probe(folder / name, task) for name, task in rows.items()]
    for video in videos:
        if video.size != videos[0].size:
            what, step = "all videos of a folder must have one size", "put it into a folder, a source, of its own"
            raise DatasetError(what, where=video.path, got=video.size, expected=videos[0].size, next_step=step)
    draft = root.with_name(f"{root.name}.draft-{os.getpid()}")
    with explain_disk_errors(draft, DatasetError):
        shutil.rmtree(draft, ignore_errors=True)
        _write(draft, videos)
        if not root.exists():  # else another process has just made it
            os.replace(draft, root)
        shutil.rmtree(draft, ignore_errors=True)
    return root


def _read_metadata(folder: Path) -> dict[str, str]:
    """Read file name -> sentence."""
    rows: dict[str, str] = {}
    for where, row in read_json_lines(folder / METADATA, folder, {"file_name": str, "task": str}):
        name = row["file_name"]
        if name in rows:
            raise DatasetError("a video must have one line", where=where, got=name, next_step="delete one of its lines")
        if not (folder / name).is_file():
            others = first_few(sorted(path.name for path in folder.glob("*.mp4")))
            raise DatasetError("a video is missing", where=where, got=others or "no mp4 file here", expected=name)
        rows[name] = row["task"]
    if not rows:
        raise DatasetError("a folder of videos must have a line for each", where=folder / METADATA, got="no lines")
    return rows


def _probe(path: Path, task: str) -> _Video:
    """Read a video's size and the times of its frames, without decoding."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            base = float(stream.time_base or 0)
            times = [packet.pts * base for packet in container.demux(stream) if packet.pts is not None]
            size = stream.height, stream.width
    except (av.FFmpegError, IndexError) as error:
        what = "a video cannot be read"
        raise DatasetError(what, where=path, got=error, next_step="copy it again, or leave it out") from error
    if len(set(times)) < 2:
        what, step = "a video must have frames at two times at least", "leave it out"
        raise DatasetError(what, where=path, got=f"{len(times)} frames at {len(set(times))} times", next_step=step)
    return _Video(path, task, size, np.sort(np.array(times)))


def _write(root: Path, videos: Sequence[_Video]) -> None:
    """Write tables and links."""
    first = videos[0].times
    fps = max(1, round((len(first) - 1) / (first[-1] - first[0])))
    tasks = list(dict.fromkeys(video.task for video in videos))
    (root / "meta").mkdir(parents=True)
    episodes, total = [], 0
    for index, video in enumerate(videos):
        parts = {"episode_chunk": index // CHUNK, "episode_index": index}
        moments = np.arange(video.times[0], video.times[-1] + 0.5 / fps, 1 / fps)
        after = np.clip(np.searchsorted(video.times, moments), 1, len(video.times) - 1)
        nearer = moments - video.times[after - 1] < video.times[after] - moments - ROUNDING
        length = len(moments)
        columns = {
            "timestamp": np.where(nearer, video.times[after - 1], video.times[after]),
            "episode_index": np.full(length, index),
            "task_index": np.full(length, tasks.index(video.task)),
        }
        data, link = root / DATA_PATH.format(**parts), root / VIDEO_PATH.format(video_key=KEY, **parts)
        for path in (data, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), data)
        _link(video.path, link)
        episodes.append({"episode_index": index, "length": length, "tasks": [video.task]})
        total += length
    features = {KEY: {"dtype": "video", "shape": [*videos[0].size, 3], "names": ["height", "width", "channels"]}}
    about = {
        "codebase_version": "v2.1", "fps": fps, "robot_type": "video", "features": features, "chunks_size": CHUNK,
        "total_episodes": len(videos), "total_frames": total, "data_path": DATA_PATH, "video_path": VIDEO_PATH,
    }  # fmt: skip
    rows = [{"task_index": index, "task": task} for index, task in enumerate(tasks)]
    for name, lines in (("tasks.jsonl", rows), ("episodes.jsonl", episodes)):
        (root / "meta" / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    (root / "meta" / "info.json").write_text(json.dumps(about, indent=1), encoding="utf-8")  # last: it is complete


def _link(path: Path, link: Path) -> None:
    try:
        link.symlink_to(path.resolve())
    except OSError:  # Windows, without the right to make links
        shutil.copyfile(path, link)
