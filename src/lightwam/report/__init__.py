"""A run's report as one HTML file, its model card, and publishing it on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from lightwam.report.evidence import read_evidence
from lightwam.report.page import page
from lightwam.system.files import write_file

__all__ = ["write_report"]


def write_report(run: Path | str) -> Path:
    """Write `run`/report.html from what the run directory holds, and return its path.

    Where the run lacks a part, the page names the command that adds it. The same run gives the same bytes. Raises
    CheckpointError, naming the file, for a directory that is no run, a broken file, and a page that cannot be written.
    """
    run = Path(run)
    path = run / "report.html"
    write_file(path, page(read_evidence(run)))
    return path
