"""Write a recipe file: TOML with comments, only what differs from a base, which `recipe_files` reads."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from lightwam.config.schema import Recipe
from lightwam.config.strict_json import to_dict

Table = dict[str, Any]
COMMENT_COLUMN = 40


def recipe_file(
    recipe: Recipe,
    base: Recipe,
    header: str = "",
    comments: Mapping[str, str] | None = None,
    always: Collection[str] = (),
) -> str:
    """Return a recipe file's text: `base`'s name and every setting of `recipe` that differs, except name and notes.

    `header` is a comment above, of one or several lines; `comments`: dotted name ("model.horizon", "codec.places",
    "base") -> the comment after it; `always`: dotted names of settings that are written in any case.
    """
    about = comments or {}
    changes = differences(_plain(recipe), _plain(base))
    for own in ("name", "notes"):
        changes.pop(own, None)
    for name in always:
        section, _, key = name.rpartition(".")
        changes.setdefault(section, {})[key] = to_dict(getattr(getattr(recipe, section), key))
    changes = {key: changes[key] for key in sorted(changes, key=lambda key: key != "sources")}
    lines = [f"# {line}".rstrip() for line in header.splitlines()]
    lines += [_setting("base", base.name, about.get("base", ""))]
    return "\n".join([*lines, *_table(changes, "", about)]) + "\n"


def _plain(value: Any) -> Any:
    """Convert a config to plain values; rows of a list, such as cameras' places, without their default settings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_row(item) if dataclasses.is_dataclass(item) else _plain(item) for item in value]
    return to_dict(value)


def _row(row: Any) -> Table:
    plain = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    return {f.name: _plain(plain[f.name]) for f in dataclasses.fields(row) if plain[f.name] != f.default}


def differences(new: Table, old: Table) -> Table:
    """Return the values of nested tables that differ; a list, and a table of another `kind`, is returned completely."""
    found: Table = {}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict) and value.get("kind") == before.get("kind"):
            if inner := differences(value, before):
                found[key] = inner
        elif value != before:
            found[key] = value
    return found


def _table(table: Table, name: str, comments: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of a table: plain values first, then its tables and lists of tables, under their full names."""
    inner = f"{name}." if name else ""
    plain = {key: value for key, value in table.items() if not _is_tables(value) and value is not None}
    if plain and name:
        yield from ["", _commented(f"[{name}]", comments.get(name, ""))]
    for key, value in plain.items():
        yield _setting(key, value, comments.get(inner + key, ""))
    for key, value in table.items():
        full = inner + _key(key)
        if isinstance(value, dict):
            yield from _table(value, full, comments)
        elif _is_tables(value):
            for number, row in enumerate(value):
                yield from ["", _commented(f"[[{full}]]", "" if number else comments.get(full, ""))]
                for each, inside in row.items():
                    yield _setting(each, inside, comments.get(f"{full}.{number}.{each}", ""))


def _is_tables(value: Any) -> bool:
    """Return whether a value needs a table, or a list of tables."""
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)
    )


def _setting(key: str, value: Any, comment: str) -> str:
    return _commented(f"{_key(key)} = {_value(value)}", comment)


def _commented(line: str, comment: str) -> str:
    return f"{line:{COMMENT_COLUMN}}  # {comment}" if comment else line


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _text(key)


def _value(value: Any) -> str:
    """Return a value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_value(inside)}" for key, inside in value.items()) + "}"
    return repr(value)


def _text(text: str) -> str:
    """Return a TOML string; JSON's escapes are TOML's, except that TOML escapes DEL too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
