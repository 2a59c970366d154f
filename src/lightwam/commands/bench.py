"""`lightwam bench`: speed, measured and split by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightwam import checks
from lightwam.commands.options import AnyRecipe, named_recipe, parse, wants_help
from lightwam.errors import ConfigError, did_you_mean

KINDS = ("train",)
USAGE = "usage: lightwam bench train RECIPE [OPTIONS]   training samples a second, and the share of time by part"


@dataclass(frozen=True)
class BenchTrainOptions:
    """Measure training, plain and packed: samples a second, and which part of a step the time goes to."""

    recipe: AnyRecipe
    device: str = "auto"
    """auto, cpu or cuda"""
    json: bool = False
    """print JSON instead of a table"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam bench train RECIPE`."""
    if not arguments or wants_help(arguments):
        print(USAGE)
        return
    kind, *rest = arguments
    if kind not in KINDS:
        raise ConfigError("cannot measure that", got=repr(kind), next_step=did_you_mean(kind, KINDS))
    recipe, rest = named_recipe(rest, "bench train")
    options = parse(BenchTrainOptions(recipe), rest, f"bench train {recipe.name}")
    checks.check(options.recipe)
    from lightwam.bench import bench_train
    from lightwam.engine.cpu import keep_memory

    keep_memory()
    bench_train(options.recipe, device=options.device, as_json=options.json)
