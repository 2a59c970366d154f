"""The recorded episodes of every task, with their videos."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lightwam.evaluation.episodes import EpisodeRow
from lightwam.report.evidence import Evidence
from lightwam.report.images import Video, read_video

MAX_VIDEO_BYTES = 3_000_000
"""the page embeds videos up to this total; base64 makes them a third larger"""


@dataclass(frozen=True)
class Clip:
    """A recorded episode; without a video where that is missing or too large for the page."""

    episode: EpisodeRow
    file: Path
    """relative to the run"""
    exists: bool
    video: Video | None


@dataclass(frozen=True)
class TaskRollouts:
    """The recorded episodes of a task, and how many of all its episodes succeeded."""

    task: str
    successes: int
    episodes: int
    clips: tuple[Clip, ...]


def rollouts(evidence: Evidence) -> list[TaskRollouts]:
    """Return the recorded episodes by task, in the order of the simulator's tasks in the result or the recipe."""
    folder, recorded = evidence.run / "eval", [episode for episode in evidence.episodes if episode.video]
    videos = _read_videos(folder, recorded)
    sim = evidence.protocol.sim if evidence.protocol else evidence.recipe.sim
    order = {task: i for i, task in enumerate(sim.tasks if sim else ())}
    parts = []
    for task in sorted({episode.task for episode in recorded}, key=lambda name: (order.get(name, len(order)), name)):
        clips = tuple(
            Clip(episode, Path("eval", episode.video), (folder / episode.video).is_file(), videos.get(episode.video))
            for episode in recorded
            if episode.task == task and episode.video
        )
        outcomes = [episode.success for episode in evidence.episodes if episode.task == task]
        parts.append(TaskRollouts(task, sum(outcomes), len(outcomes), clips))
    return parts


def _read_videos(folder: Path, episodes: list[EpisodeRow]) -> dict[str, Video]:
    """Read the videos that fit into the page: the first of every task, then the second of every task, and so on."""
    count: Counter[str] = Counter()
    ranked = []
    for i, episode in enumerate(episodes):
        if episode.video and (folder / episode.video).is_file():
            ranked.append((count[episode.task], i, episode.video))
        count[episode.task] += 1
    videos, total = {}, 0
    for _, _, name in sorted(ranked):
        size = (folder / name).stat().st_size
        if total + size <= MAX_VIDEO_BYTES:
            videos[name], total = read_video(folder / name), total + size
    return videos
