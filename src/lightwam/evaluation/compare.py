"""Two evaluations compared, episode by episode.

The same task and seed is the same scene, so pairs of episodes say more than two rates: those that both solve and those
that both fail cancel out. That holds only if the constants of the two protocols agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightwam.errors import CheckpointError
from lightwam.evaluation.episodes import read_episodes
from lightwam.evaluation.statistics import Pairs, mcnemar, paired_difference, success_rate
from lightwam.policy import run_directory
from lightwam.system.differences import differences
from lightwam.system.machine import MODELS, OURS

EPISODE_CHOICE = ("sim.tasks", "eval.trials", "eval.first_seed")
"""constants that may differ, because only episodes that both have are paired"""
POLICY_CHOICE = ("eval.replan",)
"""constants that may differ, because they belong to the policy: how many steps of a chunk it is made to execute"""


def compare(first: Path | str, second: Path | str, anyway: bool = False) -> dict[str, Any]:
    """Count the episodes that both evaluation folders have, in pairs, in all and by task, as plain JSON values.

    "differs" holds what is compared (recipe, weights, step, precision), name -> the two values; "matters" the constants
    that two success rates must share; "warnings" those of each result. Raises CheckpointError, which lists them, if
    such constants differ, unless `anyway`; also when a folder holds no evaluation, or no task and seed is in both.
    """
    first, second = Path(first), Path(second)
    (protocol, warnings), (other, other_warnings) = open_evaluation(first), open_evaluation(second)
    where, pairs = f"{first} | {second}", differences(protocol, other)
    differs = {name: [ours, theirs] for name, ours, theirs in pairs}
    unequal = {name: differs.pop(name) for name in list(differs) if matters(name)}
    if unequal and not anyway:
        what, got = "these evaluations were made under different constants", "\n    ".join(["", *lines(unequal)])
        step = "evaluate one of them again under the other's settings, or give --anyway"
        raise CheckpointError(what, where=where, got=got, next_step=step)
    ours, theirs = read_episodes(first), read_episodes(second)
    shared = [key for key in ours if key in theirs]
    if not shared:
        what, got = "these evaluations have no episode in common", f"{_summary(ours)} | {_summary(theirs)}"
        raise CheckpointError(what, where=where, got=got, expected="episodes of the same task and seed")
    outcomes = {key: (ours[key]["success"], theirs[key]["success"]) for key in shared}
    tasks = sort_tasks(protocol, {task for task, _ in shared})
    return {
        "first": str(first),
        "second": str(second),
        "matters": unequal,
        "differs": differs,
        "warnings": {"first": warnings, "second": other_warnings},
        "unpaired": {"first": len(ours) - len(shared), "second": len(theirs) - len(shared)},
        **_paired(outcomes.values()),
        "tasks": {task: _paired(pair for (name, _), pair in outcomes.items() if name == task) for task in tasks},
    }


def lines(differing: Mapping[str, list[Any]]) -> list[str]:
    """Format each constant that differs as a line."""
    return [f"{name}: {first!r} | {second!r}" for name, (first, second) in differing.items()]


def sort_tasks(protocol: Mapping[str, Any], tasks: Iterable[str]) -> list[str]:
    """Return the tasks in the order of the protocol's simulator, then others by name."""
    order = {task: index for index, task in enumerate(protocol.get("sim", {}).get("tasks", ()))}
    return sorted(tasks, key=lambda task: (order.get(task, len(order)), task))


def matters(name: str) -> bool:
    """Return whether two success rates must share the constant of this dotted name to be compared."""
    section, _, rest = name.partition(".")
    if section == "versions":
        return rest not in ("python", *OURS, *MODELS)
    return section in ("sim", "constants", "eval", "success") and name not in (*EPISODE_CHOICE, *POLICY_CHOICE)


def open_evaluation(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the protocol of an evaluation's folder, and the warnings about its simulator.

    CheckpointError if it is no such folder. An unfinished evaluation has no warnings.
    """
    path = folder / "protocol.json"
    protocol = run_directory.read_json(path) if path.is_file() else None
    if not isinstance(protocol, dict):
        got = "no protocol.json" if protocol is None else type(protocol).__name__
        step = f"name {folder / 'eval'}" if (folder / "eval").is_dir() else "name one that `lightwam eval` made"
        raise CheckpointError("this is not the folder of an evaluation", where=folder, got=got, next_step=step)
    path = folder / "result.json"
    result = run_directory.read_json(path) if path.is_file() else None
    return protocol, list(map(str, result.get("warnings", ()))) if isinstance(result, dict) else []


def _paired(outcomes: Iterable[tuple[bool, bool]]) -> dict[str, Any]:
    counts = Counter(outcomes)
    pairs = Pairs(*(counts[pair] for pair in ((True, True), (True, False), (False, True), (False, False))))
    won = {"first": pairs.both + pairs.wins, "second": pairs.both + pairs.losses}
    return {
        "pairs": asdict(pairs),
        "rates": {name: success_rate(count, pairs.count) for name, count in won.items()},
        "difference": (pairs.wins - pairs.losses) / pairs.count,
        "difference_95": paired_difference(pairs),
        "p_value": mcnemar(pairs),
    }


def _summary(episodes: Mapping[tuple[str, int], Any]) -> str:
    if not episodes:
        return "none"
    (task, seed), *rest = sorted(episodes)
    return f"{task!r} seed {seed}" + (f" and {len(rest)} more" if rest else "")
