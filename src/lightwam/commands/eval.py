"""`lightwam eval`: a trained policy in closed loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from lightwam.checks import check
from lightwam.commands.options import parse, run_directory, wants_help
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
    """all tasks of this LIBERO suite in place of the run's, for example libero_object_swap"""
    protocol: str | None = None
    """LIBERO's constants as light-wam, openpi, openvla-oft or lerobot has them; picture size and replan as well"""
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
        parse(EvalOptions(EvalConfig(trials=20, replan=8), demo().sim), rest, f"eval {path}")
    from lightwam.checkpoint import read_recipe

    recipe = read_recipe(path)
    options = parse(EvalOptions(recipe.eval, recipe.sim), rest, f"eval {path}")
    sim, settings = world(options, recipe.eval)
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


def world(options: EvalOptions, usual: EvalConfig) -> tuple[SimConfig, EvalConfig]:
    """The simulator and the controller's settings, `suite` and `protocol` included.

    ConfigError for unknown ones, and where `--eval.replan` says otherwise than the protocol. `usual` is the run's own.
    """
    sim, settings = options.sim, options.eval
    if sim.name != "libero" and (options.suite or options.protocol):
        raise ConfigError("suites and protocols are LIBERO's", where="--suite, --protocol", got=f"sim.name {sim.name}",
                          expected="libero", next_step="choose tasks by --sim.tasks")  # fmt: skip
    if options.suite:
        if options.suite not in SUITES:
            raise ConfigError("unknown LIBERO suite", where="--suite", got=repr(options.suite),
                              next_step=did_you_mean(options.suite, SUITES))  # fmt: skip
        sim = replace(sim, tasks=tuple(f"{options.suite}/{i}" for i in range(SUITES[options.suite])))
    if options.protocol:
        chosen = protocol(options.protocol)
        size = sim.height, sim.width
        height, width = size if chosen.picture == "plain" else (chosen.size, chosen.size)
        sim = replace(sim, protocol=options.protocol, height=height, width=width)
        if settings.replan == usual.replan:  # else it was given, and `check` compares it
            settings = replace(settings, replan=chosen.replan or settings.replan)
    if options.suite or options.protocol:
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
