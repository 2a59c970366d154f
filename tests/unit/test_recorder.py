"""Recording an episode while it happens: what is read back, corrections, and what fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lightwam.data.lerobot import recorder as recording
from lightwam.data.lerobot.check import check_dataset
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.lerobot.recorder import INTERVENTION, EpisodeRecorder
from lightwam.data.lerobot.writer import LeRobotWriter
from lightwam.errors import DatasetError

SIZE = (32, 48)
LENGTH = 90


def new_writer(root: Path, **changes: Any) -> LeRobotWriter:
    settings: dict[str, Any] = {"fps": 10, "robot_type": "arm", "cameras": {"front": SIZE}, "flags": (INTERVENTION,)}
    return LeRobotWriter(root, **settings | {"state_names": ["x"], "action_names": ["u", "v"]} | changes)


def record(recorder: EpisodeRecorder, length: int = LENGTH, corrected: range = range(0)) -> None:
    picture = np.zeros((*SIZE, 3), np.uint8)
    for step in range(length):
        picture[:] = 2 * step  # one buffer, as a camera may have
        action = np.array([step, -step], np.float32)
        recorder.add({"front": picture}, np.array([step], np.float32), action, corrected=step in corrected)


def test_what_is_recorded_is_read_back_and_corrections_are_marked(tmp_path: Path) -> None:
    """Episode after episode, also by another writer of the same dataset."""
    line = ""
    for corrected in (range(20, 30), range(0)):
        recorder = EpisodeRecorder(new_writer(tmp_path))
        record(recorder, corrected=corrected)
        line = recorder.save("open it", {"ended": "the time is over"})
        assert ("10 of them corrections" in line) is bool(corrected)
    assert line.startswith("episode 1 of")
    dataset = LeRobotDataset(tmp_path)
    assert [episode.length for episode in dataset.episodes] == [LENGTH, LENGTH]
    assert dataset.episodes[0].extra == {"ended": "the time is over"} and dataset.tasks == ("open it",)
    assert dataset.vectors.action[:LENGTH, 1].tolist() == [-step for step in range(LENGTH)]
    frames = dataset.frames(1, "front")
    assert np.abs(frames.astype(int) - 2 * np.arange(LENGTH)[:, None, None, None]).max() <= 2
    assert check_dataset(tmp_path).problems == ()
    column = pq.ParquetFile(tmp_path / "data/chunk-000/file-000.parquet").read([INTERVENTION])[INTERVENTION]
    assert column.to_pylist() == [step in range(20, 30) for step in range(LENGTH)]
    assert dataset.info["features"][INTERVENTION] == {"dtype": "bool", "shape": [1], "names": None}


def test_the_statistics_are_those_of_a_complete_clip(tmp_path: Path) -> None:
    """Nearly: other pictures of the same episode are measured."""
    recorder = EpisodeRecorder(new_writer(tmp_path / "a"))
    record(recorder)
    recorder.save("open it", {})
    clip = np.broadcast_to(2 * np.arange(LENGTH, dtype=np.uint8)[:, None, None, None], (LENGTH, *SIZE, 3))
    with new_writer(tmp_path / "b") as whole:
        state, action = np.zeros((LENGTH, 1), np.float32), np.zeros((LENGTH, 2), np.float32)
        whole.add_episode({"front": clip}, state, action, "open it", flags={INTERVENTION: np.zeros(LENGTH, bool)})
    means = [LeRobotDataset(tmp_path / name).info and _mean(tmp_path / name) for name in "ab"]
    assert abs(means[0] - means[1]) < 0.03


def _mean(root: Path) -> float:
    import json

    stats = json.loads((root / "meta/stats.json").read_text(encoding="utf-8"))
    return float(stats["observation.images.front"]["mean"][0][0][0])


def test_a_discarded_or_empty_recording_leaves_no_episode(tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    recorder = EpisodeRecorder(writer)
    record(recorder, 5)
    recorder.discard()
    assert EpisodeRecorder(writer).save("open it", {}) == "nothing was recorded"
    EpisodeRecorder(writer).discard()
    assert writer.num_episodes == 0 and [*(tmp_path / "incoming").glob("episode_*")] == []


def test_a_camera_that_changes_its_size_is_refused(tmp_path: Path) -> None:
    recorder = EpisodeRecorder(new_writer(tmp_path))
    with pytest.raises(DatasetError, match="must keep their size"):
        recorder.add({"front": np.zeros((8, 8, 3), np.uint8)}, np.zeros(1), np.zeros(2), corrected=False)
    recorder.discard()


def test_an_encoder_that_fails_is_an_error_of_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(recording.VideoEncoder):
        def add(self, picture: np.ndarray) -> None:
            raise OSError("no space left on device")

    monkeypatch.setattr(recording, "VideoEncoder", Broken)
    recorder = EpisodeRecorder(new_writer(tmp_path))
    record(recorder, 1)
    with pytest.raises(DatasetError, match="no space left"):
        recorder.save("open it", {})


def test_a_slow_encoder_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "WAITING_BYTES", 10 * 3 * 32 * 48)
    monkeypatch.setattr(recording._Encoding, "start", lambda self: None)
    recorder = EpisodeRecorder(new_writer(tmp_path))
    with pytest.raises(DatasetError, match=r"slower than the pictures come\n  got: 10 steps wait"):
        record(recorder)


def test_flags_must_be_the_declared_ones(tmp_path: Path) -> None:
    frames = {"front": np.zeros((4, *SIZE, 3), np.uint8)}
    state, action = np.zeros((4, 1), np.float32), np.zeros((4, 2), np.float32)
    writer = new_writer(tmp_path)
    for flags in ({}, {INTERVENTION: np.zeros(3, bool)}, {INTERVENTION: np.zeros(4)}, {"other": np.zeros(4, bool)}):
        with pytest.raises(DatasetError, match="other flags"):
            writer.add_episode(frames, state, action, "open it", flags=flags)
    with pytest.raises(DatasetError, match="another dataset"):
        new_writer(tmp_path, flags=())
