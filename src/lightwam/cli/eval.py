"""`lightwam eval`: a policy in closed loop, a run's own or one that any openpi server has."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lightwam.cli.options import RayOptions, given, named_recipe, parse, split_run, wants_help
from lightwam.config.checks import check_recipe
from lightwam.config.libero_protocols import SUITES, protocol
from lightwam.config.recipes import demo
from lightwam.config.schema import EvalConfig, SimConfig, with_simulator
from lightwam.errors import ConfigError, did_you_mean

KEY_VARIABLE = "LIGHTWAM_API_KEY"
"""environment variable with the key that a server wants; on the command line everyone would see it in `ps`"""
USAGE = """usage: lightwam eval RUN [OPTIONS]                         a trained run's policy
       lightwam eval ws://HOST:PORT RECIPE --run OUT [...]  the policy of any server that speaks openpi's protocol
"""


@dataclass(frozen=True, kw_only=True)
class WorldOptions(RayOptions):
    """Where a policy is evaluated, and by how many simulators."""

    eval: EvalConfig
    """the recipe's own, unless overridden"""
    sim: SimConfig
    """the recipe's own, unless overridden"""
    suite: str | None = None
    """all tasks of this LIBERO suite in place of the recipe's, for example libero_object_swap, with its steps"""
    protocol: str | None = None
    """LIBERO's constants as light-wam, openpi, openvla-oft, lerobot or plain has them: picture, steps, replan"""
    folder: str = "eval"
    """where in the run directory the episodes go; another protocol needs another folder"""


@dataclass(frozen=True, kw_only=True)
class EvalOptions(WorldOptions):
    """Run a trained policy in closed loop on unseen seeds; episodes that are done already are not run again."""

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


@dataclass(frozen=True, kw_only=True)
class ServerOptions(WorldOptions):
    """Run the policy of an openpi server in closed loop; of the recipe only simulator and evaluation count."""

    run: Path | None = None
    """a folder for the results, which is no trained run's; it has to be named"""
    robot_schema: str = "libero"
    """how its observations name cameras, state and prompt: a built-in name or a TOML file (docs/serving_robots.md)"""
    renames: dict[str, str] = field(default_factory=dict)
    """a camera's name in the robot schema, then the simulator's"""
    timeout_seconds: float = 60.0
    """for an answer; the first one may take long"""
    label: str = ""
    """what the policy is called in the result; a server may say nothing of itself"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam eval RUN [...]` or `lightwam eval ws://HOST:PORT RECIPE --run OUT [...]`."""
    if arguments and arguments[0].startswith(("ws://", "wss://")):
        _eval_server(arguments[0], arguments[1:])
        return
    if arguments and "://" in arguments[0]:
        raise ConfigError("not the address of a websocket", where=arguments[0], expected="ws://HOST:PORT or wss://HOST:PORT",
                          next_step="lightwam eval ws://HOST:PORT RECIPE --run OUT")  # fmt: skip
    path, rest = split_run(arguments, "eval")
    if wants_help(rest):
        print(USAGE)
        parse(EvalOptions(eval=EvalConfig(trials=20, replan=8), sim=demo().sim), rest, f"eval {path}")
    from lightwam.policy.run_directory import read_recipe

    recipe = read_recipe(path)
    options = parse(EvalOptions(eval=recipe.eval, sim=recipe.sim), rest, f"eval {path}")
    sim, settings = world(options, given(rest))
    from lightwam.evaluation.evaluate import evaluate
    from lightwam.policy.policy import Policy
    from lightwam.system.cpu import keep_memory

    check_recipe(with_simulator(recipe, sim, settings))  # before a model is loaded
    keep_memory()
    policy = Policy.load(
        path, options.step, device=options.device, weights=options.weights, engine=options.engine, int8=options.int8
    )
    print(
        table(
            evaluate(path, settings, sim=sim, policy=policy, folder=options.folder, pool_factory=options.pool_factory())
        )
    )


def _eval_server(url: str, arguments: Sequence[str]) -> None:
    recipe, rest = named_recipe(arguments, "eval ws://HOST:PORT")
    options = parse(ServerOptions(eval=recipe.eval, sim=recipe.sim), rest, f"eval {url} {recipe.name}")
    if options.run is None:
        raise ConfigError("the results need a folder", where="--run", next_step="--run runs/NAME")
    if (options.run / "recipe.json").exists():
        raise ConfigError("results of a server's policy do not belong to a trained run", where="--run",
                          got=options.run, expected="another folder")  # fmt: skip
    sim, settings = world(options, given(rest))
    from lightwam.evaluation.evaluate import evaluate
    from lightwam.evaluation.remote_policy import RemotePolicy
    from lightwam.robot.client import Client
    from lightwam.wire import robot_schemas

    schema, key = robot_schemas.load_schema(options.robot_schema), os.environ.get(KEY_VARIABLE, "").strip()
    with Client(url, api_key=key or None, timeout_seconds=options.timeout_seconds) as client:
        policy = RemotePolicy(client, recipe, schema, options.renames, options.label)
        result = evaluate(
            options.run, settings, sim=sim, policy=policy, folder=options.folder, pool_factory=options.pool_factory()
        )
    print(table(result))


def world(options: WorldOptions, said: frozenset[str]) -> tuple[SimConfig, EvalConfig]:
    """The simulator and the controller's settings, `suite` and `protocol` included.

    What was `said` by an option of its own is kept (`check_recipe` refuses what a protocol has otherwise). ConfigError
    for unknown names, and for tasks beside a suite.
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
