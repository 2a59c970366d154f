"""`lightwam compare`: two evaluations of the same episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightwam.cli.options import JsonOptions, print_result, run_command
from lightwam.system.tables import rate_cells, table_lines

FOLDERS = dict.fromkeys(("FIRST", "SECOND"), "two evaluation folders, such as runs/a/eval")


@dataclass(frozen=True, kw_only=True)
class CompareOptions(JsonOptions):
    """Compare two evaluations by the episodes (task and seed) that both have. FIRST and SECOND are folders of
    `lightwam eval`, for example runs/a/eval."""

    anyway: bool = False
    """compare although constants that matter differ"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam compare FIRST SECOND [--anyway] [--json]`."""
    (first, second), options = run_command(CompareOptions, arguments, "compare", FOLDERS)
    from lightwam.evaluation.compare import compare

    print_result(compare(first, second, options.anyway), table, options)


def table(result: Mapping[str, Any]) -> str:
    """Return what differs, then successes by task and in total with Wilson 95 % intervals, and the verdict."""
    from lightwam.evaluation.compare import lines

    text = []
    for title, name in (("NOT THE SAME, and it matters:", "matters"), ("compared:", "differs")):
        if result[name]:
            text += [title, *(f"  {line}" for line in lines(result[name])), ""]
    text += [f"A {result['first']}", f"B {result['second']}"]
    for name, side in (("A", "first"), ("B", "second")):
        text += [f"warning, {name}: {line}" for line in result["warnings"][side]]
    if any(result["unpaired"].values()):
        text.append(f"left out: {result['unpaired']['first']} episodes of A, {result['unpaired']['second']} of B")
    rows = [["", "A", "", "B", "", "A alone", "B alone"]]
    for name, row in [*result["tasks"].items(), ("all", result)]:
        rates = [cell for side in ("first", "second") for cell in rate_cells(row["rates"][side])]
        rows.append([name, *rates, str(row["pairs"]["wins"]), str(row["pairs"]["losses"])])
    low, high = result["difference_95"]
    points = f"{100 * result['difference']:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f} (Newcombe)"
    verdict = f"A - B: {points}; exact McNemar test p = {result['p_value']:.3g}"
    return "\n".join([*text, "", *table_lines(rows, indent=0), "", verdict])
