"""LIBERO's own files: the sentence, rows beside the right action, and every fault of a broken file by its place."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lightwam.cli import check
from lightwam.data.libero import hdf5
from lightwam.errors import DatasetError


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("open_the_middle_drawer_of_the_cabinet_demo.hdf5", "open the middle drawer of the cabinet"),
        ("KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5", "turn on the stove"),
        ("LIVING_ROOM_SCENE10_put_it_in_the_basket_demo.hdf5", "put it in the basket"),
    ],
)
def test_the_sentence_is_the_benchmarks(name: str, words: str) -> None:
    assert hdf5.sentence(Path(name)) == words


def test_the_sentences_are_those_of_the_benchmark_itself() -> None:
    """Where LIBERO is installed: all 130 names."""
    benchmark = pytest.importorskip("libero.libero.benchmark")
    for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"):
        for task in benchmark.libero_task_map[suite]:
            expected = benchmark.grab_language_from_filename(task + ".bddl")
            assert hdf5.sentence(Path(f"{task}_demo.hdf5")) == expected


def test_a_name_without_a_task_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"must be TASK_demo.hdf5[\s\S]*mine.hdf5[\s\S]*published name"):
        hdf5.sentence(Path("mine.hdf5"))


@pytest.mark.parametrize("noted", ["open it", '"open it"', ["open it"], ["o", "pen it"]])
def test_the_stored_sentence_is_read_in_all_its_forms(
    tmp_path: Path, write_demos: Any, demo: Any, noted: object
) -> None:
    assert hdf5.stored_sentence(write_demos(tmp_path, [demo(0)], noted=noted)) == "open it"


def test_an_empty_stored_sentence_is_not_used(tmp_path: Path, write_demos: Any, demo: Any) -> None:
    assert hdf5.stored_sentence(write_demos(tmp_path, [demo(0)])) == ""


@pytest.mark.parametrize("late", [True, False])
def test_rows_are_aligned_with_the_following_action(tmp_path: Path, write_demos: Any, demo: Any, late: bool) -> None:
    whole = demo(0, steps=6, late=late)
    read = hdf5.read_demo(write_demos(tmp_path, [whole]), "demo_0")
    steps = slice(1, 6) if late else slice(0, 6)
    np.testing.assert_array_equal(read.action, whole.action()[steps].astype(np.float32))
    np.testing.assert_array_equal(read.state, whole.seen(10)[steps, :8].astype(np.float32))
    np.testing.assert_array_equal(read.frames["agentview"][:, ::-1, ::-1], whole.pictures(16)[steps])
    assert not read.failed and not np.array_equal(read.frames["wrist"], read.frames["agentview"])


def test_a_valid_file_is_scanned(tmp_path: Path, write_demos: Any, demo: Any) -> None:
    path = write_demos(tmp_path, [demo(10, steps=4), demo(9, steps=5, failed=True)])
    scan = hdf5.scan(path, pictures=True)
    assert scan.problems == () and list(scan.lengths.items()) == [("demo_9", 5), ("demo_10", 4)]
    assert scan.failures == ("demo_9",) and scan.sizes == {("agentview", 16, 16), ("wrist", 16, 16)}
    assert scan.gripper.tolist() == [-1, -1, 1, 1, 1, -1, -1, 1, 1]


def put(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        values = change(file[f"data/demo_1/{key}"][:])
        del file[f"data/demo_1/{key}"]
        file[f"data/demo_1/{key}"] = values

    return damage


def nan(values: np.ndarray) -> np.ndarray:
    values[2, 1] = np.nan
    return values


def drop(key: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(key)


BROKEN: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "missing": (drop("data/demo_1/obs/ee_ori"), "demo_1 obs/ee_ori: missing"),
    "no pictures": (drop("data/demo_1/obs/eye_in_hand_rgb"), "demo_1 obs/eye_in_hand_rgb: missing"),
    "no obs": (drop("data/demo_1/obs"), "demo_1 obs/ee_pos: missing"),
    "width": (put("obs/ee_pos", lambda v: v[:, :2]), r"demo_1 obs/ee_pos: shape \(6, 2\), expected \(T, 3\)"),
    "states": (put("states", lambda v: v[:, :7]), r"demo_1 states: shape \(6, 7\)"),
    "length": (put("obs/ee_pos", lambda v: v[:4]), "demo_1 obs/ee_pos: 4 rows, expected 6"),
    "one step": (put("actions", lambda v: v[:1]), "demo_1 actions: 1 rows, expected 2 or more"),
    "nan": (put("actions", nan), r"demo_1 actions: 1 values are not finite, the first is nan at \[2, 1\]"),
    "text": (put("dones", lambda v: np.array([b"x"] * len(v))), "demo_1 dones: .*expected numbers"),
    "grey": (put("obs/agentview_rgb", lambda v: v[..., 0]), r"demo_1 obs/agentview_rgb: shape \(6, 16, 16\)"),
    "floats": (put("obs/agentview_rgb", lambda v: v / 255), "demo_1 obs/agentview_rgb: float64, expected uint8"),
    "no data": (drop("data"), "no group 'data'"),
    "empty": (lambda file: [file["data"].__delitem__(name) for name in list(file["data"])], "no demonstration"),
    "odd name": (lambda file: file["data"].move("demo_1", "first"), "data/first: not named demo_N"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_fault_names_file_demo_and_dataset(tmp_path: Path, write_demos: Any, demo: Any, name: str) -> None:
    path = write_demos(tmp_path, [demo(0), demo(1)])
    damage, words = BROKEN[name]
    with h5py.File(path, "a") as file:
        damage(file)
    scan = hdf5.scan(path)
    assert re.search(words, "\n".join(scan.problems)), scan.problems
    assert all(fault.startswith(str(path)) for fault in scan.problems) and "demo_1" not in scan.lengths


def test_a_truncated_file_and_a_damaged_picture_are_found(tmp_path: Path, write_demos: Any, demo: Any) -> None:
    path = write_demos(tmp_path, [demo(0)])
    path.write_bytes(path.read_bytes()[:-100])
    (fault,) = hdf5.scan(path).problems
    assert fault.startswith(f"{path}: cannot be read") and "truncated" in fault
    with pytest.raises(DatasetError, match=r"demo_0[\s\S]*check dataset"):
        hdf5.read_demo(path, "demo_0")

    path = write_demos(tmp_path, [demo(0)])
    with h5py.File(path, "a") as file:
        key = "data/demo_0/obs/agentview_rgb"
        pictures = file[key][:]
        del file[key]
        file.create_dataset(key, data=pictures, chunks=(1, 16, 16, 3), fletcher32=True)
        at = file[key].id.get_chunk_info(3).byte_offset
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    assert hdf5.scan(path).problems == ()  # the quick look leaves pictures alone
    (fault,) = hdf5.scan(path, pictures=True).problems
    assert fault.startswith(f"{path} demo_0 obs/agentview_rgb: cannot be read")


def test_check_dataset_lists_the_faults_of_all_files(
    tmp_path: Path, write_demos: Any, demo: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_demos(tmp_path, [demo(0), demo(1, failed=True)], "close_it")
    check.run(["dataset", str(tmp_path)])
    assert (
        "sound; 1 files, 2 demonstrations, 12 steps; 1 of the demonstrations never succeed" in capsys.readouterr().out
    )
    other = write_demos(tmp_path, [demo(0), demo(1)])
    with h5py.File(other, "a") as file:
        del file["data/demo_1/rewards"], file["data/demo_0/actions"]
    cut = write_demos(tmp_path, [demo(0)], "wave")
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(DatasetError, match="3 problems, listed above"):
        check.run(["dataset", str(tmp_path)])
    told = capsys.readouterr().out
    assert f"{other} demo_0 actions: missing" in told and f"{other} demo_1 rewards: missing" in told
    assert f"{cut}: cannot be read" in told


def test_without_h5py_the_extra_is_named(
    tmp_path: Path, write_demos: Any, demo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_demos(tmp_path, [demo(0)])
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(DatasetError, match=r"lightwam\[libero\]"):
        hdf5.scan(path)
