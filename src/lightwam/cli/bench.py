"""`lightwam bench`: speed, measured and split by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from lightwam.cli.options import (
    DeviceOptions,
    Flat,
    JsonOptions,
    RecipeOptions,
    parse,
    print_progress,
    print_result,
    recipe_command,
    run_command,
    subcommand,
)
from lightwam.config.commands import ControlSettings
from lightwam.config.schema import Recipe

USAGE = """usage: lightwam bench train RECIPE [OPTIONS]     training samples a second, and the share of time by part
       lightwam bench act RECIPE|RUN [OPTIONS]    milliseconds an action chunk, plain and by the engine
       lightwam bench gpu [RECIPE] [OPTIONS]      every figure of a GPU, each written at once; --device cpu: a dry run
       lightwam bench eval RECIPE [OPTIONS]      wall time of an evaluation, against one process that draws every step
       lightwam bench serve [OPTIONS]            milliseconds that serving adds: round trips over loopback
       lightwam bench control RUN [OPTIONS]      success and jitter under latency, by how chunks are played"""


@dataclass(frozen=True, kw_only=True)
class BenchTrainOptions(JsonOptions, DeviceOptions, RecipeOptions):
    """Measure training, plain and packed: samples a second, and which part of a step the time goes to."""


@dataclass(frozen=True, kw_only=True)
class BenchActOptions(JsonOptions, DeviceOptions):
    """Measure acting at batch 1, in turns: with the published code's work, by the plain model, and by the engine."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: what a policy computes in on this device"""
    int8: bool = False
    """also measure the engine with weights in 8 bits"""


@dataclass(frozen=True, kw_only=True)
class BenchActRecipe(BenchActOptions, RecipeOptions):
    """Measure acting with random weights of a recipe's sizes, in turns: with the published code's work, by the plain
    model, and by the engine."""


@dataclass(frozen=True, kw_only=True)
class BenchGpuOptions(RecipeOptions):
    """Measure what only a GPU can tell, with random weights: ceilings, acting, training, the latent cache, attention,
    serving, the tests that need a GPU, and the capture of graphs. Each figure is written as soon as it is measured."""

    device: Literal["cuda", "cpu"] = "cuda"
    """cpu: a dry run; choose a small recipe"""
    out: Path = Path("gpu")
    """folder of figures.jsonl, profiles and the tests' log"""
    only: str = ""
    """sections to measure, divided by commas; by default all"""
    minutes: float = 9.0
    """no figure is begun after this time"""
    page: tuple[Path, ...] | None = None
    """print docs/results/gpu.md from these files of figures instead; without files, what is not measured"""


@dataclass(frozen=True, kw_only=True)
class BenchEvalOptions(JsonOptions, RecipeOptions):
    """Measure closed-loop evaluation of a random policy on all tasks of a recipe, `--eval.trials` episodes of each: one
    process that draws every step, and `lightwam eval`. The policy computes on the CPU."""


@dataclass(frozen=True, kw_only=True)
class BenchServeOptions(JsonOptions):
    """Measure what serving adds to acting: round trips of a policy that does nothing, and /healthz while one thinks.
    No model is served; `lightwam bench gpu RECIPE --only serve` serves an engine to several robots."""


@dataclass(frozen=True, kw_only=True)
class BenchControlOptions(JsonOptions):
    """Rehearse a run's policy in its simulator with latency: blocking, asynchronous, and with what helps that.

    Without a simulator, play its chunks along the recorded episodes that it held out."""

    settings: Annotated[ControlSettings, Flat] = field(default_factory=ControlSettings)


def run(arguments: Sequence[str]) -> None:
    """`lightwam bench train RECIPE`, `act RECIPE|RUN`, `gpu RECIPE`, `eval RECIPE`, `serve`, `control RUN`."""
    commands = {"train": _train, "act": _act, "gpu": _gpu, "eval": _eval, "serve": _serve, "control": _control}
    subcommand(arguments, commands, USAGE, "cannot measure that")


def _train(arguments: Sequence[str]) -> None:
    options = recipe_command(BenchTrainOptions, arguments, "bench train")
    from lightwam.system.cpu import keep_memory
    from lightwam.training.benchmark import bench_train, table

    keep_memory()
    print_result(bench_train(options.recipe, device=options.device, say=print_progress), table, options)


def _act(arguments: Sequence[str]) -> None:
    subject: Recipe | Path
    options: BenchActOptions
    if arguments and (Path(arguments[0]) / "recipe.json").is_file():
        (run,), options = run_command(BenchActOptions, arguments, "bench act")
        subject = Path(run)
    else:
        options = recipe_command(BenchActRecipe, arguments, "bench act")
        subject = options.recipe
    from lightwam.policy.benchmark import bench_act, table
    from lightwam.system.cpu import keep_memory

    keep_memory()
    precision = None if options.precision == "auto" else options.precision
    result = bench_act(subject, device=options.device, precision=precision, int8=options.int8, say=print_progress)
    print_result(result, table, options)


def _gpu(arguments: Sequence[str]) -> None:
    options = recipe_command(BenchGpuOptions, arguments, "bench gpu", "libero-10")
    if options.page is not None:
        from lightwam.report.gpu_page import gpu_page

        print(gpu_page(options.page), end="")
        return
    from lightwam.evaluation.gpu_figures.measure import measure, table
    from lightwam.system.cpu import keep_memory

    keep_memory()
    only = tuple(filter(None, options.only.split(",")))
    device, out, minutes = options.device, options.out, options.minutes
    print(table(measure(options.recipe, device=device, out=out, only=only, minutes=minutes, say=print_progress)))


def _eval(arguments: Sequence[str]) -> None:
    options = recipe_command(BenchEvalOptions, arguments, "bench eval")
    from lightwam.evaluation.benchmark import bench_eval, table

    print_result(bench_eval(options.recipe), table, options)


def _serve(arguments: Sequence[str]) -> None:
    options = parse(BenchServeOptions, arguments, "bench serve")
    from lightwam.serving.benchmark import bench_serve, table

    print_result(bench_serve(), table, options)


def _control(arguments: Sequence[str]) -> None:
    (run,), options = run_command(BenchControlOptions, arguments, "bench control")
    from lightwam.evaluation.latency_benchmark import bench_control, table

    print_result(bench_control(run, options.settings, print_progress), table, options)
