"""`lightwam export`: a run's weights as a published Light-WAM checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightwam.cli.options import parse, split_run


@dataclass(frozen=True)
class ExportOptions:
    """Write a run's weights in the layout of the published checkpoints."""

    to: Path
    """the .pt file to write"""
    step: int | None = None
    """of which checkpoint; the newest by default"""
    ema: bool = True
    """the average of the weights, where training kept one"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam export RUN [--to FILE.pt]`."""
    directory, rest = split_run(arguments, "export")
    options = parse(ExportOptions(directory / "published.pt"), rest, f"export {directory}")
    from lightwam.training.adopt import export

    print(export(directory, options.to, options.step, ema=options.ema))
