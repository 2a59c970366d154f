"""Links in the documents are valid, and the commands, recipes, make targets and tests they name exist."""

import importlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lightwam
from lightwam import robot
from lightwam.cli import main as cli
from lightwam.config import recipes

LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
FENCE = re.compile(r"^```.*$", re.MULTILINE)
MAKE = re.compile(r"(?:^|`|\$ )make ([a-z-]+)", re.MULTILINE)
COMMAND = re.compile(r"(?:^|`|\$ )lightwam ([a-z]+(?:-[a-z]+)*)(?: ([a-z][\w/.-]*))?", re.MULTILINE)
TAKES_A_RECIPE = ("demo", "collect", "cache", "train", "adopt", "show")


def pages(repository: Any) -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in repository.documents()}


def test_links_are_valid(repository: Any) -> None:
    wrong = []
    for path, text in pages(repository).items():
        for found in LINK.findall(text):
            target = (found[0] or found[1]).split("#")[0]
            if target and "://" not in target and not (path.parent / target).exists():
                wrong.append(f"{path.relative_to(repository.root)}: {target}")
    assert not wrong, wrong


def test_make_targets_in_the_documents_exist(repository: Any) -> None:
    targets = repository.make_targets()
    named = {word for text in pages(repository).values() for word in MAKE.findall(text)}
    assert {"demo", "test"} <= named
    assert named <= targets


def test_commands_and_recipes_in_the_documents_exist(repository: Any) -> None:
    wrong = []
    for path, text in pages(repository).items():
        for command, word in COMMAND.findall(text):
            known = word in recipes.RECIPES or word.endswith(".toml") or not word
            if command not in cli.COMMANDS or (command in TAKES_A_RECIPE and not known):
                wrong.append(f"{path.relative_to(repository.root)}: lightwam {command} {word}")
    assert not wrong, wrong


def imports(text: str) -> Iterator[tuple[str, str]]:
    """Module and name of every `from lightwam... import ...` in a page's code blocks."""
    for block in FENCE.split(text)[1::2]:
        for module, names in re.findall(r"^ *from (lightwam[\w.]*) import (.+)$", block, re.MULTILINE):
            yield from ((module, name.split(" as ")[0].strip()) for name in names.split(","))


def test_the_documents_import_names_that_exist_by_their_public_path(repository: Any) -> None:
    wrong, public = [], {name: module for module in (robot, lightwam) for name in vars(module).get("__all__", ())}
    for path, text in pages(repository).items():
        for module, name in imports(text):
            line = f"{path.relative_to(repository.root)}: from {module} import {name}"
            submodule = f"{module}.{name}".removeprefix("lightwam.") in repository.modules
            if name in public and public[name].__name__ != module:
                wrong.append(f"{line}: {public[name].__name__} exports it")
            elif not submodule and name not in dir(importlib.import_module(module)):
                wrong.append(f"{line}: there is no such name")
        wrong += [f"{path.name}: lw.{name}" for name in re.findall(r"\blw\.(\w+)", text) if name not in public]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "target",
    [
        "demo",
        "robotwin",
        "test",
        "lint",
        "types",
        "slow",
        "gpu-wheels",
        "lerobot",
        "lowest",
        "report",
        "gl",
        "vulkan",
        "browser",
        "clean",
    ],
)
def test_make_can_plan_every_target(target: str, repository: Any) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=repository.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ci_runs_what_make_test_runs(repository: Any) -> None:
    assert re.search(r"^make .*\btest$", (repository.root / ".ci" / "run").read_text(), re.MULTILINE)


def test_the_readme_is_one_screen(repository: Any) -> None:
    lines = (repository.root / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60


def first_reading(repository: Any) -> list[Path]:
    """Return the files that README lists under "Read the code"."""
    section = (repository.root / "README.md").read_text(encoding="utf-8").split("## Read the code")[1]
    return [repository.root / "src" / "lightwam" / name for name in re.findall(r"`([\w/]+\.py)`", section)]


def test_the_first_reading_is_short(repository: Any) -> None:
    files = first_reading(repository)
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    assert len(files) >= 12 and lines <= 3600, lines


def test_the_readme_lists_every_package(repository: Any) -> None:
    readme = (repository.root / "README.md").read_text(encoding="utf-8")
    packages = {
        path.name for path in (repository.root / "src" / "lightwam").iterdir() if (path / "__init__.py").exists()
    }
    assert packages <= set(re.findall(r"(\w+)/ ", readme))


def test_a_script_that_starts_processes_has_a_main_guard(repository: Any) -> None:
    blocks = [
        (path.name, block)
        for path, text in pages(repository).items()
        for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        if re.search(r"\b(evaluate|collect|watch|check_experts|Workers|bench_\w+)\(", block)
    ]
    assert {"python.md", "evaluation.md"} <= {name for name, _ in blocks}
    assert all('if __name__ == "__main__":' in block for _, block in blocks)


def test_every_test_that_a_document_names_exists(repository: Any) -> None:
    named = {
        found for text in pages(repository).values() for found in re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    }
    texts = [(path.name, path.read_text(encoding="utf-8")) for path in (repository.root / "tests").glob("*/test_*.py")]
    there = {(file, test) for file, text in texts for test in re.findall(r"def (test_\w+)\(", text)}
    missing = sorted(named - there)
    assert len(named) > 60 and not missing, missing
