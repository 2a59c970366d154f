"""`lightwam bench act`: three ways to the same action, timed in turns, and a table that says what was measured."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightwam.config.schema import Recipe
from lightwam.engine import folding
from lightwam.errors import CheckpointError, SimulatorError
from lightwam.policy import benchmark as bench
from lightwam.policy.benchmark import PARTS, STAGES, VARIANTS, bench_act, table
from lightwam.system import timing

CPU = torch.device("cpu")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "REPETITIONS", 3)
    monkeypatch.setattr(timing, "WARM_UP", 1)
    monkeypatch.setitem(timing.LARGE, "cpu", (256, 2**16))


def random_variants(recipe: Recipe) -> Any:
    return bench.variants(bench.random_policy(recipe, CPU), [bench.random_observation(recipe)], torch.float32)


def check(result: dict[str, Any]) -> None:
    assert list(result["stages"]) == list(STAGES)
    for rows in result["stages"].values():
        assert list(rows) == list(result["ways"])
        for row in rows.values():
            assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
            assert (row["repetitions"], row["warm_up"]) == (3, 3)
    whole = result["stages"][STAGES[-1]]
    assert result["plain_ms"] == whole["plain"]["p50_ms"] and result["engine_ms"] == whole["engine"]["p50_ms"]
    assert result["ratio"] == result["engine_ms"] / result["plain_ms"]
    assert list(result["parts_ms"]) == list(PARTS) and result["parts_ms"]["action expert"] > 0
    assert result["gmac"]["engine"] < result["gmac"]["model"] <= result["gmac"]["plain"]
    assert result["weights_gib"]["engine"] > 0 and result["peak_memory_gib"] is None


def test_a_recipe_with_random_weights(few: None, tiny_recipe: Recipe) -> None:
    result = bench_act(tiny_recipe, device="cpu")
    check(result)
    assert json.loads(json.dumps(result)) == result, "plain JSON values"
    assert result["precision"] == "float32"
    assert result["max_abs_difference"] < 2e-6 and result["max_abs_differences"]["plain"] < 2e-6


def test_in_half_precision_the_engine_is_no_further_off(few: None, tiny_recipe: Recipe) -> None:
    result = bench_act(tiny_recipe, device="cpu", precision="bfloat16")
    check(result)
    assert result["max_abs_differences"]["plain"] > 1e-5
    assert result["max_abs_difference"] < 2 * result["max_abs_differences"]["plain"]
    assert "bfloat16" in table(result)


def test_a_run_with_weights_of_its_own(few: None, tiny_once: Any, tmp_path: Path) -> None:
    result = bench_act(tiny_once.run, device="cpu")
    check(result)
    assert result["subject"] == str(tiny_once.run)
    assert result["compared_on"] == "the first pictures of 2 tasks, seed 1000000"
    lines = table(result).splitlines()
    assert "ms a chunk by the engine, batch 1, float32" in lines[0]
    assert sum(line.split()[0] in VARIANTS for line in lines[1:] if line.startswith("    ")) == 9
    with pytest.raises(CheckpointError):
        bench_act(tmp_path, device="cpu")


def test_int8_weights_are_smaller_and_their_error_is_reported(
    few: None, tiny_once: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "INT8_FROM", 1)
    result = bench_act(tiny_once.run, device="cpu", int8=True)
    check(result)
    assert list(result["ways"]) == [*VARIANTS, "int8"] and result["int8_ms"] > 0
    assert result["weights_gib"]["int8"] < 0.7 * result["weights_gib"]["engine"]
    assert 1e-4 < result["max_abs_differences"]["int8"] < 0.2
    assert result["max_abs_differences"]["engine"] < 2e-6


def test_without_its_simulator_a_run_is_shown_random_pictures(
    few: None, tiny_once: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> None:
        raise SimulatorError("not installed")

    monkeypatch.setattr("lightwam.sim.registry.make_simulator", missing)
    assert bench_act(tiny_once.run, device="cpu")["compared_on"].startswith("random pictures, as")


def test_the_published_way_gives_the_same_action(tiny_recipe: Recipe) -> None:
    backbone = replace(tiny_recipe.model.backbone, num_blocks=tiny_recipe.model.backbone.taps[-1] + 3)
    recipe = replace(tiny_recipe, model=replace(tiny_recipe.model, backbone=backbone))
    calls, differences, _ = random_variants(recipe)
    assert differences["plain"] == differences["model"] == 0
    with torch.inference_mode():
        for stage in STAGES[:2]:
            made = [torch.as_tensor(call()) for call in calls[stage].values()]
            for one in made[1:]:
                torch.testing.assert_close(one, made[0], rtol=0, atol=5e-6)


def test_ways_take_turns_and_slow_calls_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    rows = timing.time_interleaved({name: lambda name=name: order.append(name) for name in ("a", "b")}, CPU)
    assert rows["a"]["repetitions"] == timing.FEWEST and rows["a"]["warm_up"] == 2
    turns = ("ab", "ba") * timing.FEWEST
    assert "".join(order) == "".join(turns[: timing.FEWEST + 2])


def test_the_faster_kind_of_product_is_the_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """MKL's, by `@`, takes half of an AMD processor's width; the engine's own layers do not."""
    took = iter([1e-3] * 10 + [5e-4] * 10 + [1.0] * 10)
    monkeypatch.setattr(timing, "seconds", lambda call, device: next(took))
    monkeypatch.setitem(timing.LARGE, "cpu", (100, 2**20))
    rates = timing.ceilings(CPU, torch.float32)
    assert rates == {"gmac_per_second": pytest.approx(2.0), "gb_per_second": pytest.approx(2**22 / 1e9)}
    slower = {"gmac_per_second": 1.0, "gb_per_second": 4.0}
    floor = timing.floor_ms(3.0, 8_000_000, slower, rates)
    assert floor == {"gmac_per_second": 2.0, "gb_per_second": 4.0, "products_ms": 1500.0, "weights_ms": 2.0}


def test_a_floor_above_what_was_measured_is_an_error(
    few: None, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"gmac_per_second": 1e-6, "gb_per_second": 1.0}
    monkeypatch.setattr(bench, "ceilings", lambda device, dtype: rates)
    with pytest.raises(RuntimeError, match=r"the benchmark is wrong: .* ms for products that need .* at 1e-06 GMAC/s"):
        bench_act(tiny_recipe, device="cpu")


def test_a_slow_first_call_costs_no_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU it starts libraries and captures a graph."""
    took = iter([9.0] + [0.01] * 1000)
    monkeypatch.setattr(timing, "seconds", lambda call, device: next(took))
    assert timing.time_interleaved({"a": lambda: None}, CPU)["a"]["repetitions"] == timing.REPETITIONS


def test_work_is_counted_whatever_computes_it(monkeypatch: pytest.MonkeyPatch, tiny_recipe: Recipe) -> None:
    """Packed layers and the CPU's attention are none of the operators that torch's counter knows."""
    q, k = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 7, 4)
    attention = timing.count_gmac(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k))
    assert attention == pytest.approx(2 * 2 * 5 * 7 * 4 / 1e9)
    work = []
    for size in (2**20, 1):
        monkeypatch.setattr(folding, "PACKED_FROM", size)
        calls, _, _ = random_variants(tiny_recipe)
        work.append(timing.count_gmac(calls[STAGES[0]]["engine"]))
    assert work[0] == pytest.approx(work[1])
