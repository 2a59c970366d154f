"""data/inspection: what a dataset's numbers are, and what is said of faults that were put into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from robot_data import ALOHA, LEAD, SO101, Robot, write_robot

from lightwam.data.inspection import numbers
from lightwam.data.inspection.dims import Dim, action_dims, action_kind, is_switch, still_dims
from lightwam.data.inspection.inspect import Inspection, inspect_dataset
from lightwam.data.inspection.sentences import sentence_problems
from lightwam.data.inspection.tracks import Track, Tracks
from lightwam.data.lerobot.reader import LeRobotDataset

SMALL = Robot(cameras={"front": (24, 32)}, episodes=3, steps=60)
Change = Callable[[int, dict[str, np.ndarray], np.ndarray, np.ndarray], Any]


def inspected(root: Path, robot: Robot = SMALL, change: Change | None = None) -> Inspection:
    dataset = LeRobotDataset(write_robot(root, robot, change))
    return inspect_dataset(dataset, tuple(dataset.cameras))


def tracks(state: np.ndarray, action: np.ndarray, names: Sequence[str] = (), fps: float = 10.0) -> Tracks:
    words = tuple(names) or tuple(f"joint_{i}" for i in range(action.shape[1]))
    return Tracks(fps, words[: state.shape[1]], words, (Track(0, state.astype(float), action.astype(float)),))


def swing(rows: int = 200, dims: int = 3, size: float = 50.0) -> np.ndarray:
    time = np.arange(rows)[:, None] / 10
    return size * np.sin(time * np.linspace(0.7, 1.3, dims) + np.arange(dims))


def kinds(tracks: Tracks) -> list[str]:
    return [dim.kind for dim in action_dims(tracks)]


# Kinds of numbers


def test_targets_lead_the_state_and_a_gripper_is_apart(tmp_path: Path) -> None:
    found = inspected(tmp_path / "set")
    assert [dim.kind for dim in found.dims] == ["target"] * 5 + ["gripper"]
    assert (found.kind, found.lead_steps, found.dims[5].switch) == ("targets", LEAD, True)
    assert found.problems[0].startswith("few episodes") and len(found.problems) == 1
    assert "gripper.pos a switch, 0 to 60, episodes begin at 60" in found.grippers


def test_velocities_are_motions(tmp_path: Path) -> None:
    found = inspected(tmp_path / "set", replace(SMALL, motions=True))
    assert [dim.kind for dim in found.dims] == ["motion"] * 5 + ["gripper"]
    assert (found.kind, found.lead_steps) == ("motions", None)


def test_what_the_actions_are_can_be_said(tmp_path: Path) -> None:
    dataset = LeRobotDataset(write_robot(tmp_path / "set", SMALL))
    found = inspect_dataset(dataset, ("front",), "positions")
    assert (found.kind, [dim.kind for dim in found.dims]) == ("positions", ["position"] * 5 + ["gripper"])


def test_numbers_that_the_state_has_at_another_place_are_positions() -> None:
    state = swing()
    assert kinds(tracks(state, state[:, ::-1])) == ["position", "target", "position"]


def test_the_same_course_in_another_unit_is_no_motion() -> None:
    fast = 50 * np.sin(np.arange(300)[:, None] * 0.9 + np.arange(2))
    assert kinds(tracks(np.radians(fast), fast)) == ["position", "position"]
    assert kinds(tracks(fast[:, :0], fast)) == ["motion", "motion"], "without the state it cannot be told"


def test_motions_are_recognised_with_a_state_of_other_numbers_and_without_one() -> None:
    place = swing(dims=2)
    motion = np.diff(place, axis=0, append=place[-1:])
    assert kinds(tracks(np.hstack([place * 7 + 3, place]), motion)) == ["motion", "motion"]
    rough = np.random.default_rng(0).normal(size=(300, 2))
    assert kinds(tracks(np.zeros((300, 0)), rough)) == ["motion", "motion"]
    assert kinds(tracks(np.zeros((200, 0)), swing() + 80)) == ["position"] * 3
    assert kinds(tracks(np.zeros((200, 0)), swing())) == ["position"] * 3, "smooth, though around 0"


def test_a_switch_has_two_ends_and_is_at_both() -> None:
    clicks = np.repeat([0.0, 1.0, 0.0], 40)
    assert is_switch(clicks) and is_switch(clicks + 0.03 * np.sin(np.arange(120)))
    assert not is_switch(np.linspace(0, 1, 120)) and not is_switch(np.ones(9))
    assert action_dims(tracks(np.zeros((120, 0)), clicks[:, None], ["valve"]))[0].kind == "gripper"


def test_still_dimensions_are_found_beside_moving_ones() -> None:
    values = np.hstack([swing(), np.full((200, 1), 3.0), 1e-3 * swing(dims=1)])
    assert still_dims(values) == {3, 4}
    assert still_dims(values[:, :0]) == frozenset()


def test_most_dimensions_decide() -> None:
    dims = [Dim(0, "x", "motion"), Dim(1, "y", "motion"), Dim(2, "z", "target"), Dim(3, "g", "gripper")]
    assert action_kind(dims) == "motions"


# Clocks, units, polarity, idle rows


@pytest.mark.parametrize("lead", [-4, -1, 0, 1, 3, 5])
def test_the_lead_of_targets_is_found(lead: int) -> None:
    rows = swing(220) + np.random.default_rng(0).normal(0, 0.2, (220, 3))
    state, action = rows[10:210], rows[10 + lead : 210 + lead]
    assert numbers.lead_steps(tracks(state, action), [0, 1, 2]) == lead


def test_no_lead_without_a_common_course() -> None:
    rng = np.random.default_rng(0)
    assert numbers.lead_steps(tracks(rng.normal(size=(200, 2)), rng.normal(size=(200, 2))), [0, 1]) is None


DIMS = tuple(Dim(i, f"joint_{i}", "target") for i in range(3))


def said(found: Any) -> str:
    return "\n".join(found)


def test_what_is_odd_about_clocks_is_said() -> None:
    both = tracks(swing(), swing())
    assert "the action equals the state" in said(numbers.lead_problems(both, DIMS, 0))
    shifted = tracks(swing(), swing() + 1)
    assert "4 rows (0.40 s) after the states" in said(numbers.lead_problems(shifted, DIMS, -4))
    assert "follows the action 3 rows (0.30 s) later" in said(numbers.lead_problems(shifted, DIMS, 3))
    assert not said(numbers.lead_problems(shifted, DIMS, 2))


def test_the_units_of_a_run_are_those_of_its_joints() -> None:
    names = ["elbow.pos", "wrist.pos", "gripper.pos"]
    joints = tracks(swing(size=150.0), swing(size=150.0), names)
    assert numbers.action_units(joints, action_dims(joints)) == ("degrees", "degrees", "")
    plane = tracks(swing(), swing(), ["x", "y", "z"])
    assert numbers.action_units(plane, action_dims(plane)) == ()


@pytest.mark.parametrize(
    ("size", "unit"),
    [(1.5, "radians"), (60.0, "degrees or -100..100"), (100.0, "-100..100"), (150.0, "degrees"), (5000.0, "")],
)
def test_units_of_joints_follow_from_their_range(size: float, unit: str) -> None:
    values = np.clip(swing(400, size=size * 1.2), -size, size)
    assert numbers.unit_word(["elbow_flex.pos", "joint_2", "waist"], values) == unit
    assert numbers.unit_word(["x", "y", "z"], values) == "", "metres or pixels, not angles"
    assert numbers.unit_word(["gripper.pos"], values[:, :1]) == ""


def test_other_units_in_state_and_action_are_said() -> None:
    state = swing()
    degrees = tracks(np.radians(state), state)
    assert "degrees in one and radians in the other: joint_0, joint_1, joint_2" in said(
        numbers.scale_problems(degrees, action_dims(degrees))
    )
    assert "5 times the scale" in said(numbers.scale_problems(tracks(state, state * 5), DIMS))
    assert "other zero points: joint_0 +500, joint_1 +500" in said(
        numbers.scale_problems(tracks(state, state + 500), DIMS)
    )
    assert "the opposite sign" in said(numbers.scale_problems(tracks(state, -state), DIMS))
    assert not said(numbers.scale_problems(tracks(state, state * 1.2), DIMS))


def test_a_reversed_gripper_is_said(tmp_path: Path) -> None:
    def reverse(episode: int, clips: dict[str, np.ndarray], state: np.ndarray, action: np.ndarray) -> None:
        action[:, 5] = 60 - action[:, 5]

    found = inspected(tmp_path / "set", change=reverse)
    assert any("gripper.pos: a larger action goes with a smaller state" in line for line in found.problems)


def test_idle_rows_and_still_dimensions_are_said(tmp_path: Path) -> None:
    def rest(episode: int, clips: dict[str, np.ndarray], state: np.ndarray, action: np.ndarray) -> None:
        state[:, 4] = action[:, 4] = 12.5
        state[:24], action[:24] = state[24], action[24]
        action[:24:2, 0] += 1e-3  # a joint that trembles stands still

    found = inspected(tmp_path / "set", change=rest)
    assert "3 of 3 episodes begin with more than 0.5 s without motion (median 0.8 s)" in said(found.problems)
    assert "state dimensions that never move: wrist_roll.pos (12.5)" in found.problems
    assert "action dimensions that never move: wrist_roll.pos (12.5)" in found.problems
    assert not any(" end with" in line for line in found.problems)
    assert found.of_kind("still") == (4,)


def test_outliers_are_found() -> None:
    values = swing(400)
    assert not numbers.have_outliers(tracks(values, values), DIMS)
    far = values.copy()
    far[7, 1] = 2000
    assert numbers.have_outliers(tracks(values, far), DIMS)


# Sentences


@pytest.mark.parametrize(
    ("episodes", "words"),
    [
        ({"Pick the cube.": 20, "pick the cube": 20}, "one task with 2 spellings"),
        ({"pick it": 20, "drop it": 2}, "few episodes: 'drop it' 2"),
    ],
)
def test_odd_sentences_are_said(episodes: dict[str, int], words: str) -> None:
    assert words in said(sentence_problems(episodes))
    assert not said(sentence_problems({"pick it": 20, "drop it": 10}))


def test_one_short_episode_is_said(tmp_path: Path) -> None:
    found = inspected(tmp_path / "set", replace(SMALL, episodes=1, steps=20))
    assert "there is one episode" in said(found.problems)
    assert "1 of 1 episodes are shorter than 1 s: 0" in found.problems


# Pictures


def black(clip: np.ndarray) -> None:
    clip[::3] = 2


def twice(clip: np.ndarray) -> None:
    clip[1::2] = clip[::2]


def frozen(clip: np.ndarray) -> None:
    clip[:] = clip[0]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (black, "of the sampled pictures of camera front are black"),
        (twice, "repeat the one before, so it ran at about"),
        (frozen, "camera front shows the same picture while the robot moves"),
    ],
)
def test_faults_of_pictures_are_said(tmp_path: Path, fault: Callable[[np.ndarray], None], words: str) -> None:
    found = inspected(tmp_path / "set", change=lambda episode, clips, state, action: fault(clips["front"]))
    assert words in said(found.problems)


def test_pictures_repeat_while_the_robot_rests(tmp_path: Path) -> None:
    def rest(episode: int, clips: dict[str, np.ndarray], state: np.ndarray, action: np.ndarray) -> None:
        state[20:40], clips["front"][20:40] = state[20], clips["front"][20]

    assert not any("repeat" in line for line in inspected(tmp_path / "set", change=rest).problems)


def test_pictures_of_every_sentence_are_shown(tmp_path: Path) -> None:
    robot = replace(SMALL, episodes=4, sentences=("one", "one", "one", "two"), names=ALOHA, scale=1.0)
    found = inspected(tmp_path / "set", robot)
    assert {shown.sentence for shown in found.pictures.shown} == {"one", "two"}
    assert all(shown.rows == (0, 30, 59) and shown.frames["front"].shape == (3, 24, 32, 3)
               for shown in found.pictures.shown)  # fmt: skip
    assert len(SO101) == 6 and found.action_unit == "radians"
