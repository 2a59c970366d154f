"""A folder of episodes: protocol.json says under which constants they were run, episodes.jsonl has a line for each."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightwam.errors import CheckpointError
from lightwam.policy import run_directory
from lightwam.system.files import explain_disk_errors

EpisodeKey = tuple[str, int]
"""task and seed"""
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


def open_episodes(place: Path, protocol: Mapping[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    """What is done already; CheckpointError when it was done under another protocol.

    To be called by who adds to the folder: a last line that a kill cut short is taken off.
    """
    if (place / "protocol.json").exists():
        before = run_directory.read_json(place / "protocol.json")
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
        run_directory.write_json(place / "protocol.json", protocol)
    done, path = read_episodes(place), place / "episodes.jsonl"
    if num_torn := _lines(place)[1]:
        with explain_disk_errors(path):
            os.truncate(path, path.stat().st_size - num_torn)
    return done


def read_episodes(place: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Finished episodes by (task, seed); a last line that a kill cut short does not count. Changes nothing.

    Raises CheckpointError naming any other line that is not an episode.
    """
    rows = [_episode(line, where) for line, where in _lines(place)[0]]
    return {(row["task"], row["seed"]): row for row in rows}


def task_files(tasks: Iterable[str]) -> dict[str, str]:
    """Task -> what it is called in the names of its files: "libero_object/3" is "libero_object-3".

    Names that are fit already stay as they are and come first; one that would be another's, on a disk that does not
    tell capitals apart either, gets a number.
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


def _lines(place: Path) -> tuple[list[tuple[bytes, str]], int]:
    """The whole lines of episodes.jsonl, each with its place, and how many bytes follow the last of them."""
    path = place / "episodes.jsonl"
    if not path.exists():
        return [], 0
    *lines, torn = path.read_bytes().split(b"\n")
    return [(line, f"{path}:{number}") for number, line in enumerate(lines, 1)], len(torn)


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
