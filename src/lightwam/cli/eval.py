"""`lightwam eval`: a policy in closed loop, a run's own or that of any openpi server."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightwam.cli.open_loop import OPTION, run_open_loop
from lightwam.cli.options import (
    PolicyOptions,
    RayOptions,
    given,
    named_recipe,
    parse,
    positionals,
    print_step,
    wants_help,
)
from lightwam.config.checks import check_recipe
from lightwam.config.libero_protocols import with_suite_and_protocol
from lightwam.config.recipe_files import recipe
from lightwam.config.robotwin_protocols import with_robotwin_protocol
from lightwam.config.schema import EvalConfig, SimConfig, with_simulator
from lightwam.errors import ConfigError
from lightwam.system.tables import rate_cells, table_lines

KEY_VARIABLE = "LIGHTWAM_API_KEY"
"""environment variable with the server's key; on the command line everyone would see it in `ps`"""
EXAMPLE = "demo"
USAGE = f"""usage: lightwam eval RUN [OPTIONS]                         a trained run's policy in its simulator
       lightwam eval RUN RECIPE [OPTIONS]                  in the simulator of a recipe
       lightwam eval RUN --open-loop [OPTIONS]             on recorded episodes; so without a simulator
       lightwam eval ws://HOST:PORT RECIPE --run OUT [...]  the policy of any server that speaks openpi's protocol

The settings below are those of the recipe {EXAMPLE}; lightwam eval RUN --help shows those of a run.
"""
ALIASES = {"--suite": "--sim.tasks", "--protocol": "--sim.protocol"}
"""short option -> the setting that it changes"""


@dataclass(frozen=True, kw_only=True)
class WorldOptions(RayOptions):
    """Where a policy is evaluated, and by how many simulators."""

    eval: EvalConfig
    """the recipe's own, unless overridden"""
    sim: SimConfig
    """the recipe's own, unless overridden"""
    suite: str | None = None
    """short for --sim.tasks with all tasks of a LIBERO suite, such as libero_object_swap; brings its step limit"""
    protocol: str | None = None
    """short for --sim.protocol: LIBERO's constants as light-wam, openpi, openvla-oft, lerobot or plain has them, or
    RoboTwin's (docs/robotwin.md); either brings the protocol's picture size, step limit and replan, unless an option
    sets them"""
    folder: str = "eval"
    """folder of the run directory for the episodes; another protocol needs another folder"""


@dataclass(frozen=True, kw_only=True)
class EvalOptions(PolicyOptions, WorldOptions):
    """Run a trained policy in closed loop on unseen seeds; finished episodes are not run again."""

    engine: bool = False
    """act by the folded model: the same actions, faster"""
    int8: bool = False
    """with --engine: weights in 8 bits: less memory, slightly different actions"""


@dataclass(frozen=True, kw_only=True)
class ServerOptions(WorldOptions):
    """Run the policy of an openpi server in closed loop; the recipe gives simulator and evaluation only."""

    run: Path | None = None
    """a folder for the results, required; not that of a trained run"""
    robot_schema: str = "libero"
    """how its observations name cameras, state and prompt: a built-in name or a TOML file (docs/serving_robots.md)"""
    renames: dict[str, str] = field(default_factory=dict)
    """a camera's name in the robot schema, then the simulator's"""
    timeout_seconds: float = 60.0
    """for an answer; the first one may take long"""
    label: str = ""
    """name of the policy in the result; a server may not give one"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam eval RUN [RECIPE] [...]` or `lightwam eval ws://HOST:PORT RECIPE --run OUT [...]`."""
    if wants_help(arguments):
        print(USAGE)
        example = recipe(EXAMPLE)
        parse(EvalOptions, arguments, "eval RUN", EvalOptions(eval=example.eval, sim=example.simulation))
    (subject,), rest = positionals(arguments, "eval")
    if subject.startswith(("ws://", "wss://")):
        print(table(_eval_server(subject, rest)))
    elif "://" in subject:
        expected, step = "ws://HOST:PORT or wss://HOST:PORT", "lightwam eval ws://HOST:PORT RECIPE --run OUT"
        raise ConfigError("not the address of a websocket", where=subject, expected=expected, next_step=step)
    elif OPTION in rest or not (_names_recipe(rest) or _has_simulator(Path(subject))):
        run_open_loop(Path(subject), rest)
    else:
        print(table(_eval_run(Path(subject), rest)))


def _names_recipe(arguments: Sequence[str]) -> bool:
    return bool(arguments) and not arguments[0].startswith("-")


def _has_simulator(run: Path) -> bool:
    from lightwam.policy.run_directory import read_recipe

    return read_recipe(run).sim is not None


def _eval_run(run: Path, arguments: Sequence[str]) -> dict[str, Any]:
    from lightwam.policy.run_directory import read_recipe

    recipe = read_recipe(run)
    sim, settings = recipe.sim, recipe.eval
    if _names_recipe(arguments):  # the simulator of another recipe, in which the run keeps its own replan
        world_of, arguments = named_recipe(arguments, f"eval {run}")
        sim, settings = world_of.simulation, replace(world_of.eval, replan=settings.replan)
    assert sim is not None
    options = parse(EvalOptions, arguments, f"eval {run}", EvalOptions(eval=settings, sim=sim))
    sim, settings = world(options, given(arguments))
    from lightwam.evaluation.evaluate import evaluate
    from lightwam.policy.policy import Policy
    from lightwam.system.cpu import keep_memory

    check_recipe(with_simulator(recipe, sim, settings))  # before a model is loaded
    keep_memory()
    print_step(run, options.step)
    policy = Policy.load(
        run, options.step, device=options.device, weights=options.weights, engine=options.engine, int8=options.int8
    )
    return evaluate(run, settings, sim=sim, policy=policy, folder=options.folder, pool_factory=options.pool_factory())


def _eval_server(url: str, arguments: Sequence[str]) -> dict[str, Any]:
    recipe, rest = named_recipe(arguments, "eval ws://HOST:PORT")
    defaults = ServerOptions(eval=recipe.eval, sim=recipe.simulation)
    options = parse(ServerOptions, rest, f"eval {url} {recipe.name}", defaults)
    if options.run is None:
        raise ConfigError("the results need a folder", where="--run", next_step="--run runs/NAME")
    if (options.run / "recipe.json").exists():
        what = "results of a server's policy must not be stored in a trained run"
        raise ConfigError(what, where="--run", got=options.run, expected="another folder")
    sim, settings = world(options, given(rest))
    from lightwam.evaluation.evaluate import evaluate
    from lightwam.evaluation.remote_policy import RemotePolicy
    from lightwam.robot.client import Client
    from lightwam.wire.robot_schemas import load_schema

    schema, key = load_schema(options.robot_schema), os.environ.get(KEY_VARIABLE, "").strip()
    with Client(url, api_key=key or None, timeout_seconds=options.timeout_seconds) as client:
        policy = RemotePolicy(client, recipe, schema, options.renames, options.label)
        return evaluate(
            options.run, settings, sim=sim, policy=policy, folder=options.folder, pool_factory=options.pool_factory()
        )


def world(options: WorldOptions, explicit: frozenset[str]) -> tuple[SimConfig, EvalConfig]:
    """Return the settings of simulator and evaluation with `--suite` and `--protocol`; `explicit`: options given."""
    for alias, option in ALIASES.items():
        if {alias, option} <= explicit:
            what, step = "an option and its short form must not both be set", "leave one of them out"
            raise ConfigError(what, where=f"{alias}, {option}", next_step=step)
    protocol = options.sim.protocol if "--sim.protocol" in explicit else options.protocol
    if options.sim.name == "robotwin" and protocol and not options.suite:
        return with_robotwin_protocol(options.sim, options.eval, protocol, explicit)
    return with_suite_and_protocol(options.sim, options.eval, options.suite, protocol, explicit)


def table(result: Mapping[str, Any]) -> str:
    """Return successes of trials by task and in total, with their Wilson 95 % intervals, and the stages reached."""
    rows = []
    for name, row in [*result["tasks"].items(), ("all", result)]:
        stages = ", ".join(f"{stage} {count}" for stage, count in row.get("progress", {}).items())
        rows.append([name, *rate_cells(row), stages])
    return "\n".join(line.rstrip() for line in table_lines(rows, indent=0))
