"""LeRobot datasets: what is written is read back, the layout is LeRobot's, nothing broken passes, no kill loses it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightwam.data.lerobot import merge, writer
from lightwam.data.lerobot.check import check_dataset
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.lerobot.video import encode_video
from lightwam.data.lerobot.writer import LeRobotWriter
from lightwam.errors import DatasetError
from lightwam.system.files import file_fingerprint, write_atomically

LENGTHS, TASKS = (5, 3, 8, 4), ("open it", "close it", "open it", "wave")
FPS, CAMERAS = 10, {"front": (32, 48), "wrist": (16, 16)}
DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.wrist/chunk-000/file-000.mp4"


def episode(number: int) -> dict[str, Any]:
    """Episode `number`; pictures tell the episode and the frame by their grey levels."""
    length, random = LENGTHS[number], np.random.default_rng(number)
    frames = {}
    for camera, (height, width) in CAMERAS.items():
        frames[camera] = np.zeros((length, height, width, 3), np.uint8)
        frames[camera][:, : height // 2] = 40 * (number + 1)
        frames[camera][:, height // 2 :] = (20 * np.arange(1, length + 1))[:, None, None, None]
    vectors = [random.normal(size=(length, dims)).astype(np.float32) for dims in (3, 2)]
    return {
        "frames": frames,
        "state": vectors[0],
        "action": vectors[1],
        "task": TASKS[number],
        "extra": {"seed": 7 * number},
    }


def new_writer(root: Path, **changes: Any) -> LeRobotWriter:
    settings = {
        "fps": FPS,
        "robot_type": "arm",
        "cameras": CAMERAS,
        "state_names": ["x", "y", "z"],
        "action_names": ["u", "v"],
    }
    return LeRobotWriter(root, **(settings | changes))


def write(root: Path, numbers: tuple[int, ...] = (0, 1, 2, 3)) -> Path:
    with new_writer(root) as out:
        for number in numbers:
            out.add_episode(**episode(number))
    return root


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("whole") / "set")


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "set"))


def v21(source: Path, root: Path) -> Path:
    """The same dataset in the older layout: a file an episode, tables as JSON lines."""
    data, table = LeRobotDataset(source), pq.read_table(source / DATA)
    info = dict(data.info, codebase_version="v2.1", chunks_size=2, total_chunks=2, total_videos=8,
                data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
                video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4")  # fmt: skip
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    tasks = [{"task_index": i, "task": task} for i, task in enumerate(data.tasks)]
    rows = [{"episode_index": e.index, "tasks": list(e.tasks), "length": e.length} for e in data.episodes]
    for name, lines in (("tasks", tasks), ("episodes", rows)):
        (root / "meta" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for index in range(len(LENGTHS)):
        spot = {"episode_chunk": index // 2, "episode_index": index}
        path = root / info["data_path"].format(**spot)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.filter(pa.compute.equal(table["episode_index"], index)), path)
        for camera in CAMERAS:
            path = root / info["video_path"].format(video_key=f"observation.images.{camera}", **spot)
            path.parent.mkdir(parents=True, exist_ok=True)
            encode_video(path, episode(index)["frames"][camera], FPS)
    return root


def assert_holds(root: Path, numbers: tuple[int, ...] = (0, 1, 2, 3), extra: bool = True) -> None:
    data = LeRobotDataset(root)
    data.check()
    assert [data.tasks[i] for i in data.vectors.task_index] == [TASKS[n] for n in numbers]
    assert data.episode_start.tolist() == [0, *np.cumsum([LENGTHS[n] for n in numbers])]
    for index, number in enumerate(numbers):
        expected, span = episode(number), slice(*data.episode_start[index : index + 2])
        np.testing.assert_array_equal(data.vectors.state[span], expected["state"])
        np.testing.assert_array_equal(data.vectors.action[span], expected["action"])
        assert data.episodes[index].extra == (expected["extra"] if extra else {})
        for camera in CAMERAS:
            error = np.abs(data.frames(index, camera).astype(int) - expected["frames"][camera])
            assert error.mean() < 2.5, (index, camera)


def test_a_written_dataset_is_read_back(written: Path) -> None:
    assert_holds(written)
    data = LeRobotDataset(written)
    assert (data.version, data.fps, data.robot_type, data.cameras) == ("v3.0", 10.0, "arm", CAMERAS)
    assert (data.state_names, data.action_names) == (("x", "y", "z"), ("u", "v"))
    assert not (written / "incoming").exists()


def test_the_older_layout_reads_the_same(written: Path, tmp_path: Path) -> None:
    assert_holds(v21(written, tmp_path / "old"), extra=False)


def test_episodes_may_stand_in_any_order_in_a_table(root: Path) -> None:
    order = [("episode_index", "descending"), ("frame_index", "ascending")]
    pq.write_table(pq.read_table(root / DATA).sort_by(order), root / DATA)
    assert_holds(root)


def test_statistics_are_measured_from_the_tables(root: Path) -> None:
    (root / "meta" / "stats.json").write_text("{}")
    stats, action = LeRobotDataset(root).stats["action"], np.concatenate([episode(n)["action"] for n in range(4)])
    np.testing.assert_allclose(stats.mean, action.mean(0), rtol=1e-5)
    assert stats.count == sum(LENGTHS)


def test_the_layout_is_that_of_lerobot(written: Path) -> None:
    info = json.loads((written / "meta" / "info.json").read_text())
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (4, 20, 3)
    assert info["splits"] == {"train": "0:4"}
    ours = ["observation.images.front", "observation.images.wrist", "observation.state", "action"]
    assert list(info["features"]) == [*ours, "timestamp", "frame_index", "episode_index", "index", "task_index"]
    rows = pq.read_table(written / DATA).to_pydict()
    assert rows["index"] == list(range(20)) and rows["episode_index"] == [
        e for e in range(4) for _ in range(LENGTHS[e])
    ]
    assert rows["frame_index"] == [f for length in LENGTHS for f in range(length)]
    np.testing.assert_allclose(rows["timestamp"], np.array(rows["frame_index"]) / FPS, atol=1e-6)
    assert pq.read_schema(written / DATA).field("action").type == pa.list_(pa.float32(), 2)
    row = pq.read_table(written / EPISODES).to_pylist()[2]
    spot = "videos/observation.images.wrist/"
    assert (row["episode_index"], row["tasks"], row["length"]) == (2, ["open it"], 8)
    assert (row["dataset_from_index"], row["dataset_to_index"]) == (8, 16)
    assert (row[spot + "from_timestamp"], row[spot + "to_timestamp"]) == (0.8, 1.6)
    assert json.loads(row["lightwam/extra"]) == {"seed": 14}
    np.testing.assert_allclose(row["stats/action/max"], episode(2)["action"].max(0))
    assert np.shape(row["stats/observation.images.front/q50"]) == (3, 1, 1)


def test_tasks_are_indexed_as_pandas_writes_it(written: Path) -> None:
    table = pq.read_table(written / "meta" / "tasks.parquet")
    pandas = json.loads(table.schema.metadata[b"pandas"])
    assert pandas["index_columns"] == ["__index_level_0__"]
    assert table.to_pydict() == {"task_index": [0, 1, 2], "__index_level_0__": ["open it", "close it", "wave"]}


def test_stats_json_is_right_for_vectors_and_pictures(written: Path) -> None:
    stats = json.loads((written / "meta" / "stats.json").read_text())
    state = np.concatenate([episode(n)["state"] for n in range(4)])
    np.testing.assert_allclose(stats["observation.state"]["std"], state.std(0), rtol=1e-5)
    assert stats["observation.state"]["count"] == [20]
    pictures = np.concatenate([episode(n)["frames"]["front"] for n in range(4)]) / 255
    front = stats["observation.images.front"]
    assert set(front) == {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(np.array(front[name])[:, 0, 0], getattr(pictures, name)((0, 1, 2)), rtol=1e-6)


def test_files_are_split_at_the_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "VIDEO_BYTES", 2000)
    monkeypatch.setattr(merge, "DATA_BYTES", 500)
    monkeypatch.setattr(merge, "CHUNK_FILES", 2)
    assert_holds(write(tmp_path / "set"))
    assert (tmp_path / "set" / VIDEO.replace("chunk-000/file-000", "chunk-001/file-000")).is_file()
    assert (tmp_path / "set" / DATA.replace("file-000", "file-001")).is_file()


def test_one_dimension_is_a_column_of_numbers(tmp_path: Path) -> None:
    with new_writer(tmp_path, state_names=["x"], action_names=["u"]) as out:
        part = episode(0)
        out.add_episode(**part | {"state": part["state"][:, :1], "action": part["action"][:, :1]})
    assert pq.read_schema(tmp_path / DATA).field("action").type == pa.float32()
    np.testing.assert_array_equal(LeRobotDataset(tmp_path).vectors.state, episode(0)["state"][:, :1])


# Going on


def test_an_unclosed_dataset_resumes_and_a_closed_one_is_appended_to(tmp_path: Path) -> None:
    first = new_writer(tmp_path)
    first.add_episode(**episode(0))
    first.add_episode(**episode(1))
    with pytest.raises(DatasetError, match="not closed"):
        LeRobotDataset(tmp_path)
    second = new_writer(tmp_path)
    assert sorted(note.task for note in second.notes) == ["close it", "open it"] and second.notes[1].extra == {
        "seed": 7
    }
    second.add_episode(**episode(2))
    second.close()
    assert_holds(tmp_path, (0, 1, 2))
    with new_writer(tmp_path) as third:
        assert sorted(note.task for note in third.notes) == ["close it", "open it", "open it"] and third.notes[
            2
        ].extra == {"seed": 14}
        assert third.add_episode(**episode(3)) == 3
    assert_holds(tmp_path)
    with new_writer(tmp_path) as nothing_new:
        assert nothing_new.num_episodes == 4
    assert_holds(tmp_path)


def test_a_writer_continues_after_close(tmp_path: Path) -> None:
    out = new_writer(tmp_path)
    for number in range(4):
        out.add_episode(**episode(number))
        out.close()
    assert_holds(tmp_path)


def test_an_exception_leaves_the_episodes_for_the_next_writer(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_writer(tmp_path) as out:
        out.add_episode(**episode(0))
        raise KeyboardInterrupt
    assert not (tmp_path / "meta").exists() and new_writer(tmp_path).num_episodes == 1


@pytest.mark.parametrize("already", [(), (0, 1)])
@pytest.mark.parametrize("at", range(9))
def test_closing_may_be_cut_short_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, already: tuple[int, ...], at: int
) -> None:
    """Every step of closing that changes the disk fails in turn, as a kill there would."""
    if already:
        write(tmp_path, already)
    out = new_writer(tmp_path)
    for number in range(len(already), 4):
        out.add_episode(**episode(number))
    steps = iter(range(100))

    def killing(step: Callable[..., Any], after: bool = False) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            number = next(steps)
            if number == at and not after:
                raise KeyboardInterrupt
            return step(*args, **options)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(merge, "join_videos", killing(merge.join_videos))
        patch.setattr(merge, "write_atomically", killing(write_atomically))
        patch.setattr(merge.pq, "write_table", killing(pq.write_table))
        patch.setattr(writer.os, "rename", killing(os.rename))
        try:
            out.close()
        except KeyboardInterrupt:
            pass
        else:
            assert next(steps) <= at, "a step was not stopped"
    again = new_writer(tmp_path)
    assert again.num_episodes == 4
    again.close()
    assert_holds(tmp_path)
    assert len(list(tmp_path.glob(DATA.replace("file-000", "*")))) == (2 if already else 1)


def test_killed_between_the_new_meta_folder_and_the_cleaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = new_writer(tmp_path)
    for number in range(4):
        out.add_episode(**episode(number))
    with monkeypatch.context() as patch:
        patch.setattr(writer.shutil, "rmtree", lambda *args, **options: None)
        out.close()
    assert (tmp_path / "incoming" / "episode_000003").is_dir()
    with new_writer(tmp_path) as again:
        assert again.num_episodes == 4
    assert_holds(tmp_path)


def test_files_that_nothing_refers_to_are_removed(tmp_path: Path) -> None:
    """As an earlier close under another size limit would have left them."""
    out = new_writer(tmp_path)
    for number in range(4):
        out.add_episode(**episode(number))
    stray = [tmp_path / file.replace("file-000", "file-003") for file in (DATA, VIDEO)]
    for path in stray:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half a file")
    out.close()
    assert_holds(tmp_path)
    assert not any(path.exists() for path in stray)


def test_kill_minus_nine_keeps_complete_episodes(tmp_path: Path) -> None:
    script = """
import sys, numpy as np
from pathlib import Path
from lightwam.data.lerobot.writer import LeRobotWriter
out = LeRobotWriter(Path(sys.argv[1]), 10, "arm", {"front": (96, 96)}, ["x"], ["u"])
for seed in range(10_000):
    length = 40 + seed % 7
    frames = np.full((length, 96, 96, 3), seed % 200, np.uint8)
    vector = np.full((length, 1), seed, np.float32)
    out.add_episode({"front": frames}, vector, vector, "t", {"seed": seed})
"""
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("incoming/episode_00000[0-9]"))) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        child.kill()
        child.wait()
    with LeRobotWriter(tmp_path, 10, "arm", {"front": (96, 96)}, ["x"], ["u"]) as again:
        kept = again.num_episodes
        assert kept >= 5 and [note.extra["seed"] for note in again.notes] == list(range(kept))
    data = LeRobotDataset(tmp_path)
    data.check()
    assert data.vectors.state[data.episode_start[:-1], 0].tolist() == list(range(kept))


@pytest.mark.parametrize(
    "change",
    [
        {"fps": 20},
        {"robot_type": "leg"},
        {"cameras": {"front": (32, 48)}},
        {"state_names": ["x", "y", "w"]},
        {"action_names": ["u"]},
    ],
)
@pytest.mark.parametrize("closed", [True, False])
def test_another_robot_is_not_written_into_the_dataset(tmp_path: Path, change: dict[str, Any], closed: bool) -> None:
    out = new_writer(tmp_path)
    out.add_episode(**episode(0))
    if closed:
        out.close()
    with pytest.raises(DatasetError, match=r"another dataset(.|\n)*where"):
        new_writer(tmp_path, **change)


def test_the_older_layout_is_not_written_to(written: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"only v3\.0"):
        new_writer(v21(written, tmp_path))


# Doors of the writer


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state": np.zeros((5, 2), np.float32)}, r"observation.state(.|\n)*\(5, 2\)(.|\n)*\(5, 3\)"),
        ({"action": np.zeros((4, 2), np.float32)}, r"action(.|\n)*\(4, 2\)"),
        ({"action": np.full((5, 2), np.inf, np.float32)}, "action frame 0 dim 0"),
        ({"task": " "}, "task"),
        ({"frames": {"front": np.zeros((5, 32, 48, 3), np.uint8)}}, "wrist"),
        ({"frames": {name: np.zeros((5, *size, 3), np.float32) for name, size in CAMERAS.items()}}, "float32"),
        (
            {"frames": {name: np.zeros((4, *size, 3), np.uint8) for name, size in CAMERAS.items()}},
            r"'front'(.|\n)*\(4, 32",
        ),
    ],
)
def test_a_wrong_episode_is_refused_and_nothing_is_kept(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    out = new_writer(tmp_path)
    with pytest.raises(DatasetError, match=words):
        out.add_episode(**episode(0) | change)
    assert out.num_episodes == 0 and [path.name for path in (tmp_path / "incoming").iterdir()] == ["writer.json"]


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = new_writer(tmp_path)
    out.add_episode(**episode(0))

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "encode_video", full)
        with pytest.raises(DatasetError, match=r"could not save(.|\n)*No space left(.|\n)*earlier episodes are kept"):
            out.add_episode(**episode(1))
    with monkeypatch.context() as patch:
        patch.setattr(merge, "join_videos", full)
        with pytest.raises(DatasetError, match=r"could not save(.|\n)*No space left(.|\n)*all episodes are kept"):
            out.close()
    for number in (1, 2, 3):
        out.add_episode(**episode(number))
    out.close()
    assert_holds(tmp_path)


@pytest.mark.parametrize("change", [{"fps": 0}, {"cameras": {}}, {"cameras": {"a/b": (8, 8)}}, {"state_names": []}])
def test_a_robot_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(DatasetError):
        new_writer(tmp_path, **change)


# Doors of the reader: each breaks a good dataset in one place


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit_table(
    path: Path, name: str, change: Callable[[list[Any]], list[Any]], kind: pa.DataType | None = None
) -> None:
    table = pq.read_table(path)
    place = table.schema.get_field_index(name)
    column = pa.array(change(table[name].to_pylist()), kind or table.schema.field(name).type)
    try:
        pq.write_table(table.set_column(place, name, column), path)
    except pa.ArrowNotImplementedError as error:  # pyarrow 17
        pytest.skip(str(error))


def info(key: str, value: Any) -> Callable[[Path], None]:
    return lambda root: edit_json(root / "meta" / "info.json", lambda data: data.__setitem__(key, value))


def feature(key: str, part: str, value: Any) -> Callable[[Path], None]:
    return lambda root: edit_json(
        root / "meta" / "info.json", lambda data: data["features"][key].__setitem__(part, value)
    )


def without(key: str) -> Callable[[Path], None]:
    return lambda root: edit_json(root / "meta" / "info.json", lambda data: data["features"].pop(key))


def cell(file: str, name: str, row: int, value: Any) -> Callable[[Path], None]:
    def change(values: list[Any]) -> list[Any]:
        return [*values[:row], value, *values[row + 1 :]]

    return lambda root: edit_table(root / file, name, change)


def drop(file: str, name: str) -> Callable[[Path], None]:
    return lambda root: pq.write_table(pq.read_table(root / file).drop_columns([name]), root / file)


def cut(file: str, keep: float) -> Callable[[Path], None]:
    return lambda root: (
        (root / file).write_bytes((root / file).read_bytes()[: int((root / file).stat().st_size * keep)]) and None
    )


def shorter_video(root: Path) -> None:
    encode_video(root / VIDEO, np.zeros((19, 16, 16, 3), np.uint8), FPS)


def smaller_video(root: Path) -> None:
    encode_video(root / VIDEO, np.zeros((20, 8, 8, 3), np.uint8), FPS)


def third_camera(root: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["features"]["observation.images.third"] = data["features"]["observation.images.front"]

    edit_json(root / "meta" / "info.json", change)


def lost_row(root: Path) -> None:
    pq.write_table(pq.read_table(root / DATA).slice(1), root / DATA)


def text_for_numbers(root: Path) -> None:
    edit_table(root / DATA, "frame_index", lambda values: [str(value) for value in values], pa.string())


def columns_as(name: str, kind: pa.DataType, value: Any) -> Callable[[Path], None]:
    return lambda root: edit_table(root / DATA, name, lambda values: [value] * len(values), kind)


def narrow(name: str, change: Callable[[Path], None]) -> Callable[[Path], Any]:
    return lambda root: [feature(name, "shape", [1])(root), change(root)]


def longer_episode(root: Path) -> None:
    cell(EPISODES, "length", 3, 5)(root)
    info("total_frames", 21)(root)


NO_NUMBERS = r"must hold lists of \d numbers(.|\n)*file-000\.parquet column "
NAN, INF = [0.0, float("nan")], [float("inf"), 0.0, 0.0]
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no info": (lambda root: (root / "meta/info.json").unlink(), "no dataset here"),
    "info is no json": (lambda root: (root / "meta/info.json").write_text("{"), "must be JSON"),
    "version": (info("codebase_version", "v4.0"), r"codebase_version(.|\n)*v4\.0"),
    "fps": (info("fps", "fast"), "fps = 'fast'"),
    "totals": (info("total_frames", 21), "21 frames(.|\n)*20 frames"),
    "path pattern": (info("video_path", "{nope}"), "unknown part"),
    "no action": (without("action"), r"feature is missing(.|\n)*expected: action"),
    "no camera": (lambda root: [without(f"observation.images.{name}")(root) for name in CAMERAS], "without a camera"),
    "images": (feature("observation.images.front", "dtype", "picture"), "must be stored as video"),
    "camera not in table": (third_camera, "images.third"),
    "width": (feature("action", "shape", [3]), r"another width(.|\n)*\[2\](.|\n)*3"),
    "dtype": (feature("action", "dtype", "string"), "dtype"),
    "no tasks": (lambda root: (root / "meta/tasks.parquet").unlink(), "tasks.parquet"),
    "tasks gap": (cell("meta/tasks.parquet", "task_index", 1, 5), "no sentence(.|\n)*got: 1"),
    "a task twice": (cell("meta/tasks.parquet", "task_index", 1, 0), "each task must have its own task_index"),
    "no episodes": (lambda root: (root / EPISODES).unlink(), "episodes table is missing"),
    "episode gap": (cell(EPISODES, "episode_index", 2, 7), r"gaps(.|\n)*expected: 2"),
    "episode twice": (cell(EPISODES, "episode_index", 2, 1), r"gaps(.|\n)*expected: 2"),
    "empty episode": (cell(EPISODES, "length", 2, 0), "episode 2"),
    "longer episode": (longer_episode, "another length"),
    "empty cell": (cell(EPISODES, "data/file_index", 2, None), "mistyped or has gaps"),
    "missing episodes column": (drop(EPISODES, "videos/observation.images.wrist/from_timestamp"), "from_timestamp"),
    "other task": (cell(EPISODES, "tasks", 1, ["dance"]), "disagree"),
    "extra": (cell(EPISODES, "lightwam/extra", 1, "{"), "episode 1"),
    "missing data": (lambda root: (root / DATA).unlink(), "file-000.parquet"),
    "truncated data": (cut(DATA, 0.7), "cannot be read"),
    "missing column": (drop(DATA, "action"), "columns are missing(.|\n)*action"),
    "nan": (cell(DATA, "action", 6, NAN), r"not finite(.|\n)*episode 1 action frame 1 dim 1"),
    "inf": (cell(DATA, "observation.state", 19, INF), r"episode 3 observation.state frame 3 dim 0"),
    "empty row": (cell(DATA, "action", 6, None), r"has gaps(.|\n)*column action"),
    "frame_index": (cell(DATA, "frame_index", 6, 2), r"frame_index(.|\n)*episode 1 row 1"),
    "task_index": (cell(DATA, "task_index", 6, 0), r"disagree on an episode's task(.|\n)*'open it'(.|\n)*'close it'"),
    "no sentence": (lambda root: edit_table(root / DATA, "task_index", lambda v: [9] * len(v)), "no sentence"),
    "lost row": (lost_row, "episode 0(.|\n)*got: 4"),
    "text for numbers": (text_for_numbers, "frame_index"),
    "text for a state": (columns_as("observation.state", pa.string(), "0 0 0"), NO_NUMBERS + "observation.state"),
    "texts for an action": (columns_as("action", pa.list_(pa.string()), ["a", "b"]), NO_NUMBERS + "action"),
    "tables for a state": (
        narrow("observation.state", columns_as("observation.state", pa.struct({"x": pa.float64()}), {"x": 1.0})),
        NO_NUMBERS + "observation.state",
    ),
    "a map for an action": (
        narrow("action", columns_as("action", pa.map_(pa.string(), pa.float64()), [("x", 1.0)])),
        NO_NUMBERS + "action",
    ),
    "a hole in an action": (cell(DATA, "action", 6, [0.0, None]), r"gaps(.|\n)*column action(.|\n)*1 empty"),
    "missing video": (lambda root: (root / VIDEO).unlink(), "file-000.mp4"),
    "empty video": (cut(VIDEO, 0), r"cannot be decoded(.|\n)*the file is empty"),
    "truncated video": (cut(VIDEO, 0.6), "cannot be decoded(.|\n)*wrist"),
    "shorter video": (shorter_video, "shorter than its episode(.|\n)*wrist"),
    "smaller video": (smaller_video, r"another size(.|\n)*\(8, 8\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_dataset_is_refused(root: Path, name: str) -> None:
    damage, words = BROKEN[name]
    damage(root)
    with pytest.raises(DatasetError, match=words) as caught:
        LeRobotDataset(root).check()
    assert caught.value.next_step
    assert str(caught.value) in map(str, check_dataset(root).problems)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("tasks.jsonl", '{"task_index": 0}\n', r"tasks\.jsonl:1"),
        ("episodes.jsonl", "nonsense\n", r"episodes\.jsonl:1"),
        ("episodes.jsonl", '{"episode_index": 1, "tasks": [], "length": 3}\n', "gaps"),
        ("episodes.jsonl", None, r"episodes\.jsonl"),
    ],
)
def test_a_broken_older_dataset_is_refused(
    written: Path, tmp_path: Path, file: str, text: str | None, words: str
) -> None:
    path = v21(written, tmp_path) / "meta" / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DatasetError, match=words):
        LeRobotDataset(tmp_path)


def test_an_unknown_camera_is_named_with_the_nearest(written: Path) -> None:
    with pytest.raises(DatasetError, match="did you mean 'wrist'"):
        LeRobotDataset(written).frames(0, "wirst")


def test_the_fingerprint_names_the_file_that_changed(root: Path) -> None:
    before = LeRobotDataset(root).fingerprint()
    assert DATA in before and VIDEO in before and "meta/info.json" in before and EPISODES in before
    content = bytearray((root / VIDEO).read_bytes())
    content[len(content) // 2] ^= 1
    (root / VIDEO).write_bytes(content)
    after = LeRobotDataset(root).fingerprint()
    assert [name for name in before if before[name] != after[name]] == [VIDEO]


def test_large_files_are_hashed_in_samples_with_both_ends(tmp_path: Path) -> None:
    path = tmp_path / "large"
    prints = set()
    for change in (None, 0, 20 * 2**20 - 1):
        content = bytearray(20 * 2**20)
        if change is not None:
            content[change] = 1
        path.write_bytes(content)
        prints.add(file_fingerprint(path))
    assert len(prints) == 3


def test_progress_counts_every_camera(written: Path) -> None:
    seen: list[tuple[int, int]] = []
    LeRobotDataset(written).check(lambda done, total: seen.append((done, total)))
    assert len(seen) == 8 and seen[-1] == (40, 40)
