"""evaluation/compare.py and its command: episodes in pairs, and protocols that may not be compared."""

import json
from pathlib import Path
from typing import Any

import pytest
from evaluations import PROTOCOL, evaluation

from lightwam.cli.main import main
from lightwam.errors import CheckpointError
from lightwam.evaluation.compare import compare
from lightwam.evaluation.statistics import Pairs, mcnemar, paired_difference, wilson

FIRST = {
    ("blue", 10): True,
    ("red", 10): True,
    ("red", 11): True,
    ("red", 12): True,
    ("blue", 11): False,
    ("red", 9): True,
}
SECOND = {("red", 10): True, ("red", 11): False, ("red", 12): False, ("blue", 10): False, ("blue", 11): True}


def test_episodes_are_compared_in_pairs(tmp_path: Path) -> None:
    first, second = evaluation(tmp_path / "a", FIRST), evaluation(tmp_path / "b", SECOND, checkpoint_step=200)
    found = compare(first, second)
    assert found["pairs"] == {"both": 1, "wins": 3, "losses": 1, "neither": 0}
    assert found["rates"]["first"] == {"successes": 4, "trials": 5, "interval_95": wilson(4, 5)}
    assert found["rates"]["second"] == {"successes": 2, "trials": 5, "interval_95": wilson(2, 5)}
    assert found["difference"] == pytest.approx(0.4)
    assert found["difference_95"] == paired_difference(Pairs(1, 3, 1, 0))
    assert found["p_value"] == mcnemar(Pairs(1, 3, 1, 0))
    assert list(found["tasks"]) == ["red", "blue"]
    assert found["tasks"]["red"]["pairs"] == {"both": 1, "wins": 2, "losses": 0, "neither": 0}
    assert found["tasks"]["blue"]["pairs"] == {"both": 0, "wins": 1, "losses": 1, "neither": 0}
    assert found["unpaired"] == {"first": 1, "second": 0}
    assert found["matters"] == {} and found["differs"] == {"checkpoint_step": [100, 200]}
    turned = compare(second, first)
    assert turned["difference"] == -found["difference"] and turned["p_value"] == found["p_value"]
    assert (first / "episodes.jsonl").read_text().endswith('{"task": "re')  # somebody may be writing there


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sim.max_steps", {"sim": PROTOCOL["sim"] | {"max_steps": 30}}),
        ("constants", {"constants": {"settle_steps": 10}}),
        ("sim.settle_steps", {"sim": PROTOCOL["sim"] | {"settle_steps": 10}}),
        ("success", {"success": "at the last step"}),
        ("versions.mujoco", {"versions": PROTOCOL["versions"] | {"mujoco": "3.3.2"}}),
        ("versions.my-engine", {"versions": PROTOCOL["versions"] | {"my-engine": "2.1"}}),
        ("versions.robosuite", {"versions": PROTOCOL["versions"] | {"robosuite": "1.4.0"}}),
    ],
)
def test_a_constant_that_matters_is_named_and_refused(tmp_path: Path, name: str, change: dict[str, Any]) -> None:
    first, second = evaluation(tmp_path / "a", FIRST), evaluation(tmp_path / "b", SECOND, **change)
    with pytest.raises(CheckpointError, match=rf"different constants[\s\S]*\n    {name}: [\s\S]* \| [\s\S]*--anyway"):
        compare(first, second)
    found = compare(first, second, anyway=True)
    assert list(found["matters"]) == [name] and found["differs"] == {}
    assert found["pairs"]["wins"] == 3


def test_policies_and_episodes_may_differ(tmp_path: Path) -> None:
    other = {"recipe": "other", "weights": "last", "computes": "int8", "sentences": {"red": "go"},
             "eval": {"trials": 9, "replan": 8, "first_seed": 11}, "sim": PROTOCOL["sim"] | {"tasks": ["red"]},
             "versions": PROTOCOL["versions"] | {"torch": "2.14.0"}}  # fmt: skip
    found = compare(evaluation(tmp_path / "a", FIRST), evaluation(tmp_path / "b", SECOND, **other))
    assert found["matters"] == {}
    assert set(found["differs"]) == {
        "recipe", "weights", "computes", "sentences.red", "eval.trials", "eval.first_seed", "eval.replan", "sim.tasks",
        "versions.torch",
    }  # fmt: skip


def test_folders_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "run" / "eval", FIRST)
    with pytest.raises(CheckpointError, match=rf"not the folder of an evaluation[\s\S]*name {first}"):
        compare(tmp_path / "run", first)
    with pytest.raises(CheckpointError, match=r"no episode in common[\s\S]*'blue' seed 10 and 5 more \| 'red' seed 77"):
        compare(first, evaluation(tmp_path / "b", {("red", 77): True}))
    with pytest.raises(CheckpointError, match=r"no episode in common[\s\S]*\| none"):
        compare(first, evaluation(tmp_path / "c", {}))
    (tmp_path / "c" / "protocol.json").write_text("[]")
    with pytest.raises(CheckpointError, match="got: list"):
        compare(first, tmp_path / "c")


def test_the_command_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sim = PROTOCOL["sim"] | {"max_steps": 30}
    first = str(evaluation(tmp_path / "a", FIRST))
    second = str(evaluation(tmp_path / "b", SECOND, sim=sim, weights="last"))
    assert main(["compare", first, second]) == 2
    told = capsys.readouterr()
    assert "sim.max_steps: 40 | 30" in told.err and told.out == ""
    assert main(["compare", first, second, "--anyway"]) == 0
    text = capsys.readouterr().out
    assert text.index("sim.max_steps: 40 | 30") < text.index("weights: 'ema' | 'last'") < text.index("\nred")
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith(("red", "blue", "all"))}
    assert rows["red"] == ["3", "of", "3", "44%", "to", "100%", "1", "of", "3", "6%", "to", "79%", "2", "0"]
    assert rows["all"][-2:] == ["3", "1"]
    assert "left out: 1 episodes of A, 0 of B" in text and "+40.0 points" in text and "p = 0.625" in text
    assert main(["compare", first, second, "--anyway", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(
        json.dumps(compare(Path(first), Path(second), anyway=True))
    )
    assert main(["compare", first]) == 2
    assert "needs two evaluation folders" in capsys.readouterr().err
