"""`lightwam bench gpu`: a dry run on the CPU, what becomes of failures and of time, and the page made from it."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightwam.config.schema import Recipe, WanVaeConfig
from lightwam.encoders import wan_vae
from lightwam.errors import ConfigError
from lightwam.evaluation.gpu_figures import act, cache, capture, ceilings, clocks, env, measure, tests, train
from lightwam.evaluation.gpu_figures.measure import FIGURES, SECTIONS
from lightwam.evaluation.gpu_figures.setup import Setup
from lightwam.kernels import choice
from lightwam.report import gpu_page
from lightwam.serving import benchmark as serving_benchmark
from lightwam.system import timing
from lightwam.training import benchmark as training_benchmark

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
GPU = SimpleNamespace(name="NVIDIA H200", total_memory=2**37, multi_processor_count=132, major=9, minor=0, uuid="a-b")


@contextmanager
def few() -> Iterator[pytest.MonkeyPatch]:
    """Repeat everything a few times."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, number in (
            (timing, "REPETITIONS", 2),
            (timing, "WARM_UP", 1),
            (training_benchmark, "REPETITIONS", 1),
            (serving_benchmark, "ROBOT_WARM_UP", 1),
            (serving_benchmark, "ROBOT_ROUND_TRIPS", 3),
        ):
            patch.setattr(module, name, number)
        patch.setitem(timing.LARGE, "cpu", (256, 2**16))
        yield patch


@pytest.fixture
def quick() -> Iterator[pytest.MonkeyPatch]:
    with few() as patch:
        yield patch


@pytest.fixture(scope="module")
def dry_run(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dry run of every section."""
    out = tmp_path_factory.mktemp("gpu") / "figures"
    with few():
        summary = measure.measure(tiny_recipe, device="cpu", out=out, say=lambda line: None)
    assert not summary["failed"] and not summary["left_out"], (out / FIGURES).read_text(encoding="utf-8")
    return out


@pytest.fixture
def setup(tiny_recipe: Recipe, tmp_path: Path) -> Setup:
    return Setup(tiny_recipe, CPU, tmp_path, time.perf_counter() + 60)


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / FIGURES).read_text(encoding="utf-8").splitlines()]


def figures_of(out: Path, section: str) -> dict[str, dict[str, Any]]:
    return {line["figure"]: line for line in read(out) if line["section"] == section}


def is_timed(row: Mapping[str, Any]) -> bool:
    return 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] and row["repetitions"] >= 2 and row["warm_up"] >= 1


def test_every_section_writes_its_figures(dry_run: Path) -> None:
    lines = read(dry_run)
    assert list(dict.fromkeys(line["section"] for line in lines)) == [*SECTIONS, "summary"]
    needs_gpu = {(line["section"], line["figure"]) for line in lines if "a GPU" in line.get("skipped", "")}
    assert needs_gpu == {
        ("env", "kernels"),
        ("act", "batch 1, without kernels"),
        ("act", "memory"),
        ("train", "4 samples, without kernels"),
        ("train", "4 samples, compiled"),
        ("train", "host synchronisations"),
        ("tests", "gpu tests"),
        ("capture", "beside a busy thread"),
    }
    machine = figures_of(dry_run, "env")["machine"]
    assert machine["recipe"] == "point" and machine["commit"] and machine["versions"]["torch"]
    assert machine["precision"] == "float32" and {"processor", "torch", "python"} <= machine["machine"].keys()


def test_times_have_their_sizes_and_repetitions(dry_run: Path) -> None:
    rates = figures_of(dry_run, "ceilings")
    assert rates["large product"]["tflops"]["float32"] > 0 and rates["copy"]["gb_per_second"] > 0
    layers = rates["layers, training"]["layers"]
    assert rates["layers, training"]["rows"] == 4 * (4 + 2) and all(map(is_timed, layers.values()))
    acting = figures_of(dry_run, "act")
    assert acting["one robot"]["stages"]["camera bytes to robot units"]["engine"]["p50_ms"] > 0
    for size in (1, 2, 4, 8):
        assert acting[f"batch {size}"]["batch_size"] == size and acting[f"batch {size}"]["first_call_s"] > 0
        assert list(acting[f"batch {size}"]["ways"]) == ["engine", "engine, eager", "model"]
        assert all(map(is_timed, acting[f"batch {size}"]["ways"].values()))
    steps = figures_of(dry_run, "train")
    assert steps["4 samples"]["batch_size"] == 4 and steps["1 samples"]["batch_size"] == 1
    assert steps["4 samples, checkpointing"]["checkpointing"] and steps["4 samples"]["ratio"] > 0
    for name, shape in (("acting, self", (1, 4, 4, False)), ("acting, cross", (1, 4, 6, True))):
        line = figures_of(dry_run, "sdpa")[name]
        assert (line["batch"], line["queries"], line["keys"], line["masked"]) == shape
        assert is_timed(line["ways"]["math"]) and line["ways"]["math"]["error"] < 1e-5
        assert "refused" in line["ways"]["cuDNN"]
    robots = figures_of(dry_run, "serve")["robots"]["robots"]
    assert list(robots) == ["1", "2", "4", "8"] and all(map(is_timed, robots.values()))
    assert robots["4"]["repetitions"] == 4 * 3


def test_profiles_name_the_heaviest_kernels(dry_run: Path) -> None:
    for section in ("act", "train"):
        line = figures_of(dry_run, section)["profile"]
        assert "aten::addmm" in (dry_run / line["file"]).read_text(encoding="utf-8")
        times = [row["ms"] for row in line["heaviest"]]
        assert len(times) == 10 and times == sorted(times, reverse=True) and sum(times) <= line["kernels_ms"]


def test_a_failure_is_written_and_the_others_follow(
    quick: pytest.MonkeyPatch, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    def fail(*_: Any) -> dict[str, Any]:
        raise torch.OutOfMemoryError("none left")

    quick.setattr(ceilings, "_copy", fail)
    quick.setattr(ceilings, "_large_product", lambda setup: {"tflops": float("nan")})
    quick.setitem(sys.modules, "lightwam.evaluation.gpu_figures.sdpa", None)  # as if a package it needs were missing
    said: list[str] = []
    only = ("ceilings", "sdpa", "env")
    summary = measure.measure(tiny_recipe, device="cpu", out=tmp_path, only=only, say=said.append)
    lines = {(line["section"], line.get("figure")): line for line in read(tmp_path)}
    assert lines["ceilings", "copy"]["error"] == "OutOfMemoryError: none left"
    assert "in fail" in lines["ceilings", "copy"]["traceback"]
    assert "JSON" in lines["ceilings", "large product"]["error"]
    assert lines["sdpa", "all figures"]["error"].startswith("ModuleNotFoundError")
    assert "error" not in lines["ceilings", "layers, acting"] and "error" not in lines["env", "machine"]
    assert summary["failed"] == ["ceilings: large product", "ceilings: copy", "sdpa: all figures"]
    assert "failed: ceilings: large product" in measure.table(summary)
    assert "ceilings: copy: OutOfMemoryError: none left" in said


def test_when_the_time_is_over_the_rest_is_named(tiny_recipe: Recipe, tmp_path: Path) -> None:
    summary = measure.measure(tiny_recipe, device="cpu", out=tmp_path, only=("env", "serve"), minutes=0.0)
    assert summary["left_out"] == ["env: machine", "env: kernels", "serve: robots"] and len(read(tmp_path)) == 1
    assert "left out, as the time was over: env: machine, env: kernels, serve: robots" in measure.table(summary)
    with pytest.raises(ConfigError, match="a folder without figures"):
        measure.measure(tiny_recipe, device="cpu", out=tmp_path)
    with pytest.raises(ConfigError, match="must name sections"):
        measure.measure(tiny_recipe, device="cpu", out=tmp_path / "other", only=("acts",))


@pytest.fixture
def with_vae(quick: pytest.MonkeyPatch, setup: Setup) -> Setup:
    """A recipe whose latents are a small VAE's."""
    recipe = setup.recipe
    backbone = replace(recipe.model.backbone, latent_channels=16)
    recipe = replace(recipe, latents=WanVaeConfig(), weights="none", model=replace(recipe.model, backbone=backbone))
    make = wan_vae.empty_vae
    quick.setattr(wan_vae, "empty_vae", lambda config, path: make({"base_dim": 4, "num_res_blocks": 1}, path))
    quick.setattr(cache, "WINDOWS_AT_ONCE", 1)
    return replace(setup, recipe=recipe)


def test_the_frame_encoder_in_other_precisions(with_vae: Setup) -> None:
    ways = act.figures(with_vae)["frame encoder"]()["ways"]
    assert list(ways) == ["float32", "TF32", "bfloat16"] and all(map(is_timed, ways.values()))
    assert ways["float32"]["error"] == 0 and 1e-5 < ways["bfloat16"]["error"] < 0.1


def test_the_cache_as_the_command_encodes_it_and_in_other_ways(with_vae: Setup) -> None:
    rows = {name: figure() for name, figure in cache.figures(with_vae).items()}
    assert list(rows) == ["as lightwam cache", *cache.WAYS] and all(map(is_timed, rows.values()))
    assert rows["as lightwam cache"]["error"] < 1e-5 < rows["bfloat16"]["error"] < 0.1
    for row in rows.values():
        assert row["windows_per_second"] == pytest.approx(1000 / row["p50_ms"])


def test_the_gpu_tests_are_run_without_those_that_cannot_be_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "unit"
    folder.mkdir(parents=True)
    marked = "import pytest\n\n@pytest.mark.gpu\ndef test_{0}():\n    assert {1}\n"
    (folder / "test_good.py").write_text(marked.format("good", "True") + "\ndef test_other():\n    assert False\n")
    (folder / "test_bad.py").write_text("import warnings\nwarnings.warn('old')\n" + marked.format("bad", "False"))
    (folder / "test_lost.py").write_text("import no_such_package\n" + marked.format("lost", "True"))
    (folder / "test_unmarked.py").write_text("import no_such_package\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\nmarkers = gpu\n")
    result = tests.run_tests(tmp_path, tmp_path, 60.0)
    assert result["passed"] == 1 and [name.split("::")[-1] for name in result["failed"]] == ["test_bad"]
    assert len(result["not_loaded"]) == 1 and "test_lost" in result["not_loaded"][0]
    assert "no_such_package" in (tmp_path / "tests.txt").read_text(encoding="utf-8")


def test_kernels_are_off_for_the_comparison(quick: pytest.MonkeyPatch, setup: Setup) -> None:
    quick.setattr(choice, "on", lambda device: True)
    used: list[bool] = []
    for module, replaced in ((act, "_batch"), (train, "_step")):
        quick.setattr(module, replaced, lambda *given: used.append(choice.on(CPU)) or {})
    assert act._without_kernels(setup) == train._without_kernels(setup, 4) == {}
    assert used == [False, False] and choice.on(CPU)


def test_an_engine_is_captured_beside_a_busy_thread(quick: pytest.MonkeyPatch, setup: Setup) -> None:
    quick.setattr(capture, "BUSY", 8)
    result = capture._capture(setup)
    assert (result["captured"], result["of"], result["trouble"]) == (4, 4, [])
    assert set(result["differences"].values()) == {0.0}
    quick.setattr(torch.cuda, "empty_cache", lambda: (_ for _ in ()).throw(RuntimeError("capture is under way")))
    assert capture._capture(setup)["trouble"] == ["the other thread: capture is under way"]


def test_memory_is_that_of_the_engine_alone(quick: pytest.MonkeyPatch, setup: Setup) -> None:
    quick.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    quick.setattr(torch.cuda, "max_memory_reserved", lambda device: 2**30)
    assert act.figures(setup)["memory"]() == {"skipped": "it needs a GPU"}
    forgotten: list[bool] = []
    result = act._memory(setup, lambda: forgotten.append(True))
    assert forgotten and result["peak_reserved_gib"] == dict.fromkeys("1248", 1.0)


def test_short_calls_are_captured_several_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, streams = [], []
    side = SimpleNamespace(wait_stream=lambda other: streams.append("side waits"))
    now = SimpleNamespace(wait_stream=lambda other: streams.append("waits"))

    @contextmanager
    def graph(graph: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert stream is side and capture_error_mode == "thread_local"
        calls.append("capture")
        yield

    @contextmanager
    def on(stream: Any) -> Iterator[None]:
        assert stream is side
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: calls.append("replay")))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: now)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    timing._repeated(lambda: calls.append("call"), CUDA, 2)()
    assert calls == ["call", "call", "capture", "call", "call", "replay"] and streams == ["side waits", "waits"]


def test_waits_of_the_host_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def call() -> None:
        if modes == ["warn"]:
            import warnings

            for _ in range(3):
                warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            warnings.warn("something else", stacklevel=1)

    assert training_benchmark.host_syncs(call) == 3 and modes == ["warn", "default"]


def test_clocks_are_read_in_the_background(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho '[N/A], 1, 2, 3'\necho '1980, 3201, 500.5, 40'\necho '1200, 3201, 90, 39'\nexec sleep 60\n"
    )
    program.chmod(0o755)
    with clocks.Clocks(CPU) as none:
        assert none.seen() == {}
    with clocks.Clocks(CPU) as reading:
        reading._start(str(program), "--id=GPU-x")
        until = time.monotonic() + 20
        while len(reading._readings) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        seen = {"sm_mhz": [1200, 1980], "memory_mhz": [3201, 3201], "watts": [90, 500.5], "celsius": [39, 40]}
        assert reading.seen() == seen
        reading.restart()
        assert reading.seen() == {}
    assert reading._process is not None and reading._process.returncode is not None


@pytest.fixture
def of_a_gpu(dry_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setup: Setup) -> Callable[..., Path]:
    """Writes a dry run's figures as if a GPU had made them, with changes of some."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: GPU)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: GPU.name)
    machine = env._machine(replace(setup, device=CUDA))
    assert machine["capability"] == "9.0" and machine["precision"] == "float32"

    def write(**changed: Any) -> Path:
        path = tmp_path / "h200.jsonl"
        lines = [line | machine if line["section"] == "env" else line for line in read(dry_run)]
        lines = [
            line | changed.get(f"{line['section']}_{line.get('figure', '')}".replace(" ", "_"), {}) for line in lines
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write


def test_the_page_shows_every_figure(of_a_gpu: Callable[..., Path]) -> None:
    peaks = {"peak_gib": {"plain": 30.04, "packed": 20.0}}
    page = gpu_page.gpu_page([of_a_gpu(ceilings_copy={"error": "Some|Error: none"}, train_4_samples=peaks)])
    titles = [line.removeprefix("### ") for line in page.splitlines() if line.startswith("### ")]
    wanted = [
        "Ceilings",
        "Products of a block's layers",
        "Acting, one robot",
        "Acting, canvas to action, by batch",
        "Training",
    ]
    assert titles[: len(wanted)] == wanted and titles[-1] == "Not measured"
    assert {"Serving over the socket", "Attention, acting, self (1 x 4 queries, 4 keys)"} <= set(titles)
    assert "Measured on NVIDIA H200" in page and "Nothing has been measured" not in page
    assert "- ceilings, copy: Some\\|Error: none" in page and "- act, memory: it needs a GPU" in page
    assert "| 30.0 |" in page and "2 after 3" in page
    for block in page.split("### ")[1:]:
        widths = {line.count("|") for line in block.splitlines() if line.startswith("|") and "\\|" not in line}
        assert len(widths) <= 1, block


def test_the_aims_are_for_the_papers_sizes_on_the_gpus_they_name(of_a_gpu: Callable[..., Path]) -> None:
    stage = {"camera bytes to robot units": {"engine": {"p50_ms": 4.2, "p95_ms": 5.0, "p99_ms": 7.0, "repetitions": 3,
                                                        "warm_up": 1}}}  # fmt: skip
    paper = {"env_machine": {"canvas": [224, 448]}, "act_one_robot": {"stages": stage, "peak_memory_gib": 2.5}}
    rows = gpu_page.aims(gpu_page.Run(of_a_gpu(**paper))).rows
    assert rows[:3] == [
        ["engine, camera bytes to robot units, p50 ms", "at most 5", "4.2", "met"],
        ["the same, p99 ms", "at most 6", "7", "missed"],
        ["engine, peak GiB", "at most 3", "2.5", "met"],
    ]
    assert not gpu_page.aims(gpu_page.Run(of_a_gpu())).rows


def test_a_dry_run_is_no_figure_of_a_gpu(dry_run: Path, tmp_path: Path) -> None:
    for path in (dry_run / FIGURES, tmp_path / "none.jsonl"):
        with pytest.raises(ConfigError, match="must have a GPU's figures"):
            gpu_page.gpu_page([path])


def test_the_page_in_the_repository_is_the_commands() -> None:
    results = Path(__file__).parents[2] / "docs" / "results"
    page = gpu_page.gpu_page(sorted(results.glob("gpu/*.jsonl")))
    assert (results / "gpu.md").read_text(encoding="utf-8") == page, "lightwam bench gpu --page writes it"
