"""report/view.py: the recording is read back, and holds what dataset and policy say. Rerun's part needs `make view`."""

from __future__ import annotations

import importlib.util
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightwam import LeRobotDataset, Policy
from lightwam.cli.main import main
from lightwam.errors import ConfigError, SetupError
from lightwam.evaluation.recorded import RecordedEpisode
from lightwam.report import view
from lightwam.report.view import Joint, has_display, joints, write_view
from lightwam.system.images import decode

needs_rerun = pytest.mark.skipif(importlib.util.find_spec("rerun") is None, reason="rerun-sdk: `make view` installs it")
Rows = dict[str, list[tuple[int, timedelta, Any]]]


def read_back(path: Path) -> Rows:
    """Return entity -> (frame, time, value) of every row, in order of the frames; None for a value that is cleared."""
    from rerun.chunk import RrdReader

    rows: Rows = {}
    for chunk in RrdReader(path).stream():
        if chunk.is_static:
            continue
        batch = chunk.to_record_batch()
        names = [name for name in batch.schema.names if name.split(":")[-1] in ("scalars", "blob", "text")]
        values = batch.column(names[0]).to_pylist() if names else [None] * batch.num_rows
        moments = zip(batch.column("frame").to_pylist(), batch.column("time").to_pylist(), strict=True)
        found = [(*moment, value and value[0]) for moment, value in zip(moments, values, strict=True)]
        rows.setdefault(chunk.entity_path.lstrip("/"), []).extend(found)
    return {entity: sorted(found, key=lambda row: (row[0], row[2] is not None)) for entity, found in rows.items()}


def values_of(rows: list[tuple[int, timedelta, Any]]) -> tuple[list[int], np.ndarray]:
    kept = [(frame, value) for frame, _, value in rows if value is not None]
    return [frame for frame, _ in kept], np.asarray([value for _, value in kept], np.float32)


@needs_rerun
def test_a_dataset_is_read_back(tiny_once: Any, tmp_path: Path) -> None:
    to = write_view(tiny_once.dataset, tmp_path / "new" / "view.rrd", episodes=(1, 4), say=lambda line: None)
    rows, data = read_back(to), LeRobotDataset(tiny_once.dataset)
    lengths = [data.episodes[number].length for number in (1, 4)]
    frames = [*range(lengths[0]), *(lengths[0] + 1 + np.arange(lengths[1])).tolist()]
    shown = np.concatenate([np.arange(*data.episode_start[number : number + 2]) for number in (1, 4)])
    for joint in joints(data.state_names, data.action_names):
        for kind, dim in (("state", joint.state), ("action", joint.action)):
            if dim is not None:
                name = f"joint/{view._part(joint.name)}/{kind}"
                at, values = values_of(rows[name])
                assert at == frames
                np.testing.assert_array_equal(values, getattr(data.vectors, kind)[shown, dim])
                assert [frame for frame, _, value in rows[name] if value is None] == [lengths[0], frames[-1] + 1]
    pictures = rows["camera/top"]
    assert [frame for frame, _, _ in pictures] == frames
    assert pictures[3][1] / timedelta(seconds=1) == pytest.approx(3 / data.fps, abs=1e-6)
    decoded = decode(bytes(pictures[-1][2]), 1 << 20)
    assert np.abs(decoded.astype(int) - data.frames(4, "top")[-1]).mean() < 4
    assert [(frame, text.split("\n")[0]) for frame, _, text in rows["task"]] == [
        (first, f"## {RecordedEpisode(data, number, data.tasks[data.vectors.task_index[number]]).instruction}")
        for first, number in ((0, 1), (lengths[0] + 1, 4))
    ]


@needs_rerun
def test_a_run_has_its_chunks_and_futures(tiny_once: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to, data = tmp_path / "run.rrd", LeRobotDataset(tiny_once.dataset)
    words = ["--save", str(to), "--episodes", "2", "--imagine-steps", "2", "--device", "cpu"]
    assert main(["view", str(tiny_once.run), *words]) == 0
    assert str(to) in capsys.readouterr().out
    rows, policy = read_back(to), Policy.load(tiny_once.run)
    recipe, length = policy.recipe, data.episodes[2].length
    horizon, stride, replan = recipe.model.horizon, recipe.codec.video_stride, recipe.eval.replan
    seen = list(RecordedEpisode(data, 2, "").observations(policy.cameras))
    lines = horizon // replan + 1
    joint = joints(data.state_names, data.action_names)[0]
    for turn, first in enumerate(range(0, length, replan)):
        line = dict(zip(*values_of(rows[f"joint/{view._part(joint.name)}/chunk{turn % lines}"]), strict=True))
        chunk = policy.act(seen[first])[:, joint.action]
        steps = range(first, min(first + horizon, length))
        np.testing.assert_allclose([line[step] for step in steps], chunk[: len(steps)], atol=1e-5)
        assert first + horizon not in line or first + horizon >= length
    assert [frame for frame, _, _ in rows["model/sees"]] == list(range(0, length, stride))
    assert [frame for frame, _, _ in rows["model/imagines"]] == list(range(0, length, stride))
    future = policy.imagine(seen[0], num_steps=2)
    decoded = decode(bytes(rows["model/imagines"][1][2]), 1 << 20)
    assert np.abs(decoded.astype(int) - future[1]).mean() < 4


@needs_rerun
def test_the_viewer_is_told_where_to_listen(tiny_once: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a display it serves this machine alone."""
    commands: list[list[str]] = []
    monkeypatch.setattr("lightwam.report.view.subprocess.run", lambda command, check: commands.append(command))
    for display in ("", ":0"):
        monkeypatch.setenv("DISPLAY", display)
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        monkeypatch.setattr("lightwam.report.view.sys.platform", "linux")
        assert has_display() == bool(display)
        assert main(["view", str(tiny_once.dataset), "--episodes", "0"]) == 0
    assert commands[0][1:3] == ["-m", "rerun"] and commands[0][3].endswith("view.rrd")
    assert commands[0][4:] == ["--serve-web", "--bind", "127.0.0.1"] and commands[1][4:] == []
    assert not Path(commands[0][3]).exists()  # a temporary file


@needs_rerun
def test_an_unknown_episode(tiny_once: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such episode") as caught:
        write_view(tiny_once.dataset, tmp_path / "view.rrd", episodes=(0, 99), say=lambda line: None)
    assert caught.value.got == 99 and not (tmp_path / "view.rrd").exists()


def test_without_rerun(tiny_once: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(SetupError, match=r"lightwam\[view\]"):
        write_view(tiny_once.dataset, tmp_path / "view.rrd")


def test_state_and_action_share_a_plot_under_the_same_names() -> None:
    assert joints(["a", "b"], ["a", "b"]) == [Joint("a", 0, 0), Joint("b", 1, 1)]
    other = [Joint("action dx", None, 0), Joint("state x", 0, None), Joint("state y", 1, None)]
    assert joints(["x", "y"], ["dx"]) == other


def test_names_are_escaped_in_paths() -> None:
    assert view._part("left arm/elbow.pos-2_b") == r"left\ arm\/elbow\.pos-2_b"
