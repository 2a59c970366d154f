"""`lightwam export`: a run's weights as a published Light-WAM checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightwam.cli.options import run_command


@dataclass(frozen=True)
class ExportOptions:
    """Write a run's weights in the layout of the published checkpoints."""

    to: Path | None = None
    """the .pt file to write; default: RUN/published.pt"""
    step: int | None = None
    """the checkpoint; by default the best on held-out episodes, or the newest if none are held out"""
    ema: bool = True
    """the average of the weights, if training kept one"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam export RUN [--to FILE.pt]`."""
    (run,), options = run_command(ExportOptions, arguments, "export")
    from lightwam.training.adopt import export

    print(export(Path(run), options.to or Path(run) / "published.pt", options.step, ema=options.ema))
