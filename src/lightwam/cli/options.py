"""What the subcommands share: a recipe by its name, a run by its directory, and options read by tyro."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from lightwam.config import recipes
from lightwam.config.schema import Recipe
from lightwam.config.strict_json import old_names
from lightwam.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from lightwam.system.workers import PoolFactory

Options = TypeVar("Options")

Flat = tyro.conf.arg(name="")
"""marks the recipe among a command's options: its settings are `--train.steps`, not `--recipe.train.steps`"""
AnyRecipe = Annotated[Recipe, Flat]
Names = Annotated[
    tuple[str, ...],
    tyro.conf.arg(
        metavar="FEATURE=NAME",
        help="maps the features of a dataset without LeRobot's names; NAME is a camera, observation.state or action: "
        "--names image=front state=observation.state actions=action. A run keeps them.",
    ),
]
"""an option of every command that reads a dataset"""
OLD_OPTIONS: Mapping[str, str] = {
    "families": "robot-schemas",
    "family": "robot-schema",
    "quiet": "undisturbed",
    "most-together": "max-batch",
    "most-waiting": "max-queue",
    "most-clients": "max-clients",
    **{old.replace("_", "-"): new.replace("_", "-") for old, new in old_names(Recipe).items()},
}
"""former name of an option -> its name; former ones are accepted, with a line on stderr"""
_SWITCH = re.compile(r"(latents|text):[\w-]+-config$")


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Where a command's simulators run."""

    ray: bool = False
    """run the simulators, as many as there are workers, on a Ray cluster; everything else stays here"""
    ray_address: str = "auto"
    """which cluster, host:port, of those that this machine has joined; auto: RAY_ADDRESS, or the only one"""

    def pool_factory(self, say: Callable[[str], None] = print) -> PoolFactory | None:
        """Return what makes the pool of simulators; None for processes of this machine."""
        from lightwam.system.ray_workers import RayWorkers

        return partial(RayWorkers, address=self.ray_address, say=say) if self.ray else None


def named_recipe(arguments: Sequence[str], command: str, default: str | None = None) -> tuple[Recipe, list[str]]:
    """The recipe that the first argument names, unchecked as overrides are to come, and the other arguments.

    Without a name the recipe is `default`; without either, ConfigError lists the names.
    """
    if arguments and not arguments[0].startswith("-"):
        return recipes.recipe(arguments[0]), list(arguments[1:])
    if default is None:
        if wants_help(arguments):
            print(f"usage: lightwam {command} RECIPE [OPTIONS]\n\n{listing()}\n")
            print(f"lightwam {command} RECIPE --help lists every option with its value in that recipe.")
            raise SystemExit(0)
        raise ConfigError(f"lightwam {command} needs a recipe", expected=", ".join(recipes.RECIPES),
                          next_step=f"lightwam {command} {next(iter(recipes.RECIPES))}")  # fmt: skip
    return recipes.recipe(default), list(arguments)


def listing() -> str:
    """The recipes, a line each."""
    lines = [f"  {name:20}{(make.__doc__ or '').splitlines()[0]}" for name, make in recipes.RECIPES.items()]
    return "\n".join(["recipes:", *lines])


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether the first argument asks for help."""
    return bool(arguments) and arguments[0] in ("-h", "--help")


def parse(defaults: Options, arguments: Sequence[str], command: str) -> Options:
    """Return `defaults` changed by the command line; an unknown option exits with code 2 and suggestions.

    Sections of several kinds (`latents`, `text`) have the options of the recipe's own kind: `--text.num-tokens 24`. A
    word such as `text:umt5-config`, after all other options, chooses another kind, whose options follow that word.
    """
    arguments = rename_old(arguments)
    switches = any(_SWITCH.match(word) for word in arguments)
    config = () if switches else (tyro.conf.AvoidSubcommands,)
    options = tyro.cli(
        type(defaults), default=defaults, args=list(arguments), prog=f"lightwam {command}", config=config
    )
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

    decoded: Options = read(options)
    return decoded


def _is_text(argument: str) -> bool:
    """Whether this locale could decode all bytes of the argument; Python keeps the others as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in argument)


def given(arguments: Sequence[str]) -> frozenset[str]:
    """The options that stand on the command line, as `--train.max-steps`."""
    return frozenset(one.partition("=")[0].replace("_", "-") for one in arguments if one.startswith("--"))


def kind_named(
    arguments: Sequence[str], kinds: Sequence[str], usage: str, refusal: str
) -> tuple[str, list[str]] | None:
    """The kind that a command's first argument names, and the rest; None when it asked for help, which is printed.

    ConfigError, which begins with `refusal`, for any other word.
    """
    if not arguments or wants_help(arguments):
        print(usage)
        return None
    kind, *rest = arguments
    if kind not in kinds:
        raise ConfigError(refusal, got=repr(kind), next_step=did_you_mean(kind, kinds))
    return kind, rest


def split_run(arguments: Sequence[str], command: str) -> tuple[Path, list[str]]:
    """The run directory that the first argument names, and the other arguments."""
    if wants_help(arguments):
        return Path("RUN"), list(arguments)
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(f"lightwam {command} needs a run directory", next_step=f"lightwam {command} runs/demo")
    return Path(arguments[0]), list(arguments[1:])
