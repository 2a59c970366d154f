"""Ranges and largest steps of a dataset's robot."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.lerobot.writer import LeRobotWriter
from lightwam.data.ranges import RobotRanges


def measured(root: Path, *actions: list[float]) -> RobotRanges:
    """The ranges of a dataset with these actions of each episode; the state is the action before."""
    with LeRobotWriter(root, 10, "arm", {"top": (16, 16)}, ["x"], ["x"]) as writer:
        for episode in actions:
            action = np.array(episode, np.float32)[:, None]
            frames = {"top": np.zeros((len(episode), 16, 16, 3), np.uint8)}
            writer.add_episode(frames, np.vstack([action[:1], action[:-1]]), action, "go")
    return RobotRanges.of(LeRobotDataset(root))


def test_a_step_is_within_an_episode(tmp_path: Path) -> None:
    ranges = measured(tmp_path, [0, 1, 3], [50], [-20, -20.5])
    assert ranges == RobotRanges((-20.0,), (50.0,), (-20.5,), (50.0,), (2.0,))
    assert measured(tmp_path / "one", [7]).action_step == (0.0,)


def test_episodes_that_are_not_used_do_not_count(tmp_path: Path) -> None:
    measured(tmp_path, [0, 1, 3], [50, 99], [-20, -20.5])
    ranges = RobotRanges.of(LeRobotDataset(tmp_path), (0, 2))
    assert ranges == RobotRanges((-20.0,), (1.0,), (-20.5,), (3.0,), (2.0,))


def test_several_datasets_have_the_range_of_all_and_steps_at_one_rate(tmp_path: Path) -> None:
    slow, fast = measured(tmp_path / "slow", [0, 4]), measured(tmp_path / "fast", [10, 11])
    joined = RobotRanges.joined(((slow, 10.0), (fast, 50.0)), fps=20.0)
    assert joined == RobotRanges((0.0,), (10.0,), (0.0,), (11.0,), (2.5,))


def test_a_motion_a_step_is_smaller_where_steps_are_shorter(tmp_path: Path) -> None:
    slow, fast = measured(tmp_path / "slow", [-1, 4]), measured(tmp_path / "fast", [-1, 2])
    joined = RobotRanges.joined(((slow, 10.0), (fast, 20.0)), fps=20.0, motions=(0,))
    assert (joined.action_low, joined.action_high) == ((-1.0,), (2.0,))
    slower = RobotRanges.joined(((slow, 10.0), (fast, 20.0)), fps=10.0, motions=(0,))
    assert (slower.action_low, slower.action_high) == ((-2.0,), (4.0,))
    assert slower.state_low == (-1.0,) and slower.state_high == (-1.0,)  # the state is no motion
