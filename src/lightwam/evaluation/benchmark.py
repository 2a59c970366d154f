"""Wall time of a closed-loop evaluation: one process that draws every step, and `evaluate`, in turns."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
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

SAME = 1e-3
"""by so much may an action differ, which is answered alone by one way and in a batch by the other"""
Outcome = tuple[bool, int, Float32[np.ndarray, "steps A"]]
"""success, control steps, and the actions of the first two looks: the second one tells where the first has led"""


def bench_eval(recipe: Recipe, *, as_json: bool = False, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Evaluate random weights both ways, `recipe.eval.trials` episodes of each task, and print the seconds of each.

    The ways take two turns with half of the episodes each (one turn with one trial), the second in the other order;
    each turn makes its simulators anew. Both ways run the same episodes, and have to end them alike. Returns what is
    printed. SimulatorError where the simulator cannot run.
    """
    cpu = torch.device("cpu")
    subject = of_recipe(recipe, cpu)
    actor = Engine(subject.model, subject.latents, lambda sentences: subject.prompts.states([sentence]), cpu,
                   torch.float32)  # fmt: skip
    sentence = subject.observations[0].instruction
    policy = Policy(recipe, subject.codec, subject.latents, subject.prompts, actor, 0)
    ways = {"every_step": every_step, "eval": ours}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    same, episodes = True, 0
    with tempfile.TemporaryDirectory() as folder:
        for turn, settings in enumerate(halves(recipe.eval)):
            ends = {}
            for way in list(ways)[:: -1 if turn else 1]:
                began = time.perf_counter()
                ends[way] = ways[way](policy, settings, Path(folder) / str(turn))
                seconds[way].append(time.perf_counter() - began)
            same = same and alike(ends["every_step"], ends["eval"])
            episodes += len(ends["eval"])
    totals = {way: sum(rows) for way, rows in seconds.items()}
    result: dict[str, Any] = {
        "recipe": recipe.name,
        "episodes": episodes,
        "max_steps": recipe.sim.max_steps,
        "replan": recipe.eval.replan,
        "workers": recipe.eval.workers,
        "seconds": seconds,
        **{f"{way}_s": total for way, total in totals.items()},
        "ratio": totals["eval"] / totals["every_step"],
        "same_outcomes": same,
        "machine": machine() | versions(),
    }
    if warnings := registry.version_warnings(recipe.sim.name):
        result["warnings"] = list(warnings)
    say(json.dumps(result, indent=2) if as_json else table(result))
    return result


def halves(settings: EvalConfig) -> list[EvalConfig]:
    """The trials as two turns of them, or as one where there is but one trial; without films."""
    first = (settings.trials + 1) // 2
    turns = [replace(settings, trials=first, videos_per_task=0)]
    if settings.trials > first:
        turns.append(replace(turns[0], trials=settings.trials - first, first_seed=settings.first_seed + first))
    return turns


def every_step(policy: Policy, settings: EvalConfig, _: Path) -> dict[Trial, Outcome]:
    """Each episode's end, the plain way: one after the other in this process, and a picture of every step."""
    recipe, ends = policy.recipe, {}
    for task in recipe.sim.tasks:
        simulator = registry.make_simulator(recipe.sim, task)
        for seed in range(settings.first_seed, settings.first_seed + settings.trials):
            simulator.reset(seed)
            chunk: list[np.ndarray] = []
            seen, done, success, over = simulator.observe(), list[np.ndarray](), False, False
            while not over:
                if not chunk:
                    chunk = list(policy.act(seen)[: settings.replan])
                done.append(chunk.pop(0))
                outcome = simulator.step(done[-1])
                success = outcome.success
                over = success or outcome.ended or len(done) >= recipe.sim.max_steps
                seen = simulator.observe()
            ends[Trial(task, seed)] = success, len(done), np.stack(done[: 2 * settings.replan])
        simulator.close()
    return ends


def ours(policy: Policy, settings: EvalConfig, run: Path) -> dict[Trial, Outcome]:
    """The same by `evaluate`, in the folder `run`."""
    evaluate(run, settings, policy=policy, say=lambda line: None)
    names, ends = task_files(policy.recipe.sim.tasks), {}
    for row in read_episodes(run / "eval").values():
        trial = Trial(row["task"], row["seed"])
        actions = np.load(run / "eval" / "actions" / f"{names[trial.task]}-{trial.seed}.npy")
        ends[trial] = row["success"], row["steps"], actions[: 2 * settings.replan]
    return ends


def alike(one: dict[Trial, Outcome], other: dict[Trial, Outcome]) -> bool:
    """Whether every episode had the same success, steps and actions."""
    return one.keys() == other.keys() and all(
        one[trial][:2] == other[trial][:2]
        and one[trial][2].shape == other[trial][2].shape
        and np.allclose(one[trial][2], other[trial][2], rtol=0, atol=SAME)
        for trial in one
    )


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    alike = "end alike" if result["same_outcomes"] else "DO NOT END ALIKE"
    return "\n".join(
        [
            f"{result['recipe']}: {result['episodes']} episodes, {result['max_steps']} steps at most, random weights,",
            f"  a look every {result['replan']} steps; ways in turns",
            f"  one process, a picture every step   {result['every_step_s']:8.1f} s",
            f"  lightwam eval, {result['workers']:2} processes         {result['eval_s']:8.1f} s",
            f"  {result['ratio']:.3f} of the one process's time; episodes {alike}",
            *(f"  warning: {line}" for line in result.get("warnings", ())),
        ]
    )
