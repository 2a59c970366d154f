"""Text tables, as the command line prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any


def table_lines(rows: Sequence[Sequence[str]], align: str = "<>", indent: int = 2) -> list[str]:
    """Return a line for each row, with columns as wide as their widest cell and two spaces between them.

    `align` has "<" or ">" for each column; the last sign is repeated. Rows may be short of cells.
    """
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    signs = align.ljust(len(widths), align[-1])
    lines = []
    for row in rows:
        cells = [f"{cell:{sign}{width}}" for cell, sign, width in zip(row, signs, widths, strict=False)]
        lines.append((" " * indent + "  ".join(cells)).rstrip())
    return lines


def plural(count: int, noun: str) -> str:
    """Return a count of things: 1 task, 4 tasks, 2 successes."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def rate_cells(row: Mapping[str, Any]) -> list[str]:
    """Return successes of trials, and their 95 % interval, as two cells."""
    low, high = row["interval_95"]
    return [f"{row['successes']} of {row['trials']}", f"{low:.0%} to {high:.0%}"]
