"""A run as one HTML file that can be mailed, printed and read on a phone.

Nothing here imports torch; what needs the policy (recording what it imagines and looks at) is in `probe`.
"""

from __future__ import annotations

from pathlib import Path

from lightwam.report.evidence import read_evidence
from lightwam.report.page import page
from lightwam.system.files import write_file

__all__ = ["write_report"]


def write_report(run: Path | str) -> Path:
    """Write `run`/report.html from what the run directory holds, and return its path.

    Parts that the run lacks are named in the page with the command that makes them. Raises CheckpointError, saying
    where, for a directory that is no run, for a broken file in it, and when the page cannot be written. The same run
    gives the same bytes.
    """
    run = Path(run)
    path = run / "report.html"
    write_file(path, page(read_evidence(run)))
    return path
