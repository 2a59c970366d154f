"""Datasets as others have them: other names, cameras of no use, files that are not what they should be, any text."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from caches import decoded_cache

from lightwam.cli.main import main
from lightwam.config.schema import CameraPlace, CodecConfig
from lightwam.data.cache.frames import FrameCache
from lightwam.data.lerobot.check import check_dataset
from lightwam.data.lerobot.features import FeatureNames, guessed_names, parse_names
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.lerobot.writer import LeRobotWriter
from lightwam.errors import CheckpointError, ConfigError, DatasetError
from lightwam.policy import run_directory
from lightwam.training import dataset_record
from lightwam.training.caches import DatasetSource
from lightwam.training.dataset import open_training_data

DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.wrist/chunk-000/file-000.mp4"
CONFIG = CodecConfig(canvas=(16, 16), places=(CameraPlace("front", 0, 0, 16, 16),))
LENGTHS = (4, 3)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("others") / "set"
    with LeRobotWriter(root, 10, "arm", {"front": (16, 16), "wrist": (16, 16)}, ["x", "y"], ["u"]) as out:
        for number, length in enumerate(LENGTHS):
            frames = {camera: np.full((length, 16, 16, 3), 90, np.uint8) for camera in ("front", "wrist")}
            state, action = np.full((length, 2), number, np.float32), np.ones((length, 1), np.float32)
            out.add_episode(frames, state, action, f"task {number}")
    return root


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "set"))


def edit_info(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    change(info)
    (root / "meta/info.json").write_text(json.dumps(info))


def rename(root: Path, pairs: dict[str, str]) -> None:
    """Call features otherwise, everywhere."""
    edit_info(root, lambda info: info.update(features={pairs.get(k, k): v for k, v in info["features"].items()}))
    for path in (DATA, EPISODES):
        table = pq.read_table(root / path)
        known = [pairs.get(name, name) for name in table.column_names]
        for old, new in pairs.items():
            known = [name.replace(f"videos/{old}/", f"videos/{new}/") for name in known]
        pq.write_table(table.rename_columns(known), root / path)
    for old, new in pairs.items():
        if (root / "videos" / old).is_dir():
            (root / "videos" / old).rename(root / "videos" / new)


# Names


OPENPI = {"observation.images.front": "image", "observation.images.wrist": "wrist_image",
          "observation.state": "state", "action": "actions"}  # fmt: skip
LINE = "state=observation.state actions=action image=front wrist_image=wrist"


def test_other_names_are_read_and_a_refusal_proposes_the_line(root: Path, written: Path) -> None:
    rename(root, OPENPI)
    with pytest.raises(DatasetError, match=rf"next: .*--names {LINE}$"):
        LeRobotDataset(root)
    found = check_dataset(root)
    assert found.dataset is None and len(found.problems) == 2 and all(LINE in str(fault) for fault in found.problems)
    data, plain = LeRobotDataset(root, parse_names(LINE.split())), LeRobotDataset(written)
    data.check()
    assert data.cameras == plain.cameras
    np.testing.assert_array_equal(data.vectors.state, plain.vectors.state)
    assert data.fingerprint()["names"] == "actions=action image=front state=observation.state wrist_image=wrist"
    assert "names" not in plain.fingerprint()


def test_a_renamed_feature_may_exist_with_lerobots_names(root: Path) -> None:
    rename(root, {"observation.images.front": "observation.image"})
    data = LeRobotDataset(root, parse_names(["observation.image=front"]))
    assert sorted(data.cameras) == ["front", "wrist"]
    data = LeRobotDataset(root, parse_names(["observation.image=front", "observation.images.wrist=hand"]))
    assert sorted(data.cameras) == ["front", "hand"]
    with pytest.raises(DatasetError, match=r"feature is missing(.|\n)*did you mean 'observation.image'"):
        LeRobotDataset(root, parse_names(["observation.imag=front"]))


@pytest.mark.parametrize(
    ("features", "line"),
    [
        (["observation.image", "observation.state", "action"], "observation.image=front"),
        (["image", "wrist_image", "state", "actions"], LINE),
        (["observation.images.top", "observation.state", "actions"], "actions=action"),
        (["observation.exterior_image_1_left", "observation.joint_position", "action"],
         "observation.joint_position=observation.state observation.exterior_image_1_left=exterior_1_left"),
        (["observation.images.top", "observation.state", "action"], ""),
    ],
)  # fmt: skip
def test_the_proposal_is_a_line_to_copy(features: list[str], line: str) -> None:
    table = {key: {"dtype": "video", "shape": [8, 8, 3]} if "image" in key else {"dtype": "float32", "shape": [3]}
             for key in features} | {"timestamp": {"dtype": "float32", "shape": [1]}}  # fmt: skip
    assert " ".join(guessed_names(table, FeatureNames())) == line
    assert not line or parse_names(line.split()).pairs()


@pytest.mark.parametrize(
    "pairs", [["front"], ["=front"], ["image="], ["a=b/c"], ["a=front", "b=front"], ["a=b", "a=c"]]
)
def test_malformed_names_are_refused(pairs: list[str]) -> None:
    with pytest.raises(ConfigError, match="--names"):
        parse_names(pairs)


def test_a_run_keeps_its_names(tmp_path: Path) -> None:
    assert dataset_record.feature_names(tmp_path, ("image=front",)) == ("image=front",)
    record = {"path": "set", "episodes": 2, "fingerprint": {"a": "1"}}
    run_directory.write_json(tmp_path / "dataset.json", record | {"names": ["image=front"]})
    dataset_record.check(tmp_path, Path("set"), {"a": "1"})
    assert (
        dataset_record.feature_names(tmp_path)
        == dataset_record.feature_names(tmp_path, ("image=front",))
        == ("image=front",)
    )
    with pytest.raises(CheckpointError, match=r"--names must be those(.|\n)*image=top(.|\n)*image=front"):
        dataset_record.feature_names(tmp_path, ("image=top",))
    run_directory.write_json(tmp_path / "dataset.json", record)
    assert dataset_record.feature_names(tmp_path) == ()


def test_two_cameras_are_not_called_alike(root: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"two cameras the same name(.|\n)*images.wrist and observation.images.front are both"
    ):
        LeRobotDataset(root, parse_names(["observation.images.wrist=front"]))


def test_training_resumes_without_names(tiny: Any, tmp_path: Path) -> None:
    rename(tiny.dataset, {"observation.images.top": "image", "action": "actions"})
    names, run = parse_names(["image=top", "actions=action"]), tmp_path / "named"
    run_directory.start_run(run, tiny.recipe)
    first, _ = open_training_data(tiny.recipe, DatasetSource(tiny.dataset, names), run, lambda line: None)
    assert run_directory.read_json(run / "dataset.json")["names"] == ["actions=action", "image=top"]
    again, _ = open_training_data(tiny.recipe, tiny.dataset, run, lambda line: None)
    np.testing.assert_array_equal(first.action, again.action)
    with pytest.raises(CheckpointError, match="--names must be"):
        other = DatasetSource(tiny.dataset, parse_names(["image=front", "actions=action"]))
        open_training_data(tiny.recipe, other, run, lambda line: None)


def test_a_camera_that_a_recipe_misses_may_be_named(root: Path, tmp_path: Path) -> None:
    top = CodecConfig(canvas=(16, 16), places=(CameraPlace("top", 0, 0, 16, 16),))
    with pytest.raises(DatasetError, match=r"--names observation.images.front=top"):
        FrameCache.build(LeRobotDataset(root), top, tmp_path / "cache")
    named = LeRobotDataset(root, parse_names(["observation.images.front=top"]))
    assert decoded_cache(named, top, tmp_path / "cache").num_steps == 7


def test_a_robot_without_a_state(root: Path) -> None:
    rename(root, {"observation.state": "pose"})
    data = LeRobotDataset(root)
    data.check()
    assert data.state_dim == 0 and data.vectors.state.shape == (7, 0)
    assert data.stats["observation.state"].mean.shape == (0,)
    (note,) = check_dataset(root).notes
    assert "without a state" in note
    rename(root, {"pose": "state"})
    (note,) = check_dataset(root).notes
    assert "--names state=observation.state" in note


# What is not used


def test_a_depth_camera_is_left_alone(root: Path, tmp_path: Path) -> None:
    def depth(info: dict[str, Any]) -> None:
        feature = info["features"]["observation.images.wrist"]
        info["features"]["observation.images.wrist"] = feature | {"shape": [16, 16, 1], "info": {"is_depth_map": True}}

    edit_info(root, depth)
    found = check_dataset(root)
    assert not found.problems and found.notes == ("camera wrist is left out: a camera is not RGB (depth)",)
    data = LeRobotDataset(root)
    assert list(data.cameras) == ["front"] and VIDEO not in data.fingerprint()
    assert decoded_cache(data, CONFIG, tmp_path / "cache").num_steps == 7
    wrist = CodecConfig(canvas=(16, 16), places=(CameraPlace("wrist", 0, 0, 16, 16),))
    with pytest.raises(DatasetError, match="not RGB"):
        FrameCache.build(data, wrist, tmp_path / "other")


def lose_columns(root: Path) -> None:
    table = pq.read_table(root / EPISODES)
    pq.write_table(
        table.drop_columns([name for name in table.column_names if "images.wrist/" in name]), root / EPISODES
    )


UNUSED: dict[str, Callable[[Path], object]] = {
    "no video": lambda root: (root / VIDEO).unlink(),
    "broken video": lambda root: (root / VIDEO).write_bytes(b"\0" * 100),
    "not in the episodes table": lose_columns,
    "of an unknown kind": lambda root: edit_info(
        root, lambda info: info["features"]["observation.images.wrist"].update(dtype="pointcloud")
    ),
}


@pytest.mark.parametrize("name", UNUSED)
def test_a_broken_camera_stops_only_who_uses_it(root: Path, tmp_path: Path, name: str) -> None:
    UNUSED[name](root)
    data = LeRobotDataset(root)
    assert decoded_cache(data, CONFIG, tmp_path / "cache").num_steps == 7
    wrist = CodecConfig(canvas=(16, 16), places=(CameraPlace("wrist", 0, 0, 16, 16),))
    with pytest.raises(DatasetError, match="wrist"):
        FrameCache.build(data, wrist, tmp_path / "other")
    assert any("wrist" in str(fault) for fault in check_dataset(root).problems)


def test_without_the_tasks_of_episodes_sentences_follow_from_task_index(root: Path) -> None:
    pq.write_table(pq.read_table(root / EPISODES).drop_columns(["tasks"]), root / EPISODES)
    data = LeRobotDataset(root)
    data.check()
    assert [data.tasks[task] for task in data.vectors.task_index] == ["task 0", "task 1"]


def rows_of(root: Path, **columns: list[Any]) -> None:
    table = pq.read_table(root / DATA)
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    pq.write_table(table, root / DATA)


def tasks_of(root: Path, sentences: dict[int, str], name: str = "__index_level_0__") -> None:
    pq.write_table(pa.table({"task_index": [*sentences], name: [*sentences.values()]}), root / "meta/tasks.parquet")


@pytest.mark.parametrize("name", ["__index_level_0__", "task", "tasks"])
def test_a_task_keeps_its_number_where_others_were_taken_out(root: Path, name: str) -> None:
    """And where the table has another order, which `check dataset` tells: LeRobot reads the row of that number."""
    rows_of(root, task_index=[5] * 4 + [2] * 3)
    tasks_of(root, {5: "task 0", 2: "task 1"}, name)
    data = LeRobotDataset(root)
    assert [data.tasks[task] for task in data.vectors.task_index] == ["task 0", "task 1"]
    assert (data.used_tasks, data.tasks.count("")) == ((2, 5), 4)
    assert [fault.what for fault in check_dataset(root).problems] == ["tasks are not in the order of task_index"]
    rows_of(root, task_index=[5] * 4 + [3] * 3)
    with pytest.raises(DatasetError, match=r"has no sentence(.|\n)*got: 3(.|\n)*one of 2, 5"):
        assert LeRobotDataset(root).vectors


FORMS: dict[str, tuple[str, str, Callable[[list[Any]], pa.Array]]] = {
    "sentences as pandas' categories": ("meta/tasks.parquet", "__index_level_0__",
                                        lambda values: pa.array(values).dictionary_encode()),
    "sentences as polars' views": ("meta/tasks.parquet", "__index_level_0__",
                                   lambda values: pa.array(values, pa.string_view())),
    "an episode's one task without a list": (EPISODES, "tasks", lambda values: pa.array([one for one, in values])),
    "no episode's tasks": (EPISODES, "tasks", lambda values: pa.nulls(len(values))),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_column_may_be_stored_in_other_forms(root: Path, name: str) -> None:
    file, column, form = FORMS[name]
    table = pq.read_table(root / file)
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, form(table.column(column).to_pylist())), root / file)
    data = LeRobotDataset(root)
    assert [data.tasks[task] for task in data.vectors.task_index] == ["task 0", "task 1"]
    assert not check_dataset(root).problems


def test_episodes_in_another_order_in_a_video_are_reported(root: Path) -> None:
    """Reading cannot know whether two of equal length were exchanged."""
    edit_info(root, lambda info: info.update(codebase_version="3.0"))  # without its v
    assert not check_dataset(root).notes
    table = pq.read_table(root / EPISODES)
    for part, values in (("from_timestamp", [0.3, 0.0]), ("to_timestamp", [0.7, 0.3])):
        place = table.schema.get_field_index(f"videos/observation.images.wrist/{part}")
        table = table.set_column(place, table.schema.field(place).name, pa.array(values))
    pq.write_table(table, root / EPISODES)
    assert check_dataset(root).notes == (
        "episode 1 is before episode 0 in the videos of camera wrist: check that its pictures are its own",
    )


@pytest.mark.parametrize("dtype", ["int64", "int8", "float16", "float64"])
def test_a_state_of_any_kind_of_numbers_is_read(root: Path, dtype: str) -> None:
    edit_info(root, lambda info: info["features"]["observation.state"].update(dtype=dtype))
    values = pa.array([[1, 2]] * 7, pa.list_(pa.from_numpy_dtype(np.dtype(dtype))))
    rows_of(root, **{"observation.state": values})
    assert (LeRobotDataset(root).vectors.state == [1, 2]).all() and not check_dataset(root).problems


# Files that are not what they should be


@pytest.mark.parametrize("left", ["._{}", ".{}.a1b2", "Thumbs.db", ".DS_Store"])
def test_files_of_other_systems_are_ignored(root: Path, left: str) -> None:
    """macOS puts one beside every file that it copies to another disk; downloads have hidden drafts."""
    known = LeRobotDataset(root).fingerprint()
    for path in [path for path in root.rglob("*") if path.is_file()]:
        path.with_name(left.format(path.name)).write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")
    (root / "data/.cache").mkdir()
    shutil.copy(root / DATA, root / "data/.cache/file-000.parquet")
    found = check_dataset(root)
    assert not found.problems and not found.notes and LeRobotDataset(root).fingerprint() == known


@pytest.mark.parametrize("pattern", ["/data/{chunk_index}.parquet", "{chunk_index.x}", "{chunk_index[0]}", "{", "{0}"])
@pytest.mark.parametrize("key", ["data_path", "video_path"])
def test_a_pattern_that_gives_no_path_is_named(root: Path, key: str, pattern: str) -> None:
    edit_info(root, lambda info: info.update({key: pattern}))
    with pytest.raises(DatasetError, match=rf"a path pattern(.|\n)*{key}"):
        LeRobotDataset(root).check()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"
PAGE = b"<!DOCTYPE html><html><body>Log in to download</body></html>"
FILES = (DATA, EPISODES, "meta/tasks.parquet", "meta/info.json", VIDEO)
STRANGE = {"empty": (b"", "is empty"), "pointer": (POINTER, "git-lfs pointer"), "page": (PAGE, "web page")}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", STRANGE)
def test_a_file_that_is_another_thing_is_named_with_the_cause(root: Path, file: str, kind: str) -> None:
    content, words = STRANGE[kind]
    (root / file).write_bytes(content)
    assert [fault for fault in check_dataset(root).problems if str(root / file) in str(fault) and words in str(fault)]
    with pytest.raises(DatasetError, match=words):
        LeRobotDataset(root).check()


@pytest.mark.parametrize("file", [DATA, EPISODES, "meta/tasks.parquet"])
def test_a_table_whose_writer_was_not_closed_is_named(root: Path, file: str) -> None:
    (root / file).write_bytes((root / file).read_bytes()[:-30])
    with pytest.raises(DatasetError, match=rf"{file}(.|\n)*no footer: its writer was not closed"):
        LeRobotDataset(root).check()


@pytest.mark.parametrize("file", [DATA, VIDEO, EPISODES])
def test_a_renamed_file_is_recognised(root: Path, file: str) -> None:
    """But LeRobot takes any name for a table of episodes, and so do we."""
    path = root / file
    path.rename(path.with_name(f"mine{path.suffix}"))
    if file == EPISODES:
        LeRobotDataset(root).check()
        return
    with pytest.raises(DatasetError, match=rf"is missing(.|\n)*got: mine{path.suffix} in (.|\n)*_path in meta/info"):
        LeRobotDataset(root).check()


@pytest.mark.parametrize("file", [DATA, VIDEO, "meta/tasks.parquet"])
def test_a_folder_instead_of_a_file_is_named(root: Path, file: str) -> None:
    (root / file).unlink()
    (root / file).mkdir()
    with pytest.raises(DatasetError, match="got: a folder of that name"):
        LeRobotDataset(root).check()


def test_too_large_models_are_reported(root: Path) -> None:
    table = pq.read_table(root / EPISODES)
    place = table.schema.get_field_index("length")
    pq.write_table(table.set_column(place, "length", pa.array([4, 10**13])), root / EPISODES)
    assert "10000000000000 in episode 1" in str(check_dataset(root).problems[-1])
    (root / "meta/info.json").write_text("[" * 100_000)
    with pytest.raises(DatasetError, match="must be JSON"):
        LeRobotDataset(root)


def test_two_exchanged_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightwam.data.lerobot import merge

    monkeypatch.setattr(merge, "DATA_BYTES", 1)
    with LeRobotWriter(tmp_path, 10, "arm", {"front": (16, 16)}, ["x"], ["u"]) as out:
        for length in LENGTHS:
            row = np.zeros((length, 1), np.float32)
            out.add_episode({"front": np.zeros((length, 16, 16, 3), np.uint8)}, row, row, "task")
    first, second = (tmp_path / DATA.replace("file-000", f"file-00{i}") for i in (0, 1))
    first.rename(tmp_path / "x"), second.rename(first), (tmp_path / "x").rename(second)
    with pytest.raises(DatasetError, match=r"rows are in another file(.|\n)*file-001\.parquet(.|\n)*file-000\.parquet"):
        assert LeRobotDataset(tmp_path).vectors


def test_an_episode_in_two_tables_names_both(root: Path) -> None:
    shutil.copy(root / EPISODES, (root / EPISODES).with_name("file-000 (copy).parquet"))
    with pytest.raises(DatasetError, match=r"episode 0 twice, in (.|\n)*file-000 \(copy\)\.parquet"):
        LeRobotDataset(root)


# Text


def older(root: Path, tasks: bytes) -> Path:
    """The older layout's tables of tasks and episodes; nothing else of it is read here."""
    edit_info(root, lambda info: info.update(codebase_version="v2.1",
              data_path=DATA.replace("chunk-000", "chunk-{episode_chunk:03d}"), video_path=VIDEO))  # fmt: skip
    (root / "meta/tasks.jsonl").write_bytes(tasks)
    rows = [json.dumps({"episode_index": i, "length": length}) for i, length in enumerate(LENGTHS)]
    (root / "meta/episodes.jsonl").write_text("\r\n".join(rows) + "\r\n\n")
    return root


def test_json_lines_end_at_line_feeds_alone(root: Path) -> None:
    sentences = ("put\u2028it\u2029 there\x85", "把红色方块放进盒子")
    lines = [json.dumps({"task_index": i, "task": task}, ensure_ascii=False) for i, task in enumerate(sentences)]
    assert LeRobotDataset(older(root, "\n".join(lines).encode())).tasks == sentences
    marked = "\ufeff" + "\r\n".join(lines)  # as Windows' editors save it
    assert LeRobotDataset(older(root, marked.encode())).tasks == sentences
    older(root, b'{"task_index": 0, "task": "caf\xe9"}\n')
    with pytest.raises(DatasetError, match=r"not UTF-8(.|\n)*tasks\.jsonl"):
        LeRobotDataset(root)


def test_text_is_utf_8_whatever_the_locale(root: Path) -> None:
    older(root, '{"task_index": 0, "task": "放进"}\n{"task_index": 1, "task": "é"}\n'.encode())
    (root / VIDEO).rename(root / "videos/腕.mp4")
    edit_info(root, lambda info: info.update(video_path="videos/腕.mp4"))
    root = root.rename(root.with_name("données 数"))
    edit = (root / "meta/info.json").read_text().replace('"arm"', '"机械臂"')
    (root / "meta/info.json").write_text(edit, encoding="utf-8")
    script = """
import sys
from lightwam.data.lerobot.reader import LeRobotDataset
data = LeRobotDataset(sys.argv[1])
print(ascii((data.tasks, data.robot_type)), data.vectors.state.shape, data.frames(0, "front").shape)
"""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", script, str(root)], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == ascii((("放进", "é"), "机械臂")) + " (7, 2) (4, 16, 16, 3)", done.stderr


# The command


def test_check_dataset_prints_all_faults_and_notes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "dataset", str(root)]) == 0
    assert "sound; 2 episodes, 7 frames, cameras front, wrist, 2 tasks" in capsys.readouterr().out
    table = pq.read_table(root / DATA)
    place = table.schema.get_field_index("action")
    pq.write_table(table.set_column(place, "action", pa.array([float("inf")] * 7)), root / DATA)
    edit_info(root, lambda info: info.update(total_frames=8))
    (root / VIDEO).unlink()
    assert main(["check", "dataset", str(root)]) == 2
    out, err = capsys.readouterr()
    for words in ("total_frames", "episode 0 action frame 0", "episode 1 action frame 0", VIDEO, "next: "):
        assert words in out
    assert "4 problems, listed above" in err


def test_check_dataset_notes_an_empty_sentence(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / "meta" / "tasks.parquet"
    table = pq.read_table(path)
    place = next(i for i, field in enumerate(table.schema) if pa.types.is_string(field.type))
    sentences = [" ", *table.column(place).to_pylist()[1:]]
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(sentences)), path)
    episodes = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    pq.write_table(pq.read_table(episodes).drop_columns(["tasks"]), episodes)
    assert main(["check", "dataset", str(root)]) == 0
    assert "task 0 is an empty sentence" in capsys.readouterr().out


def test_check_dataset_takes_names(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rename(root, OPENPI)
    assert main(["check", "dataset", str(root), "--names", *LINE.split()]) == 0
    assert "sound" in capsys.readouterr().out
    assert main(["check", "dataset", str(root)]) == 2
    assert LINE in capsys.readouterr().out
