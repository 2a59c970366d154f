"""The main job, end to end: demonstrations, training, closed loop on unseen seeds, the sentence swap, the report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightwam.config.checks import check_recipe
from lightwam.config.schema import EvalConfig, Recipe, SimConfig
from lightwam.config.strict_json import from_dict, to_dict
from lightwam.data.collect import collect
from lightwam.encoders.frozen import check_prompts
from lightwam.errors import CheckpointError, ConfigError
from lightwam.evaluation.evaluate import evaluate
from lightwam.evaluation.probe import record_probe
from lightwam.policy.policy import Policy
from lightwam.policy.run_directory import read_json, read_recipe, write_json
from lightwam.report import write_report
from lightwam.sim import registry
from lightwam.system.checked_json import read_object
from lightwam.system.machine import machine
from lightwam.training import loggers
from lightwam.training.caches import DatasetSource
from lightwam.training.train import train

SWAP_TRIALS = 5
"""episodes a task with another task's sentence"""


def demo(recipe: Recipe, run: Path, say: Callable[[str], None] = print, cache: Path | None = None) -> dict[str, Any]:
    """Do all of it under `run`; returns what is written to RUN/result.json.

    Checked before anything is written: ConfigError when the model's state or action width is not the simulator's, or
    a logger cannot be used; PromptError when a task's sentence does not fit the text encoder. `cache`: the
    folder for caches, by default $LIGHTWAM_CACHE, else the dataset's own.

    Every part goes on where an interrupted one stopped; the wall seconds of all attempts add up. The demonstrations
    are in RUN/dataset.
    """
    check_recipe(recipe)
    loggers.check(recipe)
    check_simulation(recipe, say)
    timer = Timer(run / "wall.json")
    with timer.part("collect"):
        collect(recipe, run / "dataset", say)
    with timer.part("train"):
        train(recipe, DatasetSource(run / "dataset", cache=cache), run, say=say)
    with timer.part("evaluate"):
        result = evaluate(run, say=say)
    if len(recipe.sim.tasks) > 1:
        with timer.part("swap"):
            swap(run, say)
    with timer.part("probe"):
        probe(run)
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
    return result


def check_simulation(recipe: Recipe, say: Callable[[str], None] = print) -> None:
    """Raise ConfigError or PromptError when a simulator does not fit the recipe's model or text encoder."""
    with contextlib.ExitStack() as stack:
        for task in recipe.sim.tasks:
            simulator = registry.make_simulator(recipe.sim, task)
            stack.callback(simulator.close)
            check_prompts(recipe, [simulator.instruction], say)
            for option, got, expected in (
                ("--model.state-dim", len(simulator.state_names), recipe.model.state_dim),
                ("--model.action-dim", simulator.action_dim, recipe.model.action_dim),
            ):
                if got != expected and (expected or option == "--model.action-dim"):
                    raise ConfigError("the model must have the simulator's widths", where=option, got=expected,
                                      expected=f"{got} ({recipe.sim.name}/{task})")  # fmt: skip


def swap(run: Path, say: Callable[[str], None] = print) -> None:
    """Evaluate with every task told the next one's sentence, into RUN/eval/swap.json; a policy that reads must fail.

    Otherwise it is as RUN/eval was evaluated, with a few episodes a task. CheckpointError without that evaluation,
    ConfigError where there is but one sentence.
    """
    path, recipe = run / "eval" / "result.json", read_recipe(run)
    if not path.exists():
        raise CheckpointError("there is no evaluation to compare with", where=path, next_step=f"lightwam eval {run}")
    found = read_object(path)
    right, protocol = found.data, found.child("protocol")
    sim = from_dict(SimConfig, protocol.child("sim").data, f"{path}: protocol.sim")
    asked = from_dict(EvalConfig, to_dict(recipe.eval) | protocol.child("eval").data, f"{path}: protocol.eval")
    tasks = sim.tasks
    told = {
        task: registry.make_simulator(sim, other).instruction
        for task, other in zip(tasks, tasks[1:] + tasks[:1], strict=True)
    }
    if len(set(told.values())) < 2:
        raise ConfigError("one sentence cannot be exchanged", where=path, got=tasks, expected="several tasks")
    swapped = evaluate(
        run,
        replace(asked, trials=min(SWAP_TRIALS, asked.trials), videos_per_task=0),
        sim=sim,
        policy=Policy.load(run, protocol.count("checkpoint_step"), device="auto"),
        folder="swap",
        sentences=told,
        say=say,
    )
    count = ("successes", "trials")
    rows = {
        task: {
            "right": {key: right["tasks"][task][key] for key in count},
            "swapped": {key: swapped["tasks"][task][key] for key in count},
            "swapped_instruction": told[task],
        }
        for task in tasks
    }
    totals = {"right": {key: right[key] for key in count}, "swapped": {key: swapped[key] for key in count}}
    write_json(run / "eval" / "swap.json", totals | {"tasks": rows})


def probe(run: Path) -> None:
    """Record what the policy imagines and looks at, for the report."""
    policy = Policy.load(run)
    sim = policy.recipe.sim
    with contextlib.ExitStack() as stack:
        simulators = {task: registry.make_simulator(sim, task) for task in sim.tasks}
        for simulator in simulators.values():
            stack.callback(simulator.close)
        record_probe(policy, simulators, run / "eval" / "probe.npz")


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
