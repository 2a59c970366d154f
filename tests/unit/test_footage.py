"""A folder of videos with sentences as a dataset without actions: the right frames at one rate, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from lightwam.data.lerobot.features import ACTION, STATE
from lightwam.data.lerobot.footage import footage_dataset, is_footage
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.lerobot.video import encode_video
from lightwam.errors import DatasetError


def clip(folder: Path, name: str, fps: int, frames: int, size: int = 16) -> None:
    """Frame i has the level 8 i."""
    levels = (8 * np.arange(frames)).astype(np.uint8)[:, None, None, None]
    encode_video(folder / name, np.tile(levels, (1, size, size, 3)), fps)


def describe(folder: Path, rows: list[object]) -> None:
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A video of 10 frames a second, and one of 20."""
    folder = tmp_path / "clips"
    folder.mkdir()
    clip(folder, "a.mp4", 10, 12)
    clip(folder, "b.mp4", 20, 21)
    describe(folder, [{"file_name": "b.mp4", "task": "wave", "source": "phone"}, {"file_name": "a.mp4", "task": "nod"}])
    return folder


def test_videos_are_episodes_at_one_rate(folder: Path, tmp_path: Path) -> None:
    assert is_footage(folder)
    root = footage_dataset(folder, tmp_path / "home")
    data = LeRobotDataset(root, optional=(STATE, ACTION))
    data.check()
    assert data.fps == 20 and data.cameras == {"video": (16, 16)} and data.tasks == ("wave", "nod")
    assert data.vectors.state.shape == data.vectors.action.shape == (21 + 23, 0)
    levels = [data.frames(episode, "video").mean(axis=(1, 2, 3)) for episode in range(2)]
    np.testing.assert_allclose(levels[0], 8 * np.arange(21), atol=2)
    np.testing.assert_allclose(levels[1], 8 * np.minimum((np.arange(23) + 1) // 2, 11), atol=2)  # each frame twice
    assert not is_footage(root) and not list(folder.glob("meta"))


def test_it_is_made_once_and_again_when_a_file_changes(folder: Path, tmp_path: Path) -> None:
    root = footage_dataset(folder, tmp_path / "home")
    before = LeRobotDataset(root, optional=(STATE, ACTION)).fingerprint()
    assert footage_dataset(folder, tmp_path / "home") == root
    clip(folder, "a.mp4", 10, 5)
    again = footage_dataset(folder, tmp_path / "home")
    assert again != root and LeRobotDataset(again, optional=(STATE, ACTION)).fingerprint() != before
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == sorted([root.name, again.name])


def test_what_is_wrong_is_named(folder: Path, tmp_path: Path) -> None:
    good = {"file_name": "a.mp4", "task": "nod"}
    for row, words in (
        ({"file_name": "a.mp4"}, r"metadata\.jsonl:2(.|\n)*'task': 'str'"),
        (["a.mp4", "nod"], r"metadata\.jsonl:2"),
        (good, r"one line(.|\n)*metadata\.jsonl:2"),
        ({"file_name": "c.mp4", "task": "nod"}, r"missing(.|\n)*a\.mp4, b\.mp4(.|\n)*c\.mp4"),
    ):
        describe(folder, [good, row])
        with pytest.raises(DatasetError, match=words):
            footage_dataset(folder, tmp_path / "home")
    (folder / "metadata.jsonl").write_bytes(b'{"file_name": "a.mp4", "task": "\xe4"}\n')
    with pytest.raises(DatasetError, match="not UTF-8"):
        footage_dataset(folder, tmp_path / "home")
    describe(folder, [])
    with pytest.raises(DatasetError, match="no lines"):
        footage_dataset(folder, tmp_path / "home")
    describe(folder, [good, {"file_name": "b.mp4", "task": "wave"}])
    clip(folder, "b.mp4", 10, 5, size=32)
    with pytest.raises(DatasetError, match=r"one size(.|\n)*b\.mp4"):
        footage_dataset(folder, tmp_path / "home")
    (folder / "b.mp4").write_bytes(b"no video")
    with pytest.raises(DatasetError, match=r"cannot be read(.|\n)*b\.mp4"):
        footage_dataset(folder, tmp_path / "home")
    assert not (tmp_path / "home").exists()
