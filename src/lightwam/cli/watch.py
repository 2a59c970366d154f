"""`lightwam watch`: calibrates a run's surprise score, and tests what it detects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from lightwam.cli.options import RayOptions, parse, split_run, wants_help
from lightwam.errors import ConfigError
from lightwam.evaluation.watch.settings import WatchConfig

DEFAULTS = WatchConfig()


@dataclass(frozen=True)
class WatchOptions(RayOptions):
    """Calibrate RUN/surprise.json on undisturbed unseen seeds, and test the watch on disturbed ones."""

    watch: Annotated[WatchConfig, tyro.conf.arg(name="")] = DEFAULTS
    step: int | None = None
    """the checkpoint; the newest by default"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one"""
    weights: str | None = None
    """where pretrained encoders lie now, if not where the recipe says"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam watch RUN [--undisturbed N] [--trials N] [...]`."""
    path, rest = split_run(arguments, "watch")
    options = parse(WatchOptions(), rest, f"watch {path}")
    if wants_help(rest):
        return
    settings = options.watch
    if min(settings.undisturbed, settings.trials) < 1 or settings.workers < 0 or not 0 < settings.false_alarms < 1:
        raise ConfigError(
            "the watch needs episodes, and a share of false alarms",
            got=settings,
            expected="undisturbed and trials >= 1, workers >= 0, 0 < false_alarms < 1",
        )
    from lightwam.evaluation.watch.measure import watch
    from lightwam.policy.policy import Policy
    from lightwam.system.cpu import keep_memory

    keep_memory()
    policy = Policy.load(path, options.step, device=options.device, weights=options.weights)
    print(table(watch(path, settings, policy=policy, pool_factory=options.pool_factory())))


def table(result: Mapping[str, Any]) -> str:
    """Format the area with its interval, alarms and their delay, for each kind of disturbance and each detector."""
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
