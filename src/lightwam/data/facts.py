"""What a run knows of the robot and the data that it was trained on; stored in the run as facts.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightwam.config.strict_json import added, from_dict, to_dict
from lightwam.data.held_out import episode_sentences
from lightwam.data.inspection.dims import action_dims
from lightwam.data.inspection.numbers import action_units
from lightwam.data.inspection.tracks import read_tracks
from lightwam.data.lerobot.hub import hub_id
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.ranges import RobotRanges


@dataclass(frozen=True)
class DatasetFacts:
    """Facts of a dataset that report, model card, servers and robots speak of."""

    name: str
    """the folder's name, or the Hub id"""
    robot: str
    """robot_type in its info.json"""
    fps: float
    """control steps a second"""
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    cameras: Mapping[str, tuple[int, int]]
    """camera -> height and width of its pictures"""
    sentences: Mapping[str, int]
    """task sentence -> number of episodes that begin with it"""
    num_episodes: int
    num_frames: int
    units: tuple[str, ...] = added(())
    """of the action's dimensions, such as "degrees"; "" where unknown, empty if none is known"""
    ranges: RobotRanges | None = added(None)
    """where its robot moves, and its largest steps; None for an older run"""

    @classmethod
    def of(cls, dataset: LeRobotDataset, episodes: Collection[int] | None = None) -> DatasetFacts:
        """Read the facts of an open dataset, of the `episodes` in use (None: all); DatasetError for a broken table."""
        tracks, sentences, lengths = read_tracks(dataset), episode_sentences(dataset), np.diff(dataset.episode_start)
        used = [*sentences] if episodes is None else sorted(episodes)
        return cls(
            name=hub_id(dataset.root).partition("@")[0] or dataset.root.resolve().name,
            robot=dataset.robot_type,
            fps=dataset.fps,
            state_names=tuple(dataset.state_names),
            action_names=tuple(dataset.action_names),
            cameras=dict(dataset.cameras),
            sentences=dict(Counter(sentences[number] for number in used)),
            num_episodes=len(used),
            num_frames=int(lengths[used].sum()),
            units=action_units(tracks, action_dims(tracks)),
            ranges=RobotRanges.of(dataset, used),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dict(to_dict(self))

    @classmethod
    def from_dict(cls, data: Any, where: str = "facts") -> DatasetFacts:
        """Read `to_dict`'s values; ConfigError when a key is unknown, missing or mistyped."""
        return from_dict(cls, data, where)
