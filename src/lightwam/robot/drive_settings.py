"""How a robot is driven, what came of it, and what takes its recording."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lightwam.robot.chunks import require
from lightwam.robot.player import Stats


@dataclass(frozen=True)
class DriveSettings:
    """How a robot is driven."""

    seconds: float = 60.0
    """how long"""
    replan: int = 4
    """steps of a chunk that are executed before the next is requested; of the command: the run's own by default"""
    blend: int = 2
    """steps over which a new chunk replaces the old one"""
    dry: bool = False
    """read the robot, ask the policy and show the commands, but send none"""
    any_pose: bool = False
    """begin in any pose, also one outside the data's range"""
    return_to_start: bool = True
    """when the time is over, go back to the first pose, within the limits; not after a stop or an error"""
    patience_seconds: float = 5.0
    """longest time without an action to execute, before the robot is stopped"""
    frozen_seconds: float = 2.0
    """longest time in which a camera may return the same picture, to the bit; 0: no limit"""
    first_chunk_seconds: float = 120.0
    """longest time for the first answer, before anything moves"""
    max_age_seconds: float = 3.0
    """an action is not executed later than this after its observation"""
    n_obs_steps: int = 0
    """control steps that the policy acts on, the last of which are sent as a history; 0: the present alone"""

    def __post_init__(self) -> None:
        for name in ("seconds", "patience_seconds", "first_chunk_seconds", "max_age_seconds"):
            require(getattr(self, name) > 0, name, getattr(self, name), "positive")
        require(self.replan >= 1, "replan", self.replan, "1 or more")
        require(self.blend >= 0, "blend", self.blend, "0 or more")
        require(self.frozen_seconds >= 0, "frozen_seconds", self.frozen_seconds, "0 or more")


@runtime_checkable
class EpisodeRecorder(Protocol):
    """Takes what was seen and done at every step: `lightwam.data.lerobot.recorder` writes it as a LeRobot episode."""

    def add(self, frames: Mapping[str, np.ndarray], state: np.ndarray, action: np.ndarray, *, corrected: bool) -> None:
        """Take one step; `action` is what was sent, `corrected`: by a person's hand."""

    def save(self, task: str, extra: Mapping[str, Any]) -> str:
        """Save the episode and return a line about it."""

    def discard(self) -> None:
        """Forget the episode."""


@dataclass
class DriveResult:
    """What happened in one drive."""

    reason: str = ""
    """why it ended"""
    steps: int = 0
    seconds: float = 0.0
    sent: int = 0
    """commands sent to the robot"""
    corrected: int = 0
    """steps in which the teleoperator moved the robot"""
    late_steps: int = 0
    """steps that took more than 1.5 periods"""
    limited: dict[str, int] = field(default_factory=dict)
    """joint -> steps in which its command was limited"""
    player: Stats = field(default_factory=Stats)
    recorded: str = ""
    """where the episode was saved"""
    keep: bool = True
    """whether a recording of it is to be saved"""

    def lines(self) -> list[str]:
        """Format the result."""
        stats, lines = self.player, [f"{self.reason}: {self.steps} steps in {self.seconds:.1f} s, {self.sent} sent"]
        if stats.latency_p50_ms is not None:
            latency = f"answers in {stats.latency_p50_ms:.0f} ms (p99 {stats.latency_p99_ms:.0f})"
            lines.append(f"{stats.chunks} chunks, {latency}, {stats.held} steps without one, {stats.late} too late")
        if self.corrected:
            lines.append(f"{self.corrected} steps by the teleoperator, marked as corrections")
        if self.limited:
            lines.append("limited: " + ", ".join(f"{name} {count} steps" for name, count in self.limited.items()))
        if self.late_steps:
            lines.append(f"{self.late_steps} steps were late: reading the robot took longer than a step")
        return [*lines, *([self.recorded] if self.recorded else [])]
