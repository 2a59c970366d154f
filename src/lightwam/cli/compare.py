"""`lightwam compare`: two evaluations of the same episodes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightwam.cli.options import parse, wants_help
from lightwam.errors import ConfigError


@dataclass(frozen=True)
class CompareOptions:
    """Compare two evaluations by the episodes (task and seed) that both have. FIRST and SECOND are folders of
    `lightwam eval`, for example runs/a/eval."""

    anyway: bool = False
    """compare although constants that matter differ"""
    json: bool = False
    """print JSON instead of a table"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam compare FIRST SECOND [--anyway] [--json]`."""
    if wants_help(arguments):
        parse(CompareOptions(), arguments, "compare FIRST SECOND")
    if len(arguments) < 2 or any(word.startswith("-") for word in arguments[:2]):
        raise ConfigError(
            "lightwam compare needs two evaluation folders",
            got=" ".join(arguments) or None,
            next_step="lightwam compare runs/a/eval runs/b/eval",
        )
    first, second, *rest = arguments
    options = parse(CompareOptions(), rest, "compare FIRST SECOND")
    from lightwam.evaluation.compare import compare

    found = compare(Path(first), Path(second), options.anyway)
    print(json.dumps(found, indent=2) if options.json else table(found))


def table(found: Mapping[str, Any]) -> str:
    """What differs, then successes by task and in all with Wilson 95 % intervals, and the verdict."""
    from lightwam.evaluation.compare import lines

    text = []
    for title, name in (("NOT THE SAME, and it matters:", "matters"), ("compared:", "differs")):
        if found[name]:
            text += [title, *(f"  {line}" for line in lines(found[name])), ""]
    text += [f"A {found['first']}", f"B {found['second']}"]
    for name, side in (("A", "first"), ("B", "second")):
        text += [f"warning, {name}: {line}" for line in found["warnings"][side]]
    if any(found["unpaired"].values()):
        text.append(f"left out: {found['unpaired']['first']} episodes of A, {found['unpaired']['second']} of B")
    rows = [*found["tasks"].items(), ("all", found)]
    width = max(len(name) for name, _ in rows)
    text += ["", f"{'':{width}}  {'A':23}  {'B':23}  A alone  B alone"]
    for name, row in rows:
        pairs, rates = row["pairs"], [_rate(row["rates"][side]) for side in ("first", "second")]
        text.append(f"{name:{width}}  {rates[0]:23}  {rates[1]:23}  {pairs['wins']:7}  {pairs['losses']:7}")
    low, high = found["difference_95"]
    points = f"{100 * found['difference']:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f} (Newcombe)"
    return "\n".join([*text, "", f"A - B: {points}; exact McNemar test p = {found['p_value']:.3g}"])


def _rate(row: Mapping[str, Any]) -> str:
    low, high = row["interval_95"]
    return f"{row['successes']:3} of {row['trials']:3}  {low:4.0%} to {high:4.0%}"
