"""training/benchmark.py: plain and packed steps in turns, their parts, and what is said of them."""

import json
from dataclasses import replace

import pytest
import torch

from lightwam.config.schema import Recipe
from lightwam.model.light_wam import LightWAM, dtype_of
from lightwam.policy.benchmark import random_model
from lightwam.training import benchmark as bench
from lightwam.training.benchmark import PARTS, bench_train, table


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "REPETITIONS", 3)


def test_both_steps_and_their_parts(tiny_recipe: Recipe) -> None:
    result = bench_train(tiny_recipe, device="cpu")
    assert json.loads(json.dumps(result)) == result, "plain JSON values"
    for name in ("plain", "packed"):
        assert tuple(result["parts_s"][name]) == PARTS
        assert all(seconds > 0 for seconds in result["parts_s"][name].values())
        assert result["samples_per_second"][name] == pytest.approx(4 / result[f"{name}_s"])
    assert result["ratio"] == pytest.approx(result["packed_s"] / result["plain_s"])
    assert (result["recipe"], result["batch_size"], result["warm_up"], result["repetitions"]) == ("point", 4, 1, 3)
    assert {"cores", "processor", "system", "torch", "python"} <= result["machine"].keys()


def test_steps_take_turns_and_the_first_of_each_does_not_count(
    tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(bench, "packed_loss", lambda model, *given, checkpointing: (order.append("packed"),
                                                                                    model.loss(*given))[1])  # fmt: skip
    plain = LightWAM.loss
    monkeypatch.setattr(LightWAM, "loss", lambda self, *given: (order.append("step"), plain(self, *given))[1])
    bench_train(tiny_recipe, device="cpu")
    steps = " ".join(order).replace("packed step", "packed").split()
    assert [name == "packed" for name in steps] == [False, True, True, False] * 2


def test_a_micro_batch_is_what_is_measured_and_long_steps_are_repeated_less(
    tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "LONG_STEP_S", 0.0)
    recipe = replace(tiny_recipe, train=replace(tiny_recipe.train, micro_batch=2))
    said: list[str] = []
    result = bench_train(recipe, device="cpu", say=said.append)
    assert (result["batch_size"], result["repetitions"]) == (2, 4)
    assert len(said) == 10 and said[0].startswith("plain step 0: ")


def test_random_weights_are_finite_and_in_the_recipes_precision(tiny_recipe: Recipe) -> None:
    recipe = replace(tiny_recipe, train=replace(tiny_recipe.train, precision="bfloat16"))
    model = random_model(recipe, torch.device("cpu"), torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype_of(name, torch.bfloat16)
        assert parameter.isfinite().all()
    assert model.dit.blocks[0].norm2.weight.eq(1).all()


def test_the_table_says_it_in_milliseconds() -> None:
    parts = {"encode": 0.125, "backward": 0.375}
    result = {
        "recipe": "point", "batch_size": 16, "precision": "float32", "products": "float32", "threads": 2,
        "warm_up": 1, "repetitions": 8,
        "plain_s": 1.0, "packed_s": 0.5, "ratio": 0.5, "samples_per_second": {"plain": 16.0, "packed": 32.0},
        "parts_s": {"plain": {"encode": 0.25, "backward": 0.75}, "packed": parts}, "machine": {"processor": "a chip"},
    }  # fmt: skip
    lines = table(result).splitlines()
    assert lines[0] == "point: 32 samples/s packed, batch 16, float32, 2 threads on a chip"
    assert "the median of 8 after 1" in lines[1]
    assert lines[3].split() == ["encode", "250.0", "ms", "125.0", "ms", "25.0%"]
    assert lines[4].split() == ["backward", "750.0", "ms", "375.0", "ms", "75.0%"]
    assert "0.500 of the plain step" in lines[-1]
    assert "compiled takes 0.400 of the plain" in table(result | {"compiled_ratio": 0.4})
    result |= {"peak_gib": {"plain": 30.0, "packed": 20.0}}
    assert "30.0 GiB plain, 20.0 packed" in table(result)
    assert "bfloat16 (products in float32)" in table(result | {"precision": "bfloat16"})
