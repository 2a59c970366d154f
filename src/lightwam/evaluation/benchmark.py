"""Wall time of a closed-loop evaluation: one process that draws every step, and `evaluate`, in turns."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from lightwam.config.schema import EvalConfig, Recipe
from lightwam.engine.engine import Engine
from lightwam.evaluation.episodes import read_episodes, task_files
from lightwam.evaluation.evaluate import evaluate
from lightwam.policy.benchmark import of_recipe
from lightwam.policy.policy import Policy
from lightwam.sim import registry
from lightwam.sim.simulator import Trial
from lightwam.system.machine import machine, versions
from lightwam.system.tables import table_lines

TOLERANCE = 1e-3
"""largest difference of actions that are computed alone by one variant and in a batch by the other"""
Outcome = tuple[bool, int, Float32[np.ndarray, "steps A"]]
"""success, control steps, and the actions of the first two chunks: the second depends on where the first has led"""


def bench_eval(recipe: Recipe) -> dict[str, Any]:
    """Evaluate random weights both ways, `recipe.eval.trials` episodes of each task; returns JSON values, see `table`.

    The variants take two turns with half of the episodes each (one turn for one trial), in the other order the second
    time; each turn makes its simulators anew. Both run the same episodes and must end them alike. SimulatorError if the
    simulator cannot run.
    """
    policy = _random_policy(recipe)
    variants = {"every_step": every_step, "eval": by_evaluate}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    same, episodes = True, 0
    with tempfile.TemporaryDirectory() as folder:
        for turn, settings in enumerate(halves(recipe.eval)):
            outcomes = {}
            for name in list(variants)[:: -1 if turn else 1]:
                began = time.perf_counter()
                outcomes[name] = variants[name](policy, settings, Path(folder) / str(turn))
                seconds[name].append(time.perf_counter() - began)
            same = same and alike(outcomes["every_step"], outcomes["eval"])
            episodes += len(outcomes["eval"])
    totals = {name: sum(turns) for name, turns in seconds.items()}
    warnings = registry.version_warnings(recipe.sim.name)
    return {
        "recipe": recipe.name,
        "episodes": episodes,
        "max_steps": recipe.sim.max_steps,
        "replan": recipe.eval.replan,
        "workers": recipe.eval.workers,
        "seconds": seconds,
        **{f"{name}_s": total for name, total in totals.items()},
        "ratio": totals["eval"] / totals["every_step"],
        "same_outcomes": same,
        "machine": machine() | versions(),
    } | ({"warnings": list(warnings)} if warnings else {})


def _random_policy(recipe: Recipe) -> Policy:
    cpu = torch.device("cpu")
    setup = of_recipe(recipe, cpu)
    sentence = setup.observations[0].instruction  # the only prompt with token states

    def states(sentences: Sequence[str]) -> torch.Tensor:
        return setup.prompts.states([sentence])

    engine = Engine(setup.model, setup.latents, states, cpu, torch.float32)
    return Policy(recipe, setup.codec, setup.latents, setup.prompts, engine, 0)


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
    for task in recipe.sim.tasks:
        simulator = registry.make_simulator(recipe.sim, task)
        for seed in range(settings.first_seed, settings.first_seed + settings.trials):
            simulator.reset(seed)
            chunk: list[np.ndarray] = []
            observation, actions, success, over = simulator.observe(), list[np.ndarray](), False, False
            while not over:
                if not chunk:
                    chunk = list(policy.act(observation)[: settings.replan])
                actions.append(chunk.pop(0))
                outcome = simulator.step(actions[-1])
                success = outcome.success
                over = success or outcome.ended or len(actions) >= recipe.sim.max_steps
                observation = simulator.observe()
            outcomes[Trial(task, seed)] = success, len(actions), np.stack(actions[: 2 * settings.replan])
        simulator.close()
    return outcomes


def by_evaluate(policy: Policy, settings: EvalConfig, run: Path) -> dict[Trial, Outcome]:
    """Evaluate by `evaluate`, in the folder `run`."""
    evaluate(run, settings, policy=policy, say=lambda line: None)
    names, outcomes = task_files(policy.recipe.sim.tasks), {}
    for row in read_episodes(run / "eval").values():
        trial = Trial(row["task"], row["seed"])
        actions = np.load(run / "eval" / "actions" / f"{names[trial.task]}-{trial.seed}.npy")
        outcomes[trial] = row["success"], row["steps"], actions[: 2 * settings.replan]
    return outcomes


def alike(one: Mapping[Trial, Outcome], other: Mapping[Trial, Outcome]) -> bool:
    """Return whether every episode had the same success, steps and actions."""
    return one.keys() == other.keys() and all(
        one[trial][:2] == other[trial][:2]
        and one[trial][2].shape == other[trial][2].shape
        and np.allclose(one[trial][2], other[trial][2], rtol=0, atol=TOLERANCE)
        for trial in one
    )


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
