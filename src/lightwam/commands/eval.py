"""`lightwam eval`: a trained policy in closed loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lightwam import config
from lightwam.commands.options import parse, run_directory, wants_help
from lightwam.config import EvalConfig


@dataclass(frozen=True)
class EvalOptions:
    """Run a trained policy in closed loop on unseen seeds; episodes that are done already are not run again."""

    eval: EvalConfig
    """the run's own, unless overridden"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam eval RUN [--eval.trials N] [...]`."""
    path, rest = run_directory(arguments, "eval")
    if wants_help(rest):
        parse(EvalOptions(EvalConfig(trials=20, replan=8)), rest, f"eval {path}")
    from lightwam.checkpoint import read_recipe

    recipe = read_recipe(path)
    options = parse(EvalOptions(recipe.eval), rest, f"eval {path}")
    config.check(replace(recipe, eval=options.eval))
    from lightwam.evaluate import evaluate

    evaluate(path, options.eval)
