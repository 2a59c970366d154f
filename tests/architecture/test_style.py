"""The laws that a parser can see: nothing fails quietly, names say what they are, what is public is explained."""

import ast
from collections.abc import Iterator
from typing import Any

EMPTY_WORDS = ("get_", "build_", "prepare_", "maybe_", "resolve_", "handle_")
EMPTY_NAMES = ("util", "utils", "helper", "helpers", "manager")
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def everything(house: Any) -> Iterator[tuple[Any, ast.AST]]:
    for module in house.modules.values():
        for node in ast.walk(module.tree):
            yield module, node


def test_no_exception_is_swallowed(house: Any) -> None:
    """No bare except, and none of everything that then does nothing."""
    wrong = []
    for module, node in everything(house):
        if isinstance(node, ast.ExceptHandler):
            broad = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            silent = all(isinstance(line, (ast.Pass, ast.Continue)) for line in node.body)
            if node.type is None or (broad and silent):
                wrong.append(module.place(node))
    assert not wrong, wrong


def test_nothing_is_loaded_loosely(house: Any) -> None:
    """strict=False hides missing weights and missing keys; a zip may say that it wants the shorter."""
    wrong = [
        module.place(node)
        for module, node in everything(house)
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id == "zip")
        for word in node.keywords
        if word.arg == "strict" and isinstance(word.value, ast.Constant) and word.value.value is False
    ]
    assert not wrong, wrong


def test_nobody_asks_with_hasattr(house: Any) -> None:
    wrong = [
        module.place(node)
        for module, node in everything(house)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr"
    ]
    assert not wrong, wrong


def public(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Public functions, classes and methods; what is nested in a function is private."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (*Function, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)


def test_whatever_is_public_is_explained(house: Any) -> None:
    wrong = []
    for module in house.modules.values():
        if not ast.get_docstring(module.tree):
            wrong.append(f"{module.place(module.tree)} the module")
        # torch names this one; what it takes and returns stands in its signature
        nodes = (node for node in public(module.tree) if node.name != "forward")
        wrong += [f"{module.place(node)} {node.name}" for node in nodes if not ast.get_docstring(node)]
    assert not wrong, "\n".join(wrong)


def test_names_say_what_they_are(house: Any) -> None:
    wrong = [
        f"{module.place(node)} {node.name}"
        for module, node in everything(house)
        if isinstance(node, Function) and node.name.lstrip("_").startswith(EMPTY_WORDS)
    ]
    wrong += [name for name in house.modules if name.split(".")[-1] in EMPTY_NAMES]
    assert not wrong, wrong


def test_rooms_stay_small(house: Any) -> None:
    """Mostly under 350 lines and 40 a function; this is where "mostly" ends."""
    wrong = []
    for module in house.modules.values():
        if (lines := len(module.path.read_text(encoding="utf-8").splitlines())) > 420:
            wrong.append(f"{module.path.name} has {lines} lines")
        for node in ast.walk(module.tree):
            if isinstance(node, Function) and (lines := (node.end_lineno or 0) - node.lineno + 1) > 70:
                wrong.append(f"{module.place(node)} {node.name} has {lines} lines")
    assert not wrong, wrong
