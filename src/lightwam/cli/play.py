"""`lightwam play`: a page on which a run's policy acts in its simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from lightwam.cli.options import Flat, PolicyOptions, print_step, run_command
from lightwam.play.settings import PlaySettings


@dataclass(frozen=True, kw_only=True)
class PlayOptions(PolicyOptions):
    """Watch a policy act, tell it another sentence, disturb its world, and see what it imagines and attends to."""

    recorded: bool = False
    """along recorded episodes, not in the simulator: those that the run held out, else those it was trained on; a run
    without a simulator has these anyway"""
    dataset: Path | None = None
    """recorded episodes of this dataset, also OWNER/NAME on the Hugging Face Hub"""
    play: Annotated[PlaySettings, Flat] = field(default_factory=PlaySettings)


def run(arguments: Sequence[str]) -> None:
    """`lightwam play RUN|OWNER/NAME [--port N] [...]`."""
    (run,), options = run_command(PlayOptions, arguments, "play")
    from lightwam.play.play import play
    from lightwam.system.cpu import keep_memory

    keep_memory()
    print_step(run, options.step)
    play(
        run,
        options.play,
        options.step,
        device=options.device,
        weights=options.weights,
        recorded=options.recorded,
        dataset=options.dataset,
    )
