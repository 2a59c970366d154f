"""`lightwam report`: a run as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightwam.cli.options import parse, split_run, wants_help


@dataclass(frozen=True)
class ReportOptions:
    """Write RUN/report.html: success by task, learning curves, rollouts, imagined futures, attention, latency."""

    imagine: bool = False
    """first record what the policy imagines and looks at, in an unseen episode of each task"""
    swap: bool = False
    """first evaluate it with the tasks' sentences exchanged, to see whether it reads them"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam report RUN`."""
    path, rest = split_run(arguments, "report")
    options = parse(ReportOptions(), rest, f"report {path}")
    if wants_help(rest):
        return
    from lightwam.cli import pipeline as demo
    from lightwam.report import write_report

    if options.swap:
        demo.swap(path)
    if options.imagine:
        demo.probe(path)
    print(write_report(path))
