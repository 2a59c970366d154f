"""evaluation/compare_policies.py and its command: several policies and training seeds in one table."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from evaluations import PROTOCOL, evaluation

from lightwam.cli.main import main
from lightwam.config import recipes
from lightwam.config.strict_json import to_dict
from lightwam.errors import CheckpointError, ConfigError
from lightwam.evaluation.compare_policies import compare_policies, named_policies
from lightwam.evaluation.statistics import Pairs, mcnemar, mean_of_seeds, paired_difference, sign_flip_test

KEYS = [(task, seed) for seed in (10, 11, 12) for task in ("red", "blue")]


def run_of(place: Path, solved: str, seed: int = 0, **changes: Any) -> Path:
    """A run with an evaluation: `solved` has a 1 for each of KEYS that succeeds."""
    protocol = {key: changes.pop(key) for key in list(changes) if key in PROTOCOL}
    folder = evaluation(place / "eval", {key: mark == "1" for key, mark in zip(KEYS, solved, strict=True)}, **protocol)
    recipe = recipes.point()
    recipe = replace(recipe, train=replace(recipe.train, seed=seed, **changes))
    (place / "recipe.json").write_text(json.dumps(to_dict(recipe)))
    rows = [{"step": step, "seconds": 36.0 * step} for step in (50, 100, 150)]
    (place / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "checkpoints" / "step_00000100").mkdir(parents=True)
    weights = {"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float32)}
    safetensors.numpy.save_file(weights, place / "checkpoints" / "step_00000100" / "model.safetensors")
    return folder


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, solved in enumerate(("111110", "111100", "011110")):
        run_of(tmp_path / f"runs/wam-{seed}", solved, seed)
    for seed, solved in enumerate(("100000", "110000")):
        run_of(tmp_path / f"runs/act-{seed}", solved, seed)
    run_of(tmp_path / "runs/dp", "110100", eval=PROTOCOL["eval"] | {"replan": 8})
    return tmp_path


def test_policies_are_named_by_word_list_or_pattern(runs: Path) -> None:
    words = ["act=runs/act-*/eval", "wam=runs/wam-2/eval,runs/wam-0/eval", "runs/dp/eval"]
    assert named_policies(words) == {
        "act": [Path("runs/act-0/eval"), Path("runs/act-1/eval")],
        "wam": [Path("runs/wam-2/eval"), Path("runs/wam-0/eval")],
        "runs/dp/eval": [Path("runs/dp/eval")],
    }
    (runs / "lr=1e-3").mkdir()
    assert named_policies(["lr=1e-3"]) == {"lr=1e-3": [Path("lr=1e-3")]}, "a folder is a folder"
    for wrong, told in (
        (["a=runs/none-*/eval"], "no folder matches"),
        (["a=runs/dp/eval", "a=runs/act-0/eval"], "a name of its own"),
        (["=runs/dp/eval"], "a name of its own"),
        (["a=runs/dp/eval", "b=runs/*/eval"], "named once"),
    ):
        with pytest.raises(ConfigError, match=told):
            named_policies(wrong)


def test_means_over_seeds_and_paired_tests(runs: Path) -> None:
    found = compare_policies(named_policies(["wam=runs/wam-*/eval", "act=runs/act-*/eval", "dp=runs/dp/eval"]))
    wam, act, dp = found["policies"].values()
    assert found["episodes"] == 6 and found["tasks"] == ["red", "blue"] and found["left_out"] == {}
    assert {name: wam[name] for name in mean_of_seeds([5, 4, 4], 6)} == mean_of_seeds([5, 4, 4], 6)
    assert dp["spread"] is None and dp["mean"] == 0.5
    assert act["tasks"]["blue"]["rates"] == [0.0, 1 / 3]
    assert wam["budgets"][1] == {"seed": 1, "steps": 100, "parameters": 17, "hours": 1.0}
    assert found["matters"] == {} and set(found["differs"]) == {"eval.replan"}
    first, second, _ = found["pairs"]
    assert [(pair["first"], pair["second"]) for pair in found["pairs"]] == [
        ("wam", "act"),
        ("wam", "dp"),
        ("act", "dp"),
    ]
    # red 10: 2 of 3 against 2 of 2, ...
    assert first["p_value"] == sign_flip_test([2 * 2 - 2 * 3, 3 * 2 - 1 * 3, 3 * 2, 3 * 2, 2 * 2, 0])
    assert second["p_value"] == sign_flip_test([2 - 3, 3 - 3, 3, 3 - 3, 2, 0])
    assert first["difference"] == pytest.approx(13 / 18 - 3 / 12)
    assert first["p_holm"] >= first["p_value"]
    alone = compare_policies(named_policies(["dp=runs/dp/eval", "act=runs/act-0/eval"]))["pairs"][0]
    assert alone["p_value"] == pytest.approx(mcnemar(Pairs(1, 2, 0, 3)))
    assert alone["difference_95"] == paired_difference(Pairs(1, 2, 0, 3))


def test_only_episodes_that_all_have_count(runs: Path) -> None:
    evaluation(runs / "few", {("red", 11): True, ("blue", 12): False, ("red", 99): True})
    found = compare_policies(named_policies(["few", "runs/dp/eval"]))
    assert found["episodes"] == 2 and found["left_out"] == {"few": 1, "runs/dp/eval": 4}
    assert found["policies"]["few"]["budgets"] == [{"seed": None, "steps": None, "parameters": None, "hours": None}]
    evaluation(runs / "other", {("red", 77): True})
    with pytest.raises(CheckpointError, match="no episode in common"):
        compare_policies(named_policies(["other", "runs/dp/eval"]))


def test_what_must_be_equal_is_refused(runs: Path) -> None:
    run_of(runs / "runs/odd", "111111", 7, sim=PROTOCOL["sim"] | {"max_steps": 30})
    words = ["a=runs/dp/eval", "b=runs/act-0/eval", "c=runs/odd/eval"]
    with pytest.raises(
        CheckpointError, match=r"sim.max_steps: 40 \(runs/dp/eval, runs/act-0/eval\) \| 30 \(runs/odd/eval"
    ):
        compare_policies(named_policies(words))
    assert "sim.max_steps" in compare_policies(named_policies(words), anyway=True)["matters"]
    run_of(runs / "runs/act-8", "111111", 8, learning_rate=0.5)
    with pytest.raises(CheckpointError, match=r"act: train.learning_rate: [\s\S]*0.5 \(runs/act-8/eval\)"):
        compare_policies(named_policies(["act=runs/act-*/eval", "runs/dp/eval"]))
    run_of(runs / "runs/wam-9", "111111", 2)
    with pytest.raises(CheckpointError, match=r"wam: train.seed, which must differ"):
        compare_policies(named_policies(["wam=runs/wam-*/eval", "runs/dp/eval"]))


def test_a_servers_budget_is_what_it_says(tmp_path: Path) -> None:
    server = {"policy": "act", "parameters": 51_600_000, "training_steps": 1e5, "training_hours": "two"}
    outcomes = dict.fromkeys(KEYS, True)
    folders = [evaluation(tmp_path / "a", outcomes, server=server), evaluation(tmp_path / "b", outcomes)]
    row = compare_policies({"a": folders[:1], "b": folders[1:]})["policies"]["a"]
    assert row["budgets"] == [{"seed": None, "steps": 1e5, "parameters": 51_600_000, "hours": None}]


def test_the_command_prints_one_table(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["wam=runs/wam-*/eval", "act=runs/act-*/eval", "dp=runs/dp/eval"]
    assert main(["compare", *words]) == 2
    assert "needs --over seeds" in capsys.readouterr().err
    assert main(["compare", *words, "--over", "seeds"]) == 0
    text = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in text.splitlines() if "% to" in line}
    assert rows["wam"][:6] == ["wam", "72.2%", "48%", "to", "96%", "3"] and rows["wam"][-3:] == ["100", "17", "1"]
    assert rows["dp"][5] == "1"
    assert "eval.replan: 4 (runs/wam-0/eval, runs/wam-1/eval" in text and "wam - act  +47.2 (-31.5 to +81.8)" in text
    assert main(["compare", *words, "--over", "seeds", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(compare_policies(named_policies(words))))
    assert main(["compare", "runs/dp/eval", "runs/act-0/eval"]) == 0
    assert "A - B" in capsys.readouterr().out, "two folders are compared as before"
