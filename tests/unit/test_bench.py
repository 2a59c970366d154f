"""bench.py: the parts of a step add up, and are said as text or as JSON."""

import json
from dataclasses import replace

import pytest

from lightwam import bench
from lightwam.bench import bench_train, table
from lightwam.config import Recipe

PARTS = {"encode", "action forward", "video forward", "backward", "optimiser"}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "WARM_UP", 1)
    monkeypatch.setattr(bench, "REPETITIONS", 3)


def test_the_parts_of_a_step(tiny_recipe: Recipe) -> None:
    said: list[str] = []
    result = bench_train(tiny_recipe, as_json=True, say=said.append)
    assert json.loads(said[0]) == json.loads(json.dumps(result))
    assert result["parts_s"].keys() == PARTS
    assert all(seconds > 0 for seconds in result["parts_s"].values())
    assert result["samples_per_second"] == pytest.approx(4 / result["step_s"])
    assert (result["recipe"], result["batch_size"], result["warm_up"], result["repetitions"]) == ("point", 4, 1, 3)
    assert {"cores", "processor", "system", "torch", "python"} <= result["machine"].keys()


def test_without_the_video_pass_its_part_is_nothing(tiny_recipe: Recipe) -> None:
    recipe = replace(tiny_recipe, model=replace(tiny_recipe.model, video_loss_weight=0.0))
    parts = bench_train(recipe, say=lambda text: None)["parts_s"]
    assert parts["video forward"] < 0.2 * parts["action forward"]


def test_the_table_says_it_in_milliseconds() -> None:
    result = {
        "recipe": "point", "batch_size": 16, "precision": "float32", "threads": 2, "warm_up": 2, "repetitions": 8,
        "step_s": 0.5, "samples_per_second": 32.0, "parts_s": {"encode": 0.125, "backward": 0.375},
        "machine": {"processor": "a chip"},
    }  # fmt: skip
    text = table(result)
    assert text.splitlines()[0] == "point: 32.0 samples/s, batch 16, float32, 2 threads on a chip"
    assert "500.0 ms  (median of 8 after 2)" in text
    assert f"{'encode':15} {125.0:8.1f} ms  25.0%" in text
    assert f"{'backward':15} {375.0:8.1f} ms  75.0%" in text
