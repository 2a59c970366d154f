"""`lightwam watch`: calibrates a run's surprise score, and measures how well it detects disturbances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from lightwam.cli.options import Flat, PolicyOptions, RayOptions, print_step, run_command
from lightwam.errors import ConfigError
from lightwam.evaluation.watch.settings import WatchConfig
from lightwam.system.tables import table_lines


@dataclass(frozen=True, kw_only=True)
class WatchOptions(RayOptions, PolicyOptions):
    """Calibrate RUN/surprise.json on undisturbed unseen seeds, and test the watch on disturbed ones."""

    watch: Annotated[WatchConfig, Flat] = field(default_factory=WatchConfig)


def run(arguments: Sequence[str]) -> None:
    """`lightwam watch RUN [--undisturbed N] [--trials N] [...]`."""
    (run,), options = run_command(WatchOptions, arguments, "watch")
    settings = options.watch
    if min(settings.undisturbed, settings.trials) < 1 or settings.workers < 0 or not 0 < settings.false_alarms < 1:
        expected = "undisturbed and trials >= 1, workers >= 0, 0 < false_alarms < 1"
        raise ConfigError("the settings of the watch are out of range", got=settings, expected=expected)
    from lightwam.evaluation.watch.measure import watch
    from lightwam.policy.policy import Policy
    from lightwam.system.cpu import keep_memory

    keep_memory()
    print_step(run, options.step)
    policy = Policy.load(run, options.step, device=options.device, weights=options.weights)
    print(table(watch(Path(run), settings, policy=policy, pool_factory=options.pool_factory())))


def table(result: Mapping[str, Any]) -> str:
    """Return, for each disturbance and detector, the area with its interval, the alarms, and their delay."""
    rows = [["disturbance", "score", "ROC area", "alarms", "delay"]]
    for kind, row in result["kinds"].items():
        for detector, scores in row["ways"].items():
            low, high = scores["interval_95"]
            delay = "" if scores["delay_steps"] is None else f"{scores['delay_steps']:g} steps"
            area, alarms = f"{scores['area']:.3f} ({low:.3f}-{high:.3f})", f"{scores['alarms']} of {row['episodes']}"
            rows.append([kind, detector, area, alarms, delay])
    undisturbed = result["quiet"]
    for detector, count in undisturbed["alarms"].items():
        rows.append(["none", detector, "", f"{count} of {undisturbed['episodes']}"])
    return "\n".join(table_lines(rows, "<<>><", indent=0))
