"""A run as one HTML file that can be mailed, printed and read on a phone.

Nothing here imports torch; what needs the policy (recording what it imagines and looks at) is in `probe`.
"""

from __future__ import annotations

import os
from pathlib import Path

from lightwam.errors import CheckpointError
from lightwam.report.evidence import read_evidence
from lightwam.report.page import page

__all__ = ["write_report"]


def write_report(run: Path) -> Path:
    """Write `run`/report.html from what the run directory holds, and return its path.

    Parts that the run lacks are named in the page with the command that makes them. Raises CheckpointError, saying
    where, for a directory that is no run, for a broken file in it, and when the page cannot be written. The same run
    gives the same bytes.
    """
    text = page(read_evidence(run))
    path, beside = run / "report.html", run / f".report.html.{os.getpid()}"
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise CheckpointError(
            "the report cannot be written",
            where=path,
            got=error,
            next_step="free some space, or check the directory's rights",
        ) from error
    return path
