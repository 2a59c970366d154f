"""Demonstrations of LIBERO, in every published layout, into one dataset: pictures, gripper, no-ops, sentence, kills."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from caches import decoded_cache

from lightwam.cli import convert as command
from lightwam.config.commands import ConvertConfig
from lightwam.config.schema import CameraPlace, CodecConfig
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.lerobot.video import encode_video
from lightwam.data.lerobot.writer import LeRobotWriter
from lightwam.data.libero import convert as module
from lightwam.data.libero.convert import convert, gripper_convention, no_ops
from lightwam.data.libero.sources import open_source
from lightwam.errors import ConfigError, DatasetError

SIZE, STEPS = 16, 6
SENTENCES = ("open the drawer", "close it")


def quiet(line: str) -> None:
    pass


def png(picture: np.ndarray) -> bytes:
    import av

    context = av.CodecContext.create("png", "w")
    context.height, context.width, context.pix_fmt, context.time_base = *picture.shape[:2], "rgb24", Fraction(1)
    packets = context.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"))
    return b"".join(map(bytes, [*packets, *context.encode(None)]))


def rows(demos: list[Any]) -> list[dict[str, Any]]:
    """Every demonstration's numbers and pictures, as LeRobot datasets have them: upright, seen before the action."""
    return [
        {"action": d.action(), "state": d.seen(10)[:-1, :8], "image": d.pictures(SIZE)[:-1],
         "wrist": d.pictures(SIZE)[:-1, :, ::-1]} for d in demos
    ]  # fmt: skip


def image_column(pictures: np.ndarray) -> pa.Array:
    """As Hugging Face's datasets stores pictures."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": png(p), "path": f"frame_{i:06d}.png"} for i, p in enumerate(pictures)], kind)


def table(episode: int, row: dict[str, Any], keys: dict[str, str], images: bool, start: int = 0) -> pa.Table:
    length = len(row["action"])
    columns = {keys["image"]: image_column(row["image"]), keys["wrist"]: image_column(row["wrist"])} if images else {}
    columns |= {keys[name]: pa.array(row[name].astype(np.float32).tolist()) for name in ("state", "action")}
    frame = np.arange(length)
    columns |= {"timestamp": frame / 10, "frame_index": frame, "episode_index": np.full(length, episode),
                "index": frame + start, "task_index": np.full(length, episode % 2)}  # fmt: skip
    return pa.table(columns)


def info(keys: dict[str, str], kind: str, version: str, demos: list[Any], **more: Any) -> dict[str, Any]:
    picture = {"dtype": kind, "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channel"]}
    features = {keys["image"]: picture, keys["wrist"]: picture,
                keys["state"]: {"dtype": "float32", "shape": [8], "names": ["state"]},
                keys["action"]: {"dtype": "float32", "shape": [7], "names": ["actions"]}}  # fmt: skip
    return {"codebase_version": version, "robot_type": "panda", "total_episodes": len(demos), "fps": 10,
            "total_frames": sum(d.steps for d in demos), "chunks_size": 1000, "features": features, **more}  # fmt: skip


def older(root: Path, demos: list[Any], keys: dict[str, str], images: bool, version: str) -> Path:
    """A file an episode, tables as JSON lines."""
    data_path = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    video_path = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    about = info(keys, "image" if images else "video", version, demos, data_path=data_path, video_path=video_path)
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(about))
    tasks = [{"task_index": i, "task": words} for i, words in enumerate(SENTENCES)]
    lines = [{"episode_index": i, "tasks": [SENTENCES[i % 2]], "length": d.steps} for i, d in enumerate(demos)]
    for name, table_rows in (("tasks", tasks), ("episodes", lines)):
        (root / "meta" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table_rows))
    for index, row in enumerate(rows(demos)):
        path = root / data_path.format(episode_chunk=0, episode_index=index)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(index, row, keys, images), path)
        for camera in () if images else ("image", "wrist"):
            path = root / video_path.format(episode_chunk=0, video_key=keys[camera], episode_index=index)
            path.parent.mkdir(parents=True, exist_ok=True)
            encode_video(path, row[camera], 10)
    return root


def newer(root: Path, demos: list[Any], keys: dict[str, str]) -> Path:
    """v3.0 with pictures in the table: many episodes a file, row groups that cut through them."""
    starts = np.cumsum([0, *(d.steps for d in demos)]).tolist()
    tables = [table(i, row, keys, True, starts[i]) for i, row in enumerate(rows(demos))]
    about = info(keys, "image", "v3.0", demos, data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
                 video_path=None)  # fmt: skip
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(about))
    pq.write_table(pa.concat_tables(tables), root / "data/chunk-000/file-000.parquet", row_group_size=4)
    tasks = pa.table({"task_index": range(2), "__index_level_0__": SENTENCES})
    pq.write_table(tasks, root / "meta/tasks.parquet")
    episodes = [{"episode_index": i, "tasks": [SENTENCES[i % 2]], "length": d.steps, "data/chunk_index": 0,
                 "data/file_index": 0} for i, d in enumerate(demos)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(episodes), root / "meta/episodes/chunk-000/file-000.parquet")
    return root


PREFIX = "observation.images."
IPEC = {"image": PREFIX + "image", "wrist": PREFIX + "wrist_image", "state": "observation.state", "action": "action"}
OPENPI = {"image": "image", "wrist": "wrist_image", "state": "state", "action": "actions"}
HUB = {"image": PREFIX + "image", "wrist": PREFIX + "image2", "state": "observation.state", "action": "action"}


class ZeroOne:
    """A demonstration whose gripper is 1 open, 0 closed."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.steps = inner, inner.steps
        self.seen, self.pictures = inner.seen, inner.pictures

    def action(self) -> np.ndarray:
        action = self.inner.action()
        action[:, 6] = (1 - action[:, 6]) / 2
        return action


PUBLISHED: dict[str, Callable[[Path, list[Any]], Path]] = {
    "ipec v2.1, videos": lambda root, demos: older(root, [ZeroOne(d) for d in demos], IPEC, False, "v2.1"),
    "openpi v2.0, images": lambda root, demos: older(root, demos, OPENPI, True, "v2.0"),
    "hub v3.0, images": lambda root, demos: newer(root, demos, HUB),
}


def assert_holds(root: Path, index: int, demo: Any, sentence: str, steps: list[int], exact: bool = False) -> None:
    """Episode `index` is those steps of a demonstration, upright, gripper 1 open and 0 closed."""
    data = LeRobotDataset(root)
    span = slice(*data.episode_start[index : index + 2])
    action = demo.action()[steps].astype(np.float32)
    action[:, 6] = action[:, 6] < 0
    np.testing.assert_array_equal(data.vectors.action[span], action)
    np.testing.assert_array_equal(data.vectors.state[span], demo.seen(10)[steps, :8].astype(np.float32))
    assert data.tasks[data.vectors.task_index[index]] == sentence
    upright = demo.pictures(SIZE)[steps].astype(int)
    for camera, expected in (("agentview", upright), ("wrist", upright[:, :, ::-1])):
        got = data.frames(index, camera).astype(int)
        assert np.abs(got - expected).mean() < 6, camera
        corner = got if camera == "agentview" else got[:, :, ::-1]
        moments = corner[:, 2 : SIZE // 2 - 2, 2 : SIZE // 2 - 2, 0].mean((1, 2))
        assert np.abs(moments - [60 + 20 * step for step in steps]).mean() < 8, camera


@pytest.mark.parametrize("layout", PUBLISHED)
def test_published_lerobot_datasets(tmp_path: Path, demo: Any, layout: str) -> None:
    demos = [demo(0, idle=(0, 2, 3)), demo(1, steps=9), demo(2)]
    source = PUBLISHED[layout](tmp_path / "in", demos)
    report = convert(source, tmp_path / "out", say=quiet)
    # step 3 of the first does not move but closes the gripper
    assert_holds(tmp_path / "out", 0, demos[0], SENTENCES[0], [1, 3, 4, 5])
    assert_holds(tmp_path / "out", 1, demos[1], SENTENCES[1], list(range(9)))
    assert_holds(tmp_path / "out", 2, demos[2], SENTENCES[0], list(range(6)))
    assert (report.episodes, report.new_episodes, report.frames, report.no_ops, report.skipped) == (3, 3, 19, 2, 0)
    data = LeRobotDataset(tmp_path / "out")
    data.check()
    assert (data.version, data.fps, data.robot_type) == ("v3.0", 20.0, "panda")
    assert data.cameras == {"agentview": (SIZE, SIZE), "wrist": (SIZE, SIZE)}
    assert data.state_names == module.STATE_NAMES and data.action_names == module.ACTION_NAMES


def test_liberos_files(tmp_path: Path, write_demos: Any, demo: Any) -> None:
    first, second, other = demo(2, idle=(4,)), demo(10, failed=True), demo(0, steps=8, late=False)
    write_demos(tmp_path / "in", [first, second], "KITCHEN_SCENE3_open_it", noted="open IT")
    write_demos(tmp_path / "in", [other], "close_it", noted=["close it"])
    (tmp_path / "in" / "mine.hdf5").touch()  # is none of LIBERO's names
    said: list[str] = []
    report = convert(tmp_path / "in", tmp_path / "out", say=said.append)
    assert_holds(tmp_path / "out", 0, first, "open it", [1, 2, 3, 5])  # late: the first action saw nothing
    assert_holds(tmp_path / "out", 1, other, "close it", list(range(8)))
    assert (report.episodes, report.frames, report.no_ops, report.skipped) == (2, 12, 1, 1)
    assert any("skipped KITCHEN_SCENE3_open_it_demo.hdf5 demo_10: it never succeeds" in line for line in said)
    (remark,) = (line for line in said if "inside it says" in line)
    assert "'open IT'" in remark and "'open it'" in remark
    kept = convert(tmp_path / "in", tmp_path / "all", ConvertConfig(keep_no_ops=True, keep_failures=True), say=quiet)
    assert (kept.episodes, kept.frames, kept.no_ops, kept.skipped) == (3, 5 + 5 + 8, 0, 0)
    assert_holds(tmp_path / "all", 1, second, "open it", [1, 2, 3, 4, 5])


def test_a_folder_of_suites(tmp_path: Path, write_demos: Any, demo: Any) -> None:
    write_demos(tmp_path / "in" / "libero_object", [demo(0)], "open_it")
    write_demos(tmp_path / "in" / "libero_goal", [demo(1)], "open_it")
    convert(tmp_path / "in", tmp_path / "out", say=quiet)
    assert [extra["file"] for extra, _, _ in contents(tmp_path / "out")] == [
        "libero_goal/open_it_demo.hdf5", "libero_object/open_it_demo.hdf5",
    ]  # fmt: skip
    assert_holds(tmp_path / "out", 0, demo(1), "open it", list(range(1, 6)))


def test_one_file_alone_and_the_other_orientation(tmp_path: Path, write_demos: Any, demo: Any) -> None:
    path = write_demos(tmp_path / "in", [demo(0)])
    convert(path, tmp_path / "out", say=quiet)
    convert(path, tmp_path / "raw", ConvertConfig(orientation="upright"), say=quiet)
    right, raw = (LeRobotDataset(tmp_path / name).frames(0, "agentview").astype(int) for name in ("out", "raw"))
    assert np.abs(right[:, ::-1, ::-1] - raw).mean() < 6 < np.abs(right - raw).mean()


def test_a_demonstration_without_motion_is_skipped(tmp_path: Path, write_demos: Any, demo: Any) -> None:
    still = demo(0, idle=tuple(range(6)), late=False)
    path = write_demos(tmp_path / "in", [still])
    with h5py.File(path, "a") as file:
        file["data/demo_0/actions"][:, 6] = 1
    with pytest.raises(DatasetError, match=r"fit two conventions[\s\S]*--gripper"):
        convert(path, tmp_path / "out", say=quiet)
    said: list[str] = []
    with pytest.raises(DatasetError, match=r"was kept[\s\S]*1 skipped"):
        convert(path, tmp_path / "out", ConvertConfig(gripper="minus-one-one"), say=said.append)
    assert "it never moves" in "\n".join(said)


@pytest.mark.parametrize(
    ("gripper", "moving", "expected"),
    [
        ([-1, -1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1]),  # closing without motion is an act, staying closed is none
        ([-1, 1, -1], [0, 0, 1], [1, 1, 0]),  # before anything is kept, the gripper does not count
        ([-1, -1, 1, -1], [1, 0, 0, 0], [0, 1, 0, 0]),
    ],
)
def test_no_ops(gripper: list[int], moving: list[int], expected: list[int]) -> None:
    action = np.zeros((len(gripper), 7), np.float32)
    action[:, 0], action[:, 6] = np.array(moving) * 2e-4 + 5e-5, gripper
    assert no_ops(action).tolist() == [bool(n) for n in expected]


@pytest.mark.parametrize(
    ("values", "stated", "expected"),
    [
        ([-1, 1], "auto", "minus-one-one"), ([0, 1], "auto", "zero-one"), ([-1, -1], "auto", "minus-one-one"),
        ([0, 0], "auto", "zero-one"), ([1, 1], "zero-one", "zero-one"), ([1, 1], "minus-one-one", "minus-one-one"),
        ([-1, 1], "minus-one-one", "minus-one-one"), ([0.2, 0.9], "auto", "zero-one"),
    ],
)  # fmt: skip
def test_the_gripper_convention_is_inferred_from_its_values(values: list[float], stated: str, expected: str) -> None:
    assert gripper_convention(np.array(values, np.float32), stated, "here") == expected


@pytest.mark.parametrize(
    ("values", "stated", "words"),
    [
        ([1, 1], "auto", r"fit two conventions[\s\S]*here[\s\S]*1 to 1[\s\S]*--gripper"),
        ([-1, 1], "zero-one", r"do not follow[\s\S]*-1 to 1[\s\S]*zero-one[\s\S]*--gripper minus-one-one"),
        ([0, 1], "minus-one-one", r"do not follow[\s\S]*0 to 1[\s\S]*minus-one-one[\s\S]*--gripper zero-one"),
        ([0, 255], "auto", r"do not follow[\s\S]*0 to 255[\s\S]*correct the source"),
        ([-0.3, 0.4], "auto", r"do not follow[\s\S]*-0.3 to 0.4"),
    ],
)
def test_a_contradicted_or_unknowable_gripper_is_refused(values: list[float], stated: str, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        gripper_convention(np.array(values, np.float32), stated, "here")


def test_an_unknown_source_is_refused(tmp_path: Path, write_demos: Any, demo: Any) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    for name, words in (("nowhere", "no such"), ("empty", "nothing"), ("other", "notes.txt")):
        with pytest.raises(DatasetError, match=rf"no demonstrations of LIBERO[\s\S]*{words}[\s\S]*_demo.hdf5"):
            open_source(tmp_path / name)
    write_demos(tmp_path / "sizes", [demo(0)], "one")
    write_demos(tmp_path / "sizes", [demo(0)], "two", size=32)
    with pytest.raises(DatasetError, match=r"differ in size[\s\S]*32"):
        open_source(tmp_path / "sizes")
    with pytest.raises(DatasetError, match="into itself"):
        convert(tmp_path / "sizes", tmp_path / "sizes")


def test_broken_files_are_refused_when_opened(tmp_path: Path, write_demos: Any, demo: Any) -> None:
    path = write_demos(tmp_path / "in", [demo(0), demo(1)])
    with h5py.File(path, "a") as file:
        del file["data/demo_0/dones"], file["data/demo_1/obs/ee_pos"]
    with pytest.raises(
        DatasetError, match=r"have 2 problems[\s\S]*demo_0 dones: missing[\s\S]*demo_1 obs/ee_pos: missing[\s\S]*check"
    ):
        convert(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def other_info(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / "meta" / "info.json"
        about = json.loads(path.read_text())
        change(about["features"])
        path.write_text(json.dumps(about))

    return damage


def other_bytes(data: bytes | None) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / "data/chunk-000/episode_000001.parquet"
        whole = pq.read_table(path)
        column = whole["wrist_image"].to_pylist()
        column[2]["bytes"] = data
        kind = whole.schema.field("wrist_image").type
        pq.write_table(
            whole.set_column(whole.schema.names.index("wrist_image"), "wrist_image", pa.array(column, kind)), path
        )

    return damage


PNG = png(np.zeros((16, 16, 3), np.uint8))
BROKEN = {
    "state of 9": (other_info(lambda f: f["state"].update(shape=[9])), r"state and action[\s\S]*widths 9 and 7"),
    "no wrist": (other_info(lambda f: f.pop("wrist_image")), r"camera wrist[\s\S]*got[\s\S]*image2"),
    "no action": (other_info(lambda f: f.pop("actions")), r"LIBERO's action[\s\S]*action or actions"),
    "no bytes": (other_bytes(None), r"must be a PNG or JPEG[\s\S]*episode 1 frame 2[\s\S]*no bytes"),
    "a gif": (other_bytes(b"GIF89a"), r"must be a PNG or JPEG[\s\S]*wrist_image episode 1 frame 2[\s\S]*GIF89a"),
    "half a png": (other_bytes(PNG[:50]), r"cannot be decoded[\s\S]*episode 1 frame 2"),
    "small png": (other_bytes(png(np.zeros((8, 8, 3), np.uint8))), r"another size[\s\S]*\(8, 8\)[\s\S]*\(16, 16\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_lerobot_sources_are_refused(tmp_path: Path, demo: Any, name: str) -> None:
    source = PUBLISHED["openpi v2.0, images"](tmp_path / "in", [demo(0), demo(1)])
    damage, words = BROKEN[name]
    damage(source)
    with pytest.raises(DatasetError, match=words):
        convert(source, tmp_path / "out", say=quiet)


def contents(root: Path) -> list[tuple[Any, ...]]:
    """Every episode: what is noted, all numbers and pictures."""
    data, found = LeRobotDataset(root), []
    for index, episode in enumerate(data.episodes):
        span = slice(*data.episode_start[index : index + 2])
        numbers = data.vectors.state[span].tobytes() + data.vectors.action[span].tobytes()
        found.append((episode.extra, numbers, data.frames(index, "wrist").tobytes()))
    return found


KILLED = """
import os, signal, sys
from pathlib import Path
from lightwam.data.libero import convert
from lightwam.data.lerobot.writer import LeRobotWriter
add, left = LeRobotWriter.add_episode, iter(range(100))

def add_episode(self, *args, **options):
    if next(left) == 2:
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))
    return add(self, *args, **options)

LeRobotWriter.add_episode = add_episode
convert.convert(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize(("kind", "death"), [("hdf5", "SIGKILL"), ("hdf5", "SIGINT"), ("lerobot", "SIGKILL")])
def test_a_killed_conversion_resumes_to_the_same_dataset(
    tmp_path: Path, write_demos: Any, demo: Any, kind: str, death: str
) -> None:
    demos = [demo(i, steps=5 + i, failed=kind == "hdf5" and i in (1, 5), idle=(2,)) for i in range(6)]
    if kind == "hdf5":
        write_demos(tmp_path / "in", demos[:3], "one")
        write_demos(tmp_path / "in", demos[3:], "two")
    else:
        PUBLISHED["hub v3.0, images"](tmp_path / "in", demos)
    whole = convert(tmp_path / "in", tmp_path / "whole", say=quiet)
    words = [sys.executable, "-c", KILLED, str(tmp_path / "in"), str(tmp_path / "out"), death]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    died = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert died.returncode != 0
    kept = len(list((tmp_path / "out").glob("incoming/episode_??????")))
    if death == "SIGINT":
        assert "3 episodes are saved" in died.stdout and LeRobotDataset(tmp_path / "out").num_episodes == 3
    else:
        assert died.returncode == -signal.SIGKILL and kept == 2
    again = convert(tmp_path / "in", tmp_path / "out", say=quiet)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert again.new_episodes == whole.episodes - (3 if death == "SIGINT" else 2)
    assert (again.frames, again.no_ops, again.skipped) == (whole.frames, whole.no_ops, whole.skipped)
    assert whole.skipped == (2 if kind == "hdf5" else 0)
    assert convert(tmp_path / "in", tmp_path / "out", say=quiet).new_episodes == 0


def test_another_source_or_other_settings_are_refused(tmp_path: Path, write_demos: Any, demo: Any) -> None:
    write_demos(tmp_path / "in", [demo(0)])
    convert(tmp_path / "in", tmp_path / "out", say=quiet)
    before = contents(tmp_path / "out")
    with pytest.raises(DatasetError, match=r"another source or settings[\s\S]*keep_no_ops[\s\S]*another folder"):
        convert(tmp_path / "in", tmp_path / "out", ConvertConfig(keep_no_ops=True), say=quiet)
    write_demos(tmp_path / "other", [demo(0)], "wave")
    with pytest.raises(DatasetError, match=r"another source or settings[\s\S]*open_the_drawer[\s\S]*other"):
        convert(tmp_path / "other", tmp_path / "out", say=quiet)
    write_demos(tmp_path / "in", [demo(0), demo(1)])
    with pytest.raises(DatasetError, match=r"another source or settings[\s\S]*demo_0[\s\S]*bytes"):
        convert(tmp_path / "in", tmp_path / "out", say=quiet)
    with LeRobotWriter(tmp_path / "mine", 10, "arm", {"front": (16, 16)}, ["x"], ["u"]) as writer:
        writer.add_episode({"front": np.zeros((2, 16, 16, 3), np.uint8)}, np.zeros((2, 1)), np.zeros((2, 1)), "t")
    with pytest.raises(DatasetError, match="another dataset"):
        convert(tmp_path / "in", tmp_path / "mine", say=quiet)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("changed", ["meta/tasks.jsonl", "data/*/*.parquet"])
def test_a_changed_lerobot_source_is_refused(tmp_path: Path, demo: Any, changed: str) -> None:
    source = PUBLISHED["ipec v2.1, videos"](tmp_path / "in", [demo(0), demo(1)])
    convert(source, tmp_path / "out", say=quiet)
    file = next(source.glob(changed))
    if file.suffix == ".parquet":
        pq.write_table(pq.read_table(file), file, compression="none")
    else:
        file.write_text(file.read_text() + json.dumps({"task_index": 2, "task": "wave"}) + "\n")
    with pytest.raises(DatasetError, match=r"another source or settings[\s\S]*another folder"):
        convert(source, tmp_path / "out", say=quiet)


def test_a_full_disk_keeps_what_is_done(
    tmp_path: Path, write_demos: Any, demo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_demos(tmp_path / "in", [demo(i) for i in range(3)])
    left = iter(range(100))

    def full(*args: Any, **options: Any) -> None:
        if next(left) >= 3:
            raise OSError(28, "No space left on device")
        encode_video(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr("lightwam.data.lerobot.writer.encode_video", full)
        with pytest.raises(DatasetError, match=r"No space left[\s\S]*free some space"):
            convert(tmp_path / "in", tmp_path / "out", say=quiet)
    assert LeRobotDataset(tmp_path / "out").num_episodes == 1
    assert convert(tmp_path / "in", tmp_path / "out", say=quiet).new_episodes == 2


def test_the_command_ends_with_a_line_that_counts(
    tmp_path: Path, write_demos: Any, demo: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_demos(tmp_path / "in", [demo(0, idle=(3, 4)), demo(1, failed=True)])
    command.run(["libero", str(tmp_path / "in"), str(tmp_path / "out"), "--gripper", "minus-one-one"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.endswith(
        "out: 1 episodes, 4 frames; 1 no-op steps removed, 1 demonstrations skipped; 1 of the episodes are new"
    )
    command.run([])
    assert "lightwam convert libero SOURCE OUT" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"libre[\s\S]*libero"):
        command.run(["libre"])


def test_frames_of_a_dataset_with_images_are_exact(tmp_path: Path, demo: Any) -> None:
    """A dataset with pictures in its table is read by all that reads datasets."""
    demos = [demo(0), demo(1, steps=9), demo(2)]
    data = LeRobotDataset(newer(tmp_path / "in", demos, HUB))
    data.check()
    for index in (2, 0, 1):
        np.testing.assert_array_equal(data.frames(index, "image"), demos[index].pictures(SIZE)[:-1])
        np.testing.assert_array_equal(data.frames(index, "image2"), demos[index].pictures(SIZE)[:-1, :, ::-1])
    config = CodecConfig(canvas=(SIZE, SIZE), places=(CameraPlace("image", 0, 0, SIZE, SIZE),))
    cache = decoded_cache(data, config, tmp_path / "cache")
    np.testing.assert_array_equal(cache.frames, np.concatenate([d.pictures(SIZE)[:-1] for d in demos]))
