"""The main job: demonstrations, training, closed loop, report; and that it truly learns."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightwam.cli import pipeline as module
from lightwam.cli.main import main
from lightwam.cli.pipeline import Timer, demo
from lightwam.config.recipes import point
from lightwam.config.schema import Recipe
from lightwam.policy.run_directory import read_json, steps

PARTS = {"collect", "train", "evaluate", "swap", "probe", "report"}


def test_demo_writes_a_result_and_a_report_and_resumes(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def full(*_: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(module, "evaluate", full)
        demo(tiny_recipe, tmp_path, said.append)
    assert read_json(tmp_path / "wall.json").keys() == {"collect", "train", "evaluate"}

    returned = demo(tiny_recipe, tmp_path, said.append)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == json.loads(json.dumps(returned))
    assert result["trials"] == 4
    assert 0 <= result["successes"] <= 4
    assert result["tasks"].keys() == {"red", "blue"}
    seconds = result["wall_seconds"]
    assert seconds.keys() == PARTS | {"total"}
    assert seconds["total"] == pytest.approx(sum(seconds[part] for part in PARTS))
    assert all(seconds[part] > 0 for part in PARTS)
    assert {"cores", "processor", "system"} == result["machine"].keys()
    page = (tmp_path / "report.html").read_text()
    assert "move to the red dot" in page
    assert steps(tmp_path)[-1] == 6
    swapped = read_json(tmp_path / "eval" / "swap.json")
    assert swapped["tasks"]["red"]["swapped_instruction"] == "move to the blue dot"
    assert swapped["swapped"]["trials"] == swapped["right"]["trials"] == 4
    assert (tmp_path / "eval" / "probe.npz").exists()
    assert any("of 4 episodes on unseen seeds succeed" in line for line in said)


def test_the_wall_seconds_of_all_attempts_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    for seconds in (2.0, 3.0):
        timer = Timer(tmp_path / "wall.json")
        with pytest.raises(KeyError), timer.part("train"):
            now[0] += seconds
            raise KeyError
    with timer.part("report"):
        now[0] += 1
    assert Timer(tmp_path / "wall.json").seconds() == {"train": 5.0, "report": 1.0, "total": 6.0}


def test_a_trained_run_gets_every_part_of_the_report(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Also what `lightwam demo` would have recorded, under the settings that it was evaluated with."""
    run = str(tiny.run)
    assert main(["report", run, "--swap"]) == 2
    assert f"lightwam eval {run}" in capsys.readouterr().err
    assert main(["eval", run, "--sim.max-steps", "9", "--eval.replan", "3", "--eval.videos-per-task", "0"]) == 0
    assert main(["report", run, "--swap", "--imagine"]) == 0
    page = (tiny.run / "report.html").read_text()
    assert "within 9 control steps" in page and "--swap" not in page and "--imagine" not in page
    swapped = read_json(tiny.run / "swap" / "protocol.json")
    assert (swapped["sim"]["max_steps"], swapped["eval"]["replan"], swapped["checkpoint_step"]) == (9, 3, 6)


def test_one_sentence_cannot_be_exchanged(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    alone = ["--sim.tasks", "red", "--eval.trials", "1", "--eval.videos-per-task", "0", "--sim.max-steps", "4"]
    assert main(["eval", str(tiny.run), *alone]) == 0
    assert main(["report", str(tiny.run), "--swap"]) == 2
    assert "sentences can be exchanged among several tasks only" in capsys.readouterr().err


@pytest.mark.slow
def test_the_point_recipe_learns_to_reach_the_named_dot(tmp_path: Path) -> None:
    """Chance is near 0: the dots take 3 % of the plane each, and 40 steps are not many. Measured: 39 of 40."""
    recipe = replace(point(), eval=replace(point().eval, trials=20))
    result = demo(recipe, tmp_path)
    assert result["successes"] >= 34, result["tasks"]
    swapped = read_json(tmp_path / "eval" / "swap.json")
    assert swapped["swapped"]["successes"] < 0.5 * swapped["swapped"]["trials"]
