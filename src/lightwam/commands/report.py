"""`lightwam report`: a run as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightwam.commands.options import parse, run_directory, wants_help


@dataclass(frozen=True)
class ReportOptions:
    """Write RUN/report.html: success by task, learning curves, rollouts, imagined futures, attention, latency."""


def run(arguments: Sequence[str]) -> None:
    """`lightwam report RUN`."""
    path, rest = run_directory(arguments, "report")
    parse(ReportOptions(), rest, f"report {path}")
    if wants_help(rest):
        return
    from lightwam.report import write_report

    print(write_report(path))
