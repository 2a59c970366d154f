"""A package imports only packages to its left in LAYERS, also inside functions; docs/design.md says what each holds."""

import ast
import graphlib
from collections.abc import Iterator
from typing import Any

LAYERS = (
    ("errors", "types"),
    ("system", "config"),
    ("wire", "kernels"),
    ("model", "encoders", "sim", "robot"),
    ("data", "engine"),
    ("policy",),
    ("training", "serving"),
    ("evaluation",),
    ("report",),
    ("play",),
    ("cli",),
    ("__main__",),
)
"""packages of one layer do not import each other"""
RANK = {package: rank for rank, layer in enumerate(LAYERS) for package in layer}
MODEL_IMPORTS = {"model", "config", "types", "errors"}


def imported(tree: ast.Module, known: set[str]) -> Iterator[tuple[ast.AST, str]]:
    """Yield every lightwam module that `tree` imports, also inside functions, with the import's node."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("lightwam."):
                    yield node, alias.name.removeprefix("lightwam.")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports name the whole path"
            module = (node.module or "") + "."
            if module.startswith("lightwam."):
                for alias in node.names:
                    inner = (module + alias.name).removeprefix("lightwam.")
                    yield node, inner if inner in known else module.removeprefix("lightwam.").rstrip(".")


def imports(repository: Any) -> Iterator[tuple[Any, ast.AST, str, str, str]]:
    """Yield module, import node, imported module and both packages; skips the lazy names of `lightwam/__init__`."""
    known = set(repository.modules)
    for module in repository.modules.values():
        for node, target in imported(module.tree, known):
            if module.name and target:
                yield module, node, target, module.name.split(".")[0], target.split(".")[0]


def test_a_package_imports_only_packages_to_its_left(repository: Any) -> None:
    wrong = [
        f"{module.location(node)}: {here} imports {target}"
        for module, node, target, here, there in imports(repository)
        if here != there and RANK[there] >= RANK[here]
    ]
    assert not wrong, "\n".join(wrong)


def test_every_package_has_a_layer(repository: Any) -> None:
    packages = {name.split(".")[0] for name in repository.modules if name}
    assert packages == set(RANK)


def test_design_page_has_the_import_rule(repository: Any) -> None:
    design = (repository.root / "docs" / "design.md").read_text(encoding="utf-8")
    line = " | ".join(", ".join(layer) for layer in LAYERS[:-1])
    assert f"`{line}`" in design


def test_lightwam_modules_do_not_import_the_root(repository: Any) -> None:
    """`from lightwam import Policy` would hide the package and create an import circle."""
    known = set(repository.modules)
    wrong = [
        f"{module.location(node)}: {alias.name}"
        for module in repository.modules.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and node.module == "lightwam"
        for alias in node.names
        if alias.name not in known and alias.name != "__version__"
    ]
    assert not wrong, "\n".join(wrong)


def test_there_is_no_import_circle(repository: Any) -> None:
    known = set(repository.modules)
    graph = {
        name: {target for _, target in imported(module.tree, known) if target} - {name}
        for name, module in repository.modules.items()
    }
    list(graphlib.TopologicalSorter(graph).static_order())


def test_the_model_imports_settings_and_types_only(repository: Any) -> None:
    wrong = [
        f"{module.location(node)}: {target}"
        for module, node, target, here, there in imports(repository)
        if here == "model" and there not in MODEL_IMPORTS
    ]
    assert not wrong, "\n".join(wrong)
