"""Where two nested tables of plain values differ."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any


def differences(
    first: Any, second: Any, name: str = "", ignored: Collection[str] = ()
) -> Iterator[tuple[str, Any, Any]]:
    """Yield every entry that differs: its dotted name and both values, None for a missing one.

    Entries whose dotted name is in `ignored` are skipped, with all below them.
    """
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in sorted(first.keys() | second.keys()):
            inner = f"{name}.{key}" if name else key
            if inner not in ignored:
                yield from differences(first.get(key), second.get(key), inner, ignored)
    elif first != second:
        yield name, first, second
