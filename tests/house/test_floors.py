"""A module imports from lower floors only, also inside its functions; docs/design.md says who lives where."""

import ast
import graphlib
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

FLOOR = re.compile(r"^\| (\d+) \|(.+)\|", re.MULTILINE)
MODEL_NEVER_IMPORTS = ("data", "sim", "latents", "text", "weights")


def floors(root: Path) -> dict[str, int]:
    """Pattern of a module's name -> floor, from the table in docs/design.md."""
    rows = FLOOR.findall((root / "docs" / "design.md").read_text(encoding="utf-8"))
    return {name: int(floor) for floor, names in rows for name in re.findall(r"`([\w.*]+)`", names)}


def row_of(name: str, table: dict[str, int]) -> str:
    """The table's entry for a module: its own name, else the most exact pattern."""
    found = [pattern for pattern in table if fnmatchcase(name, pattern) or f"{name}.*" == pattern]
    assert found, f"{name} has no floor: give it one in docs/design.md"
    return max(found, key=lambda pattern: (pattern == name, len(pattern)))


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


def test_every_import_goes_down(house: Any) -> None:
    table, known = floors(house.root), set(house.modules)
    assert len(table) > 20, "the table in docs/design.md was not read"
    wrong = []
    for module in house.modules.values():
        if module.name == "":  # the front door: its names are for users, and `test_nobody_...` keeps us from them
            continue
        for node, target in imported(module.tree, known):
            if target == "":
                continue
            here, there = row_of(module.name, table), row_of(target, table)
            one_room = here == there and here.endswith(".*")
            if table[there] >= table[here] and not one_room:
                wrong.append(f"{module.place(node)}: {module.name} ({table[here]}) imports {target} ({table[there]})")
    assert not wrong, "\n".join(wrong)


def test_nobody_inside_comes_in_by_the_front_door(house: Any) -> None:
    """`from lightwam import Policy` would hide which floor is meant, and lead in a circle."""
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


def test_no_import_leads_back(house: Any) -> None:
    """Also between the modules of one room, which share a floor."""
    known = set(house.modules)
    graph = {
        name: {target for _, target in imported(module.tree, known) if target} - {name}
        for name, module in house.modules.items()
    }
    list(graphlib.TopologicalSorter(graph).static_order())


def test_every_row_of_the_table_is_a_module(house: Any) -> None:
    names = set(house.modules)
    unknown = [
        row
        for row in floors(house.root)
        if not any(row in (name, f"{name}.*") or fnmatchcase(name, row) for name in names)
    ]
    assert not unknown, f"docs/design.md has floors for modules that do not exist: {unknown}"


def test_the_model_knows_nothing_of_robots_pictures_or_files(house: Any) -> None:
    known = set(house.modules)
    wrong = [
        f"{module.place(node)}: {target}"
        for name, module in house.modules.items()
        if name.split(".")[0] == "model"
        for node, target in imported(module.tree, known)
        if target.split(".")[0] in MODEL_NEVER_IMPORTS
    ]
    assert not wrong, "\n".join(wrong)
