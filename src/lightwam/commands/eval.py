"""`lightwam eval`: a trained policy in closed loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from lightwam.checks import check
from lightwam.commands.options import given, parse, run_directory, wants_help
from lightwam.config import EvalConfig, SimConfig, adapted
from lightwam.errors import ConfigError, did_you_mean
from lightwam.recipes import demo
from lightwam.sim.libero_protocol import SUITES, protocol


@dataclass(frozen=True)
class EvalOptions:
    """Run a trained policy in closed loop on unseen seeds; episodes that are done already are not run again."""

    eval: EvalConfig
    """the run's own, unless overridden"""
    sim: SimConfig
    """the run's own, unless overridden"""
    suite: str | None = None
    """all tasks of this LIBERO suite in place of the run's, for example libero_object_swap, with its steps"""
    protocol: str | None = None
    """LIBERO's constants as light-wam, openpi, openvla-oft, lerobot or plain has them: picture, steps, replan"""
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
    """which cluster, host:port, of those that this machine has joined; auto: RAY_ADDRESS, or the only one"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam eval RUN [--eval.trials N] [...]`."""
    path, rest = run_directory(arguments, "eval")
    if wants_help(rest):
        parse(EvalOptions(EvalConfig(trials=20, replan=8), demo().sim), rest, f"eval {path}")
    from lightwam.checkpoint import read_recipe

    recipe = read_recipe(path)
    options = parse(EvalOptions(recipe.eval, recipe.sim), rest, f"eval {path}")
    sim, settings = world(options, given(rest))
    from lightwam.engine.cpu import keep_memory
    from lightwam.evaluate import evaluate
    from lightwam.policy import Policy
    from lightwam.ray_workers import RayWorkers

    check(adapted(recipe, sim, settings))  # before a model is loaded
    keep_memory()
    policy = Policy.load(
        path, options.step, device=options.device, weights=options.weights, engine=options.engine, int8=options.int8
    )
    hire = partial(RayWorkers, address=options.ray_address) if options.ray else None
    print(table(evaluate(path, settings, sim=sim, policy=policy, folder=options.folder, hire=hire)))


def world(options: EvalOptions, said: frozenset[str]) -> tuple[SimConfig, EvalConfig]:
    """The simulator and the controller's settings, `suite` and `protocol` included.

    What was `said` by an option of its own is kept (`check` refuses what a protocol has otherwise). ConfigError for
    unknown names, and for tasks beside a suite.
    """
    sim, settings = options.sim, options.eval
    if sim.name != "libero" and (options.suite or options.protocol):
        raise ConfigError("suites and protocols are LIBERO's", where="--suite, --protocol", got=f"sim.name {sim.name}",
                          expected="libero", next_step="choose tasks by --sim.tasks")  # fmt: skip
    elsewhere = False
    if options.suite:
        if options.suite not in SUITES:
            raise ConfigError("unknown LIBERO suite", where="--suite", got=repr(options.suite),
                              next_step=did_you_mean(options.suite, SUITES))  # fmt: skip
        if "--sim.tasks" in said:
            raise ConfigError("a suite is all of its tasks", where="--suite, --sim.tasks", got="both",
                              next_step="leave one of them out")  # fmt: skip
        elsewhere = any(not task.startswith(f"{options.suite}/") for task in sim.tasks)
        sim = replace(sim, tasks=tuple(f"{options.suite}/{i}" for i in range(SUITES[options.suite])))
    if options.protocol:
        chosen = protocol(options.protocol)
        sim = replace(sim, protocol=options.protocol)
        if chosen.picture != "plain" and not said & {"--sim.height", "--sim.width"}:
            sim = replace(sim, height=chosen.size, width=chosen.size)
        if "--eval.replan" not in said:
            settings = replace(settings, replan=chosen.replan or settings.replan)
    if (options.protocol or elsewhere) and "--sim.max-steps" not in said:
        limits = [protocol(sim.protocol).limit(task.partition("/")[0]) for task in sim.tasks]
        sim = replace(sim, max_steps=max(limits))
    return sim, settings


def table(result: Mapping[str, Any]) -> str:
    """Successes of trials by task and in all, with their Wilson 95 % intervals."""
    width = max(map(len, result["tasks"]))
    rows = [*result["tasks"].items(), ("all", result)]
    return "\n".join(
        f"{name:{width}}  {row['successes']:3} of {row['trials']:3}  "
        f"{row['interval_95'][0]:4.0%} to {row['interval_95'][1]:4.0%}"
        for name, row in rows
    )
