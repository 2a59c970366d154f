"""A folder of episodes: protocol.json has the constants under which they were run, episodes.jsonl a line for each."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightwam.config.strict_json import added, from_dict
from lightwam.errors import CheckpointError, ConfigError
from lightwam.policy import run_directory
from lightwam.system.files import explain_disk_errors

EpisodeKey = tuple[str, int]
"""task and seed"""


@dataclass(frozen=True)
class EpisodeRow:
    """A line of episodes.jsonl."""

    task: str
    seed: int
    success: bool
    steps: int
    steps_to_success: int | None
    seconds: float
    wall_seconds: float
    """the evaluation's clock, all attempts together, when the episode was over"""
    infer_ms: tuple[float, ...]
    """the time of each of the policy's answers"""
    video: str | None
    """its path in the folder"""
    instruction: str = added("")
    """the sentence that the policy was told"""
    progress: Mapping[str, bool] | None = added(None)
    """stage of the task -> whether it was reached; None where the simulator has no stages"""


def open_episodes(
    folder: Path, protocol: Mapping[str, Any], asked: Collection[EpisodeKey] | None = None
) -> dict[EpisodeKey, dict[str, Any]]:
    """Open a folder to add episodes to, and return those that it has; an incomplete last line is removed.

    The protocol becomes the folder's; `asked` are its episodes, by default those of consecutive seeds. Another one is
    accepted if it only asks for more `eval.trials`, or if no episode is finished yet. Raises CheckpointError for any
    other difference, when finished episodes would no longer be among the trials, and as `read_episodes` does.
    """
    done, path = read_episodes(folder), folder / "episodes.jsonl"
    if done:
        _check_protocol(folder, protocol, extends=True)
        _check_trials(folder, done, protocol, asked)
    run_directory.write_json(folder / "protocol.json", protocol)
    if incomplete := _split_lines(path)[1]:
        with explain_disk_errors(path):
            os.truncate(path, path.stat().st_size - len(incomplete))
    return done


def claim_folder(folder: Path, protocol: Mapping[str, Any]) -> None:
    """Write protocol.json into a folder; CheckpointError if it has another one."""
    _check_protocol(folder, protocol)
    run_directory.write_json(folder / "protocol.json", protocol)


def read_episodes(folder: Path) -> dict[EpisodeKey, dict[str, Any]]:
    """Return the finished episodes of a folder by task and seed; an incomplete last line is skipped.

    Raises CheckpointError, naming the line, for any other line that is not an episode.
    """
    path = folder / "episodes.jsonl"
    rows = [_parse_row(line, f"{path}:{number}") for number, line in enumerate(_split_lines(path)[0], 1)]
    return {(row["task"], row["seed"]): row for row in rows}


def task_files(tasks: Iterable[str]) -> dict[str, str]:
    """Return task -> the name of its files: "libero_object/3" becomes "libero_object-3".

    Tasks that are valid file names keep their names; of others that collide, also on a disk that ignores case, each
    further one gets a number.
    """
    fit = {task: re.sub(r"[^\w .+-]", "-", task) for task in tasks}
    names: dict[str, str] = {}
    used: set[str] = set()
    for task in sorted(fit, key=lambda task: fit[task] != task):
        name, count = fit[task], 1
        while name.casefold() in used:
            count += 1
            name = f"{fit[task]}~{count}"
        used.add(name.casefold())
        names[task] = name
    return names


def _check_protocol(folder: Path, protocol: Mapping[str, Any], *, extends: bool = False) -> None:
    """Raise CheckpointError if the folder has another protocol; with `extends` eval.trials may differ."""
    path, same = folder / "protocol.json", json.loads(json.dumps(protocol))
    before = run_directory.read_json(path) if path.exists() else same
    ours, theirs = (_without_trials(one) if extends else one for one in (same, before))
    if odd := sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)):
        what, step = "this folder holds an evaluation under other settings", "evaluate into another one, or remove it"
        got, expected = ({key: settings.get(key) for key in odd} for settings in (before, same))
        raise CheckpointError(what, where=folder, got=got, expected=expected, next_step=step)


def _without_trials(protocol: Mapping[str, Any]) -> dict[str, Any]:
    settings = protocol.get("eval")
    if not isinstance(settings, Mapping):
        return dict(protocol)
    return {**protocol, "eval": {key: value for key, value in settings.items() if key != "trials"}}


def _check_trials(
    folder: Path, done: Collection[EpisodeKey], protocol: Mapping[str, Any], asked: Collection[EpisodeKey] | None
) -> None:
    """Raise CheckpointError if finished episodes are not among the protocol's: a result has all of its folder."""
    if not isinstance(settings := protocol.get("eval"), Mapping):
        return
    least = max(seed for _, seed in done) - settings["first_seed"] + 1
    if settings["trials"] < least if asked is None else not set(done) <= set(asked):
        what = "eval.trials must not be less than the episodes that this folder has of a task"
        expected = f"at least {least}" if asked is None else "as many as before, or more"
        got, step = settings["trials"], "leave out the option, or evaluate into another --folder"
        raise CheckpointError(what, where=folder, got=got, expected=expected, next_step=step)


def _split_lines(path: Path) -> tuple[list[bytes], bytes]:
    """Return a file's complete lines and the bytes after the last of them."""
    *lines, incomplete = path.read_bytes().split(b"\n") if path.exists() else [b""]
    return lines, incomplete


def _parse_row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row: dict[str, Any] = json.loads(line.decode())
        from_dict(EpisodeRow, row, "line")
    except (ValueError, ConfigError) as error:
        step = "delete this line: that episode is run again"
        raise CheckpointError("a line of the episodes is broken", where=where, got=error, next_step=step) from error
    return row
