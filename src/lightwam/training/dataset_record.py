"""What a run records of its datasets, in dataset.json: path, size and hash of every file. A run uses no other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightwam.data.lerobot.hub import hub_id
from lightwam.errors import CheckpointError, first_few
from lightwam.policy.run_directory import changes, read_table, write_json
from lightwam.training.caches import DatasetCaches

KEYS, OPTIONAL_KEYS = ("fingerprint", "path"), ("episodes", "names", "hub", "others")
"""keys of dataset.json; older runs lack "episodes", runs whose features have LeRobot's names lack "names", and those on
a folder lack "hub": {"id": OWNER/NAME or OWNER/NAME@REVISION, as asked for, "commit": the commit that was used}. Of a
recipe with several sources, "others" has the same of the second and the following ones."""


def write(run: Path, datasets: Sequence[DatasetCaches]) -> None:
    """Write the record of these datasets, in the recipe's order, into the run."""
    records = [_record(caches) for caches in datasets]
    write_json(run / "dataset.json", records[0] | ({"others": records[1:]} if len(records) > 1 else {}))


def _record(caches: DatasetCaches) -> dict[str, Any]:
    """Return what a run keeps of a dataset: a value for each of KEYS and, where there is one, OPTIONAL_KEYS."""
    data, names = caches.data, caches.data.names.pairs()
    record = {"path": str(data.root.absolute()), "episodes": data.num_episodes, "fingerprint": caches.files}
    if names:
        record["names"] = list(names)
    if fetched := hub_id(data.root):
        record["hub"] = {"id": caches.asked or fetched, "commit": fetched.partition("@")[2]}
    return record


def hub_commit(run: Path, asked: str, number: int = 0) -> str:
    """Return the commit that the run was begun with, if `asked` is the same Hub id or lacks a revision; else "".

    `asked` is source `number` of the recipe.
    """
    path = run / "dataset.json"
    records = read_records(run) if path.is_file() else []
    record = records[number].get("hub") if number < len(records) else None
    if not record or asked not in (record["id"], record["id"].partition("@")[0]):
        return ""
    return str(record["commit"])


def read_records(run: Path) -> list[dict[str, Any]]:
    """Read what a run keeps of its datasets (KEYS), in its recipe's order; CheckpointError for a broken file."""
    saved = read_table(run / "dataset.json", KEYS, OPTIONAL_KEYS)
    return [saved, *saved.get("others", ())]


def feature_names(run: Path, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the pairs FEATURE=NAME that the run uses: its own, or `asked` for a new run.

    CheckpointError when `asked` differs from the run's own.
    """
    path = run / "dataset.json"
    if not path.is_file():
        return tuple(asked)
    known = tuple(read_table(path, KEYS, OPTIONAL_KEYS).get("names", ()))
    if asked and tuple(asked) != known:
        what, got = "--names must be those the run was trained with", "--names " + " ".join(asked)
        step = "omit --names: the run keeps its own"
        expected = " ".join(known) or "LeRobot's own names"
        raise CheckpointError(what, where=path, got=got, expected=expected, next_step=step)
    return known


def check(run: Path, dataset: Path, fingerprint: Mapping[str, str], number: int = 0) -> None:
    """Raise CheckpointError unless the dataset is the one that the run began with; its path may have changed.

    `fingerprint`: size and hash of every file of the dataset, which is source `number` of the recipe.
    """
    records = read_records(run)
    saved = records[number] if number < len(records) else {"path": "no such source", "fingerprint": {}}
    if found := changes(saved["fingerprint"], dict(fingerprint)):
        what, got = "the run was trained on another dataset", f"{dataset.absolute()} ({first_few(found, 4, '; ')})"
        expected, step = f"{saved['path']}, as it was when the run began", "pass that dataset, or choose another --run"
        raise CheckpointError(what, where=run, got=got, expected=expected, next_step=step)
