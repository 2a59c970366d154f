"""Text files have an explicit encoding, JSON lines are split at line feeds, and writes are in `explain_disk_errors`."""

import ast
from collections.abc import Iterator
from typing import Any

import pytest

NOT_FILES = {"av", "Image", "os", "cls", "batcher", "FrameCache", "LatentCache"}
"""names whose `open` does not open a text file"""
UNGUARDED = {
    "system.files": "the guarded writer itself",
    "data.cache.frames": "inside `_disk_errors`, which gives its OSErrors to `disk_error`",
    "data.cache.shards": "bytes in memory; files of latent_cache, which has such a guard too",
    "data.lerobot.footage": "`_write` is called inside `explain_disk_errors`",
    "data.lerobot.merge": "called by LeRobotWriter inside `explain_disk_errors`",
    "data.lerobot.video": "called by LeRobotWriter inside `explain_disk_errors`, and by rollouts in a temporary folder",
}
"""modules that may write outside `explain_disk_errors`, each with the reason"""
PLUGIN = "lerobot_policy_lightwam/src"
GUARDS = ("explain_disk_errors", "replace_file")
WRITERS = {
    *("write_text", "write_bytes", "write_atomically", "save_file", "write_table", "save_pretrained"),
    *("copyfile", "copytree", "savez", "savez_compressed", "truncate"),
}
SAVERS = {"np", "torch"}
"""modules whose `save` writes a file"""


def name_of(node: ast.expr) -> str:
    """Return the last part of a dotted name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def words_of(call: ast.Call) -> dict[str, ast.expr]:
    """Return the keyword arguments."""
    return {word.arg: word.value for word in call.keywords if word.arg}


def mode_of(call: ast.Call) -> str | None:
    """Return the mode of a call that opens a file ("r" by default), or None for other calls."""
    if name_of(call.func) != "open":
        return None
    if isinstance(call.func, ast.Attribute) and name_of(call.func.value) in NOT_FILES:
        return None
    given = [words_of(call)["mode"]] if "mode" in words_of(call) else []
    given += call.args[0 if isinstance(call.func, ast.Attribute) else 1 :][:1]
    if not given:
        return "r"
    return str(given[0].value) if isinstance(given[0], ast.Constant) else None


def reads_or_writes_text(call: ast.Call) -> bool:
    words = words_of(call)
    if name_of(call.func) in ("read_text", "write_text", "TextIOWrapper"):
        return True
    if any(getattr(words.get(key), "value", False) for key in ("text", "universal_newlines")):
        return True
    mode = mode_of(call)
    return mode is not None and "b" not in mode


def without_encoding(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and reads_or_writes_text(node) and "encoding" not in words_of(node):
            yield node


def split_by_unicode(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Yield `splitlines` of file contents, which also splits at U+2028 and similar characters."""
    for node in ast.walk(tree):
        split = isinstance(node, ast.Attribute) and node.attr == "splitlines" and isinstance(node.value, ast.Call)
        if split and name_of(node.value.func) in ("read_text", "read", "decode"):
            yield node


def writes(call: ast.Call) -> bool:
    name, mode = name_of(call.func), mode_of(call)
    if name in WRITERS or (mode is not None and set(mode) & set("wax+")):
        return True
    return name == "save" and isinstance(call.func, ast.Attribute) and name_of(call.func.value) in SAVERS


def unguarded(tree: ast.AST, inside: bool = False) -> Iterator[ast.Call]:
    """Yield calls that write a file outside `with explain_disk_errors(...)` and `with replace_file(...)`."""
    if isinstance(tree, ast.With):
        calls = [item.context_expr for item in tree.items if isinstance(item.context_expr, ast.Call)]
        inside = inside or any(name_of(call.func) in GUARDS for call in calls)
    if isinstance(tree, ast.Call) and not inside and writes(tree):
        yield tree
    for child in ast.iter_child_nodes(tree):
        yield from unguarded(child, inside)


def files(repository: Any, *folders: str) -> Iterator[tuple[str, ast.AST]]:
    """Yield every source file, the plugin's, examples and tests/shared included; or the files of `folders`."""
    for folder in folders or ("src", PLUGIN, "examples", "tests/shared"):
        for path in sorted((repository.root / folder).rglob("*.py")):
            yield str(path.relative_to(repository.root)), ast.parse(path.read_text(encoding="utf-8"))


def test_text_files_have_an_encoding(repository: Any) -> None:
    """The default is the locale's, and LC_ALL=C cannot read Chinese instructions."""
    wrong = [f"{path}:{call.lineno}" for path, tree in files(repository) for call in without_encoding(tree)]
    assert not wrong, wrong


def test_lines_are_split_at_line_feeds(repository: Any) -> None:
    wrong = [f"{path}:{call.lineno}" for path, tree in files(repository) for call in split_by_unicode(tree)]
    assert not wrong, wrong


def test_every_write_is_guarded(repository: Any) -> None:
    """A full disk must give an error that names the file."""
    assert set(UNGUARDED) <= set(repository.modules)
    wrong = [
        module.location(call)
        for module in repository.modules.values()
        if module.name not in UNGUARDED
        for call in unguarded(module.tree)
    ]
    wrong += [f"{path}:{call.lineno}" for path, tree in files(repository, PLUGIN) for call in unguarded(tree)]
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("path.read_text()", 1),
        ('path.read_text(encoding="utf-8")', 0),
        ("open(path)", 1),
        ("open(path, 'rb')", 0),
        ("path.open('a')", 1),
        ("path.open(mode='w', encoding='utf-8')", 0),
        ("av.open(path, 'w')", 0),
        ("subprocess.run(['ls'], text=True)", 1),
        ("subprocess.run(['ls'], text=True, encoding='utf-8')", 0),
    ],
)
def test_the_parser_sees_text(line: str, found: int) -> None:
    assert len(list(without_encoding(ast.parse(line)))) == found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("path.write_text('a', encoding='utf-8')", 1),
        ("with explain_disk_errors(path):\n    path.write_bytes(b'a')", 0),
        ("with replace_file(path) as beside, beside.open('wb') as file:\n    np.save(file, a)", 0),
        ("np.save(path, a)", 1),
        ("torch.save(a, path)", 1),
        ("config.save(path)", 0),
        ("path.open('a', encoding='utf-8')", 1),
        ("path.open('rb')", 0),
    ],
)
def test_the_parser_sees_writes(line: str, found: int) -> None:
    assert len(list(unguarded(ast.parse(line)))) == found


def test_the_parser_sees_lines_split_at_other_signs() -> None:
    assert list(split_by_unicode(ast.parse("path.read_text(encoding='utf-8').splitlines()")))
    assert not list(split_by_unicode(ast.parse("str(error).splitlines()")))


def test_tables_are_read_without_pyarrows_threads(repository: Any) -> None:
    """A reader thread that holds a Python buffer at exit can abort the process."""
    wrong = [
        f"{path}:{call.lineno}"
        for path, tree in files(repository)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "pq"
        and call.func.attr in ("read_table", "ParquetDataset")
    ]
    assert not wrong, wrong
