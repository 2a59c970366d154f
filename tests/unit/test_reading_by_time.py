"""A row's picture is the one at its timestamp, as LeRobot reads it; what cannot be read so is refused by name.

Every picture tells its number in its video by its grey level, and every row's state the number that is right for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightwam.data.lerobot.check import check_dataset
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.lerobot.video import VideoReader, encode_video
from lightwam.errors import DatasetError

FPS, SIZE, PICTURES = 10, 16, 40
"""rows a second, pictures in the one video"""
KEY = "observation.images.front"
DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
VIDEO = f"videos/{KEY}/chunk-000/file-000.mp4"
INFO = {
    "codebase_version": "v3.0", "fps": FPS, "robot_type": "arm", "total_tasks": 2,
    "features": {KEY: {"dtype": "video", "shape": [SIZE, SIZE, 3]},
                 "observation.state": {"dtype": "float32", "shape": [1]}, "action": {"dtype": "float32", "shape": [2]}},
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One episode: where its pictures lie, and the pictures (numbers in the video) that its rows belong to."""

    start: float
    """from_timestamp"""
    end: float | None
    """to_timestamp"""
    times: tuple[float, ...]
    numbers: tuple[int, ...]
    frame: tuple[int, ...] | None = None
    """frame_index, by default 0, 1, 2, ..."""
    index: tuple[int, ...] | None = None


def whole(first: int, count: int) -> Part:
    """An episode of `count` pictures from number `first` on, nothing cut out."""
    times = tuple(i / FPS for i in range(count))
    return Part(first / FPS, (first + count) / FPS, times, tuple(range(first, first + count)))


def rows(part: Part, kept: list[int]) -> Part:
    """The same with only these of its rows; timestamps stay true."""
    times, numbers = ([values[i] for i in kept] for values in (part.times, part.numbers))
    return replace(part, times=tuple(times), numbers=tuple(numbers))


def picture(number: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), 6 * number + 3, np.uint8)


def frames_at(reader: VideoReader, times: np.ndarray) -> np.ndarray:
    return next(reader.stream(times, len(times)))


def numbers(clip: np.ndarray) -> list[int]:
    return np.round((clip.astype(float).mean((1, 2, 3)) - 3) / 6).astype(int).tolist()


def write(root: Path, parts: list[Part], video_fps: int = FPS) -> Path:
    (root / VIDEO).parent.mkdir(parents=True)
    encode_video(root / VIDEO, np.stack([picture(i) for i in range(PICTURES)]), video_fps)
    tables, episodes, start = [], [], 0
    for number, part in enumerate(parts):
        count = len(part.times)
        state = np.array(part.numbers, np.float32)
        tables.append(pa.table({
            "observation.state": state, "action": [[x, -x] for x in state.tolist()],
            "timestamp": np.array(part.times, np.float32), "frame_index": part.frame or range(count),
            "episode_index": [number] * count, "index": part.index or range(start, start + count),
            "task_index": [0] * count,
        }))  # fmt: skip
        spot = f"videos/{KEY}/"
        episodes.append({"episode_index": number, "length": count, "data/chunk_index": 0, "data/file_index": 0,
                         "dataset_from_index": start, "dataset_to_index": start + count, spot + "chunk_index": 0,
                         spot + "file_index": 0, spot + "from_timestamp": part.start,
                         spot + "to_timestamp": part.end})  # fmt: skip
        start += count
    for path, table in ((DATA, pa.concat_tables(tables)), (EPISODES, pa.Table.from_pylist(episodes))):
        (root / path).parent.mkdir(parents=True)
        pq.write_table(table, root / path)
    pq.write_table(pa.table({"task_index": [0, 1], "task": ["open it", "close it"]}), root / "meta/tasks.parquet")
    write_info(root, INFO | {"total_episodes": len(parts), "total_frames": start})
    return root


def write_info(root: Path, info: dict[str, Any]) -> None:
    (root / "meta/info.json").write_text(json.dumps(info), encoding="utf-8")


def as_v21(root: Path) -> Path:
    """The same dataset, of one episode, in the older layout."""
    info = json.loads((root / "meta/info.json").read_text()) | {"codebase_version": "v2.1", "chunks_size": 1000,
            "data_path": "data/{episode_chunk}/{episode_index}.parquet",
            "video_path": "videos/{episode_chunk}/{video_key}/{episode_index}.mp4"}  # fmt: skip
    write_info(root, info)
    (row,) = pq.read_table(root / EPISODES).to_pylist()
    (root / "meta/episodes.jsonl").write_text(
        json.dumps({"episode_index": 0, "tasks": ["open it"], "length": row["length"]}) + "\n"
    )
    lines = [{"task_index": 0, "task": "open it"}, {"task_index": 1, "task": "close it"}]
    (root / "meta/tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for old, new in ((DATA, "data/0/0.parquet"), (VIDEO, f"videos/0/{KEY}/0.mp4")):
        (root / new).parent.mkdir(parents=True)
        (root / old).rename(root / new)
    return root


def assert_right(root: Path) -> LeRobotDataset:
    data = LeRobotDataset(root)
    for episode in data.episodes:
        span = slice(*data.episode_start[episode.index : episode.index + 2])
        right = data.vectors.state[span, 0].astype(int).tolist()
        assert numbers(data.frames(episode.index, "front")) == right
        with closing(data.decoder()) as pictures:
            assert [n for some in pictures.stream(episode, "front", 3) for n in numbers(some)] == right
    assert not check_dataset(root).problems
    return data


CUT = [*range(5), *range(9, 20)]
READ: dict[str, list[Part]] = {
    "whole": [whole(0, 20), whole(20, 20)],
    "cut in the middle": [rows(whole(0, 20), CUT), whole(20, 20)],
    "cut, frame_index and index kept": [
        replace(rows(whole(0, 20), CUT), frame=tuple(CUT), index=tuple(CUT)),
        replace(whole(20, 20), index=tuple(range(20, 40))),
    ],
    "cut at the start": [rows(whole(0, 20), [*range(6, 20)]), rows(whole(20, 20), [*range(2, 20)])],
    "cut at the end": [rows(whole(0, 20), [*range(13)]), whole(20, 20)],
    "every second row": [rows(whole(0, 20), [*range(0, 20, 2)]), whole(20, 20)],
    "a row twice": [rows(whole(0, 20), [0, 1, 1, 2, 3]), whole(20, 20)],
    "episodes with pictures between": [whole(3, 7), whole(30, 10)],
    "episodes in another order than their pictures": [whole(30, 10), whole(0, 20)],
    "no to_timestamp": [replace(whole(0, 20), end=None), replace(whole(20, 20), end=None)],
    "float32 of another length of second": [replace(whole(0, 20), times=tuple(t + 6e-5 for t in whole(0, 20).times))],
}


@pytest.mark.parametrize("name", READ)
def test_pictures_are_read_by_time(tmp_path: Path, name: str) -> None:
    root = write(tmp_path, READ[name])
    if READ[name][0].end is None:
        table = pq.read_table(root / EPISODES)
        pq.write_table(table.drop_columns([f"videos/{KEY}/to_timestamp"]), root / EPISODES)
    assert_right(root)


@pytest.mark.parametrize("name", ["cut in the middle", "cut at the start", "every second row"])
def test_the_older_layout_is_read_by_time_too(tmp_path: Path, name: str) -> None:
    assert_right(as_v21(write(tmp_path, READ[name][:1])))


@pytest.mark.parametrize("more", [0, 1])
def test_a_video_may_have_more_pictures_than_rows(tmp_path: Path, more: int) -> None:
    """An odd number of them too: the next episode then begins half a row behind the last row."""
    first = Part(0.0, (19 + more) / 20, tuple(i / FPS for i in range(10)), tuple(range(0, 20, 2)))
    start = 19 + more
    second = Part(start / 20, 2.0, tuple(i / FPS for i in range(10)), tuple(range(start, 39, 2)))
    assert_right(write(tmp_path, [first, second], video_fps=2 * FPS))


SOUND = [whole(0, 20), whole(20, 20)]


def nan_time(part: Part) -> Part:
    return replace(part, times=(*part.times[:3], float("nan"), *part.times[4:]))


def swapped(part: Part) -> Part:
    return rows(part, [0, 1, 2, 4, 3, *range(5, 20)])


REFUSED: dict[str, tuple[list[Part], str]] = {
    "start off the grid": ([SOUND[0], replace(SOUND[1], start=2.03, end=4.03)],
                           r"the video has no frame at a row's time(.|\n)*episode 1 row 0(.|\n)*2\.0300"),
    "rows off the grid": ([replace(SOUND[0], times=tuple(t + 0.04 for t in SOUND[0].times))],
                          r"frames at 0\.0000 and 0\.1000 s(.|\n)*0\.0400 s"),
    "start later, end not": ([replace(SOUND[0], start=0.1), SOUND[1]], r"overlap(.|\n)*episode 0 0\.1000"),
    "end earlier": ([replace(SOUND[0], end=1.0), SOUND[1]], r"disagree(.|\n)*episode 0(.|\n)*to_timestamp, 1\.0000"),
    "start in the neighbour": ([SOUND[0], replace(SOUND[1], start=1.5)], r"overlap(.|\n)*episode 1 from 1\.5000 s"),
    "both begin at once": ([SOUND[0], replace(SOUND[1], start=0.0, end=2.0)], "overlap"),
    "before the file": ([replace(SOUND[0], start=-1.0)], r"first frame at 0\.0000 s(.|\n)*-1\.0000 s"),
    "behind the file": ([replace(SOUND[1], start=3.0, end=5.0)], r"shorter(.|\n)*last frame at 3\.9000 s"),
    "start is no number": ([replace(SOUND[0], start=float("nan"))], "not finite(.|\n)*from_timestamp nan"),
    "no number": ([nan_time(SOUND[0])], "timestamp is not finite(.|\n)*episode 0 row 3"),
    "out of order": ([swapped(SOUND[0])], "order of time(.|\n)*episode 0 row 4"),
    "numbered anew, frame_index not": (
        [replace(SOUND[0], times=SOUND[0].times[:16], numbers=tuple(range(16)), frame=tuple(CUT))],
        r"frame_index and timestamp disagree(.|\n)*row 5(.|\n)*frame_index 9 at 0\.5000 s",
    ),
    "numbered anew from 0, frame_index not": (
        [replace(SOUND[0], times=SOUND[0].times[:16], numbers=tuple(range(16)), frame=tuple(range(4, 20)))],
        r"frame_index and timestamp disagree(.|\n)*row 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_contradictions_are_refused_by_name(tmp_path: Path, name: str) -> None:
    parts, words = REFUSED[name]
    root = write(tmp_path, parts)
    with pytest.raises(DatasetError, match=words) as caught:
        data = LeRobotDataset(root)
        for episode in data.episodes:
            data.frames(episode.index, "front")
    assert caught.value.next_step
    assert str(caught.value) in map(str, check_dataset(root).problems)


def test_rows_without_a_timestamp_are_refused_with_the_fix(tmp_path: Path) -> None:
    root = write(tmp_path, SOUND)
    pq.write_table(pq.read_table(root / DATA).drop_columns(["timestamp"]), root / DATA)
    with pytest.raises(DatasetError, match=r"the column timestamp is missing(.|\n)*frame_index / fps"):
        LeRobotDataset(root).frames(0, "front")


def test_notes_describe_gaps_in_time(tmp_path: Path) -> None:
    assert check_dataset(write(tmp_path / "whole", SOUND)).notes == ()
    (cut,) = check_dataset(write(tmp_path / "cut", READ["cut in the middle"])).notes
    assert "1 of 2 episodes" in cut and "row 5 comes 0.5000 s after row 4, not 0.1000 s" in cut
    thin = check_dataset(write(tmp_path / "thin", [rows(whole(0, 40), [*range(0, 40, 2)])])).notes
    assert "5 a second" in thin[0] and "info.json says 10 fps" in thin[0]
    (late,) = check_dataset(write(tmp_path / "late", [rows(whole(0, 20), [*range(4, 20)])])).notes
    assert "episode 0 at 0.4000 s" in late


def test_a_cache_made_before_rows_were_read_by_time_is_stale(tmp_path: Path) -> None:
    even = LeRobotDataset(write(tmp_path / "whole", SOUND)).fingerprint()
    cut = LeRobotDataset(write(tmp_path / "cut", READ["cut in the middle"])).fingerprint()
    assert cut.keys() - even.keys() == {"pictures"}


# The reader of videos alone


def encode(path: Path, moments: list[float], **options: str) -> Path:
    """Picture i at moments[i] seconds, with B-frames where the options say so."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "10", **options})
        stream.height = stream.width = SIZE
        stream.pix_fmt, stream.gop_size, stream.time_base = "yuv444p", 8, Fraction(1, 90000)
        stream.codec_context.time_base = Fraction(1, 90000)
        for i, moment in enumerate(moments):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            frame.pts, frame.time_base = round(moment * 90000), Fraction(1, 90000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


VIDEOS: dict[str, tuple[list[float], dict[str, str]]] = {
    "steady": ([i / 30 for i in range(40)], {"bf": "0"}),
    "B-frames": ([i / 30 for i in range(40)], {"bf": "3", "b-adapt": "0"}),
    "begins late": ([1 + i / 30 for i in range(40)], {"bf": "2"}),
    "no steady rate": (np.cumsum(np.linspace(0.01, 0.09, 40)).tolist(), {"bf": "0"}),
}


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("order", ["rising", "with gaps", "backwards", "twice"])
def test_any_times_give_the_nearest_pictures(tmp_path: Path, name: str, order: str) -> None:
    moments, options = VIDEOS[name]
    wanted = {"rising": range(40), "with gaps": [0, 1, 9, 10, 30, 31, 39], "backwards": [39, 20, 19, 18, 0],
              "twice": [5, 5, 6, 6, 5]}[order]  # fmt: skip
    with closing(VideoReader(encode(tmp_path / "a.mp4", moments, **options))) as reader:
        for shift in (0.0, 9e-5, -9e-5):
            times = np.array([moments[i] for i in wanted]) + shift
            assert numbers(frames_at(reader, times)) == [*wanted]


def test_rising_times_are_read_without_a_seek(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, seeks = VideoReader(encode(tmp_path / "a.mp4", [i / 30 for i in range(40)])), []
    container = reader._container

    class Counting:
        def __getattr__(self, name: str) -> Any:
            seeks.append(name) if name == "seek" else None
            return getattr(container, name)

    monkeypatch.setattr(reader, "_container", Counting())
    for kept in (range(10), range(10, 20), range(24, 40, 2)):
        assert numbers(frames_at(reader, np.array([i / 30 for i in kept]))) == [*kept]
    assert len(seeks) == 1
    reader.close()


def test_times_that_float32_rounds_are_not_refused_in_long_videos(tmp_path: Path) -> None:
    """50 minutes in, float32 knows times to 2.4e-4 s: LeRobot compares such, and so finds them equal."""
    moments = [3000 + i / 30 for i in range(40)]
    times = np.array(moments).astype(np.float32).astype(np.float64)
    with closing(VideoReader(encode(tmp_path / "a.mp4", moments))) as reader:
        assert numbers(frames_at(reader, times)) == [*range(40)]
        with pytest.raises(DatasetError, match="the video has no frame"):
            frames_at(reader, times + 6e-4)


def test_reading_continues_after_a_fault(tmp_path: Path) -> None:
    with closing(VideoReader(encode(tmp_path / "a.mp4", [i / 30 for i in range(40)]))) as reader:
        for wrong, words in ((0.35, "the video has no frame"), (9.0, "shorter")):
            with pytest.raises(DatasetError, match=words):
                frames_at(reader, np.array([0.1, wrong]))
            assert numbers(frames_at(reader, np.array([0.2, 0.3]))) == [6, 9]


# Columns that say the same thing twice, columns that need not be there, several files


def change(root: Path, path: str, name: str, values: Callable[[list[Any]], list[Any]], kind: Any = None) -> None:
    table = pq.read_table(root / path)
    place = table.schema.get_field_index(name)
    column = pa.array(values(table[name].to_pylist()), kind or table.schema.field(name).type)
    pq.write_table(table.set_column(place, name, column), root / path)


def more_rows(root: Path) -> pa.Table:
    """Two rows of an episode 7, behind the others."""
    table = pq.read_table(root / DATA).slice(38)
    for name, values in (("episode_index", [7, 7]), ("index", [40, 41])):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.int64()))
    return table


def add_column(root: Path, path: str, name: str, values: list[int]) -> None:
    pq.write_table(pq.read_table(root / path).append_column(name, pa.array(values)), root / path)


DISAGREE: dict[str, tuple[Callable[[Path], None], str]] = {
    "index": (lambda root: change(root, DATA, "index", lambda v: [*v[:25], 3, *v[26:]]),
              r"index must rise(.|\n)*episode 1 row 5(.|\n)*3 after 24"),
    "dataset_from_index": (lambda root: change(root, EPISODES, "dataset_from_index", lambda v: [0, 21]),
                           r"dataset_to_index and length disagree(.|\n)*episode 1(.|\n)*21 to 40"),
    "both": (lambda root: [change(root, EPISODES, f"dataset_{a}_index", lambda v: [x + 7 for x in v])
                           for a in ("from", "to")] and None, r"lengths of the episodes before(.|\n)*7 to 27"),
    "rows of no episode": (lambda root: pq.write_table(
                               pa.concat_tables([pq.read_table(root / DATA), more_rows(root)]), root / DATA),
                           r"puts elsewhere(.|\n)*file-000\.parquet(.|\n)*episode_index 7"),
    "number of a table": (lambda root: add_column(root, EPISODES, "meta/episodes/chunk_index", [0, 0])
                          or add_column(root, EPISODES, "meta/episodes/file_index", [0, 1]),
                          r"another file's numbers(.|\n)*\(0, 1\)"),
    "total_tasks": (lambda root: write_info(root, json.loads((root / "meta/info.json").read_text())
                                            | {"total_tasks": 3}), r"total_tasks(.|\n)*3 tasks(.|\n)*2 tasks"),
}  # fmt: skip


@pytest.mark.parametrize("name", DISAGREE)
def test_check_reports_redundant_columns_that_disagree(tmp_path: Path, name: str) -> None:
    damage, words = DISAGREE[name]
    damage(write(tmp_path, SOUND))
    faults = check_dataset(tmp_path).problems
    assert re.search(words, str(faults[0])) and len({fault.what for fault in faults}) == 1
    assert all(fault.next_step for fault in faults)
    assert numbers(LeRobotDataset(tmp_path).frames(1, "front")) == [*range(20, 40)]


def test_a_table_of_no_episode_is_a_note(tmp_path: Path) -> None:
    root = write(tmp_path, SOUND)
    pq.write_table(more_rows(root), (root / DATA).with_name("copy.parquet"))
    (note,) = check_dataset(root).notes
    assert "copy.parquet belongs to no episode" in note


def test_redundant_columns_may_be_missing(tmp_path: Path) -> None:
    root = write(tmp_path, SOUND)
    pq.write_table(pq.read_table(root / DATA).drop_columns(["index", "frame_index"]), root / DATA)
    unneeded = ["length", f"videos/{KEY}/to_timestamp"]
    pq.write_table(pq.read_table(root / EPISODES).drop_columns(unneeded), root / EPISODES)
    write_info(root, INFO)
    assert assert_right(root).num_frames == 40


def test_whole_numbers_may_be_stored_as_floating_point(tmp_path: Path) -> None:
    root = write(tmp_path, SOUND)
    for name in ("episode_index", "frame_index", "index", "task_index"):
        change(root, DATA, name, lambda v: v, pa.float64())
    for name in ("episode_index", "length", "data/file_index", f"videos/{KEY}/file_index"):
        change(root, EPISODES, name, lambda v: v, pa.float64())
    assert_right(root)
    change(root, DATA, "task_index", lambda v: [0.5, *v[1:]])
    with pytest.raises(DatasetError, match=r"must hold integers(.|\n)*task_index row 0(.|\n)*0\.5"):
        assert LeRobotDataset(root).vectors


def test_a_task_may_change_within_an_episode(tmp_path: Path) -> None:
    root = write(tmp_path, SOUND)
    change(root, DATA, "task_index", lambda v: [0] * 12 + [1] * 28)
    data = assert_right(root)
    assert data.vectors.frame_task.tolist() == [0] * 12 + [1] * 28
    assert data.vectors.task_index.tolist() == [0, 1]


def test_all_faults_are_listed_at_once(tmp_path: Path) -> None:
    root = write(tmp_path, SOUND)
    change(root, DATA, "action", lambda v: [*v[:7], [float("nan"), 1.0], *v[8:]])
    change(root, DATA, "index", lambda v: [0] * 40)
    change(root, EPISODES, f"videos/{KEY}/from_timestamp", lambda v: [0.0, 2.05])
    write_info(root, json.loads((root / "meta/info.json").read_text()) | {"total_frames": 39, "total_episodes": 3})
    found = check_dataset(root)
    whats = [fault.what for fault in found.problems]
    assert whats.count("info.json disagrees with the episodes table") == 2
    assert {"a value is not finite", "the video has no frame at a row's time"} <= {*whats}
    assert all(fault.next_step for fault in found.problems)
    (root / DATA).write_bytes((root / DATA).read_bytes()[:-10])
    (root / EPISODES).write_bytes(b"")
    whats = [f"{fault.where}: {fault.got}" for fault in check_dataset(root).problems]
    assert any("episodes" in what and "empty" in what for what in whats)
    assert any(DATA in what and "no footer" in what for what in whats)
