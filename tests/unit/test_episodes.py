"""evaluation/episodes.py: a folder of episodes read, opened under one protocol only, and files named after tasks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightwam.errors import CheckpointError
from lightwam.evaluation.episodes import claim_folder, open_episodes, read_episodes, task_files

ROW = {"task": "red", "seed": 7, "success": False, "steps": 40, "steps_to_success": None, "seconds": 1.5,
       "wall_seconds": 2.5, "infer_ms": [1.0, 2], "video": None}  # fmt: skip
BROKEN_LINES: dict[str, tuple[Callable[[dict[str, Any]], bytes], str]] = {
    "cut": (lambda row: json.dumps(row).encode()[:20], "Unterminated string"),
    "zeros": (lambda row: bytes(40), "Expecting value"),
    "no text": (lambda row: b'{"task": "\xff"}', "can't decode byte 0xff"),
    "empty": (lambda row: b"", "Expecting value"),
    "no object": (lambda row: b"17", "got: 17"),
    "no seed": (lambda row: json.dumps({k: v for k, v in row.items() if k != "seed"}).encode(), "seed"),
    "seed of text": (lambda row: json.dumps(row | {"seed": "7"}).encode(), "seed"),
    "true for a seed": (lambda row: json.dumps(row | {"seed": True}).encode(), "seed"),
    "number for success": (lambda row: json.dumps(row | {"success": 1}).encode(), "success"),
    "text among times": (lambda row: json.dumps(row | {"infer_ms": [1.0, "2"]}).encode(), "infer_ms"),
    "odd": (lambda row: json.dumps(row | {"odd": 1}).encode(), "odd"),
}


@pytest.mark.parametrize("name", BROKEN_LINES)
def test_a_broken_line_of_the_episodes_is_refused_by_its_number(tmp_path: Path, name: str) -> None:
    damage, told = BROKEN_LINES[name]
    good, path = json.dumps(ROW).encode() + b"\n", tmp_path / "episodes.jsonl"
    path.write_bytes(good + good[:10])
    assert read_episodes(tmp_path) == {("red", 7): ROW}
    before = good + damage(ROW) + b"\n" + good
    path.write_bytes(before)
    with pytest.raises(CheckpointError, match=told) as caught:
        read_episodes(tmp_path)
    assert f"{path}:2" in str(caught.value)
    assert "line" in caught.value.args[0].rpartition("next:")[2]
    assert path.read_bytes() == before


def test_open_episodes_of_a_new_folder(tmp_path: Path) -> None:
    assert open_episodes(tmp_path / "new", {"a": (1, 2)}) == {}
    assert open_episodes(tmp_path / "new", {"a": (1, 2)}) == {}  # JSON's lists are the same as tuples
    assert open_episodes(tmp_path / "new", {"a": (1, 3)}) == {}  # there is no episode that another protocol would harm
    (tmp_path / "new" / "episodes.jsonl").write_text(json.dumps(ROW) + "\n")
    with pytest.raises(CheckpointError, match="'a'"):
        open_episodes(tmp_path / "new", {"a": (1, 2)})


def test_another_protocol_is_not_claimed(tmp_path: Path) -> None:
    claim_folder(tmp_path, {"a": (1, 2)})
    claim_folder(tmp_path, {"a": (1, 2)})
    with pytest.raises(CheckpointError, match="'a'"):
        claim_folder(tmp_path, {"a": (1, 3)})


def test_a_truncated_last_line_is_removed_when_resuming(tmp_path: Path) -> None:
    open_episodes(tmp_path, {})
    good, path = json.dumps(ROW).encode() + b"\n", tmp_path / "episodes.jsonl"
    path.write_bytes(good + good[:10])
    assert read_episodes(tmp_path).keys() == {("red", 7)}
    assert path.read_bytes() == good + good[:10]  # it may be another's, who is at work
    assert open_episodes(tmp_path, {}).keys() == {("red", 7)}
    assert path.read_bytes() == good


def test_files_named_after_tasks_are_fit_and_no_two_are_the_same() -> None:
    plain = ("reach-v3", "libero_10", "open the drawer", "färben", "v1.2+")
    assert task_files(plain) == {task: task for task in plain}
    assert task_files(["libero_object/3", "../x", "a\\b", "c\0"]) == {
        "libero_object/3": "libero_object-3", "../x": "..-x", "a\\b": "a-b", "c\0": "c-",
    }  # fmt: skip
    assert task_files(["a/b", "a:b", "a-b", "A/b"]) == {"a-b": "a-b", "a/b": "a-b~2", "a:b": "a-b~3", "A/b": "A-b~4"}
    assert task_files(["Push", "push"]) == {"Push": "Push", "push": "push~2"}
