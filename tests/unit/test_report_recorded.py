"""Report and model card of a run on recorded data alone: what they say, and that no simulator is mentioned."""

import json
import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arm import NAMES, SENTENCES
from huggingface_hub import ModelCard
from report_run import TASKS, moving_square, write_evaluation

from lightwam.cli.main import main
from lightwam.errors import CheckpointError
from lightwam.evaluation.probe import read_probe
from lightwam.policy import run_directory
from lightwam.report import write_report
from lightwam.report.model_card import model_card

SIMULATED = ("simulator", "seed", "closed-loop", "lightwam collect", "lightwam demo", "Meta-World", "unseen")


@pytest.fixture(scope="module")
def run(arm_once: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run, measured in open loop and probed; look, do not touch."""
    run = tmp_path_factory.mktemp("recorded") / "arm"
    shutil.copytree(arm_once.run, run)
    main(["eval", str(run)])
    main(["report", str(run), "--imagine"])
    return run


def text_of(page: str) -> str:
    """What a person reads, without the settings at the end."""
    body = re.sub(r"<(style|script).*?</\1>", "", page[: page.index("All settings of the recipe")], flags=re.S)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", "", body)))


def test_the_page_speaks_of_the_dataset_and_of_no_simulator(run: Path) -> None:
    text, result = text_of((run / "report.html").read_text()), json.loads((run / "eval" / "open_loop.json").read_text())
    assert "8 demonstrations of dataset, 2 tasks for toy_arm at 10 Hz has an error of" in text
    for words in (*NAMES, *SENTENCES, *result["verdict"], f"{result['overall']['policy']:.3g}", "2 held-out episodes"):
        assert words in text, words
    assert not [words for words in SIMULATED if words in text]
    for command in ("train", "eval", "report"):
        assert f"lightwam {command} {run}" in text


def test_whole_episodes_are_drawn_with_their_chunks(run: Path) -> None:
    page = (run / "report.html").read_text()
    episodes = json.loads((run / "eval" / "open_loop.json").read_text())["episodes"]
    charts = re.findall(r'aria-label="([a-z]+\.pos): recorded [^"]* and (\d+) chunks', page)
    assert charts == [(name, "6") for _ in episodes for name in NAMES]
    assert page.count('class="chunk"') == page.count('class="dot start"') == 6 * len(charts)


def test_futures_and_attention_are_of_recorded_moments(run: Path, arm_once: Any) -> None:
    probe = read_probe(run / "eval" / "probe.npz")
    assert probe is not None and sorted(set(probe.instructions)) == sorted(SENTENCES)
    assert probe.steps.tolist() == [6, 12] * 2 and probe.fps == 10
    assert probe.tasks == tuple(f"episode {seed}" for seed in probe.seeds)
    assert (probe.real[:, 0].astype(int) != probe.real[:, -1]).any((1, 2, 3)).all() and not probe.real_is_pad.any()


def test_what_is_missing_is_named_with_its_command(arm_once: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(arm_once.run, run)
    text = text_of(write_report(run).read_text())
    assert "has not been evaluated yet" in text and f"lightwam eval {run}" in text and "--imagine" in text
    assert "Closed loop" not in text


def test_a_run_without_a_simulator_shows_what_it_did_in_that_of_another_recipe(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    write_evaluation(other, TASKS, {task: moving_square(i, 12) for i, task in enumerate(TASKS)})
    (other / "result.json").unlink()
    page = write_report(other).read_text()
    text = text_of(page)
    for words in ("succeeds in 9 of 10 episodes", "Success by task", "Rollouts", "Error on recorded episodes", *NAMES):
        assert words in text, words
    assert 'href="#success"' in page and 'href="#watch"' not in page
    (other / "eval" / "result.json").unlink()
    text = text_of(write_report(other).read_text())
    assert "10 of 10 episodes are done" in text and f"lightwam eval {other} RECIPE" in text


def test_a_broken_result_is_refused_by_name(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    np.savez(other / "eval" / "open_loop.npz", action=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"open_loop\.npz"):
        write_report(other)
    saved = run_directory.read_json(other / "eval" / "open_loop.json")
    del saved["overall"]
    run_directory.write_json(other / "eval" / "open_loop.json", saved)
    with pytest.raises(CheckpointError, match=r"open_loop\.json"):
        write_report(other)


def test_episodes_it_was_trained_on_are_not_called_held_out(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    recipe = run_directory.read_recipe(other)
    for name in ("recipe.json", "eval/futures.json"):  # of when they were held out
        (other / name).unlink()
    run_directory.start_run(other, replace(recipe, held_out=replace(recipe.held_out, share=0.0)))
    main(["eval", str(other), "--most-steps", "50"])
    text = text_of(write_report(other).read_text())
    assert "on its own training episodes" in text and "say nothing about new ones" in text and "held-out" not in text


def test_the_card_has_names_rate_and_errors_and_says_that_closed_loop_was_not_measured(run: Path) -> None:
    text = model_card(run, repo="someone/arm")
    card, result = ModelCard(text), json.loads((run / "eval" / "open_loop.json").read_text())
    (found,) = card.data.eval_results
    assert found.metric_type == "mae" and found.metric_value == pytest.approx(result["overall"]["policy"], abs=1e-4)
    assert "toy_arm" in card.data.tags
    for words in (
        "Closed loop: not measured",
        "8 episodes, 192 frames at 10 a second, robot toy",
        "10 control steps per second",
        "| 0 | pan.pos |",
        "They were recorded at 32 x 32 (front)",
        "np.zeros((32, 32, 3)",
        SENTENCES[0],
        "learnt as differences from the state",
        *result["verdict"],
    ):
        assert words in text, words
    assert "simulator" not in text.replace("the recipe has no simulator", "") and "seeds" not in text
    (run / "eval" / "open_loop.json").rename(run / "eval" / "away.json")
    try:
        assert "The success rate of these weights was not measured" in model_card(run, repo="someone/arm")
    finally:
        (run / "eval" / "away.json").rename(run / "eval" / "open_loop.json")
