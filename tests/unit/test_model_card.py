"""report/model_card.py: the Hub can read it, every number comes from the run, and what the run lacks is stated."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from lightwam.config import recipe_files
from lightwam.config.libero_protocols import ACTION_NAMES, STATE_NAMES
from lightwam.config.schema import Umt5Config, WanVaeConfig
from lightwam.config.strict_json import to_dict
from lightwam.errors import CheckpointError
from lightwam.evaluation.statistics import wilson
from lightwam.policy import run_directory
from lightwam.report.model_card import model_card
from lightwam.sim.registry import robot_units

ID = "someone/point-policy"
TASKS = {"red": (4, "move to the red dot"), "blue": (3, "move to the <blue> dot | *now*")}


def rate(successes: int, trials: int) -> dict[str, Any]:
    return {"successes": successes, "trials": trials, "interval_95": wilson(successes, trials)}


def evaluated(run: Path, **protocol: Any) -> Path:
    """The run with a result in it, of its newest step."""
    recipe = run_directory.read_recipe(run)
    asked = {"trials": 5, "replan": 4, "first_seed": 1_000_000}
    result = rate(7, 10) | {
        "tasks": {task: rate(won, 5) | {"instruction": told} for task, (won, told) in TASKS.items()},
        "protocol": {
            "sim": to_dict(recipe.sim),
            "constants": {"quirk": 0.125},
            "eval": asked,
            "recipe": recipe.name,
            "checkpoint_step": 6,
            "weights": "ema",
            "computes": "float32 on cpu",
            "sentences": {},
            "success": "at any control step",
            "versions": {"python": "3.11.7", "lightwam": "0.0.7"},
        }
        | protocol,
        "latency_ms": {"p50": 12.715, "p95": 21.2358, "p99": 25.767},
        "wall_seconds": {"total": 27.0},
    }
    run_directory.write_json(run / "eval" / "result.json", result)
    return run


def rows(card: str) -> dict[str, list[str]]:
    """First cell of every table's row -> the others."""
    lines = [line.strip("|").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_the_hub_can_read_the_metadata(tiny: Any) -> None:
    data = ModelCard(model_card(evaluated(tiny.run), repo=ID, dataset="some/data")).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "lightwam", "robotics")
    assert {"robotics", "lightwam", "point"} <= set(data.tags)
    assert data.datasets == ["some/data"] and data.model_name == "point-policy"
    found = {result.dataset_config: result for result in data.eval_results}
    assert {config: result.metric_value for config, result in found.items()} == {"all": 0.7, "red": 0.8, "blue": 0.6}
    assert all(result.metric_type == "success_rate" for result in found.values())
    assert "4 of 5" in found["red"].metric_name and "38 to 96 %" in found["red"].metric_name
    assert found["red"].dataset_type == "point"


def test_every_measured_number_is_on_the_card(tiny: Any) -> None:
    card = model_card(evaluated(tiny.run), repo=ID)
    table = rows(card)
    assert table["red"] == ["move to the red dot", "4 of 5", "80 %", "38 to 96 %"]
    assert table["**all**"] == ["", "7 of 10", "70 %", "40 to 89 %"]
    for text in (
        "7 of 10 episodes (70 %",
        "seeds 1,000,000 to 1,000,004",
        "at most 40 control steps",
        "4 steps of each chunk were executed",
        "12.7 ms median, 21.2 ms at the 95th and 25.8 ms at the 99th percentile",
        "at any control step",
        '"quirk": 0.125',
        '"lightwam": "0.0.7"',
        "10 control steps per second",
        "A chunk is 8 steps",
        "2 steps apart, 5 including the present",
    ):
        assert text in card, text
    assert (
        "was not measured**" not in card
        and "was not measured.**" not in card
        and "- Success of these weights" not in card
    )


def test_inputs_and_outputs_are_those_of_the_codec(tiny: Any) -> None:
    codec, _ = run_directory.read_processing(tiny.run)
    card = model_card(tiny.run, repo=ID)
    table = rows(card)
    assert table["`top`"] == ["0 to 100 %", "0 to 100 %", "32 x 32"]
    for dim, (name, stats) in enumerate((("velocity\\_x", codec.action), ("velocity\\_y", codec.action))):
        cells = table[str(dim)]  # the action's table comes last
        assert cells[0] == name and "0.1 a simulator step" in cells[1]
        assert [float(cell) for cell in cells[2:]] == pytest.approx(
            [stats.min[dim], stats.q01[dim], stats.q50[dim], stats.q99[dim], stats.max[dim]], rel=1e-3, abs=1e-6
        )
    assert "across the picture" in card  # the state's
    assert "6 of 6, 4 windows each; the average of the weights (decay 0.9) acts" in card
    assert f"of {codec.action.count:,} control steps" in card


def test_the_dataset_is_identified_by_its_fingerprint_and_not_by_its_path(tiny: Any) -> None:
    began = run_directory.read_json(tiny.run / "dataset.json")
    card = model_card(tiny.run, repo=ID)
    found = re.search(r"(\d+) files, .* MB, fingerprint `([0-9a-f]{16})`", card)
    assert found and int(found[1]) == len(began["fingerprint"])
    assert str(tiny.dataset) not in card and began["path"] not in card
    began["fingerprint"]["meta/info.json"] = "1 bytes, 00"
    run_directory.write_json(tiny.run / "dataset.json", began)
    assert found[2] not in model_card(tiny.run, repo=ID)
    (tiny.run / "dataset.json").unlink()
    assert "hold no fingerprint" in model_card(tiny.run, repo=ID)


def test_a_run_without_an_evaluation(tiny_once: Any) -> None:
    card = model_card(tiny_once.run, repo=ID)
    assert "**The success rate of these weights was not measured.**" in card and "The run holds no evaluation" in card
    assert "- Success of these weights." in card and "- Latency." in card
    assert ModelCard(card).data.eval_results is None
    assert "%, 95 %" not in card and "action (mse) + 1 video" in card


@pytest.mark.parametrize(
    ("step", "protocol", "told"),
    [
        (4, {}, "at step 6; these weights are of step 4"),
        (None, {"sentences": {"red": "move to the blue dot"}}, "other instructions than the tasks' own"),
        (None, {"disturb": "camera"}, "in disturbed worlds: at each reset the cameras are turned."),
    ],
)
def test_an_evaluation_of_other_weights_instructions_or_worlds_is_marked(
    tiny: Any, step: Any, protocol: Any, told: str
) -> None:
    card = model_card(evaluated(tiny.run, **protocol), step, repo=ID)
    assert told in card and "- Success of these weights." in card
    assert "**The success rate of these weights was not measured.**" in card
    assert ModelCard(card).data.eval_results is None


def test_swapped_instructions_and_training_time_are_on_the_card(tiny: Any) -> None:
    run = evaluated(tiny.run)
    count = {"successes": 4, "trials": 5}
    swapped = {"successes": 1, "trials": 5}
    task = {"right": count, "swapped": swapped, "swapped_instruction": "move to the blue dot"}
    run_directory.write_json(run / "eval" / "swap.json", {"right": count, "swapped": swapped, "tasks": {"red": task}})
    whole = run_directory.read_json(run / "eval" / "result.json")
    whole |= {"machine": {"cores": 2, "processor": "Some CPU"}, "wall_seconds": {"train": 83.0, "total": 90.0}}
    run_directory.write_json(run / "result.json", whole)
    card = model_card(run, repo=ID)
    assert "in 1 of 5 episodes" in card and "against 4 of 5 episodes" in card
    assert "Whether it follows the instruction" not in card
    assert rows(card)["time"] == ["1\u202fmin 23\u202fs on Some CPU, 2 cores"]


def test_markup_in_texts_of_files_is_escaped(tiny: Any) -> None:
    """A sentence with signs that Markdown or HTML would read stays a cell of its table."""
    card = model_card(evaluated(tiny.run), repo=ID)
    assert r"| blue | move to the &lt;blue> dot \| \*now\* | 3 of 5 |" in card


def test_a_robot_without_a_description(tiny: Any) -> None:
    recipe = replace(tiny.recipe, sim=replace(tiny.recipe.sim, name="no_such_robot.sim"), notes="Mine, `all` of it.")
    run_directory.write_json(tiny.run / "recipe.json", to_dict(recipe))
    known = model_card(tiny.run, repo=ID)
    assert "| 0 | velocity\\_x |  |" in known and "10 control steps per second" in known  # the dataset's facts
    (tiny.run / run_directory.FACTS).unlink()
    card = model_card(tiny.run, repo=ID)
    assert card.count("Their names and units are not in the run's files.") == 2
    assert "The control rate is not in the run's files." in card
    assert "Mine, \\`all\\` of it." in card


@pytest.mark.parametrize(("weights", "told"), [("Wan-AI/Wan2.1-T2V-1.3B", True), ("/home/someone/wan", False)])
def test_pretrained_weights_are_named_if_they_are_public(tiny: Any, weights: str, told: bool) -> None:
    recipe = replace(tiny.recipe, weights=weights, latents=WanVaeConfig(), text=Umt5Config())
    run_directory.write_json(tiny.run / "recipe.json", to_dict(recipe))
    card = model_card(tiny.run, repo=ID)
    assert "pretrained Wan2.1 VAE" in card and "Wan2.1's video VAE; UMT5" in card
    assert (f'weights="{weights}")' in card) == told == (weights in card)
    assert ModelCard(card).data.base_model == (weights if told else None)


def test_the_card_warns_of_the_unsupervised_end_of_a_chunk(tiny: Any) -> None:
    recipe = replace(tiny.recipe, model=replace(tiny.recipe.model, supervised_prefix=6))
    run_directory.write_json(tiny.run / "recipe.json", to_dict(recipe))
    assert "A chunk is 8 steps, of which training supervised the first 6" in model_card(tiny.run, repo=ID)


def test_a_policy_without_video_loss_is_not_said_to_imagine(tiny: Any) -> None:
    recipe = replace(tiny.recipe, model=replace(tiny.recipe.model, video_loss_weight=0.0))
    run_directory.write_json(tiny.run / "recipe.json", to_dict(recipe))
    assert "policy.imagine" not in model_card(tiny.run, repo=ID)


def test_the_code_on_the_card_runs(tiny: Any, fake_hub: Any) -> None:
    from lightwam.report import publish

    publish.push(evaluated(tiny.run), ID)
    card = (fake_hub.repo(ID) / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["chunk"].shape == (8, 2) and names["video"].shape == (5, 32, 32, 3)


def test_the_same_run_gives_the_same_card(tiny_once: Any) -> None:
    assert model_card(tiny_once.run, repo=ID) == model_card(tiny_once.run, 6, repo=ID)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("eval/result.json", "{", "must be a JSON object"),
        ("eval/result.json", "{}", "'protocol'"),
        ("dataset.json", "[]", "dataset.json"),
        ("dataset.json", '{"path": "x"}', "'fingerprint'"),
        ("recipe.json", "{}", "recipe.json"),
    ],
)
def test_a_broken_file_is_refused_by_name(tiny: Any, file: str, content: str, told: str) -> None:
    (tiny.run / file).parent.mkdir(exist_ok=True)
    (tiny.run / file).write_text(content)
    with pytest.raises(CheckpointError, match=re.escape(told)):
        model_card(tiny.run, repo=ID)


@pytest.mark.parametrize("key", ["checkpoint_step", "weights", "computes", "success", "sim", "eval"])
def test_a_result_that_lacks_a_constant_is_refused(tiny: Any, key: str) -> None:
    path = evaluated(tiny.run) / "eval" / "result.json"
    result = json.loads(path.read_text())
    del result["protocol"][key]
    path.write_text(json.dumps(result))
    with pytest.raises(CheckpointError, match=key):
        model_card(tiny.run, repo=ID)


def test_a_directory_that_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a run directory"):
        model_card(tmp_path)


@pytest.mark.parametrize("name", ["point", "demo", "mt10", "libero-object-small", "libero-10"])
def test_our_robots_have_the_sizes_of_their_recipes(name: str) -> None:
    recipe = recipe_files.recipe(name)
    robot = robot_units(recipe.sim.name)
    assert robot and (len(robot.state), len(robot.action)) == (recipe.model.state_dim, recipe.model.action_dim)
    assert robot.steps_per_second > 0
    if recipe.sim.name == "libero":
        assert tuple(robot.state) == STATE_NAMES
        assert tuple(robot.action) == ACTION_NAMES


def test_the_control_rate_is_the_simulators(tiny_once: Any) -> None:
    from lightwam.sim import registry

    sim = replace(tiny_once.recipe.sim, action_repeat=2)
    robot = robot_units(sim.name)
    assert robot and robot.steps_per_second / sim.action_repeat == registry.make_simulator(sim, "red").fps
