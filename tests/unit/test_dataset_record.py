"""training/dataset_record.py: a run is trained on one dataset."""

from pathlib import Path

import pytest

from lightwam.errors import CheckpointError
from lightwam.policy import run_directory
from lightwam.training import dataset_record


def test_a_run_belongs_to_the_dataset_it_began_with(tmp_path: Path) -> None:
    files = {"meta/info.json": "3 bytes, aa", "data/0.parquet": "9 bytes, bb"}
    record = {"path": str(Path("one").absolute()), "episodes": 3, "fingerprint": files}
    run_directory.write_json(tmp_path / "dataset.json", record)
    dataset_record.check(tmp_path, Path("moved"), dict(files))
    began = run_directory.read_json(tmp_path / "dataset.json")
    assert began.pop("episodes") == 3
    run_directory.write_json(tmp_path / "dataset.json", began)  # as runs of before have it
    dataset_record.check(tmp_path, Path("moved"), dict(files))
    with pytest.raises(CheckpointError, match="another dataset") as caught:
        dataset_record.check(tmp_path, Path("two"), files | {"data/0.parquet": "9 bytes, cc"})
    for told in (str(Path("one").absolute()), str(Path("two").absolute()), "data/0.parquet", "bb", "cc"):
        assert told in str(caught.value)
    assert "info.json" not in str(caught.value)


def test_run_without_a_dataset_record_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"dataset\.json"):
        dataset_record.check(tmp_path, Path("one"), {})
    (tmp_path / "dataset.json").write_text('{"path": "one"}')
    with pytest.raises(CheckpointError, match=r"layout(.|\n)*dataset\.json"):
        dataset_record.check(tmp_path, Path("one"), {})
