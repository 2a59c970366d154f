"""Closed loop: a trained policy drives simulators on seeds that training never saw, and is counted.

Simulators run in processes of their own (rollouts.py) and send what they see; the policy answers whoever waits, in one
batch. Every episode is a line of episodes.jsonl as soon as it is over, with all that was measured on it, so an
interrupted evaluation goes on where it stopped, and so does its clock. The actions are kept too: a video is made
afterwards by playing them again, which is exact, so no episode is slowed down by being filmed.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightwam import checkpoint
from lightwam.checks import check
from lightwam.config import EvalConfig, Recipe, to_dict
from lightwam.errors import CheckpointError
from lightwam.policy import Policy
from lightwam.progress import Progress
from lightwam.rollouts import Player, Replay, Seen, Segment
from lightwam.sim import base
from lightwam.stats import wilson
from lightwam.types import Observation
from lightwam.workers import Workers, interrupt_as_flag

EPISODE_ROW: dict[str, tuple[type, ...]] = {
    "task": (str,),
    "seed": (int,),
    "success": (bool,),
    "steps": (int,),
    "steps_to_success": (int, type(None)),
    "seconds": (int, float),
    "wall_seconds": (int, float),
    "infer_ms": (list,),
    "video": (str, type(None)),
}
"""a line of episodes.jsonl; `wall_seconds` is the evaluation's clock when the episode was over, all attempts together,
`infer_ms` how long each of the policy's answers to it took"""


def evaluate(
    run: Path,
    settings: EvalConfig | None = None,
    *,
    policy: Policy | None = None,
    folder: str = "eval",
    sentences: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Evaluate the run's policy and write RUN/`folder`/result.json; returns what is in it.

    `settings` replaces the recipe's. `policy` is the run's, where `Policy.load(run, device="auto")` is not wanted
    (another step, the engine). `sentences` gives tasks another instruction than their own, to see whether the policy
    reads it. Episodes that are there already are not run again. Raises ConfigError when more steps would be executed
    than were supervised, CheckpointError when the folder holds an evaluation under other settings or a broken file, and
    KeyboardInterrupt after Ctrl-C, with every finished episode kept.

    `latency_ms` is of every answer of every episode, whether it was asked for alone or in a batch. `wall_seconds` adds
    up over attempts; of a killed one it counts up to the last episode that it finished.
    """
    began = time.perf_counter()
    policy = policy or Policy.load(run, device="auto")
    recipe = check(replace(policy.recipe, eval=settings or policy.recipe.eval))
    place = run / folder
    protocol = describe(recipe, policy, sentences or {})
    done = open_episodes(place, protocol)
    todo = [(task, recipe.eval.first_seed + i) for i in range(recipe.eval.trials) for task in recipe.sim.tasks]
    todo = [key for key in todo if key not in done]
    whole = not todo and (place / "result.json").exists()  # its clock has stopped
    began -= max((row["wall_seconds"] for row in done.values()), default=0.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the simulators have the other cores
    try:
        with Workers[Segment | Replay, Seen](min(recipe.eval.workers, 1 + len(todo)), Player(recipe.sim)) as workers:
            stopped = _drive(policy, recipe, todo, place, sentences or {}, workers, began, say)
            if not stopped:
                _film(recipe, place, workers)
    finally:
        torch.set_num_threads(threads)
    if stopped:
        say(f"eval: stopped; finished episodes are safe in {place}, the same command goes on")
        raise KeyboardInterrupt
    episodes = list(read_episodes(place).values())
    timed = percentiles([milliseconds for row in episodes for milliseconds in row["infer_ms"]])
    seconds = {"total": time.perf_counter() - began}
    if whole:
        seconds = checkpoint.read_json(place / "result.json")["wall_seconds"]
    result = summary(episodes, recipe) | {"protocol": protocol, "latency_ms": timed, "wall_seconds": seconds}
    checkpoint.write_json(place / "result.json", result)
    return result


@dataclass
class _Running:
    task: str
    seed: int
    began: float
    actions: list[np.ndarray] = field(default_factory=list)
    infer_ms: list[float] = field(default_factory=list)


def _drive(
    policy: Policy,
    recipe: Recipe,
    todo: list[tuple[str, int]],
    place: Path,
    sentences: Mapping[str, str],
    workers: Workers[Segment | Replay, Seen],
    began: float,
    say: Callable[[str], None],
) -> bool:
    """Run every episode of `todo`; True when Ctrl-C came first. `began` is when the evaluation's clock stood at 0."""
    running: dict[int, _Running] = {}
    total, won, over = len(todo), 0, 0

    def sit(seat: int) -> None:
        if todo:
            task, seed = todo.pop(0)
            running[seat] = _Running(task, seed, time.perf_counter())
            workers.give(Segment(seat, task, seed, None), seat)

    with interrupt_as_flag() as interrupt, Progress("eval", total, unit="ep", say=say) as progress:
        for seat in range(workers.count):
            sit(seat)
        while running and not interrupt.pressed:
            waiting: list[tuple[int, Observation]] = []
            for job, seen in workers.answers(timeout_seconds=0.2):
                episode = running[job.seat]
                if seen.observation is not None:
                    waiting.append((job.seat, seen.observation))
                    continue
                over, won = over + 1, won + seen.success
                _finish(place, episode, seen, began)
                del running[job.seat]
                progress.advance(f"{won} of {over} succeeded")
                sit(job.seat)
            if not waiting:
                continue
            asked = [
                replace(observation, instruction=sentences.get(running[seat].task, observation.instruction))
                for seat, observation in waiting
            ]
            asked_at = time.perf_counter()
            chunks = policy.act_batch(asked)[:, : recipe.eval.replan]
            infer_ms = 1000 * (time.perf_counter() - asked_at)
            for (seat, _), chunk in zip(waiting, chunks, strict=True):
                episode = running[seat]
                episode.actions.extend(chunk)
                episode.infer_ms.append(round(infer_ms, 3))
                workers.give(Segment(seat, episode.task, episode.seed, chunk), seat)
    return interrupt.pressed and bool(running)


def _finish(place: Path, episode: _Running, seen: Seen, began: float) -> None:
    actions = place / "actions"
    actions.mkdir(parents=True, exist_ok=True)
    np.save(actions / f"{episode.task}-{episode.seed}.npy", np.stack(episode.actions[: seen.steps]))
    now = time.perf_counter()
    row = {
        "task": episode.task,
        "seed": episode.seed,
        "success": seen.success,
        "steps": seen.steps,
        "steps_to_success": seen.steps if seen.success else None,
        "seconds": now - episode.began,
        "wall_seconds": now - began,
        "infer_ms": episode.infer_ms,
        "video": None,
    }
    with (place / "episodes.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def _film(recipe: Recipe, place: Path, workers: Workers[Segment | Replay, Seen]) -> None:
    """Videos of each task's first successes and first failures, `videos_per_task` of either."""
    episodes = read_episodes(place)
    chosen: list[tuple[str, int]] = []
    for task in recipe.sim.tasks:
        for success in (True, False):
            seeds = sorted(seed for (name, seed), row in episodes.items() if name == task and row["success"] == success)
            chosen += [(task, seed) for seed in seeds[: recipe.eval.videos_per_task]]
    free, made = list(range(workers.count)), 0
    jobs = []
    for task, seed in chosen:
        outcome = "success" if episodes[task, seed]["success"] else "failure"
        path = Path("videos") / f"{task}-{seed}-{outcome}.mp4"
        episodes[task, seed]["video"] = str(path)
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        if not (place / path).exists():
            actions = np.load(place / "actions" / f"{task}-{seed}.npy")
            jobs.append((task, seed, actions, place / path))
    total = len(jobs)
    while made < total:
        while jobs and free:
            seat = free.pop()
            workers.give(Replay(seat, *jobs.pop()), seat)
        for job, _ in workers.answers(timeout_seconds=0.2):
            free.append(job.seat)
            made += 1
    rows = "".join(json.dumps(row) + "\n" for row in episodes.values())
    beside = place / ".episodes.jsonl"
    beside.write_text(rows)
    beside.replace(place / "episodes.jsonl")


def open_episodes(place: Path, protocol: Mapping[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    """What is done already; CheckpointError when it was done under another protocol."""
    if (place / "protocol.json").exists():
        before = checkpoint.read_json(place / "protocol.json")
        same = json.loads(json.dumps(protocol))
        odd = sorted(key for key in before.keys() | same.keys() if before.get(key) != same.get(key))
        if odd:
            raise CheckpointError(
                "this folder holds an evaluation under other settings",
                where=place,
                got={key: before.get(key) for key in odd},
                expected={key: same.get(key) for key in odd},
                next_step=f"remove {place}, or evaluate into another folder",
            )
    else:
        checkpoint.write_json(place / "protocol.json", protocol)
    return read_episodes(place)


def read_episodes(place: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Finished episodes by (task, seed); a last line that a kill cut short does not count.

    Raises CheckpointError naming any other line that is not an episode.
    """
    path = place / "episodes.jsonl"
    if not path.exists():
        return {}
    *lines, torn = path.read_bytes().split(b"\n")
    rows = [_episode(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]
    if torn:
        path.write_bytes(b"".join(line + b"\n" for line in lines))
    return {(row["task"], row["seed"]): row for row in rows}


def _episode(line: bytes, where: str) -> dict[str, Any]:
    what, expected = "a line of the episodes is broken", f"an object with {', '.join(EPISODE_ROW)}"
    next_step = "delete this line: that episode is run again"
    try:
        row = json.loads(line.decode())
    except ValueError as error:
        got = f"not JSON: {error}"
        raise CheckpointError(what, where=where, got=got, expected=expected, next_step=next_step) from error
    if not isinstance(row, dict):
        raise CheckpointError(what, where=where, got=type(row).__name__, expected=expected, next_step=next_step)
    odd = {name: row.get(name) for name in row.keys() ^ EPISODE_ROW.keys()}
    odd |= {name: row[name] for name in row.keys() & EPISODE_ROW.keys() if type(row[name]) not in EPISODE_ROW[name]}
    if not odd and not all(type(milliseconds) in (int, float) for milliseconds in row["infer_ms"]):
        odd["infer_ms"] = row["infer_ms"]
    if odd:
        raise CheckpointError(what, where=where, got=f"{odd}", expected=expected, next_step=next_step)
    return row


def describe(recipe: Recipe, policy: Policy, sentences: Mapping[str, str]) -> dict[str, Any]:
    """Every constant that a success rate depends on: two results compare only if these agree."""
    packages = ("lightwam", "torch", "numpy", "mujoco", "metaworld")
    return {
        "sim": to_dict(recipe.sim),
        "eval": {
            key: value for key, value in to_dict(recipe.eval).items() if key not in ("workers", "videos_per_task")
        },
        "recipe": recipe.name,
        "checkpoint_step": policy.step,
        "weights": "ema" if recipe.train.ema_decay else "last",
        "computes": policy.computes,
        "sentences": dict(sentences),
        "success": "at any control step",
        "versions": {"python": platform.python_version()} | {name: v for name in packages if (v := _version(name))},
    }


def summary(episodes: Sequence[Mapping[str, Any]], recipe: Recipe) -> dict[str, Any]:
    """Successes with Wilson's 95 % interval, in all and by task."""
    return _rate(episodes) | {
        "tasks": {
            task: _rate([row for row in episodes if row["task"] == task])
            | {"instruction": base.make(recipe.sim, task).instruction}
            for task in recipe.sim.tasks
        }
    }


def _rate(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    won = sum(row["success"] for row in episodes)
    return {"successes": won, "trials": len(episodes), "interval_95": wilson(won, len(episodes))}


def percentiles(milliseconds: Sequence[float]) -> dict[str, float] | None:
    """p50, p95 and p99; None when nothing was timed (every episode was there already)."""
    if not milliseconds:
        return None
    values = np.percentile(milliseconds, (50, 95, 99))
    return {name: float(value) for name, value in zip(("p50", "p95", "p99"), values, strict=True)}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
