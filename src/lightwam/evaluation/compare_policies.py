"""Several policies in one table, each trained with one or several seeds, on the episodes that all of them have."""

from __future__ import annotations

import glob
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightwam.config.strict_json import to_dict
from lightwam.errors import CheckpointError, ConfigError, first_few
from lightwam.evaluation.compare import matters, open_evaluation, sort_tasks
from lightwam.evaluation.episodes import EpisodeKey, read_episodes
from lightwam.evaluation.statistics import (
    Pairs,
    difference_of_means,
    holm,
    mean_of_seeds,
    paired_difference,
    sign_flip_test,
)
from lightwam.policy import run_directory
from lightwam.policy.tensor_files import num_values
from lightwam.system.differences import differences
from lightwam.system.files import complete_lines

SEED_SETTINGS = ("name", "notes", *run_directory.MUTABLE_SETTINGS, "train.seed", "sources", "eval", "sim")
"""settings that may differ among the trainings of one policy"""
SERVER_BUDGET = {
    "seed": "training_seed",
    "steps": "training_steps",
    "parameters": "parameters",
    "hours": "training_hours",
}
"""part of a training's budget -> the key of a server's greeting that has it"""


@dataclass(frozen=True)
class Training:
    """One training of a policy: its evaluation, and what it cost as far as that is known."""

    folder: Path
    protocol: Mapping[str, Any]
    warnings: tuple[str, ...]
    outcomes: Mapping[EpisodeKey, bool]
    recipe: Mapping[str, Any] | None
    """of a run of ours"""
    budget: Mapping[str, int | float | None]
    """seed, steps, parameters and hours; None where unknown"""


def named_policies(words: Sequence[str]) -> dict[str, list[Path]]:
    """Return policy -> the folders of its evaluations, from words FOLDER, NAME=FOLDER,... or NAME=PATTERN.

    A pattern has the shell's wildcards. ConfigError for one that matches no folder, and for a name or a folder that
    comes twice.
    """
    policies: dict[str, list[Path]] = {}
    for word in words:
        name, equals, places = ("", "", word) if Path(word).is_dir() else word.partition("=")
        if not equals:
            name, places = (name or places), (places or name)
        folders = [Path(path) for part in places.split(",") for path in _matching(part, word)]
        if not name or name in policies:
            raise ConfigError("each policy must have a name of its own", got=repr(word), expected="NAME=FOLDER")
        policies[name] = folders
    known = [folder.resolve() for folders in policies.values() for folder in folders]
    if twice := next((folder for folder in known if known.count(folder) > 1), None):
        raise ConfigError("an evaluation must be named once", got=str(twice))
    return policies


def _matching(pattern: str, word: str) -> list[str]:
    if not any(sign in pattern for sign in "*?["):
        return [pattern]
    if found := sorted(path for path in glob.glob(pattern) if Path(path).is_dir()):
        return found
    raise ConfigError("no folder matches", where=word, got=pattern, expected="folders of evaluations: runs/act-*/eval")


def compare_policies(policies: Mapping[str, Sequence[Path]], anyway: bool = False) -> dict[str, Any]:
    """Compare policies on the episodes that all evaluations have, as plain JSON values.

    Each policy has the evaluations of one or several trainings. "policies" has for each the mean of their success
    rates, the standard deviation ("spread") and 95 % interval (`mean_of_seeds`), by task the mean, and the trainings'
    budgets. "pairs" has for every two the difference of their means with its 95 % interval, and the p-value of an exact
    sign-flip test on the episodes (McNemar's, with one training each), also corrected for the number of pairs (Holm).

    CheckpointError if constants differ that success rates must share, or trainings of one policy differ in more than
    their seed, unless `anyway`; also as `compare` does.
    """
    trainings = {name: [_read_training(folder) for folder in folders] for name, folders in policies.items()}
    everyone = [training for group in trainings.values() for training in group]
    unequal, differs = _differences(everyone)
    for name, group in trainings.items():
        unequal |= {f"{name}: {setting}": values for setting, values in _unequal_trainings(group).items()}
    if unequal and not anyway:
        what, got = "these evaluations were made under different constants", "\n    ".join(["", *lines(unequal)])
        raise CheckpointError(what, got=got, next_step="evaluate them under the same settings, or give --anyway")
    shared = [key for key in everyone[0].outcomes if all(key in other.outcomes for other in everyone)]
    if not shared:
        what, where = "these evaluations have no episode in common", " | ".join(str(one.folder) for one in everyone)
        raise CheckpointError(what, where=where, expected="episodes of the same task and seed")
    tasks = sort_tasks(everyone[0].protocol, {task for task, _ in shared})
    summaries = {name: _summary(group, shared, tasks) for name, group in trainings.items()}
    return {
        "episodes": len(shared),
        "tasks": tasks,
        "left_out": {str(one.folder): left for one in everyone if (left := len(one.outcomes) - len(shared))},
        "matters": unequal,
        "differs": differs,
        "warnings": {str(one.folder): list(one.warnings) for one in everyone if one.warnings},
        "policies": summaries,
        "pairs": _pairs(trainings, summaries, shared),
    }


def lines(differing: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Format each constant that differs as a line: its values, each with the folders that have it."""
    text = []
    for name, values in differing.items():
        by_value: dict[str, list[str]] = {}
        for folder, value in values.items():
            by_value.setdefault(repr(value), []).append(folder)
        text.append(f"{name}: " + " | ".join(f"{value} ({first_few(who, 3)})" for value, who in by_value.items()))
    return text


def _read_training(folder: Path) -> Training:
    protocol, warnings = open_evaluation(folder)
    outcomes = {key: bool(row["success"]) for key, row in read_episodes(folder).items()}
    run, recipe = folder.parent, None
    if (run / "recipe.json").is_file() and "server" not in protocol:
        recipe = to_dict(run_directory.read_recipe(run))
        budget = _run_budget(run, recipe, protocol.get("checkpoint_step"))
    else:
        said = protocol.get("server")
        budget = {part: _number(said, key) for part, key in SERVER_BUDGET.items()}
    return Training(folder, protocol, tuple(warnings), outcomes, recipe, budget)


def _number(said: Any, key: str) -> int | float | None:
    value = said.get(key) if isinstance(said, Mapping) else None
    return value if type(value) in (int, float) else None


def _run_budget(run: Path, recipe: Mapping[str, Any], step: Any) -> dict[str, int | float | None]:
    """Return seed, steps, trained parameters and hours of a run's checkpoint at `step`."""
    weights = sorted((run / "checkpoints").glob("step_*/model.safetensors"))
    seconds = None
    if (run / "log.jsonl").is_file():
        rows = [json.loads(line) for line in complete_lines(run / "log.jsonl")]
        seconds = max((row["seconds"] for row in rows if "seconds" in row and row["step"] <= (step or 0)), default=None)
    return {
        "seed": recipe["train"]["seed"],
        "steps": step if isinstance(step, int) else None,
        "parameters": num_values(weights[-1]) if weights else None,
        "hours": None if seconds is None else seconds / 3600,
    }


def _differences(everyone: Sequence[Training]) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return the protocols' constants that differ and matter, and the others: name -> folder -> value."""
    first, found = everyone[0], dict[str, dict[str, Any]]()
    for other in everyone[1:]:
        for name, ours, theirs in differences(first.protocol, other.protocol):
            found.setdefault(name, {str(one.folder): ours for one in everyone})[str(other.folder)] = theirs
    return (
        {name: values for name, values in found.items() if matters(name)},
        {name: values for name, values in found.items() if not matters(name)},
    )


def _unequal_trainings(group: Sequence[Training]) -> dict[str, dict[str, Any]]:
    """Return the settings besides the seed in which trainings of one policy differ, and a seed that two share."""
    known = [training for training in group if training.recipe is not None]
    found: dict[str, dict[str, Any]] = {}
    for other in known[1:]:
        for name, ours, theirs in differences(known[0].recipe, other.recipe, ignored=SEED_SETTINGS):
            values = {str(one.folder): ours for one in known}
            found.setdefault(name, values)[str(other.folder)] = theirs
    steps = {str(one.folder): one.budget["steps"] for one in group}
    if len({value for value in steps.values() if value is not None}) > 1:
        found["checkpoint step"] = steps
    seeds = {str(one.folder): one.budget["seed"] for one in group if one.budget["seed"] is not None}
    if len(set(seeds.values())) < len(seeds):
        found["train.seed, which must differ"] = seeds
    return found


def _summary(group: Sequence[Training], shared: Sequence[EpisodeKey], tasks: Sequence[str]) -> dict[str, Any]:
    def counts(keys: Iterable[EpisodeKey]) -> list[int]:
        chosen = list(keys)
        return [sum(training.outcomes[key] for key in chosen) for training in group]

    of_task = {task: [key for key in shared if key[0] == task] for task in tasks}
    return {
        "folders": [str(training.folder) for training in group],
        **mean_of_seeds(counts(shared), len(shared)),
        "tasks": {task: mean_of_seeds(counts(keys), len(keys)) for task, keys in of_task.items()},
        "budgets": [dict(training.budget) for training in group],
    }


def _pairs(
    trainings: Mapping[str, Sequence[Training]], summaries: Mapping[str, Any], shared: Sequence[EpisodeKey]
) -> list[dict[str, Any]]:
    rows = []
    for first, second in itertools.combinations(trainings, 2):
        ours, theirs = trainings[first], trainings[second]
        won = [[sum(one.outcomes[key] for one in group) for key in shared] for group in (ours, theirs)]
        # shares of the trainings that solve an episode, in whole numbers
        apart = [a * len(theirs) - b * len(ours) for a, b in zip(*won, strict=True)]
        interval = difference_of_means(summaries[first], summaries[second])
        if len(ours) == len(theirs) == 1:
            solved = list(zip(*won, strict=True))
            interval = paired_difference(Pairs(*(solved.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0)))))
        rows.append(
            {
                "first": first,
                "second": second,
                "difference": summaries[first]["mean"] - summaries[second]["mean"],
                "difference_95": interval,
                "p_value": sign_flip_test(apart),
            }
        )
    for row, corrected in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    return rows
