"""What latency does to a trained policy, and what playing chunks asynchronously does about it: a rehearsed table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from lightwam.errors import ConfigError
from lightwam.evaluation.rehearsal import Rehearsed, latency_steps, rehearse, switches, ways
from lightwam.evaluation.statistics import wilson
from lightwam.policy.policy import Policy
from lightwam.sim import registry
from lightwam.system.machine import versions
from lightwam.system.progress import Progress
from lightwam.types import Observation

Case = tuple[float, float, str]
"""rate, latency and way"""


def bench_control(
    run: Path,
    *,
    trials: int,
    latencies_ms: Sequence[float],
    rates_hz: Sequence[float] = (),
    replan: int | None = None,
    blend: int = 2,
    decay: float = 0.01,
    patience: float = 3.0,
    as_json: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Rehearse the run's policy at every rate and latency, each way on the same unseen seeds, and print a table.

    `rates_hz` are the control rates that latencies are counted at, the simulator's own by default; what a control step
    does is the same at any. `replan` is the run's own by default. Episodes may take `patience` times the recipe's step
    limit, as waiting costs steps; those within the limit are told apart. Returns what is printed. ConfigError for
    settings out of range and actions that are no motions, SimulatorError where the simulator cannot run.
    """
    if trials < 1 or not latencies_ms or min(latencies_ms) < 0 or min(rates_hz, default=1.0) <= 0 or patience < 1:
        raise ConfigError("a rehearsal needs trials, latencies from 0 on, rates over 0 and a patience of at least 1",
                          where="bench control", got=f"{trials}, {latencies_ms}, {rates_hz}, {patience}")  # fmt: skip
    policy = Policy.load(run)
    recipe = policy.recipe
    still = switches(recipe.model.action_dim, recipe.codec.delta_action_dims)
    replan = recipe.eval.replan if replan is None else replan
    played = ways(replan, still, blend, decay)
    limit = round(patience * recipe.sim.max_steps)
    rates = tuple(rates_hz) or (registry.make_simulator(recipe.sim, recipe.sim.tasks[0]).fps,)
    cases = [(rate, latency, way) for rate in rates for latency in latencies_ms for way in played]
    rows: dict[Case, list[Rehearsed]] = {case: [] for case in cases}

    def act(seen: Observation) -> Float32[np.ndarray, "prefix A"]:
        return policy.act(seen)[: recipe.model.supervised_prefix]  # what comes after it was never learnt

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with Progress("rehearsal", len(cases) * len(recipe.sim.tasks) * trials, unit="ep", say=say) as progress:
            for task in recipe.sim.tasks:
                simulator = registry.make_simulator(recipe.sim, task)
                for seed, case in product(range(recipe.eval.first_seed, recipe.eval.first_seed + trials), cases):
                    late = latency_steps(case[1], case[0])
                    row = rehearse(simulator, seed, act, played[case[2]], switch_dims=still, latency=late,
                                   max_steps=limit)  # fmt: skip
                    rows[case].append(row)
                    progress.advance()
                simulator.close()
    finally:
        torch.set_num_threads(threads)
    result = {
        "recipe": recipe.name,
        "tasks": list(recipe.sim.tasks),
        "trials": trials,
        "first_seed": recipe.eval.first_seed,
        "horizon": recipe.model.supervised_prefix,
        "replan": replan,
        "max_steps": recipe.sim.max_steps,
        "limit": limit,
        "rows": [summary(case, episodes, recipe.sim.max_steps) for case, episodes in rows.items()],
        "versions": versions(),
    }
    say(json.dumps(result, indent=2) if as_json else table(result))
    return result


def summary(case: Case, episodes: Sequence[Rehearsed], max_steps: int) -> dict[str, Any]:
    """A row of the table; means over episodes, steps over the successful ones."""
    rate, latency, way = case
    good = [episode for episode in episodes if episode.success]
    hands = [episode.hand_jitter for episode in episodes if episode.hand_jitter is not None]
    return {
        "rate_hz": rate,
        "latency_ms": latency,
        "latency_steps": latency_steps(latency, rate),
        "way": way,
        "trials": len(episodes),
        "successes": len(good),
        "interval_95": wilson(len(good), len(episodes)),
        "in_time": sum(episode.steps <= max_steps for episode in good),
        "mean_steps": float(np.mean([episode.steps for episode in good])) if good else None,
        "idle_share": sum(episode.idle for episode in episodes) / sum(episode.steps for episode in episodes),
        "command_jitter": float(np.mean([episode.command_jitter for episode in episodes])),
        "hand_jitter": float(np.mean(hands)) if hands else None,
        "jump": float(np.mean([episode.jump for episode in episodes])),
        "episodes": [asdict(episode) for episode in episodes],
    }


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [
        f"{result['recipe']}: {len(result['tasks'])} tasks, {result['trials']} unseen seeds each; chunks of "
        f"{result['horizon']}, a new one every {result['replan']} steps; at most {result['limit']} control steps, in "
        f"time is {result['max_steps']}",
        f"{'rate':>6} {'latency':>13}  {'':15}{'success':>9} {'95 %':>12} {'in time':>8} {'steps':>6} {'idle':>5} "
        f"{'command':>8} {'hand':>8} {'jump':>6}",
    ]
    for row in result["rows"]:
        low, high = row["interval_95"]
        steps = "-" if row["mean_steps"] is None else f"{row['mean_steps']:.1f}"
        hand = "-" if row["hand_jitter"] is None else f"{row['hand_jitter']:.5f}"
        late = f"{row['latency_ms']:g} ms = {row['latency_steps']}"
        lines.append(
            f"{row['rate_hz']:6.1f} {late:>13}  {row['way']:15}{row['successes']:3} of {row['trials']:<2} "
            f"{low:5.0%} to {high:4.0%} {row['in_time']:8} {steps:>6} {row['idle_share']:5.0%} "
            f"{row['command_jitter']:8.3f} {hand:>8} {row['jump']:6.2f}"
        )
    lines.append("command, hand: RMS of the second difference; jump: largest change between two steps; means")
    return "\n".join(lines)
