"""Markdown of texts and numbers that come from files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> Iterator[str]:
    """Lines of a table, an empty one first; columns of `numbers` stand to the right."""
    yield ""
    yield f"| {' | '.join(heads)} |"
    yield f"|{'|'.join(' ---: ' if i in numbers else ' --- ' for i in range(len(heads)))}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def plain(text: str) -> str:
    """A text on one line, and nothing in it that Markdown or HTML would read as its own."""
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", flat)
