"""What the subcommands share: their options, a recipe by its name, a run by its directory, and parsing by tyro."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from lightwam.config import checks, recipes
from lightwam.config.fit import inherited
from lightwam.config.recipe_files import recipe as load_recipe
from lightwam.config.schema import Recipe
from lightwam.config.strict_json import old_names
from lightwam.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from lightwam.system.workers import PoolFactory
    from lightwam.training.caches import DatasetSource

Options = TypeVar("Options")

Flat = tyro.conf.arg(name="")
"""marks settings whose options have no prefix: `--train.steps`, not `--recipe.train.steps`"""
RUN = {"RUN": "a run directory"}
"""the first argument of many commands, as usage and errors show it"""
_SWITCH = re.compile(r"(latents|text):[\w-]+-config$")
OLD_OPTIONS: Mapping[str, str] = {
    "data": "dataset",
    "families": "robot-schemas",
    "family": "robot-schema",
    "quiet": "undisturbed",
    "most-together": "max-batch",
    "most-waiting": "max-queue",
    "most-clients": "max-clients",
    **{old.replace("_", "-"): new.replace("_", "-") for old, new in old_names(Recipe).items()},
}
"""former name of an option -> its name; former ones are accepted, with a line on stderr"""


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Options of commands that start from a recipe."""

    recipe: Annotated[Recipe, Flat]


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Options of commands that compute."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one"""


@dataclass(frozen=True, kw_only=True)
class NamesOptions:
    """Options of commands that read a dataset of any origin."""

    names: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FEATURE=NAME")] = ()
    """maps the features of a dataset without LeRobot's names; NAME is a camera, observation.state or action: --names
    image=front state=observation.state actions=action. A run keeps them."""


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Options of commands that cache what they decode or encode."""

    cache: Path | None = None
    """folder for caches; default: $LIGHTWAM_CACHE, else ~/.cache/lightwam"""


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(NamesOptions, CacheOptions):
    """Options of commands that train on a dataset, or prepare that."""

    dataset: Path | None = None
    """a LeRobot dataset, v3.0 or v2.1: a folder, or OWNER/NAME[@REVISION] on the Hugging Face Hub; by default the
    recipe's sources"""

    def source(self) -> DatasetSource:
        """Return the dataset with its names and cache."""
        from lightwam.data.lerobot.features import parse_names
        from lightwam.training.caches import DatasetSource

        return DatasetSource(self.dataset, parse_names(self.names) if self.names else None, self.cache)


@dataclass(frozen=True, kw_only=True)
class PolicyOptions(DeviceOptions):
    """Options of commands that load a run's policy."""

    step: int | None = None
    """the checkpoint; by default the best on held-out episodes, or the newest if none are held out"""
    weights: str | None = None
    """where the pretrained encoders are now, if not where the recipe says"""


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Options of commands that run simulators."""

    ray: bool = False
    """run the simulators, as many as there are workers, on a Ray cluster; everything else stays here"""
    ray_address: str = "auto"
    """the cluster's host:port, if this machine has joined several; auto: RAY_ADDRESS, or the only one"""

    def pool_factory(self, say: Callable[[str], None] = print) -> PoolFactory | None:
        """Return what makes the pool of simulators; None for processes of this machine."""
        from lightwam.system.ray_workers import RayWorkers

        return partial(RayWorkers, address=self.ray_address, say=say) if self.ray else None


@dataclass(frozen=True, kw_only=True)
class JsonOptions:
    """Options of commands that print a result."""

    json: bool = False
    """print JSON instead of a table"""


def named_recipe(arguments: Sequence[str], command: str, default: str | None = None) -> tuple[Recipe, list[str]]:
    """Return the recipe that the first argument names, unchecked as overrides may follow, and the other arguments.

    The argument may be a recipe's name, a recipe file or a run directory. Without it the recipe is `default`; without
    either, ConfigError lists the names.
    """
    if arguments and not arguments[0].startswith("-"):
        return load_recipe(arguments[0]), list(arguments[1:])
    if default is not None:
        return load_recipe(default), list(arguments)
    if wants_help(arguments):
        lines = [f"  {name:20}{(make.__doc__ or '').splitlines()[0]}" for name, make in recipes.RECIPES.items()]
        print("\n".join([f"usage: lightwam {command} RECIPE [OPTIONS]", "", "recipes:", *lines, ""]))
        print("or a recipe file (.toml), as `lightwam init DATASET` writes it, or a run directory")
        print(f"lightwam {command} RECIPE --help lists every option with its value in that recipe.")
        raise SystemExit(0)
    names, step = ", ".join(recipes.RECIPES), f"lightwam {command} {next(iter(recipes.RECIPES))}"
    raise ConfigError(f"lightwam {command} needs a recipe", expected=names, next_step=step)


def recipe_command(kind: type[Options], arguments: Sequence[str], command: str, default: str | None = None) -> Options:
    """Return the options of a command that starts with a recipe, checked.

    Unless an option says otherwise, the dataset is the recipe's sources, else in data/ under its name, and the run is
    in runs/ under its name; for a run directory in place of a recipe they are the run's own.
    """
    recipe, rest = named_recipe(arguments, command, default)
    make: Any = kind
    directories: dict[str, Any] = {"dataset": Path("data") / recipe.name, "run": Path("runs") / recipe.name}
    if recipe.sources:
        directories["dataset"] = None
    if len(rest) < len(arguments) and ((own := Path(arguments[0])) / "recipe.json").is_file():
        directories |= {"run": own} | ({"dataset": _trained_on(own)} if not recipe.sources else {})
    names = directories.keys() & {field.name for field in fields(make)}
    defaults = make(recipe=recipe, **{name: directories[name] for name in names})
    options: Any = parse(kind, rest, f"{command} {recipe.name}", defaults)
    options = dataclasses.replace(options, recipe=inherited(recipe, options.recipe, _dotted(given(rest))))
    checks.check_recipe(options.recipe)
    return options


def _trained_on(run: Path) -> Path:
    """Return the path or Hub id of the dataset that a run was trained on."""
    path = run / "dataset.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Path(record["hub"]["id"] if "hub" in record else record["path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        step = "pass --dataset"
        raise ConfigError(
            "the run does not say what it was trained on", where=path, got=error, next_step=step
        ) from error


def positionals(arguments: Sequence[str], command: str, names: Mapping[str, str] = RUN) -> tuple[list[str], list[str]]:
    """Split `arguments` into one word for each of `names` (name -> what it is) and the options after them."""
    words = list(takewhile(lambda word: not word.startswith("-"), arguments[: len(names)]))
    if len(words) < len(names):
        missing = list(names)[len(words) :]
        usage = f"lightwam {command} {' '.join([*words, *missing])}"
        before = ", before its options" if len(words) < len(arguments) else ""
        what = f"lightwam {command} needs {names[missing[0]]}{before}"
        raise ConfigError(what, got=" ".join(arguments) or None, next_step=usage)
    return words, list(arguments[len(names) :])


def run_command(
    kind: type[Options], arguments: Sequence[str], command: str, names: Mapping[str, str] = RUN
) -> tuple[list[str], Options]:
    """Return the words of a command that starts with a run, or with other `names`, and its options."""
    if wants_help(arguments):
        parse(kind, arguments, " ".join([command, *names]))
    words, rest = positionals(arguments, command, names)
    return words, parse(kind, rest, " ".join([command, *words]))


def wants_help(arguments: Sequence[str]) -> bool:
    """Return whether the first argument asks for help."""
    return bool(arguments) and arguments[0] in ("-h", "--help")


def parse(kind: type[Options], arguments: Sequence[str], command: str, defaults: Options | None = None) -> Options:
    """Return options of this kind from the command line and, for the others, `defaults` or the kind's own.

    An unknown option exits with code 2 and suggestions.

    Sections of several kinds (`latents`, `text`) have the options of the recipe's own kind: `--text.num-tokens 24`. A
    word such as `text:umt5-config`, after all other options, chooses another kind, whose options follow that word.
    """
    arguments = rename_old(arguments)
    switches = any(_SWITCH.match(word) for word in arguments)
    config = () if switches else (tyro.conf.AvoidSubcommands,)
    default: Any = tyro.MISSING_NONPROP if defaults is None else defaults
    options: Options = tyro.cli(kind, default=default, args=arguments, prog=f"lightwam {command}", config=config)
    return options if all(map(_is_text, arguments)) else as_utf8(options)


def rename_old(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with former names of options replaced; each is reported on stderr."""
    words = []
    for word in arguments:
        option, equals, value = word.partition("=")
        if option.startswith("--") and (name := OLD_OPTIONS.get(option[2:].replace("_", "-"))):
            print(f"lightwam: {option} is now --{name}", file=sys.stderr)
            word = f"--{name}{equals}{value}"
        words.append(word)
    return words


def as_utf8(options: Options) -> Options:
    """Return `options` with text that the locale could not decode (LC_ALL=C) decoded as UTF-8; paths are kept."""

    def read(value: Any) -> Any:
        if isinstance(value, str) and not _is_text(value) and not Path(value).exists():
            return os.fsencode(value).decode("utf-8", "backslashreplace")
        if isinstance(value, tuple):
            return tuple(map(read, value))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.replace(value, **{f.name: read(getattr(value, f.name)) for f in fields(value) if f.init})
        return value

    return read(options)


def _is_text(argument: str) -> bool:
    """Return whether this locale could decode the argument; Python keeps other bytes as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in argument)


def given(arguments: Sequence[str]) -> frozenset[str]:
    """Return the options on the command line, as `--train.max-steps`."""
    return frozenset(word.partition("=")[0].replace("_", "-") for word in arguments if word.startswith("--"))


def _dotted(options: frozenset[str]) -> frozenset[str]:
    """Return the settings of options: `--train.max-steps` is train.max_steps."""
    return frozenset(option.removeprefix("--").replace("-", "_") for option in options)


def subcommand(
    arguments: Sequence[str], commands: Mapping[str, Callable[[Sequence[str]], None]], usage: str, refusal: str
) -> None:
    """Run the command that the first argument names, or print `usage`; ConfigError (`refusal`) for another word."""
    if not arguments or wants_help(arguments):
        print(usage)
        return
    name, *rest = arguments
    if name not in commands:
        raise ConfigError(refusal, got=repr(name), next_step=did_you_mean(name, commands))
    commands[name](rest)


def print_result(result: Any, table: Callable[[Any], str], options: JsonOptions) -> None:
    """Print a command's result as JSON or by `table`."""
    print(json.dumps(result, indent=2) if options.json else table(result))


def print_step(run: Path | str, step: int | None) -> None:
    """Print which checkpoint acts if no `step` is asked for, where a run has errors on held-out episodes."""
    from lightwam.policy.run_directory import best_line

    if step is None and (line := best_line(Path(run))):
        print_progress(line)


def print_progress(line: str) -> None:
    """Print a line of progress, which is not part of the result."""
    print(line, file=sys.stderr, flush=True)
