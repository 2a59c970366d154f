"""Demonstrations that LeRobot's own writer recorded are those that `lightwam collect` would record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_policy_lightwam.record import record
from lightwam.config.recipes import point
from lightwam.data.collect import Demonstrator
from lightwam.data.lerobot.check import check_dataset
from lightwam.errors import ConfigError, DatasetError
from lightwam.sim.simulator import Trial


def test_lerobot_and_lightwam_read_what_was_recorded(tmp_path: Path) -> None:
    recipe, out = point(), tmp_path / "out"
    said: list[str] = []
    record(recipe, out, 3, said.append)
    assert len(said) == 3 and "task 'red', seed 2" in said[-1]
    theirs = LeRobotDataset("lightwam/point", root=out, video_backend="pyav")
    assert theirs.num_episodes == 3 and theirs.meta.robot_type == "point"
    shown = Demonstrator(recipe.simulation, recipe.demonstrations)(Trial("blue", 1))
    assert shown is not None
    rows = [theirs[index] for index in range(theirs.num_frames)]
    mine = [row for row in rows if row["episode_index"] == 1]
    assert np.array_equal(np.stack([row["action"].numpy() for row in mine]), shown.action)
    assert np.array_equal(np.stack([row["observation.state"].numpy() for row in mine]), shown.state)
    assert {row["task"] for row in mine} == {"move to the blue dot"}
    ours = check_dataset(out)
    assert ours.problems == () and ours.dataset is not None and len(ours.dataset.episodes) == 3


def test_an_old_folder_and_a_recipe_without_a_simulator_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="must not exist"):
        record(point(), tmp_path, 1)
    with pytest.raises(ConfigError, match="must have a simulator"):
        record(replace(point(), sim=None), tmp_path / "new", 1)
    assert not (tmp_path / "new").exists()
