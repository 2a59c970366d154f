"""Two evaluations side by side, episode by episode.

The same task and seed is the same scene, so pairs of episodes say more than two rates: what both solve and what both
fail cancels out. That holds only where the constants of the two protocols agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightwam.errors import CheckpointError
from lightwam.evaluation.episodes import read_episodes
from lightwam.evaluation.statistics import Pairs, mcnemar, paired_difference, wilson
from lightwam.policy import run_directory
from lightwam.system.machine import SIMULATORS

EPISODE_CHOICE = ("sim.tasks", "eval.trials", "eval.first_seed")
"""which episodes there are: pairing takes care of that"""


def compare(first: Path | str, second: Path | str, anyway: bool = False) -> dict[str, Any]:
    """The episodes that both evaluation folders have, counted in pairs, in all and by task; plain JSON values.

    "differs" holds what may be compared (recipe, weights, step, what computes), name -> the two values; "matters" the
    constants that two success rates must share; "warnings" what each result warns of. Where a constant differs
    CheckpointError lists them, unless `anyway`.
    CheckpointError too when a folder holds no evaluation, or when no task and seed is in both.
    """
    first, second = Path(first), Path(second)
    protocol = _protocol(first)
    differs = dict(differences(protocol, _protocol(second)))
    matters = {name: differs.pop(name) for name in list(differs) if _matters(name)}
    if matters and not anyway:
        raise CheckpointError(
            "these evaluations were made under different constants",
            where=f"{first} | {second}",
            got="\n    ".join(["", *lines(matters)]),
            next_step="evaluate one of them again under the other's settings, or give --anyway",
        )
    ours, theirs = read_episodes(first), read_episodes(second)
    shared = [key for key in ours if key in theirs]
    if not shared:
        raise CheckpointError(
            "these evaluations have no episode in common",
            where=f"{first} | {second}",
            got=f"{_told(ours)} | {_told(theirs)}",
            expected="episodes of the same task and seed",
        )
    outcomes = {key: (ours[key]["success"], theirs[key]["success"]) for key in shared}
    order = {task: place for place, task in enumerate(protocol.get("sim", {}).get("tasks", ()))}
    tasks = sorted({task for task, _ in shared}, key=lambda task: (order.get(task, len(order)), task))
    return {
        "first": str(first),
        "second": str(second),
        "matters": matters,
        "differs": differs,
        "warnings": {"first": _warnings(first), "second": _warnings(second)},
        "unpaired": {"first": len(ours) - len(shared), "second": len(theirs) - len(shared)},
        **_judged(outcomes.values()),
        "tasks": {task: _judged(pair for (name, _), pair in outcomes.items() if name == task) for task in tasks},
    }


def differences(first: Any, second: Any, name: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Where two nested tables differ: the dotted name, and both values (None where there is none)."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in sorted(first.keys() | second.keys()):
            yield from differences(first.get(key), second.get(key), f"{name}.{key}" if name else key)
    elif first != second:
        yield name, [first, second]


def lines(differing: Mapping[str, list[Any]]) -> list[str]:
    """A line for each constant that differs."""
    return [f"{name}: {first!r} | {second!r}" for name, (first, second) in differing.items()]


def _matters(name: str) -> bool:
    section, _, rest = name.partition(".")
    return (section in ("sim", "constants", "eval", "success") and name not in EPISODE_CHOICE) or (
        section == "versions" and rest in SIMULATORS
    )


def _protocol(place: Path) -> dict[str, Any]:
    path = place / "protocol.json"
    protocol = run_directory.read_json(path) if path.is_file() else None
    if not isinstance(protocol, dict):
        raise CheckpointError(
            "this is not the folder of an evaluation",
            where=place,
            got="no protocol.json" if protocol is None else type(protocol).__name__,
            expected="a folder that `lightwam eval` made",
            next_step=f"name {place / 'eval'}" if (place / "eval").is_dir() else "",
        )
    return protocol


def _warnings(place: Path) -> list[str]:
    """Return the result's warnings about its simulator; [] when it is unfinished or has none."""
    path = place / "result.json"
    result = run_directory.read_json(path) if path.is_file() else None
    return list(map(str, result.get("warnings", ()))) if isinstance(result, dict) else []


def _judged(outcomes: Iterable[tuple[bool, bool]]) -> dict[str, Any]:
    counts = {pair: 0 for pair in ((True, True), (True, False), (False, True), (False, False))}
    for pair in outcomes:
        counts[pair] += 1
    pairs = Pairs(*counts.values())
    rates = {
        name: {"successes": won, "trials": pairs.count, "interval_95": wilson(won, pairs.count)}
        for name, won in (("first", pairs.both + pairs.wins), ("second", pairs.both + pairs.losses))
    }
    return {
        "pairs": {"both": pairs.both, "wins": pairs.wins, "losses": pairs.losses, "neither": pairs.neither},
        "rates": rates,
        "difference": (pairs.wins - pairs.losses) / pairs.count,
        "difference_95": paired_difference(pairs),
        "p_value": mcnemar(pairs),
    }


def _told(episodes: Mapping[tuple[str, int], Any]) -> str:
    if not episodes:
        return "none"
    (task, seed), *rest = sorted(episodes)
    return f"{task!r} seed {seed}" + (f" and {len(rest)} more" if rest else "")
