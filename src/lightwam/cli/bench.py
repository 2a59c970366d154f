"""`lightwam bench`: speed, measured and split by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightwam.cli.options import AnyRecipe, kind_named, named_recipe, parse, split_run
from lightwam.config import checks
from lightwam.config.schema import Recipe

KINDS = ("train", "act", "eval", "serve", "control")
USAGE = """usage: lightwam bench train RECIPE [OPTIONS]     training samples a second, and the share of time by part
       lightwam bench act RECIPE|RUN [OPTIONS]    milliseconds an action chunk, plain and by the engine
       lightwam bench eval RECIPE [OPTIONS]      wall time of an evaluation, against one process that draws every step
       lightwam bench serve [OPTIONS]            milliseconds that serving adds: round trips over loopback
       lightwam bench control RUN [OPTIONS]      success and jitter under latency, by how chunks are played"""


@dataclass(frozen=True)
class BenchTrainOptions:
    """Measure training, plain and packed: samples a second, and which part of a step the time goes to."""

    recipe: AnyRecipe
    device: str = "auto"
    """auto, cpu or cuda"""
    json: bool = False
    """print JSON instead of a table"""


@dataclass(frozen=True, kw_only=True)
class BenchActOptions:
    """Measure acting at batch 1: the published code's way, the plain model, and the engine, in turns."""

    device: str = "auto"
    """auto, cpu or cuda"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: what a policy computes in on this device"""
    int8: bool = False
    """measure the engine with weights in 8 bits, too"""
    json: bool = False
    """print JSON instead of a table"""


@dataclass(frozen=True, kw_only=True)
class BenchActRecipe(BenchActOptions):
    """Measure acting with random weights: the published code's way, the plain model, and the engine, in turns."""

    recipe: AnyRecipe
    """its sizes, with random weights"""


@dataclass(frozen=True)
class BenchEvalOptions:
    """Measure closed-loop evaluation of a random policy: one process that draws every step, and `lightwam eval`."""

    recipe: AnyRecipe
    """all its tasks, `--eval.trials` episodes of each"""
    json: bool = False
    """print JSON instead of a table"""


@dataclass(frozen=True)
class BenchServeOptions:
    """Measure what serving adds to acting: round trips of a policy that does nothing, and /healthz while one thinks."""

    json: bool = False
    """print JSON instead of a table"""


@dataclass(frozen=True)
class BenchControlOptions:
    """Rehearse a run's policy in its simulator with latency: blocking, asynchronous, and with what helps that."""

    trials: int = 5
    """unseen seeds of every task"""
    latencies_ms: tuple[float, ...] = (0.0, 100.0, 250.0)
    """from seeing to the answer"""
    rates_hz: tuple[float, ...] = ()
    """control steps a second; the simulator's own by default"""
    replan: int | None = None
    """steps between two requests; the run's own by default"""
    blend: int = 2
    """steps of a cross-fade"""
    decay: float = 0.01
    """of temporal ensembling: the i-th oldest chunk weighs exp(-decay i)"""
    patience: float = 3.0
    """times the recipe's step limit, as waiting costs steps"""
    json: bool = False
    """print JSON instead of a table"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam bench train RECIPE`, `act RECIPE|RUN`, `eval RECIPE`, `serve`, `control RUN`."""
    if (named := kind_named(arguments, KINDS, USAGE, "cannot measure that")) is None:
        return
    kind, rest = named
    {"train": _train, "act": _act, "eval": _eval, "serve": _serve, "control": _control}[kind](rest)


def _control(arguments: Sequence[str]) -> None:
    path, rest = split_run(arguments, "bench control")
    given = parse(BenchControlOptions(), rest, "bench control RUN")
    from lightwam.evaluation.latency_benchmark import bench_control

    bench_control(path, trials=given.trials, latencies_ms=given.latencies_ms, rates_hz=given.rates_hz,
                  replan=given.replan, blend=given.blend, decay=given.decay, patience=given.patience,
                  as_json=given.json)  # fmt: skip


def _train(arguments: Sequence[str]) -> None:
    recipe, rest = named_recipe(arguments, "bench train")
    options = parse(BenchTrainOptions(recipe), rest, f"bench train {recipe.name}")
    checks.check_recipe(options.recipe)
    from lightwam.system.cpu import keep_memory
    from lightwam.training.benchmark import bench_train

    keep_memory()
    bench_train(options.recipe, device=options.device, as_json=options.json)


def _serve(arguments: Sequence[str]) -> None:
    options = parse(BenchServeOptions(), arguments, "bench serve")
    from lightwam.serving.benchmark import bench_serve

    bench_serve(as_json=options.json)


def _eval(arguments: Sequence[str]) -> None:
    recipe, rest = named_recipe(arguments, "bench eval")
    options = parse(BenchEvalOptions(recipe), rest, f"bench eval {recipe.name}")
    checks.check_recipe(options.recipe)
    from lightwam.evaluation.benchmark import bench_eval

    bench_eval(options.recipe, as_json=options.json)


def _act(arguments: Sequence[str]) -> None:
    subject: Recipe | Path
    if arguments and (Path(arguments[0]) / "recipe.json").is_file():
        options, subject = parse(BenchActOptions(), arguments[1:], "bench act RUN"), Path(arguments[0])
    else:
        recipe, rest = named_recipe(arguments, "bench act")
        given = parse(BenchActRecipe(recipe=recipe), rest, f"bench act {recipe.name}")
        options, subject = given, given.recipe
    from lightwam.policy.benchmark import bench_act
    from lightwam.system.cpu import keep_memory

    keep_memory()
    precision = None if options.precision == "auto" else options.precision
    bench_act(subject, device=options.device, precision=precision, int8=options.int8, as_json=options.json)
