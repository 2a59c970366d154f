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

from lightwam.bench_act import of_recipe
from lightwam.config import Recipe
from lightwam.demo import machine
from lightwam.engine.engine import Engine
from lightwam.episodes import read_episodes, task_files
from lightwam.evaluate import evaluate
from lightwam.policy import Policy
from lightwam.sim import base
from lightwam.versions import versions

SAME = 1e-3
"""by so much may an action differ, which is answered alone by one way and in a batch by the other"""
Outcome = tuple[bool, int, Float32[np.ndarray, "steps A"]]
"""success, control steps, and the actions of the first two looks: the second one tells where the first has led"""


def bench_eval(recipe: Recipe, *, as_json: bool = False, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Evaluate random weights both ways, `recipe.eval.trials` turns of all tasks, and print the seconds of each.

    Nothing is shared between turns: each makes its simulators anew. Both ways run the same episodes, and have to end
    them alike. Returns what is printed. SimulatorError where the simulator cannot run.
    """
    cpu = torch.device("cpu")
    subject = of_recipe(recipe, cpu)
    actor = Engine(subject.model, subject.latents, lambda sentences: subject.prompts.states([sentence]), cpu,
                   torch.float32)  # fmt: skip
    sentence = subject.observations[0].instruction
    policy = Policy(recipe, subject.codec, subject.latents, subject.prompts, actor, 0)
    seconds: dict[str, list[float]] = {"plain": [], "eval": []}
    same = True
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(recipe.eval.trials):
            seed = recipe.eval.first_seed + turn
            ends = {}
            for way in sorted(seconds, reverse=turn % 2 == 0):
                began = time.perf_counter()
                ends[way] = (plain if way == "plain" else ours)(policy, seed, Path(folder))
                seconds[way].append(time.perf_counter() - began)
            same = same and alike(ends["plain"], ends["eval"])
    totals = {way: sum(rows) for way, rows in seconds.items()}
    result = {
        "recipe": recipe.name,
        "episodes": recipe.eval.trials * len(recipe.sim.tasks),
        "max_steps": recipe.sim.max_steps,
        "replan": recipe.eval.replan,
        "workers": recipe.eval.workers,
        "seconds": seconds,
        **{f"{way}_s": total for way, total in totals.items()},
        "ratio": totals["eval"] / totals["plain"],
        "same_outcomes": same,
        "machine": machine() | versions(),
    }
    say(json.dumps(result, indent=2) if as_json else table(result))
    return result


def plain(policy: Policy, seed: int, _: Path) -> dict[str, Outcome]:
    """Task -> outcome, in this process: a picture of every step, whether or not the policy looks at it."""
    recipe, ends = policy.recipe, {}
    for task in recipe.sim.tasks:
        simulator = base.make(recipe.sim, task)
        simulator.reset(seed)
        chunk: list[np.ndarray] = []
        seen, done, success, over = simulator.observe(), list[np.ndarray](), False, False
        while not over:
            if not chunk:
                chunk = list(policy.act(seen)[: recipe.eval.replan])
            done.append(chunk.pop(0))
            outcome = simulator.step(done[-1])
            success = outcome.success
            over = success or outcome.ended or len(done) >= recipe.sim.max_steps
            seen = simulator.observe()
        ends[task] = success, len(done), np.stack(done[: 2 * recipe.eval.replan])
        simulator.close()
    return ends


def ours(policy: Policy, seed: int, folder: Path) -> dict[str, Outcome]:
    """Task -> outcome, by `evaluate`."""
    settings = replace(policy.recipe.eval, trials=1, first_seed=seed, videos_per_task=0)
    evaluate(folder, settings, policy=policy, folder=str(seed), say=lambda line: None)
    names, most = task_files(policy.recipe.sim.tasks), 2 * settings.replan
    return {
        row["task"]: (
            row["success"],
            row["steps"],
            np.load(folder / str(seed) / "actions" / f"{names[row['task']]}-{seed}.npy")[:most],
        )
        for row in read_episodes(folder / str(seed)).values()
    }


def alike(one: dict[str, Outcome], other: dict[str, Outcome]) -> bool:
    """Whether every task had the same success, steps and actions."""
    return one.keys() == other.keys() and all(
        one[task][:2] == other[task][:2]
        and one[task][2].shape == other[task][2].shape
        and np.allclose(one[task][2], other[task][2], rtol=0, atol=SAME)
        for task in one
    )


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    alike = "end alike" if result["same_outcomes"] else "DO NOT END ALIKE"
    return "\n".join(
        [
            f"{result['recipe']}: {result['episodes']} episodes, {result['max_steps']} steps at most, random weights,",
            f"  a look every {result['replan']} steps; ways in turns",
            f"  one process, a picture every step   {result['plain_s']:8.1f} s",
            f"  lightwam eval, {result['workers']:2} processes         {result['eval_s']:8.1f} s",
            f"  {result['ratio']:.3f} of the plain way's time; episodes {alike}",
        ]
    )
