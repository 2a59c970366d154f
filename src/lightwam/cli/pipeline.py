"""The main job, end to end: demonstrations, training, closed loop on unseen seeds, the sentence swap, the report."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lightwam.config.checks import check_recipe
from lightwam.config.schema import Recipe
from lightwam.data.cache.location import VARIABLE
from lightwam.data.collect import collect
from lightwam.encoders.prompt_check import check_prompts
from lightwam.errors import ConfigError
from lightwam.evaluation.evaluate import evaluate
from lightwam.evaluation.future_errors import FutureSettings, measure_futures, measure_recorded_futures
from lightwam.evaluation.probe import record_dataset_probe, record_probe
from lightwam.evaluation.recorded import recorded_episodes
from lightwam.evaluation.sentence_swap import swap_sentences
from lightwam.policy.policy import Policy
from lightwam.policy.run_directory import read_json, write_json
from lightwam.report import write_report
from lightwam.sim import registry
from lightwam.system.machine import machine
from lightwam.training import loggers
from lightwam.training.caches import DatasetSource
from lightwam.training.train import train

PROBE_EPISODES = 2
"""episodes of each task that errors of imagined futures are averaged over"""


def demo(recipe: Recipe, run: Path, say: Callable[[str], None] = print, cache: Path | None = None) -> dict[str, Any]:
    """Run all parts in the directory `run`; returns what is written to RUN/result.json.

    Before anything is written, raises ConfigError if the model's state or action width is not the simulator's, or a
    logger cannot be used, and PromptError if a task's sentence does not fit the text encoder. `cache`: the
    folder for caches, by default $LIGHTWAM_CACHE, else inside the dataset, so that a demo is deleted with its run.

    Each part resumes where it was interrupted, and the wall seconds of all attempts add up. The demonstrations are in
    RUN/dataset.
    """
    check_recipe(recipe)
    loggers.check(recipe)
    check_simulation(recipe, say)
    timer = Timer(run / "wall.json")
    with timer.part("collect"):
        collect(recipe, run / "dataset", say)
    with timer.part("train"):
        inside = None if os.environ.get(VARIABLE) else run / "dataset"
        train(recipe, DatasetSource(run / "dataset", cache=cache or inside), run, say=say)
    with timer.part("evaluate"):
        result = evaluate(run, say=say)
    if len(recipe.simulation.tasks) > 1:
        with timer.part("swap"):
            swap_sentences(run, say)
    with timer.part("probe"):
        probe(run, say=say)
    write_json(run / "result.json", result | {"wall_seconds": timer.seconds(), "machine": machine()})
    with timer.part("report"):
        report = write_report(run)
    result |= {"wall_seconds": timer.seconds(), "machine": machine()}
    write_json(run / "result.json", result)
    low, high = result["interval_95"]
    rate = result["successes"] / result["trials"]
    say(
        f"\n{result['successes']} of {result['trials']} episodes on unseen seeds succeed: {rate:.0%} "
        f"(95 % interval {low:.0%} to {high:.0%}), {timer.seconds()['total'] / 60:.1f} minutes in all"
    )
    say(f"open {report}")
    say(f"play with the policy: lightwam play {shlex.quote(str(run))}")
    return result


def check_simulation(recipe: Recipe, say: Callable[[str], None] = print) -> None:
    """Raise ConfigError or PromptError when a simulator does not fit the recipe's model or text encoder."""
    with contextlib.ExitStack() as stack:
        for task in recipe.simulation.tasks:
            simulator = registry.make_simulator(recipe.simulation, task)
            stack.callback(simulator.close)
            check_prompts(recipe, [simulator.instruction], say)
            for option, got, expected in (
                ("--model.state-dim", len(simulator.state_names), recipe.model.state_dim),
                ("--model.action-dim", simulator.action_dim, recipe.model.action_dim),
            ):
                if got != expected and (expected or option == "--model.action-dim"):
                    what, simulated = (
                        "the model must have the simulator's widths",
                        f"{got} ({recipe.simulation.name}/{task})",
                    )
                    raise ConfigError(what, where=option, got=expected, expected=simulated)


def probe(run: Path, num_episodes: int = PROBE_EPISODES, say: Callable[[str], None] = print) -> None:
    """Record what the policy imagines, and its attention, in its simulator or, without one, in recorded episodes.

    Errors of imagined futures are means over `num_episodes` of each task.
    """
    policy, folder = Policy.load(run), run / "eval"
    settings = FutureSettings(num_episodes)
    if policy.recipe.sim is None:
        recorded = recorded_episodes(policy)
        record_dataset_probe(policy, recorded, folder / "probe.npz")
        measure_recorded_futures(policy, recorded, folder, settings, say)
        return
    with contextlib.ExitStack() as stack:
        simulators = {
            task: registry.make_simulator(policy.recipe.simulation, task) for task in policy.recipe.simulation.tasks
        }
        for simulator in simulators.values():
            stack.callback(simulator.close)
        record_probe(policy, simulators, folder / "probe.npz")
        measure_futures(policy, simulators, folder, settings, say)


class Timer:
    """Wall seconds by part, kept on disk so that the parts of an interrupted run add up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: dict[str, float] = read_json(path) if path.exists() else {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside as `name`, also when it ends in an error."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.parts[name] = self.parts.get(name, 0.0) + time.perf_counter() - began
            write_json(self.path, self.parts)

    def seconds(self) -> dict[str, float]:
        """Every part, and their sum."""
        return self.parts | {"total": sum(self.parts.values())}
