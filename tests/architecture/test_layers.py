"""A package imports only packages to its left in LAYERS, also inside functions; docs/design.md says what each holds."""

import ast
import graphlib
from collections.abc import Iterator
from typing import Any

LAYERS = (
    ("errors", "types"),
    ("system", "config"),
    ("wire",),
    ("model", "encoders", "sim", "robot"),
    ("data", "engine"),
    ("policy",),
    ("training", "serving"),
    ("evaluation",),
    ("report",),
    ("cli",),
    ("__main__",),
)
"""packages of one layer do not import each other"""
RANK = {package: rank for rank, layer in enumerate(LAYERS) for package in layer}
MODEL_IMPORTS = {"model", "config", "types", "errors"}


def imported(tree: ast.Module, known: set[str]) -> Iterator[tuple[ast.AST, str]]:
    """Every module of lightwam that `tree` imports, anywhere in it, with the import's node."""
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


def imports(house: Any) -> Iterator[tuple[Any, ast.AST, str, str, str]]:
    """Module, the import's node, the imported module, and the packages of both; the root's lazy names are left out."""
    known = set(house.modules)
    for module in house.modules.values():
        for node, target in imported(module.tree, known):
            if module.name and target:
                yield module, node, target, module.name.split(".")[0], target.split(".")[0]


def test_a_package_imports_only_packages_to_its_left(house: Any) -> None:
    wrong = [
        f"{module.place(node)}: {here} imports {target}"
        for module, node, target, here, there in imports(house)
        if here != there and RANK[there] >= RANK[here]
    ]
    assert not wrong, "\n".join(wrong)


def test_every_package_has_a_layer(house: Any) -> None:
    packages = {name.split(".")[0] for name in house.modules if name}
    assert packages == set(RANK)


def test_every_package_stands_in_the_design(house: Any) -> None:
    design = (house.root / "docs" / "design.md").read_text(encoding="utf-8")
    line = " | ".join(", ".join(layer) for layer in LAYERS[:-1])
    assert f"`{line}`" in design


def test_the_root_is_not_imported_from_inside(house: Any) -> None:
    """`from lightwam import Policy` would hide which package is meant, and lead in a circle."""
    known = set(house.modules)
    wrong = [
        f"{module.place(node)}: {alias.name}"
        for module in house.modules.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and node.module == "lightwam"
        for alias in node.names
        if alias.name not in known and alias.name != "__version__"
    ]
    assert not wrong, "\n".join(wrong)


def test_there_is_no_import_circle(house: Any) -> None:
    known = set(house.modules)
    graph = {
        name: {target for _, target in imported(module.tree, known) if target} - {name}
        for name, module in house.modules.items()
    }
    list(graphlib.TopologicalSorter(graph).static_order())


def test_the_model_imports_settings_and_types_only(house: Any) -> None:
    wrong = [
        f"{module.place(node)}: {target}"
        for module, node, target, here, there in imports(house)
        if here == "model" and there not in MODEL_IMPORTS
    ]
    assert not wrong, "\n".join(wrong)
