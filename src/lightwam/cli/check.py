"""`lightwam check`: a dataset or a simulator, before hours are spent on it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from lightwam.cli.options import AnyRecipe, Names, RayOptions, kind_named, named_recipe, parse, split_run
from lightwam.config import checks
from lightwam.config.schema import LATENTS
from lightwam.errors import DatasetError, SimulatorError, WireError
from lightwam.serving import access
from lightwam.serving.settings import Serving

if TYPE_CHECKING:
    from lightwam.data.lerobot.reader import LeRobotDataset

KINDS = ("sim", "expert", "dataset", "client")
USAGE = """usage: lightwam check sim RECIPE [--task NAME]   every task of the recipe's simulator, or the one named
       lightwam check expert RECIPE [OPTIONS]    how often its scripted expert solves each task
       lightwam check dataset PATH              every file, type, shape and number of a dataset, its latents too;
                                                PATH may also be LIBERO's own *_demo.hdf5, one or a folder of them
       lightwam check client RUN [OPTIONS]       listens in the server's place: what does a robot's client send?"""


@dataclass(frozen=True)
class SimOptions:
    """Check that a simulator keeps the `Simulator` protocol: shapes, reproducible resets, an expert that succeeds."""

    recipe: AnyRecipe
    task: str | None = None
    """one task alone; all of the recipe's by default"""


@dataclass(frozen=True)
class ExpertOptions(RayOptions):
    """Run the scripted expert on the seeds that evaluation would use, `--eval.trials` of each task."""

    recipe: AnyRecipe
    json: bool = False
    """print JSON instead of a table"""


@dataclass(frozen=True)
class DatasetOptions:
    """Check a LeRobot dataset, v3.0 or v2: every file, type, shape and number of it, and of its latent cache.

    Lists all problems at once, each with its fix, and harmless oddities as notes. PATH may also be LIBERO's own HDF5
    files.
    """

    path: Annotated[Path, tyro.conf.Positional]
    names: Names = ()
    cache: Path | None = None
    """folder for caches, as for `lightwam train`; default: $LIGHTWAM_CACHE, else the dataset's own folder"""


@dataclass(frozen=True)
class ClientOptions:
    """Listen as `lightwam serve` would, and tell what a robot's client sends, and what of it does not fit.

    Nothing is answered, so no robot moves: the client is told that this is a check.
    """

    serving: Annotated[Serving, tyro.conf.arg(name="")]
    messages: int = 1
    """so many are looked at"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam check sim RECIPE`, `check expert RECIPE`, `check dataset PATH` or `check client RUN`."""
    if (named := kind_named(arguments, KINDS, USAGE, "cannot check that")) is None:
        return
    kind, rest = named
    {"sim": _check_sim, "expert": _check_expert, "dataset": _check_dataset, "client": _check_client}[kind](rest)


def _check_sim(arguments: Sequence[str]) -> None:
    recipe, rest = named_recipe(arguments, "check sim")
    options = parse(SimOptions(recipe), rest, f"check sim {recipe.name}")
    sim = checks.check_recipe(options.recipe).sim
    from lightwam.sim.check import check_simulator
    from lightwam.sim.registry import version_warnings

    for warning in version_warnings(sim.name):
        print(f"check: {warning}")
    broken = 0
    for task in sim.tasks if options.task is None else (options.task,):
        findings = check_simulator(sim, task)
        broken += len(findings)
        print(
            "\n".join(
                [f"{sim.name}/{task}: {'broken promises' if findings else 'keeps the protocol'}", *map(str, findings)]
            )
        )
    if broken:
        raise SimulatorError("a simulator breaks the protocol", where=sim.name, got=f"{broken} broken promises",
                             expected="none", next_step="mend the adapter, then check it again")  # fmt: skip


def _check_expert(arguments: Sequence[str]) -> None:
    recipe, rest = named_recipe(arguments, "check expert")
    options = parse(ExpertOptions(recipe), rest, f"check expert {recipe.name}")
    checked = checks.check_recipe(options.recipe)
    from lightwam.evaluation.expert_check import check_experts

    say = partial(print, file=sys.stderr if options.json else sys.stdout, flush=True)
    rows = check_experts(checked, say, lambda task, row: say(_expert_line(task, row)), options.pool_factory(say))
    if options.json:
        print(json.dumps(rows, indent=2))


def _expert_line(task: str, row: Mapping[str, Any]) -> str:
    if "refused" in row:
        return f"{task:24} {row['refused']}"
    low, high = row["interval_95"]
    steps = f", {row['steps']:.0f} steps" if row["successes"] else ""
    failed = f"; failed {row['failed']}" if row["failed"] else ""
    return f"{task:24} {row['successes']:3} of {row['trials']:3}  {low:4.0%} to {high:4.0%}{steps}{failed}"


def _check_client(arguments: Sequence[str]) -> None:
    path, rest = split_run(arguments, "check client")
    options = parse(ClientOptions(Serving()), rest, f"check client {path}")
    settings = options.serving
    keys = access.read_keys(settings.api_keys, os.environ.get(access.KEYS_VARIABLE))
    access.check_exposure(settings.host, keys, anyone=settings.allow_anyone)
    from lightwam.policy import run_directory
    from lightwam.serving import logs
    from lightwam.serving.inspect_client import inspect_client
    from lightwam.serving.sentences import sentence_check
    from lightwam.wire.robot_schemas import schemas_for

    recipe = run_directory.read_recipe(path)
    cameras = tuple(place.camera for place in recipe.codec.places)
    model = recipe.model
    schemas = schemas_for(settings.robot_schemas, cameras, model.state_dim, model.action_dim, settings.renames)
    logs.configure(settings.log)
    check = sentence_check(recipe, run_directory.read_tensors(path / run_directory.PROMPTS))
    if not asyncio.run(inspect_client(schemas, settings, keys, options.messages, print, check_sentence=check)):
        raise WireError("the client's messages do not fit the run", where=path,
                        next_step="rename cameras (--renames), choose --robot-schemas, or declare the robot in a file: "
                        "docs/serving_robots.md")  # fmt: skip


def _check_dataset(arguments: Sequence[str]) -> None:
    options = tyro.cli(DatasetOptions, args=list(arguments), prog="lightwam check dataset")
    from lightwam.data.cache.location import cache_home
    from lightwam.data.lerobot.check import check_dataset
    from lightwam.data.lerobot.features import parse_names
    from lightwam.data.libero import hdf5
    from lightwam.system.progress import Progress

    if not (options.path / "meta").is_dir() and (files := hdf5.demo_files(options.path)):
        _check_demonstrations(options.path, files)
        return
    with Progress("check", unit="picture") as progress:
        findings = check_dataset(options.path, parse_names(options.names), progress.update)
    for note in findings.notes:
        print(f"note: {note}")
    if len(findings.problems) == 1:
        raise findings.problems[0]
    if findings.problems:
        print("\n".join(findings.lines()))
        raise DatasetError("the dataset is broken", where=options.path,
                           got=f"{len(findings.problems)} problems, listed above",
                           expected="none", next_step="fix them, then check again")  # fmt: skip
    dataset = findings.dataset
    assert dataset is not None
    print(
        f"{options.path}: sound; {dataset.num_episodes} episodes, {dataset.num_frames} frames, "
        f"cameras {', '.join(dataset.cameras)}, {len(dataset.tasks)} tasks"
    )
    if (latents := cache_home(options.path, options.cache) / LATENTS).is_dir():
        from lightwam.data.cache.latents import find_latent_caches

        for path in find_latent_caches(latents):
            _check_latents(dataset, path)


def _check_demonstrations(path: Path, files: Sequence[Path]) -> None:
    from lightwam.data.libero import hdf5
    from lightwam.system.progress import Progress

    with Progress("check", len(files), unit="file") as progress:
        scans = []
        for file in files:
            scans.append(hdf5.scan(file, pictures=True))
            progress.advance(file.name)
    if problems := [problem for scan in scans for problem in scan.problems]:
        print("\n".join(problems))
        raise DatasetError("the demonstrations are broken", where=path, got=f"{len(problems)} problems, listed above",
                           expected="none", next_step="copy those files again, or leave them out")  # fmt: skip
    lengths = [length for scan in scans for length in scan.lengths.values()]
    print(f"{path}: sound; {len(files)} files, {len(lengths)} demonstrations, {sum(lengths)} steps; "
          f"{sum(len(scan.failures) for scan in scans)} of the demonstrations never succeed")  # fmt: skip


def _check_latents(dataset: LeRobotDataset, path: Path) -> None:
    from lightwam.data.cache.latents import LatentCache
    from lightwam.system.progress import Progress

    cache = LatentCache.open(path, dataset)
    with Progress("check", cache.num_steps, unit="window") as progress:
        problems = cache.problems(progress.update)
    if problems:
        raise DatasetError("the latent cache is damaged", where=cache.path, got="; ".join(problems[:5]),
                           expected=f"no problem, but there are {len(problems)}",
                           next_step="delete the files named and run `lightwam cache` again")  # fmt: skip
    print(f"{cache.path}: sound; {cache.num_steps} windows, {cache.bytes_per_sample / 1024:.1f} KiB each")
