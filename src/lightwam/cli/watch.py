"""`lightwam watch`: calibrates a run's surprise score, and measures what it tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightwam.cli.options import parse, split_run, wants_help
from lightwam.errors import ConfigError


@dataclass(frozen=True)
class WatchOptions:
    """Calibrate RUN/surprise.json on undisturbed unseen seeds, and measure the watch on disturbed ones."""

    quiet: int = 20
    """undisturbed episodes a task, for the calibration"""
    trials: int = 12
    """undisturbed episodes a task for the test; each disturbance is tried on the same seeds"""
    false_alarms: float = 0.05
    """share of undisturbed episodes that may raise an alarm"""
    workers: int = 2
    """processes that simulate"""
    step: int | None = None
    """the checkpoint; the newest by default"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one"""
    weights: str | None = None
    """where pretrained encoders lie now, if not where the recipe says"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam watch RUN [--quiet N] [--trials N] [...]`."""
    path, rest = split_run(arguments, "watch")
    options = parse(WatchOptions(), rest, f"watch {path}")
    if wants_help(rest):
        return
    if min(options.quiet, options.trials) < 1 or options.workers < 0 or not 0 < options.false_alarms < 1:
        raise ConfigError("the watch needs episodes, and a share of false alarms", where="lightwam watch", got=options,
                          expected="quiet and trials >= 1, workers >= 0, 0 < false_alarms < 1")  # fmt: skip
    from lightwam.evaluation.watch.measure import WatchConfig, watch
    from lightwam.policy.policy import Policy
    from lightwam.system.cpu import keep_memory

    keep_memory()
    policy = Policy.load(path, options.step, device=options.device, weights=options.weights)
    settings = WatchConfig(options.quiet, options.trials, options.false_alarms, options.workers)
    print(table(watch(path, settings, policy=policy)))


def table(result: Mapping[str, Any]) -> str:
    """For each kind of disturbance and each way: the area with its interval, alarms, and their delay."""
    lines = [f"{'disturbance':12} {'score':24} {'ROC area':>20}  {'alarms':>10}  delay"]
    for kind, row in result["kinds"].items():
        for way, of in row["ways"].items():
            low, high = of["interval_95"]
            delay = "" if of["delay_steps"] is None else f"{of['delay_steps']:g} steps"
            alarms = f"{of['alarms']} of {row['episodes']}"
            lines.append(f"{kind:12} {way:24} {of['area']:.3f} ({low:.3f}-{high:.3f})  {alarms:>10}  {delay}")
    quiet = result["quiet"]
    lines += [f"{'none':12} {way:24} {'':20}  {count} of {quiet['episodes']}" for way, count in quiet["alarms"].items()]
    return "\n".join(lines)
