"""data/held_out.py: which episodes are never trained on."""

from pathlib import Path

import pytest
from robot_data import BLUE, RED, Robot, write_robot

from lightwam.data.held_out import episode_sentences, held_out_episodes
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.errors import ConfigError

TWO_TASKS = {episode: "left" if episode < 20 else "right" for episode in range(30)}


def test_a_share_of_every_sentence_is_held_out() -> None:
    chosen = held_out_episodes(TWO_TASKS, 0.2, seed=0)
    assert [sum(TWO_TASKS[episode] == task for episode in chosen) for task in ("left", "right")] == [4, 2]
    assert chosen == tuple(sorted(set(chosen)))
    assert chosen == held_out_episodes(dict(reversed(TWO_TASKS.items())), 0.2, seed=0)
    assert chosen != held_out_episodes(TWO_TASKS, 0.2, seed=1)
    assert held_out_episodes(TWO_TASKS, 0.0) == ()


def test_a_small_share_still_holds_one_out_of_four() -> None:
    assert len(held_out_episodes({i: "a" for i in range(4)}, 0.01)) == 1
    assert held_out_episodes({i: "a" for i in range(3)}, 0.5) == ()
    assert len(held_out_episodes({i: "a" for i in range(4)}, 1.0)) == 3, "something must be left to train on"


def test_rare_sentences_are_drawn_from_together() -> None:
    """As in datasets whose every episode has a sentence of its own."""
    assert len(held_out_episodes({i: f"sentence {i}" for i in range(40)}, 0.1)) == 4


def test_most_episodes_stay_held_out_when_a_dataset_grows() -> None:
    before = set(held_out_episodes({i: "a" for i in range(100)}, 0.1))
    after = set(held_out_episodes({i: "a" for i in range(110)}, 0.1))
    assert len(before & after) >= 8


def test_listed_episodes_win() -> None:
    assert held_out_episodes(TWO_TASKS, 0.2, listed=(7, 3, 7)) == (3, 7)
    with pytest.raises(ConfigError, match=r"held-out episodes must be in use[\s\S]*got: 30, 99"):
        held_out_episodes(TWO_TASKS, 0.2, listed=(99, 30, 1))


def test_the_sentences_of_a_dataset_are_by_episode(tmp_path: Path) -> None:
    root = write_robot(tmp_path / "set", Robot(cameras={"front": (16, 16)}, episodes=3, steps=4))
    assert episode_sentences(LeRobotDataset(root)) == {0: RED, 1: BLUE, 2: RED}
