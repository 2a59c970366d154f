"""`lightwam init` on unlike datasets: each then trains, or is refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from robot_data import ALOHA, Robot, as_v21, with_table_pictures, write_robot

from lightwam.cli.main import main
from lightwam.config.recipe_files import read_recipe_file
from lightwam.policy import run_directory

FOUR = {name: (24, 32) for name in ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")}
DROID = Robot(
    15, {"exterior_1_left": (18, 32), "exterior_2_left": (18, 32), "wrist_left": (18, 32)},
    (*(f"joint_{i}" for i in range(7)), "gripper_position"), motions=True, scale=1.5, episodes=4, steps=20,
    sentences=("put the marker in the cup", "open the drawer"), robot_type="franka",
)  # fmt: skip
SO101 = Robot(cameras={"front": (24, 32), "wrist": (24, 32)}, episodes=8, steps=40)


def ours(root: Path) -> Path:
    return Path(shutil.copytree(Path(__file__).parents[1] / "data" / "run_3719b6d" / "dataset", root))


def aloha(root: Path) -> Path:
    return write_robot(root, Robot(50, FOUR, ALOHA, scale=1.0, episodes=2, steps=70, sentences=("transfer the cube",)))


def older(root: Path) -> Path:
    return as_v21(write_robot(root.with_name("source"), SO101), root)


def in_tables(root: Path) -> Path:
    return with_table_pictures(write_robot(root.with_name("source"), SO101), root)


def other_names(root: Path) -> Path:
    """openpi's names for features."""
    return renamed(write_robot(root, replace(SO101, episodes=2)), {"observation.state": "state", "action": "actions"})


def renamed(root: Path, pairs: dict[str, str]) -> Path:
    """Rename features."""
    info = json.loads((root / "meta/info.json").read_text())
    info["features"] = {pairs.get(key, key): value for key, value in info["features"].items()}
    (root / "meta/info.json").write_text(json.dumps(info))
    import pyarrow.parquet as pq

    (path,) = (root / "data").rglob("*.parquet")
    table = pq.read_table(path)
    pq.write_table(table.rename_columns([pairs.get(name, name) for name in table.column_names]), path)
    return root


CASES: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "ours": (ours, {"model.horizon": 12, "codec.delta_action_dims": (0, 1), "held_out": 0}),
    "LeRobot v3.0": (
        lambda root: write_robot(root, SO101),
        {"model.horizon": 32, "codec.canvas": (96, 256), "codec.relative_action_dims": (0, 1, 2, 3, 4),
         "eval.replan": 8, "held_out": 2, "text.num_tokens": 11},
    ),
    "LeRobot v2.1": (older, {"model.horizon": 32, "held_out": 2}),
    "ALOHA": (
        aloha, {"model.horizon": 56, "codec.canvas": (128, 160), "model.action_dim": 14, "codec.video_stride": 7,
                "codec.relative_action_dims": (0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12)},
    ),
    "one camera at 10 fps": (
        lambda root: write_robot(root, Robot(10, {"top": (32, 32)}, ("x", "y"), scale=1.0, motions=True, episodes=3,
                                             steps=20)),
        {"model.horizon": 12, "codec.canvas": (96, 96), "codec.delta_action_dims": (0, 1), "eval.replan": 6},
    ),
    "DROID": (
        lambda root: write_robot(root, DROID),
        {"model.horizon": 16, "codec.delta_action_dims": tuple(range(7)), "codec.action_norm": "min_max"},
    ),
    "pictures in tables": (in_tables, {"model.horizon": 32}),
    "one episode": (lambda root: write_robot(root, replace(SO101, episodes=1)), {"held_out": 0}),
    "other names": (other_names, {"codec.relative_action_dims": (0, 1, 2, 3, 4)}),
}  # fmt: skip


def setting(recipe: Any, name: str) -> Any:
    for part in name.split("."):
        recipe = getattr(recipe, part)
    return recipe


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is timed."""
    monkeypatch.setattr("lightwam.training.new_recipe.timed_step", lambda recipe, device: 0.5)


@pytest.mark.parametrize("name", CASES)
def test_each_dataset_gets_a_recipe_and_trains(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at_once: None
) -> None:
    write, expected = CASES[name]
    write(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    assert main(["init", "set", "--to", "mine.toml"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "next: lightwam train mine.toml"
    recipe = read_recipe_file("mine.toml")
    held_out = expected.pop("held_out", None)
    assert {name: setting(recipe, name) for name in expected} == expected
    assert held_out is None or f"held out  {held_out or 'none'}" in said
    with Image.open("mine.png") as picture:
        assert min(picture.size) > 100
    few = ["--train.steps", "2", "--train.batch-size", "2", "--train.log-every", "1", "--train.save-every", "2"]
    assert main(["train", "mine.toml", *few]) == 0, capsys.readouterr().err
    assert run_directory.steps(Path("runs/mine")) == [2]
    losses = [json.loads(line)["loss"] for line in Path("runs/mine/log.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and np.isfinite(losses).all()


# Refusals


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_robot(tmp_path_factory.mktemp("two") / "set", replace(SO101, episodes=2, motions=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "mine.json"], "a recipe file must end in .toml"),
        (["--to", "there.toml"], "there is such a recipe already"),
        (["--cameras", "frnt"], "did you mean 'front'"),
        (["--relative", "yes"], "relative actions must be targets"),
        (["--names", "observation.images.front=action"], "a feature must be a vector"),
        (["--size", "huge"], "invalid choice"),
    ],
)
def test_a_wish_that_cannot_be_fulfilled_is_refused(
    two: Path, options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], at_once: None,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("there.toml").write_text("mine", encoding="utf-8")
    try:
        assert main(["init", str(two), *options]) == 2
    except SystemExit as stopped:
        assert stopped.code == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["there.toml"]


def test_a_state_of_another_name_looks_wrong(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at_once: None
) -> None:
    """It is not left out silently; with the option that is printed it is read."""
    renamed(Path(shutil.copytree(two, tmp_path / "set")), {"observation.state": "observation.qpos"})
    monkeypatch.chdir(tmp_path)
    assert main(["init", "set"]) == 0
    option = "--names observation.qpos=observation.state"
    assert "looks wrong: there is no observation.state: the policy will not know" in (said := capsys.readouterr().out)
    assert option in said and option in Path("set.toml").read_text(encoding="utf-8")
    assert read_recipe_file("set.toml").model.state_dim == 0
    assert main(["init", "set", "--to", "read.toml", *option.split()]) == 0
    assert "no observation.state" not in capsys.readouterr().out
    assert read_recipe_file("read.toml").model.state_dim == 6


def test_no_dataset_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err


def test_an_episode_without_a_sentence_is_refused(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = as_v21(two, tmp_path / "set")
    tasks = root / "meta" / "tasks.jsonl"
    tasks.write_text(tasks.read_text().replace("put the cube on the blue plate", " "))
    episodes = root / "meta" / "episodes.jsonl"
    episodes.write_text(episodes.read_text().replace("put the cube on the blue plate", " "))
    monkeypatch.chdir(tmp_path)
    assert main(["init", "set"]) == 2
    assert "1 of 2 episodes without one" in capsys.readouterr().err
    assert not Path("set.toml").exists()


def test_wishes_are_fulfilled(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at_once: None
) -> None:
    """Other cameras, height, kind of actions and time; a step of the small size takes 0.5 s here."""
    monkeypatch.chdir(tmp_path)
    wishes = ["--cameras", "wrist", "--height", "64", "--actions", "targets", "--relative", "no", "--hours", "0.05"]
    assert main(["init", str(two), "--to", "a.toml", *wishes]) == 0, capsys.readouterr().err
    recipe = read_recipe_file("a.toml")
    assert [(p.camera, p.height, p.width) for p in recipe.codec.places] == [("wrist", 64, 80)]
    assert (recipe.codec.delta_action_dims, recipe.codec.relative_action_dims) == ((), ())
    assert (recipe.train.steps, recipe.eval.replan) == (400, 8)
    assert Path(recipe.sources[0].path) == two


def test_a_step_is_timed(two: Path) -> None:
    from lightwam.config.fit import RobotData, fitted
    from lightwam.config.sizes import SIZES
    from lightwam.training.benchmark import time_step

    robot = RobotData(10.0, {"front": (32, 32)}, 2, 2, 3, are_motions=True)
    assert 0 < time_step(fitted(SIZES["small"].recipe(), robot, 32, "mine"), "cpu") < 60
