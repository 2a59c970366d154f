"""A trained policy under latency: success and jitter when chunks are played blocking, asynchronously, and smoothed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from lightwam.config.commands import ControlSettings
from lightwam.errors import ConfigError
from lightwam.evaluation.recorded_latency import bench_recorded_control
from lightwam.evaluation.recorded_latency import table as recorded_table
from lightwam.evaluation.rehearsal import Rehearsed, latency_steps, player_factories, rehearse, switches
from lightwam.evaluation.statistics import wilson
from lightwam.policy.policy import Policy
from lightwam.sim import registry
from lightwam.system.cpu import one_thread
from lightwam.system.machine import versions
from lightwam.system.progress import Progress
from lightwam.system.tables import rate_cells, table_lines
from lightwam.types import Observation

Case = tuple[float, float, str]
"""rate in Hz, latency in ms, and how chunks are played"""


def bench_control(
    run: Path | str, settings: ControlSettings | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Rehearse the run's policy at every rate and latency, each way of playing chunks on the same unseen seeds.

    Without a simulator chunks are played along recorded episodes (`bench_recorded_control`). Returns plain JSON values,
    see `table`. Episodes may take `settings.patience` times the recipe's step limit, as waiting costs steps; those
    within the limit count as "in_time". ConfigError for settings out of range and, with a simulator, for actions that
    are not motions; SimulatorError if the simulator cannot run.
    """
    settings = settings or ControlSettings()
    if settings.trials < 1 or settings.patience < 1 or min(settings.rates_hz, default=1.0) <= 0:
        raise ConfigError("trials and patience must be at least 1, rates above 0", where="bench control", got=settings)
    if not settings.latencies_ms or min(settings.latencies_ms) < 0:
        raise ConfigError("there must be latencies, none below 0", where="bench control", got=settings.latencies_ms)
    policy = Policy.load(run)
    recipe = policy.recipe
    replan = recipe.eval.replan if settings.replan is None else settings.replan
    if recipe.sim is None:
        return bench_recorded_control(policy, settings, replan, say)
    rows = _rehearse_all(policy, settings, replan, say)
    return {
        "recipe": recipe.name,
        "tasks": list(recipe.simulation.tasks),
        "trials": settings.trials,
        "first_seed": recipe.eval.first_seed,
        "horizon": recipe.model.supervised_prefix,
        "replan": replan,
        "max_steps": recipe.simulation.max_steps,
        "limit": round(settings.patience * recipe.simulation.max_steps),
        "rows": [summary(case, episodes, recipe.simulation.max_steps) for case, episodes in rows.items()],
        "versions": versions(),
    }


def _rehearse_all(
    policy: Policy, settings: ControlSettings, replan: int, say: Callable[[str], None]
) -> dict[Case, list[Rehearsed]]:
    recipe = policy.recipe
    switch_dims = switches(recipe.model.action_dim, recipe.codec.delta_action_dims)
    players = player_factories(replan, switch_dims, settings.blend, settings.decay)
    rates = settings.rates_hz or (registry.make_simulator(recipe.simulation, recipe.simulation.tasks[0]).fps,)
    cases = list(product(rates, settings.latencies_ms, players))
    rows: dict[Case, list[Rehearsed]] = {case: [] for case in cases}
    rehearsal = partial(
        rehearse, switch_dims=switch_dims, max_steps=round(settings.patience * recipe.simulation.max_steps)
    )

    def act(observation: Observation) -> Float32[np.ndarray, "prefix A"]:
        return policy.act(observation)[: recipe.model.supervised_prefix]  # later steps were not trained

    total = len(cases) * len(recipe.simulation.tasks) * settings.trials
    with one_thread(), Progress("rehearsal", total, unit="ep", say=say) as progress:
        for task in recipe.simulation.tasks:
            simulator = registry.make_simulator(recipe.simulation, task)
            for i, case in product(range(settings.trials), cases):
                seed, latency = recipe.eval.first_seed + i, latency_steps(case[1], case[0])
                rows[case].append(rehearsal(simulator, seed, act, players[case[2]], latency=latency))
                progress.advance()
            simulator.close()
    return rows


def summary(case: Case, episodes: Sequence[Rehearsed], max_steps: int) -> dict[str, Any]:
    """Return a row of the table; means over episodes, steps over the successful ones."""
    rate, latency, way = case
    successful = [episode for episode in episodes if episode.success]

    def mean(name: str, among: Sequence[Rehearsed] = episodes) -> float | None:
        numbers = [number for each in among if (number := getattr(each, name)) is not None]
        return float(np.mean(numbers)) if numbers else None

    return {
        "rate_hz": rate,
        "latency_ms": latency,
        "latency_steps": latency_steps(latency, rate),
        "way": way,
        "trials": len(episodes),
        "successes": len(successful),
        "interval_95": wilson(len(successful), len(episodes)),
        "in_time": sum(episode.steps <= max_steps for episode in successful),
        "mean_steps": mean("steps", successful),
        "idle_share": sum(episode.idle for episode in episodes) / sum(episode.steps for episode in episodes),
        **{name: mean(name) for name in ("command_jitter", "hand_jitter", "jump")},
        "episodes": [asdict(episode) for episode in episodes],
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the result as text."""
    if "tasks" not in result:
        return recorded_table(result)
    rows = [["rate", "latency", "", "success", "95 %", "in time", "steps", "idle", "command", "hand", "jump"]]
    for row in result["rows"]:
        latency = f"{row['latency_ms']:g} ms = {row['latency_steps']}"
        steps = "-" if row["mean_steps"] is None else f"{row['mean_steps']:.1f}"
        hand = "-" if row["hand_jitter"] is None else f"{row['hand_jitter']:.5f}"
        counts = [str(row["in_time"]), steps, f"{row['idle_share']:.0%}"]
        motion = [f"{row['command_jitter']:.3f}", hand, f"{row['jump']:.2f}"]
        rows.append([f"{row['rate_hz']:.1f}", latency, row["way"], *rate_cells(row), *counts, *motion])
    lines = [
        f"{result['recipe']}: {len(result['tasks'])} tasks, {result['trials']} unseen seeds each; chunks of "
        f"{result['horizon']}, a new one every {result['replan']} steps; at most {result['limit']} control steps, in "
        f"time is {result['max_steps']}",
        *table_lines(rows, ">><>", indent=0),
        "command, hand: RMS of the second difference; jump: largest change between two steps; means",
    ]
    return "\n".join(lines)
