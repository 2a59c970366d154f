"""`lightwam check`: a dataset, a simulator, an expert or a client, before hours are spent on it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from lightwam.cli.options import (
    CacheOptions,
    Flat,
    JsonOptions,
    NamesOptions,
    RayOptions,
    RecipeOptions,
    parse,
    print_result,
    recipe_command,
    run_command,
    subcommand,
)
from lightwam.config.schema import LATENTS
from lightwam.errors import DatasetError, SimulatorError, WireError
from lightwam.serving import access
from lightwam.serving.settings import Serving
from lightwam.system.progress import Progress
from lightwam.system.tables import rate_cells

if TYPE_CHECKING:
    from lightwam.data.lerobot.reader import LeRobotDataset

USAGE = """usage: lightwam check sim RECIPE [--task NAME]   every task of the recipe's simulator, or one
       lightwam check expert RECIPE [OPTIONS]    how often its scripted expert solves each task
       lightwam check dataset PATH              every file, type, shape and number of a dataset, and of its latents;
                                                PATH may also be a dataset's OWNER/NAME on the Hugging Face Hub, or
                                                LIBERO's own *_demo.hdf5 or RoboTwin's episode*.hdf5, one or a
                                                folder of them
       lightwam check client RUN [OPTIONS]       listens as the server would: what does a robot's client send?"""


@dataclass(frozen=True, kw_only=True)
class SimOptions(RecipeOptions):
    """Check that a simulator keeps the `Simulator` protocol: shapes, reproducible resets, an expert that succeeds."""

    task: str | None = None
    """only this task; all tasks of the recipe by default"""


@dataclass(frozen=True, kw_only=True)
class ExpertOptions(JsonOptions, RayOptions, RecipeOptions):
    """Run the scripted expert on the seeds that evaluation would use, `--eval.trials` of each task."""


@dataclass(frozen=True, kw_only=True)
class CheckDatasetOptions(CacheOptions, NamesOptions):
    """Check a LeRobot dataset, v3.0 or v2: every file, type, shape and number of it, and of its latent cache.

    Lists all problems at once, each with its fix, and harmless oddities as notes. PATH may also be a dataset on the
    Hugging Face Hub, OWNER/NAME[@REVISION], or the HDF5 files of LIBERO or RoboTwin.
    """

    path: Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """Listen as `lightwam serve` would, and print what a robot's client sends and what of it does not fit the run.

    Nothing is answered, so no robot moves: the client receives an error that says that this is a check.
    """

    serving: Annotated[Serving, Flat] = field(default_factory=Serving)
    messages: int = 1
    """number of messages to inspect"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam check sim RECIPE`, `check expert RECIPE`, `check dataset PATH` or `check client RUN`."""
    commands = {"sim": _check_sim, "expert": _check_expert, "dataset": _check_dataset, "client": _check_client}
    subcommand(arguments, commands, USAGE, "cannot check that")


def _check_sim(arguments: Sequence[str]) -> None:
    options = recipe_command(SimOptions, arguments, "check sim")
    sim = options.recipe.simulation
    from lightwam.sim.check import check_simulator
    from lightwam.sim.registry import version_warnings

    for warning in version_warnings(sim.name):
        print(f"check: {warning}")
    broken = 0
    for task in (options.task,) if options.task else sim.tasks:
        findings = check_simulator(sim, task)
        broken += len(findings)
        print(f"{sim.name}/{task}: {'broken promises' if findings else 'keeps the protocol'}", *findings, sep="\n")
    if broken:
        got, step = f"{broken} broken promises", "correct the adapter, then check it again"
        raise SimulatorError("a simulator breaks the protocol", where=sim.name, got=got, next_step=step)


def _check_expert(arguments: Sequence[str]) -> None:
    options = recipe_command(ExpertOptions, arguments, "check expert")
    from lightwam.evaluation.expert_check import check_experts

    say = partial(print, file=sys.stderr if options.json else sys.stdout, flush=True)
    width = max(map(len, options.recipe.simulation.tasks))

    def tell(task: str, row: Mapping[str, Any]) -> None:
        say(f"{task:{width}}  {_expert_line(row)}")

    rows = check_experts(options.recipe, say, tell, options.pool_factory(say))
    if options.json:
        print_result(rows, str, options)


def _expert_line(row: Mapping[str, Any]) -> str:
    if "refused" in row:
        return str(row["refused"])
    steps = f", {row['steps']:.0f} steps" if row["successes"] else ""
    failed = f"; failed {row['failed']}" if row["failed"] else ""
    return "  ".join(rate_cells(row)) + steps + failed


def _check_client(arguments: Sequence[str]) -> None:
    (run,), options = run_command(ClientOptions, arguments, "check client")
    settings = options.serving
    keys = access.read_keys(settings.api_keys, os.environ.get(access.KEYS_VARIABLE))
    access.check_exposure(settings.host, keys, anyone=settings.allow_anyone)
    from lightwam.policy import run_directory
    from lightwam.serving import logs
    from lightwam.serving.inspect_client import inspect_client
    from lightwam.serving.sentences import sentence_check
    from lightwam.wire.robot_schemas import schemas_for

    recipe = run_directory.read_recipe(Path(run))
    cameras = tuple(place.camera for place in recipe.codec.places)
    model = recipe.model
    schemas = schemas_for(settings.robot_schemas, cameras, model.state_dim, model.action_dim, settings.renames)
    logs.configure(settings.log)
    check = sentence_check(recipe, run_directory.read_tensors(Path(run) / run_directory.PROMPTS))
    if not asyncio.run(inspect_client(schemas, settings, keys, options.messages, print, check_sentence=check)):
        step = "rename cameras (--renames), choose --robot-schemas, or declare one in a file: docs/serving_robots.md"
        raise WireError("the client's messages do not fit the run", where=run, next_step=step)


def _check_dataset(arguments: Sequence[str]) -> None:
    options = parse(CheckDatasetOptions, arguments, "check dataset")
    from lightwam.data.cache.latents import find_latent_caches
    from lightwam.data.cache.location import cache_home
    from lightwam.data.lerobot.check import check_dataset
    from lightwam.data.lerobot.features import parse_names
    from lightwam.data.lerobot.hub import find_dataset
    from lightwam.data.libero import hdf5
    from lightwam.data.robotwin.sources import has_episodes

    root = find_dataset(options.path)
    raw = not (root / "meta").is_dir()
    if raw and has_episodes(root):
        _check_robotwin(root)
        return
    if raw and (files := hdf5.demo_files(root)):
        _check_demonstrations(root, files)
        return
    with Progress("check", unit="picture") as progress:
        findings = check_dataset(root, parse_names(options.names), progress.update)
    for note in findings.notes:
        print(f"note: {note}")
    if len(findings.problems) == 1:
        raise findings.problems[0]
    if findings.problems:
        print("\n".join(findings.lines()))
        got, step = f"{len(findings.problems)} problems, listed above", "fix them, then check again"
        raise DatasetError("the dataset is broken", where=options.path, got=got, next_step=step)
    dataset = findings.dataset
    assert dataset is not None
    print(
        f"{options.path}: sound; {dataset.num_episodes} episodes, {dataset.num_frames} frames, "
        f"cameras {', '.join(dataset.cameras)}, {len(dataset.tasks)} tasks"
    )
    for home in dict.fromkeys([cache_home(root, options.cache), root]):
        for path in find_latent_caches(home / LATENTS):
            _check_latents(dataset, path)


def _check_demonstrations(path: Path, files: Sequence[Path]) -> None:
    from lightwam.data.libero import hdf5

    with Progress("check", len(files), unit="file") as progress:
        scans = []
        for file in files:
            scans.append(hdf5.scan(file, pictures=True))
            progress.advance(file.name)
    _refuse(path, [problem for scan in scans for problem in scan.problems])
    lengths = [length for scan in scans for length in scan.lengths.values()]
    failures = sum(len(scan.failures) for scan in scans)
    print(
        f"{path}: sound; {len(files)} files, {len(lengths)} demonstrations, {sum(lengths)} steps; "
        f"{failures} of the demonstrations never succeed"
    )


def _check_robotwin(path: Path) -> None:
    from lightwam.data.robotwin.sources import check_source, find_episodes

    report = check_source(find_episodes(path))
    _refuse(path, report.problems)
    cameras = ", ".join(f"{name} {height}x{width}" for name, (height, width) in report.cameras.items())
    print(
        f"{path}: sound; {sum(report.episodes.values())} demonstrations of {len(report.episodes)} tasks, "
        f"{report.frames} frames with an action, cameras {cameras}"
    )


def _refuse(path: Path, problems: Sequence[str]) -> None:
    """Print all problems of a benchmark's own files and raise DatasetError, if there are any."""
    if problems:
        print("\n".join(problems))
        got, step = f"{len(problems)} problems, listed above", "copy those files again, or leave them out"
        raise DatasetError("the demonstrations are broken", where=path, got=got, next_step=step)


def _check_latents(dataset: LeRobotDataset, path: Path) -> None:
    from lightwam.data.cache.latents import LatentCache

    cache = LatentCache.open(path, dataset)
    with Progress("check", cache.num_steps, unit="window") as progress:
        problems = cache.problems(progress.update)
    if problems:
        got = f"{len(problems)} problems: {'; '.join(problems[:5])}"
        step = "delete the files named and run `lightwam cache` again"
        raise DatasetError("the latent cache is damaged", where=cache.path, got=got, next_step=step)
    print(f"{cache.path}: sound; {cache.num_steps} windows, {cache.bytes_per_sample / 1024:.1f} KiB each")
