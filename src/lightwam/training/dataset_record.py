"""The record of a run's dataset, dataset.json: path, and size and hash of every file; a run uses no other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightwam.errors import CheckpointError, first_few
from lightwam.policy.run_directory import changes, read_table, write_json

KEYS, OPTIONAL_KEYS = ("fingerprint", "path"), ("episodes", "names")
"""keys of dataset.json; older runs lack "episodes", and runs whose features have LeRobot's names lack names"""


def write_dataset(
    run: Path, dataset: Path, episodes: int, fingerprint: Mapping[str, str], names: Sequence[str] = ()
) -> None:
    """Record what a new run is trained on. `fingerprint`: size and hash of every file of the dataset.

    `names`: the pairs FEATURE=NAME of a dataset whose features do not have LeRobot's names.
    """
    data = {"path": str(dataset.absolute()), "episodes": episodes, "fingerprint": dict(fingerprint)}
    write_json(run / "dataset.json", data | ({"names": list(names)} if names else {}))


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


def check_dataset(run: Path, dataset: Path, fingerprint: Mapping[str, str]) -> None:
    """Raise CheckpointError unless the dataset is the one that the run began with; its path may have changed."""
    saved = read_table(run / "dataset.json", KEYS, OPTIONAL_KEYS)
    if changed := changes(saved["fingerprint"], dict(fingerprint)):
        raise CheckpointError(
            "the run was trained on another dataset",
            where=run,
            got=f"{dataset.absolute()} ({first_few(changed, 4, '; ')})",
            expected=f"{saved['path']}, as it was when the run began",
            next_step="pass that dataset, or choose another --run",
        )
