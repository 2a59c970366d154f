"""Every `lightwam ...` command in an error, docstring, help text or document must parse.

Commands are parsed by the real command line and stopped when their options have been read. Placeholders (RUN, {path})
are filled in first.
"""

import ast
import contextlib
import json
import re
import shlex
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from lightwam.cli import main as cli
from lightwam.config import recipe_files, recipes
from lightwam.config.strict_json import to_dict
from lightwam.errors import LightwamError

HOLE = "\x00"
"""stands for an f-string's values"""
KINDS = {"check": ("sim", "expert", "dataset", "client"), "convert": ("libero", "robotwin"),
         "bench": ("train", "act", "gpu", "eval", "serve", "control")}  # fmt: skip
RECIPE_FIRST = {("demo",), ("collect",), ("cache",), ("train",), ("adopt",), ("show",), ("check", "sim"),
                ("check", "expert"), *(("bench", kind) for kind in ("train", "act", "gpu", "eval"))}  # fmt: skip
VALUES = ("1", "x", "auto", "demo", "runs/demo")
"""values to try for a placeholder"""
COMMAND = re.compile(
    rf"(?:(?P<torchrun>torchrun [^\n`]*?)|\b)lightwam (?P<rest>(?:{'|'.join(cli.COMMANDS)})\b[^\n`<]*)"
)
OPTION = re.compile(r"(?<![\w-])--[a-z][\w.-]*\w")
LINE_START = re.compile(r"(\$ )?([A-Z_]+=\S+ )*(\S*python\S* -m )?")
SENTENCE = ("and", "instead", "is", "lists", "needs", "or", "says", "to", "with")
PLACEHOLDER = re.compile(rf"(?:ws://)?[A-Z][A-Z_]*(?:[/|:.][A-Z_a-z]+)*|.*{HOLE}.*|\.\.\.")
OTHERS = {"--recipe.train.steps", "--train.max-steps", "--local-dir", "--output",
          "--ignore-requires-python", "--no-index", "--target", "--short",
          "--junitxml", "--continue-on-collection-errors", "--id", "--query-gpu", "--format", "--loop-ms",
          "--address", "--no-deps", "--constraint", "--editable", "--help", "--version", "--head", "--num-cpus",
          "--same-index-action",
          "--nproc-per-node", "--nnodes", "--rdzv-endpoint", "--dry-run", "--serve-web", "--bind"}  # fmt: skip
"""options of other programs, and two that a text gives as wrong examples"""


class Parsed(BaseException):
    """Raised when the options have been read, to stop the command."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stop commands after parsing; some runs are there, and the recipe files of docs/own_robot.md."""
    import tyro

    from lightwam.policy import run_directory

    for run in (tmp_path / "runs" / name for name in ("demo", "mine", "so101")):
        run.mkdir(parents=True)
        (run / "recipe.json").write_text(json.dumps(to_dict(recipes.demo())))
        (run / "dataset.json").write_text('{"path": "data/demo"}')
    for name in ("so101", "so101_2", "two_arms", "two"):
        (tmp_path / f"{name}.toml").write_text('base = "demo"')
    monkeypatch.chdir(tmp_path)
    real = tyro.cli

    def read(*kinds: Any, **named: Any) -> Any:
        real(*kinds, **named)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", read)
    monkeypatch.setattr(run_directory, "read_recipe", lambda path: recipe_files.recipe("demo"))


def texts(repository: Any) -> Iterator[tuple[str, str, bool]]:
    """Yield location, text and whether whole lines are commands, for every string in the source and every page."""
    for module in repository.modules.values():
        inside = {id(part) for node in ast.walk(module.tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
                yield module.location(node), node.value, False
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else HOLE for part in node.values]
                yield module.location(node), "".join(map(str, parts)), False
    for path in (*repository.documents(), *repository.templates()):
        text = re.sub(r"\{\{.*?\}\}", HOLE, path.read_text(encoding="utf-8"))
        for number, block in enumerate(re.split(r"^```.*$", text, flags=re.MULTILINE)):
            yield str(path.relative_to(repository.root)), block.replace("\\\n", " "), number % 2 == 1


def commands(text: str, whole: bool) -> Iterator[list[str]]:
    """Yield the commands in a text, split into words, with `torchrun` and its options in front."""
    for found in COMMAND.finditer(text):
        line = text[text.rfind("\n", 0, found.start()) + 1 : found.start()]
        alone = (whole and LINE_START.fullmatch(line)) or text[found.start() - 1 : found.start()] == "`"
        rest = re.split(r" #| [|>&] | && |;" if alone else r"\s{2,}|;", found["rest"])[0]
        rest = re.sub(r"\[(OPTIONS|\.\.\.|RECIPE)\]|[\[\]]", "", rest)  # what may be left out must parse too
        try:
            words = shlex.split(rest)
        except ValueError:  # an apostrophe of the sentence
            words = rest.split()
        start = [*found["torchrun"].split(), "lightwam"] if found["torchrun"] else []
        yield [*start, *(words if alone else command_words(words))]


def command_words(words: list[str]) -> Iterator[str]:
    """Yield the words up to the first that belongs to the surrounding sentence."""
    kinds, value, known = KINDS.get(words[0].rstrip(".,:)"), ()), False, True
    for i, word in enumerate(words):
        bare = word if word == "..." else word.rstrip(".,:)")
        option = re.fullmatch(r"--[a-z][\w.-]*(=\S+)?", bare)
        known = i == 0 or bool(option) or bare in (*recipes.RECIPES, *kinds) or "/" in bare or bare.isdigit()
        if not known and not PLACEHOLDER.fullmatch(bare) and not (value and bare not in SENTENCE):
            return
        yield bare
        if bare != word:  # the end of a part of the sentence
            return
        value = bool(option) and "=" not in bare


def filled(words: list[str]) -> Iterator[list[str]]:
    """Yield the command with placeholders filled in, for each candidate value."""
    command, rest = words[0], words[1:]
    if rest and rest[0] in KINDS.get(command, ()):
        command, rest = f"{command} {rest[0]}", rest[1:]
    if words[0] == "eval" and rest and rest[0].startswith("ws://"):
        command, rest = "eval ws://localhost:8000", rest[1:]
    takes_recipe = tuple(command.split()) in RECIPE_FIRST or "ws://" in command
    choices: list[tuple[str, ...]] = []
    for i, word in enumerate(rest):
        open_ = PLACEHOLDER.fullmatch(word)
        after_option = i > 0 and rest[i - 1].startswith("--") and "=" not in rest[i - 1]
        if word.startswith("-"):
            if HOLE not in word:  # an option's name that is put in: see test_options_that_are_put_in
                choices.append((word,))
        elif after_option and open_:
            choices.append(VALUES)
        elif word == "RECIPE" or (i == 0 and takes_recipe and open_):
            choices.append(("demo",))
        elif word != "...":
            choices.append((word.replace(HOLE, "x"),))
    yield from ([*command.split(), *chosen] for chosen in product(*choices))


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return why a command does not parse, or ""."""
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        try:
            given = get_args_parser().parse_args(words[1:])
        except SystemExit:
            return capsys.readouterr().err.strip().splitlines()[-1]
        if not given.module or given.training_script != "lightwam":
            return f"torchrun would start {given.training_script!r}"
        if words[words.index("lightwam") - 1] != "--":
            return "torchrun would take --run for its own: -m -- lightwam"
        words = given.training_script_args
    if words in ([words[0]], [words[0], *(kind for kind in KINDS.get(words[0], ()) if kind == words[-1])]):
        return ""  # a command by its name
    why = ""
    for attempt in filled(words):
        try:
            cli._dispatch(attempt)
        except Parsed:
            return ""
        except SystemExit as exit_:
            if exit_.code in (0, None):
                return ""
            why = " ".join(capsys.readouterr().err.split())
        except LightwamError as error:
            why = error.what
        else:
            return ""
    return why or "nothing to try"


def faults(found: Iterator[tuple[str, str, bool]], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Return the number of distinct commands, and those that do not parse."""
    seen: dict[tuple[str, ...], str] = {}
    for where, text, whole in found:
        for words in commands(text, whole):
            seen.setdefault(tuple(words), where)
    tried = {words: refusal(list(words), capsys) for words in seen}
    return len(seen), [f"{seen[words]}: {' '.join(words)!r}: {why}" for words, why in tried.items() if why]


def test_commands_in_texts_parse(repository: Any, parse_only: None, capsys: pytest.CaptureFixture[str]) -> None:
    count, wrong = faults(texts(repository), capsys)
    assert count > 100 and not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("calibrate again: lightwam watch RUN --folder another", False),
        (f"run `lightwam check sim {HOLE} --tasks reach` again", False),
        ("lightwam eval runs/a --eval.trails 3   # so many", True),
        ("lightwam train dmeo", True),
        ("see lightwam serve RUN --prot 8000, then ask", False),
        ("lightwam eval ws://HOST:8000 demo --run runs/a --eval.trials many", True),
        ("torchrun --nproc-per-node 2 -m lightwam train demo --run runs/a", True),
        ("torchrun --nproc-per-node 2 -m lightwam train demo --dataset data/a", True),
        ("torchrun --nproc-per-node 2 -m -- lightwam train demo --rum runs/a", True),
    ],
)
def test_a_command_that_does_not_parse_is_found(
    text: str, whole: bool, parse_only: None, capsys: pytest.CaptureFixture[str]
) -> None:
    count, wrong = faults(iter([("here", text, whole)]), capsys)
    assert count == 1 and len(wrong) == 1


def test_options_in_texts_exist(
    repository: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also options named without their command."""
    monkeypatch.setenv("COLUMNS", "200")
    commands = [["train", "libero-10"], ["eval", "ws://HOST:1", "demo"], ["bench", "act", "demo"]]
    for command in cli.COMMANDS:
        for kind in KINDS.get(command, ("",)):
            words = (command, kind) if kind else (command,)
            commands.append([*words, "demo"] if words in RECIPE_FIRST else [*words])
    for words in commands:
        with contextlib.suppress(SystemExit):
            cli._dispatch([*words, "--help"])
    options = {name.replace("_", "-") for name in OPTION.findall(capsys.readouterr().out)}
    assert len(options) > 100
    wrong = [
        f"{where}: {option}"
        for where, text, _ in texts(repository)
        if where.startswith("src")
        for option in OPTION.findall(text)
        if option.replace("_", "-") not in options | OTHERS
    ]
    assert not wrong, "\n".join(wrong)
