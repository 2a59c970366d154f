"""`lightwam report`: a run as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightwam.cli.options import run_command


@dataclass(frozen=True)
class ReportOptions:
    """Write RUN/report.html: success by task, learning curves, rollouts, imagined futures, attention, latency."""

    imagine: bool = False
    """first record what the policy imagines, and its attention, in unseen episodes of each task"""
    imagine_episodes: int = 2
    """episodes of each task that errors of imagined futures are averaged over, with --imagine"""
    swap: bool = False
    """first evaluate with the tasks' sentences exchanged, which shows whether the policy reads them"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam report RUN`."""
    (run,), options = run_command(ReportOptions, arguments, "report")
    from lightwam.cli.pipeline import probe
    from lightwam.evaluation.sentence_swap import swap_sentences
    from lightwam.report import write_report

    if options.swap:
        swap_sentences(Path(run))
    if options.imagine:
        probe(Path(run), options.imagine_episodes)
    print(write_report(run))
