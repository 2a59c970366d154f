"""Wall time of a closed-loop evaluation: one process that draws every step, and `evaluate`, in turns."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from lightwam.config.schema import EvalConfig, Recipe
from lightwam.evaluation.episodes import read_episodes, task_files
from lightwam.evaluation.evaluate import evaluate
from lightwam.policy.benchmark import random_engine, random_policy
from lightwam.policy.policy import Policy
from lightwam.sim import registry
from lightwam.sim.simulator import Trial
from lightwam.system.machine import machine, versions
from lightwam.system.tables import table_lines
from lightwam.system.timing import CPU, in_turns

TOLERANCE = 1e-3
"""largest difference of actions that are computed alone by one variant and in a batch by the other"""
Outcome = tuple[bool, int, Float32[np.ndarray, "steps A"]]
"""success, control steps, and the actions of the first two chunks: the second depends on where the first has led"""


def bench_eval(recipe: Recipe) -> dict[str, Any]:
    """Evaluate random weights both ways, `recipe.eval.trials` episodes of each task; returns JSON values, see `table`.

    The variants take two turns with half of the episodes each (one turn for one trial), in the other order the second
    time; each turn makes new simulators. Both run the same episodes and must end them alike. SimulatorError if the
    simulator cannot run.
    """
    policy = random_engine(random_policy(recipe, CPU), torch.float32)
    turns, variants = halves(recipe.eval), {"every_step": every_step, "eval": by_evaluate}
    with tempfile.TemporaryDirectory() as folder:

        def evaluated(name: str, turn: int) -> tuple[dict[Trial, Outcome], float]:
            began = time.perf_counter()
            outcomes = variants[name](policy, turns[turn], Path(folder) / str(turn))
            return outcomes, time.perf_counter() - began

        results = in_turns({name: partial(evaluated, name) for name in variants}, range(len(turns)))
    seconds = {name: [took for _, took in rows] for name, rows in results.items()}
    outcomes = {name: {trial: end for ends, _ in rows for trial, end in ends.items()} for name, rows in results.items()}
    totals = {name: sum(took) for name, took in seconds.items()}
    warnings = registry.version_warnings(recipe.simulation.name)
    return {
        "recipe": recipe.name,
        "episodes": len(outcomes["eval"]),
        "max_steps": recipe.simulation.max_steps,
        "replan": recipe.eval.replan,
        "workers": recipe.eval.workers,
        "seconds": seconds,
        **{f"{name}_s": total for name, total in totals.items()},
        "ratio": totals["eval"] / totals["every_step"],
        "same_outcomes": alike(outcomes["every_step"], outcomes["eval"]),
        "machine": machine() | versions(),
    } | ({"warnings": list(warnings)} if warnings else {})


def halves(settings: EvalConfig) -> list[EvalConfig]:
    """Split the trials into two turns, or one for a single trial; without videos."""
    first = (settings.trials + 1) // 2
    turns = [replace(settings, trials=first, videos_per_task=0)]
    if settings.trials > first:
        turns.append(replace(turns[0], trials=settings.trials - first, first_seed=settings.first_seed + first))
    return turns


def every_step(policy: Policy, settings: EvalConfig, _: Path) -> dict[Trial, Outcome]:
    """Evaluate the plain way: one episode after the other in this process, drawing a picture at every step."""
    recipe, outcomes = policy.recipe, {}
    for task in recipe.simulation.tasks:
        simulator = registry.make_simulator(recipe.simulation, task)
        for seed in range(settings.first_seed, settings.first_seed + settings.trials):
            simulator.reset(seed)
            episode, observation, actions, over = policy.begin(settings.replan), simulator.observe(), [], False
            while not over:
                actions.append(episode.action(observation))
                outcome = simulator.step(actions[-1])
                over = outcome.success or outcome.ended or len(actions) >= recipe.simulation.max_steps
                observation = simulator.observe()
            outcomes[Trial(task, seed)] = outcome.success, len(actions), np.stack(actions[: 2 * settings.replan])
        simulator.close()
    return outcomes


def by_evaluate(policy: Policy, settings: EvalConfig, run: Path) -> dict[Trial, Outcome]:
    """Evaluate by `evaluate`, in the folder `run`."""
    evaluate(run, settings, policy=policy, say=lambda line: None)
    names, outcomes = task_files(policy.recipe.simulation.tasks), {}
    for row in read_episodes(run / "eval").values():
        trial = Trial(row["task"], row["seed"])
        actions = np.load(run / "eval" / "actions" / f"{names[trial.task]}-{trial.seed}.npy")
        outcomes[trial] = row["success"], row["steps"], actions[: 2 * settings.replan]
    return outcomes


def alike(one: Mapping[Trial, Outcome], other: Mapping[Trial, Outcome]) -> bool:
    """Return whether every episode had the same success, steps and actions."""

    def same(a: Outcome, b: Outcome) -> bool:
        return a[:2] == b[:2] and a[2].shape == b[2].shape and np.allclose(a[2], b[2], rtol=0, atol=TOLERANCE)

    return one.keys() == other.keys() and all(same(one[trial], other[trial]) for trial in one)


def table(result: Mapping[str, Any]) -> str:
    """Return the result as text."""
    rows = [
        ["one process, a picture every step", f"{result['every_step_s']:.1f} s"],
        [f"lightwam eval, {result['workers']} processes", f"{result['eval_s']:.1f} s"],
    ]
    lines = [
        f"{result['recipe']}: {result['episodes']} episodes, {result['max_steps']} steps at most, random weights,",
        f"  a chunk every {result['replan']} steps; both in turns",
        *table_lines(rows),
        f"  {result['ratio']:.3f} of the one process's time; episodes "
        f"{'end alike' if result['same_outcomes'] else 'DO NOT END ALIKE'}",
        *(f"  warning: {line}" for line in result.get("warnings", ())),
    ]
    return "\n".join(lines)
