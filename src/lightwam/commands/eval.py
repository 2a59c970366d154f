"""`lightwam eval`: a trained policy in closed loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from lightwam import checks
from lightwam.commands.options import parse, run_directory, wants_help
from lightwam.config import EvalConfig


@dataclass(frozen=True)
class EvalOptions:
    """Run a trained policy in closed loop on unseen seeds; episodes that are done already are not run again."""

    eval: EvalConfig
    """the run's own, unless overridden"""
    folder: str = "eval"
    """where in the run directory the episodes go; another protocol needs another folder"""
    step: int | None = None
    """the checkpoint; the newest by default"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one"""
    weights: str | None = None
    """where pretrained encoders lie now, if not where the recipe says"""
    engine: bool = False
    """act by the folded model: the same actions, sooner"""
    int8: bool = False
    """with --engine: weights in 8 bits; less memory, actions not quite the same"""
    ray: bool = False
    """run the simulators, --eval.workers of them, on a Ray cluster; the policy stays here"""
    ray_address: str = "auto"
    """the cluster, host:port; auto: RAY_ADDRESS, or the one that this machine belongs to"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam eval RUN [--eval.trials N] [...]`."""
    path, rest = run_directory(arguments, "eval")
    if wants_help(rest):
        parse(EvalOptions(EvalConfig(trials=20, replan=8)), rest, f"eval {path}")
    from lightwam.checkpoint import read_recipe

    recipe = read_recipe(path)
    options = parse(EvalOptions(recipe.eval), rest, f"eval {path}")
    checks.check(replace(recipe, eval=options.eval))
    from lightwam.engine.cpu import keep_memory
    from lightwam.evaluate import evaluate
    from lightwam.policy import Policy
    from lightwam.ray_workers import RayWorkers

    keep_memory()
    policy = Policy.load(
        path, options.step, device=options.device, weights=options.weights, engine=options.engine, int8=options.int8
    )
    hire = partial(RayWorkers, address=options.ray_address) if options.ray else None
    print(table(evaluate(path, options.eval, policy=policy, folder=options.folder, hire=hire)))


def table(result: Mapping[str, Any]) -> str:
    """Successes of trials by task and in all, with their Wilson 95 % intervals."""
    width = max(map(len, result["tasks"]))
    rows = [*result["tasks"].items(), ("all", result)]
    return "\n".join(
        f"{name:{width}}  {row['successes']:3} of {row['trials']:3}  "
        f"{row['interval_95'][0]:4.0%} to {row['interval_95'][1]:4.0%}"
        for name, row in rows
    )
