"""State and action of a sample of episodes, as the inspection reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from lightwam.data.lerobot.reader import LeRobotDataset

MAX_ROWS = 200_000
"""rows to read: more would only make the inspection slower"""
Rows = Float64[np.ndarray, "T D"]


@dataclass(frozen=True)
class Track:
    """One episode's numbers, in robot units."""

    episode: int
    state: Float64[np.ndarray, "T P"]
    action: Float64[np.ndarray, "T A"]


@dataclass(frozen=True)
class Tracks:
    """Evenly spaced episodes of a dataset, all of them in most datasets."""

    fps: float
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    episodes: tuple[Track, ...]

    @property
    def state(self) -> Rows:
        """All states, episode after episode."""
        return np.concatenate([track.state for track in self.episodes])

    @property
    def action(self) -> Rows:
        """All actions, episode after episode."""
        return np.concatenate([track.action for track in self.episodes])

    def shifted(self, steps: int) -> Iterator[tuple[Rows, Rows]]:
        """Yield each episode's actions with the states that come `steps` rows later (earlier, if negative)."""
        for track in self.episodes:
            length = len(track.state) - abs(steps)
            if length > 1:
                first = max(-steps, 0)
                yield track.action[first : first + length], track.state[first + steps : first + steps + length]


def read_tracks(dataset: LeRobotDataset) -> Tracks:
    """Read the numbers of evenly spaced episodes, at most about MAX_ROWS rows."""
    vectors, starts = dataset.vectors, dataset.episode_start
    share = min(1.0, MAX_ROWS / dataset.num_frames)
    count = max(1, round(share * dataset.num_episodes))
    picked = np.unique(np.linspace(0, dataset.num_episodes - 1, count).astype(int)).tolist()
    spans = {number: slice(int(starts[number]), int(starts[number + 1])) for number in picked}
    episodes = tuple(
        Track(number, vectors.state[span].astype(np.float64), vectors.action[span].astype(np.float64))
        for number, span in spans.items()
    )
    return Tracks(dataset.fps, dataset.state_names, dataset.action_names, episodes)
