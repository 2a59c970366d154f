"""`lightwam eval RUN` on recorded episodes: for a run without a simulator, or with `--open-loop`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from lightwam.cli.options import Flat, JsonOptions, PolicyOptions, parse, print_progress, print_result, print_step
from lightwam.config.commands import OpenLoopSettings

OPTION = "--open-loop"


@dataclass(frozen=True, kw_only=True)
class OpenLoopOptions(PolicyOptions, JsonOptions):
    """Compare a trained policy's chunks with recorded episodes that it was not trained on; no simulator is needed."""

    settings: Annotated[OpenLoopSettings, Flat] = field(default_factory=OpenLoopSettings)
    dataset: Path | None = None
    """measure on all episodes of this dataset, which the run was not trained on, in place of its held-out ones"""


def run_open_loop(run: Path, arguments: Sequence[str]) -> None:
    """Measure a run in open loop and print the result."""
    rest = [argument for argument in arguments if argument != OPTION]
    options = parse(OpenLoopOptions, rest, f"eval {run} {OPTION}", OpenLoopOptions())
    from lightwam.evaluation.open_loop import evaluate_open_loop
    from lightwam.evaluation.open_loop_text import tables
    from lightwam.policy.policy import Policy

    print_step(run, options.step)
    policy = Policy.load(run, options.step, device=options.device, weights=options.weights)
    result = evaluate_open_loop(run, options.settings, policy=policy, dataset=options.dataset, say=print_progress)
    print_result(result, tables, options)
