"""Rules of docs/design.md that can be checked by parsing: no silent failures, names, docstrings, sizes."""

import ast
from collections.abc import Iterator
from typing import Any

EMPTY_WORDS = ("get_", "build_", "prepare_", "maybe_", "handle_")
OTHERS_NAMES = ("get_observation", "get_action", "get_model")
"""of the interfaces of LeRobot's robots and teleoperators, and of RoboTwin's policies"""
EMPTY_NAMES = ("util", "utils", "helper", "helpers", "manager")
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def everything(repository: Any) -> Iterator[tuple[Any, ast.AST]]:
    for module in repository.modules.values():
        for node in ast.walk(module.tree):
            yield module, node


def test_no_exception_is_swallowed(repository: Any) -> None:
    """No bare `except`, and no `except Exception` that only passes."""
    wrong = []
    for module, node in everything(repository):
        if isinstance(node, ast.ExceptHandler):
            broad = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            silent = all(isinstance(line, (ast.Pass, ast.Continue)) for line in node.body)
            if node.type is None or (broad and silent):
                wrong.append(module.location(node))
    assert not wrong, wrong


def test_nothing_is_loaded_loosely(repository: Any) -> None:
    """strict=False hides missing weights and keys; only `zip` may use it."""
    wrong = [
        module.location(node)
        for module, node in everything(repository)
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id == "zip")
        for word in node.keywords
        if word.arg == "strict" and isinstance(word.value, ast.Constant) and word.value.value is False
    ]
    assert not wrong, wrong


def test_hasattr_is_not_used(repository: Any) -> None:
    wrong = [
        module.location(node)
        for module, node in everything(repository)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr"
    ]
    assert not wrong, wrong


def public(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Public functions, classes and methods; functions inside functions are private."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (*Function, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)


def test_public_names_have_docstrings(repository: Any) -> None:
    wrong = []
    for module in repository.modules.values():
        if not ast.get_docstring(module.tree):
            wrong.append(f"{module.location(module.tree)} the module")
        # `forward` is PyTorch's name; its signature says what it takes and returns
        nodes = (node for node in public(module.tree) if node.name != "forward")
        wrong += [f"{module.location(node)} {node.name}" for node in nodes if not ast.get_docstring(node)]
    assert not wrong, "\n".join(wrong)


def test_names_are_specific(repository: Any) -> None:
    wrong = [
        f"{module.location(node)} {node.name}"
        for module, node in everything(repository)
        if isinstance(node, Function) and node.name.lstrip("_").startswith(EMPTY_WORDS)
        if node.name not in OTHERS_NAMES
    ]
    wrong += [name for name in repository.modules if name.split(".")[-1] in EMPTY_NAMES]
    assert not wrong, wrong


def num_arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of parameters, `self` and `cls` left out; 0 of a Triton kernel, which takes single numbers."""
    if any(isinstance(mark, ast.Attribute) and mark.attr == "jit" for mark in node.decorator_list):
        return 0
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"])) + len(node.args.kwonlyargs)


def test_files_and_functions_are_small(repository: Any) -> None:
    """At most 400 lines a file, 70 lines and 9 arguments a function."""
    wrong = []
    for module in repository.modules.values():
        if (lines := len(module.path.read_text(encoding="utf-8").splitlines())) > 400:
            wrong.append(f"{module.path.name} has {lines} lines")
        for node in ast.walk(module.tree):
            if isinstance(node, Function) and (lines := (node.end_lineno or 0) - node.lineno + 1) > 70:
                wrong.append(f"{module.location(node)} {node.name} has {lines} lines")
            if isinstance(node, Function) and (count := num_arguments(node)) > 9:
                wrong.append(f"{module.location(node)} {node.name} has {count} arguments")
    assert not wrong, wrong
