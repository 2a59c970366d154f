"""`lightwam compare`: two evaluations of the same episodes, or several policies in one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from lightwam.cli.options import JsonOptions, parse, positionals, print_result, wants_help
from lightwam.errors import ConfigError
from lightwam.system.tables import rate_cells, table_lines

FOLDERS = dict.fromkeys(("FIRST", "SECOND"), "two evaluation folders, such as runs/a/eval")


@dataclass(frozen=True, kw_only=True)
class CompareOptions(JsonOptions):
    """Compare two evaluations by the episodes (task and seed) that both have. FIRST and SECOND are folders of
    `lightwam eval`, for example runs/a/eval. More than two make one table. NAME=FOLDER names a policy; with --over
    seeds it may have several trainings: NAME=FOLDER,FOLDER or, in quotes, a pattern: "act=runs/act-*/eval"."""

    over: Literal["seeds"] | None = None
    """seeds: a policy's folders are trainings with different seeds, of which mean and spread are printed"""
    anyway: bool = False
    """compare although constants that matter differ"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam compare FIRST SECOND [MORE ...] [--over seeds] [--anyway] [--json]`."""
    if wants_help(arguments):
        parse(CompareOptions, arguments, "compare FIRST SECOND [MORE ...]")
    words = list(takewhile(lambda word: not word.startswith("-"), arguments))
    positionals(arguments, "compare", FOLDERS)  # refuses fewer than two
    options = parse(CompareOptions, arguments[len(words) :], " ".join(["compare", *words]))
    from lightwam.evaluation.compare import compare
    from lightwam.evaluation.compare_policies import compare_policies, named_policies

    policies = named_policies(words)
    if options.over is None and (several := [name for name, folders in policies.items() if len(folders) > 1]):
        what, step = "a policy with several folders needs --over seeds", "--over seeds, or give one folder a policy"
        raise ConfigError(what, got=", ".join(several), next_step=step)
    if options.over is None and len(words) == 2 and all(name == str(*folders) for name, folders in policies.items()):
        ((first,), (second,)) = policies.values()
        print_result(compare(first, second, options.anyway), table, options)
    else:
        print_result(compare_policies(policies, options.anyway), policies_table, options)


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
    points = f"{100 * result['difference']:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
    verdict = f"A - B: {points} (Newcombe); exact McNemar test p = {result['p_value']:.3g}"
    return "\n".join([*text, "", *table_lines(rows, indent=0), "", verdict])


def policies_table(result: Mapping[str, Any]) -> str:
    """Return what differs, then each policy's success, interval, spread and budget, means by task, and the pairs."""
    from lightwam.evaluation.compare_policies import lines

    text = []
    for title, name in (("NOT THE SAME, and it matters:", "matters"), ("compared:", "differs")):
        if result[name]:
            text += [title, *(f"  {line}" for line in lines(result[name])), ""]
    text += [f"warning, {folder}: {line}" for folder, warnings in result["warnings"].items() for line in warnings]
    text += [f"left out: {count} episodes of {folder}" for folder, count in result["left_out"].items()]
    policies, num_pairs = result["policies"], len(result["pairs"])
    rows = [["", "success", "95 % interval", "seeds", "spread", "steps", "parameters", "hours"]]
    for name, row in policies.items():
        low, high = row["interval_95"]
        spread = "" if row["spread"] is None else f"{100 * row['spread']:.1f}"
        cells = [f"{row['mean']:.1%}", f"{low:.0%} to {high:.0%}", str(len(row["folders"])), spread]
        rows.append([name, *cells, *_budget_cells(row["budgets"])])
    text += [f"{result['episodes']} episodes that all have", *table_lines(rows), ""]
    if len(result["tasks"]) > 1:
        means = {task: [row["tasks"][task]["mean"] for row in policies.values()] for task in result["tasks"]}
        rows = [["", *policies], *([task, *(f"{mean:.1%}" for mean in row)] for task, row in means.items())]
        text += [*table_lines(rows), ""]
    rows = [["", "points (95 % interval)", "p", *(["Holm"] if num_pairs > 1 else [])]]
    for pair in result["pairs"]:
        tests = [f"{pair[name]:.3g}" for name in ("p_value", *(["p_holm"] if num_pairs > 1 else []))]
        low, high = pair["difference_95"]
        points = f"{100 * pair['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        rows.append([f"{pair['first']} - {pair['second']}", points, *tests])
    return "\n".join([*text, *table_lines(rows)])


def _budget_cells(budgets: Sequence[Mapping[str, int | float | None]]) -> Iterator[str]:
    """Yield steps, parameters and hours of trainings: one value or the range, "" where none is known."""
    forms = {"steps": "{:,.0f}", "parameters": "{:,.0f}", "hours": "{:.2g}"}
    for part, form in forms.items():
        known = [value for budget in budgets if (value := budget[part]) is not None]
        ends = dict.fromkeys(form.format(value) for value in (min(known), max(known))) if known else {}
        yield " to ".join(ends)
