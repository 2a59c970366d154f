"""Tiny datasets of unlike robots, in LeRobot's layouts, with numbers that behave as robots' do."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lightwam.data.lerobot.meta import read_parquet
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.lerobot.video import encode_video
from lightwam.data.lerobot.writer import LeRobotWriter

SO101 = ("shoulder_pan.pos", "shoulder_lift.pos", "elbow_flex.pos", "wrist_flex.pos", "wrist_roll.pos", "gripper.pos")
ALOHA = tuple(
    f"{side}_{joint}"
    for side in ("left", "right")
    for joint in ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
)
RED, BLUE = "put the cube on the red plate", "put the cube on the blue plate"
LEAD = 2
"""steps by which the targets lead the state"""


@dataclass(frozen=True)
class Robot:
    """A robot and how it is recorded."""

    fps: int = 30
    cameras: Mapping[str, tuple[int, int]] = field(default_factory=lambda: {"front": (48, 64), "wrist": (48, 64)})
    names: Sequence[str] = SO101
    state_names: Sequence[str] | None = None
    """the action's by default"""
    motions: bool = False
    """actions are velocities of the state; else targets that lead it"""
    scale: float = 60.0
    """range of joint values"""
    sentences: Sequence[str] = (RED, BLUE)
    episodes: int = 6
    steps: int = 45
    robot_type: str = "so_follower"


def numbers(robot: Robot, episode: int) -> tuple[np.ndarray, np.ndarray]:
    """State and action of an episode: joints swing and never rest, a gripper closes half way."""
    rng = np.random.default_rng([episode, len(robot.names)])
    time, width = np.arange(robot.steps + LEAD) / robot.fps, len(robot.names)
    phase, rate = rng.uniform(0, 6.28, width), rng.uniform(1.0, 3.0, width)
    target = robot.scale * (0.6 * np.sin(rate * time[:, None] + phase) + rng.uniform(-0.2, 0.2, width))
    grips = [i for i, name in enumerate(robot.names) if "gripper" in name]
    target[:, grips] = np.where(time < time[len(time) // 2], robot.scale, 0.0)[:, None]
    state, action = target[: robot.steps], target[LEAD:]
    if robot.motions:
        action = np.diff(target, axis=0)[: robot.steps] * (1 / np.abs(np.diff(target, axis=0)).max(0).clip(1e-9))
        action[:, grips] = np.where(target[LEAD:, grips] > 0, 1.0, -1.0)
    state = state + rng.normal(0, 1e-4 * robot.scale, state.shape)
    if robot.state_names is not None:
        state = np.hstack([state, np.tile(state[:, :1], (1, len(robot.state_names)))])[:, : len(robot.state_names)]
    return state.astype(np.float32), action.astype(np.float32)


def pictures(size: tuple[int, int], state: np.ndarray, tint: int = 0) -> np.ndarray:
    """A dark bar, which moves with the first number of the state, on four bands, as bright as the first four."""
    height, width = size
    clip = np.full((len(state), height, width, 3), (90 + 40 * (tint % 3), 120, 170 - 30 * (tint % 3)), np.uint8)
    for band in range(min(4, state.shape[1])):
        level = 60 * (state[:, band] - state[:, band].min()) / max(float(np.ptp(state[:, band])), 1e-9)
        rows = slice(band * height // 4, (band + 1) * height // 4)
        clip[:, rows] = clip[:, rows] + level.astype(np.uint8)[:, None, None, None]
    span = max(float(np.ptp(state[:, 0])), 1e-9)
    at = (state[:, 0] - state[:, 0].min()) / span * (width - width // 6 - 1)
    share = np.clip(np.arange(width) + 1 - at[:, None], 0, 1) * np.clip(
        at[:, None] + width // 6 - np.arange(width), 0, 1
    )
    part = clip[:, height // 4 : 3 * height // 4]
    part[:] = part * (1 - 0.8 * share[:, None, :, None])  # edges between two pixels are grey, so that any motion shows
    return clip


def write_robot(
    root: Path,
    robot: Robot,
    change: Callable[[int, dict[str, np.ndarray], np.ndarray, np.ndarray], Any] | None = None,
) -> Path:
    """Write a dataset, v3.0; `change` may edit an episode's pictures, state and action in place."""
    names = tuple(robot.names)
    with LeRobotWriter(root, robot.fps, robot.robot_type, robot.cameras, robot.state_names or names, names) as out:
        for episode in range(robot.episodes):
            state, action = numbers(robot, episode)
            clips = {camera: pictures(size, state, i) for i, (camera, size) in enumerate(robot.cameras.items())}
            if change is not None:
                change(episode, clips, state, action)
            out.add_episode(clips, state, action, robot.sentences[episode % len(robot.sentences)])
    return root


def as_v21(source: Path, root: Path, clip: Callable[[int, str], np.ndarray] | None = None) -> Path:
    """The same dataset in the older layout: a file an episode, JSON lines; `clip`: episode, camera -> pictures."""
    data, table = LeRobotDataset(source), _rows(source)
    info = dict(data.info, codebase_version="v2.1", chunks_size=2, total_chunks=2, total_videos=8,
                data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
                video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4")  # fmt: skip
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info), encoding="utf-8")
    tasks = [{"task_index": i, "task": task} for i, task in enumerate(data.tasks)]
    rows = [{"episode_index": e.index, "tasks": list(e.tasks), "length": e.length} for e in data.episodes]
    for name, lines in (("tasks", tasks), ("episodes", rows)):
        (root / "meta" / f"{name}.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
        )
    for index in range(data.num_episodes):
        spot = {"episode_chunk": index // 2, "episode_index": index}
        path = root / info["data_path"].format(**spot)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.filter(pa.compute.equal(table["episode_index"], index)), path)
        for camera in data.cameras:
            path = root / info["video_path"].format(video_key=f"observation.images.{camera}", **spot)
            path.parent.mkdir(parents=True, exist_ok=True)
            encode_video(path, (clip or data.frames)(index, camera), int(data.fps))
    return root


def with_table_pictures(source: Path, root: Path) -> Path:
    """The same dataset with its pictures as PNG bytes in the table."""
    from PIL import Image

    def png(picture: np.ndarray) -> bytes:
        out = io.BytesIO()
        Image.fromarray(picture).save(out, format="PNG")
        return out.getvalue()

    data = LeRobotDataset(shutil.copytree(source, root))
    (path,) = {episode.data_path for episode in data.episodes}
    table, info = read_parquet(path), json.loads((root / "meta" / "info.json").read_text(encoding="utf-8"))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for camera in data.cameras:
        clips = [data.frames(index, camera) for index in range(data.num_episodes)]
        rows = [{"bytes": png(picture), "path": ""} for clip in clips for picture in clip]
        table = table.append_column(f"observation.images.{camera}", pa.array(rows, kind))
        info["features"][f"observation.images.{camera}"]["dtype"] = "image"
    pq.write_table(table, path)
    (root / "meta" / "info.json").write_text(json.dumps(info), encoding="utf-8")
    shutil.rmtree(root / "videos")
    return root


def _rows(root: Path) -> pa.Table:
    return pa.concat_tables(read_parquet(path) for path in sorted((root / "data").glob("*/*.parquet")))
