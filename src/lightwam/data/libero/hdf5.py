"""LIBERO's own demonstrations, read and checked: a file `TASK_demo.hdf5` for each task, with groups `data/demo_N`.

The layout is that of LIBERO's scripts/create_dataset.py. Pictures are as the simulator renders them, upside down; the
gripper action is the simulator's, -1 open and 1 closed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from lightwam.data.hdf5_files import UNREADABLE, open_hdf5
from lightwam.errors import DatasetError

SUFFIX = "_demo.hdf5"
CAMERAS = {"agentview": "obs/agentview_rgb", "wrist": "obs/eye_in_hand_rgb"}
ROWS: Mapping[str, tuple[int | None, ...]] = {
    "actions": (7,),
    **{"obs/ee_pos": (3,), "obs/ee_ori": (3,), "obs/gripper_states": (2,), "obs/joint_states": (7,)},
    **{"states": (None,), "rewards": (), "dones": (), **dict.fromkeys(CAMERAS.values(), (None, None, 3))},
}
"""dataset -> shape of a row; None: any size"""
JOINTS = slice(1, 8)
"""of a row of `states` (the simulator's: time, positions, velocities): the arm's joints"""
SCENE = r"[A-Z][A-Z_]*_SCENE\d+_"
DEMO = re.compile(r"demo_(\d+)")


@dataclass(frozen=True)
class Demo:
    """One demonstration as stored; row t is the observation before action t."""

    frames: Mapping[str, UInt8[np.ndarray, "T height width 3"]]
    state: Float32[np.ndarray, "T 8"]
    action: Float32[np.ndarray, "T 7"]
    instruction: str
    failed: bool = False


@dataclass(frozen=True)
class Scan:
    """The result of `scan`."""

    problems: tuple[str, ...]
    """each with file, demonstration and dataset"""
    lengths: Mapping[str, int]
    """demonstration without problems -> steps, in the order of their numbers"""
    gripper: Float32[np.ndarray, " steps"]
    """the gripper's action in all of these"""
    sizes: frozenset[tuple[str, int, int]]
    """(camera, height, width) that occur in these"""
    failures: tuple[str, ...]
    """those of these demonstrations that never succeed"""


def demo_files(path: Path) -> list[Path]:
    """List the file itself, or the files of a folder (a suite) or of its subfolders, by name."""
    if path.is_file():
        return [path] if path.suffix in (".hdf5", ".h5") else []
    return sorted(path.glob("*" + SUFFIX)) or sorted(path.glob("*/*" + SUFFIX))


def sentence(path: Path) -> str:
    """Return the task as LIBERO's benchmark gives it to a policy: the file's name, without the scene."""
    if not path.name.endswith(SUFFIX):
        what, step = f"the file's name must be TASK{SUFFIX}", "give it its published name: the sentence is read from it"
        raise DatasetError(what, where=path, got=path.name, next_step=step)
    return re.sub(rf"^{SCENE}", "", path.name.removesuffix(SUFFIX)).replace("_", " ")


def stored_sentence(path: Path) -> str:
    """Return the task in the file's attributes, or ""; in some files it is in a list or in quotes."""
    with _open(path) as file:
        info = file["data"].attrs.get("problem_info", "{}")
    try:
        words = json.loads(info)["language_instruction"]
    except (ValueError, KeyError, TypeError):
        return ""
    return ("".join(map(str, words)) if isinstance(words, list) else str(words)).strip().strip('"').strip()


def scan(path: Path, pictures: bool = False) -> Scan:
    """Check a file: all its numbers, and with `pictures` every picture; lists all problems, not only the first."""
    problems: list[str] = []
    lengths: dict[str, int] = {}
    gripper, sizes, failures = [np.empty(0, np.float32)], set(), []
    try:
        with _open(path) as file:
            names = _demo_names(file, path, problems)
            for name in names:
                wrong = list(_demo_problems(file["data"], name, pictures))
                problems += [f"{path} {name} {problem}" for problem in wrong]
                if not wrong:
                    demo = file["data"][name]
                    lengths[name] = len(demo["actions"])
                    gripper.append(demo["actions"][:, 6].astype(np.float32))
                    sizes |= {(camera, *demo[key].shape[1:3]) for camera, key in CAMERAS.items()}
                    failures += [] if _succeeded(demo) else [name]
    except UNREADABLE as error:
        problems.append(f"{path}: cannot be read ({error}): cut short or overwritten, copy it again")
    return Scan(tuple(problems), lengths, np.concatenate(gripper), frozenset(sizes), tuple(failures))


def read_demo(path: Path, name: str) -> Demo:
    """Read one demonstration of a file without problems; DatasetError when its data cannot be read after all.

    With action t, LIBERO's script stores the observation after it, and scripts that replay the files (OpenVLA's) the
    one before it. The simulator's `states` are from before the action in both, which tells them apart: late rows are
    paired with the action that followed them, so the first action and the last row are dropped.
    """
    try:
        with _open(path) as file:
            demo = file["data"][name]
            rows, actions = (slice(None, -1), slice(1, None)) if _is_late(demo) else (slice(None), slice(None))
            state = [demo[f"obs/{key}"][rows].astype(np.float32) for key in ("ee_pos", "ee_ori", "gripper_states")]
            frames = {camera: demo[key][rows] for camera, key in CAMERAS.items()}
            action = demo["actions"][actions].astype(np.float32)
            return Demo(frames, np.hstack(state), action, sentence(path), failed=not _succeeded(demo))
    except UNREADABLE as error:
        where, step = f"{path} {name}", f"lightwam check dataset {path}"
        raise DatasetError("a demonstration cannot be read", where=where, got=error, next_step=step) from error


def _open(path: Path) -> Any:
    return open_hdf5(path, "libero")


def _demo_names(file: Any, path: Path, problems: list[str]) -> list[str]:
    """List the demonstrations by their numbers; problems are added to the list."""
    if "data" not in file:
        problems.append(f"{path}: no group 'data' (has {sorted(file)}): not a file of LIBERO's demonstrations")
        return []
    names = list(file["data"])
    problems += [f"{path} data/{name}: not named demo_N" for name in names if not DEMO.fullmatch(name)]
    known = [name for name in names if DEMO.fullmatch(name)]
    if not known:
        problems.append(f"{path} data: holds no demonstration, expected demo_0, demo_1, ...")
    return sorted(known, key=lambda name: int(name.removeprefix("demo_")))


def _demo_problems(data: Any, name: str, pictures: bool) -> Iterator[str]:
    """Yield problems, each beginning with the dataset's name."""
    length: int | None = None
    for key, row in ROWS.items():
        try:
            column = data[name].get(key)
            shape = getattr(column, "shape", None)  # a group has none
            if shape is None:
                yield f"{key}: missing"
            elif not _fits(shape, row) or (key == "states" and shape[1] < JOINTS.stop):
                sizes = ["T", *("any" if n is None else str(n) for n in row)]
                yield f"{key}: shape {shape}, expected ({', '.join(sizes)})"
            elif shape[0] < 2:
                yield f"{key}: {shape[0]} rows, expected 2 or more"
            else:
                length = length or shape[0]
                if shape[0] != length:
                    yield f"{key}: {shape[0]} rows, expected {length} as those before it"
                yield from (_picture_problems if key in CAMERAS.values() else _number_problems)(column, key, pictures)
        except UNREADABLE as error:
            yield f"{key}: cannot be read ({error})"


def _picture_problems(column: Any, key: str, pictures: bool) -> Iterator[str]:
    if column.dtype != np.uint8:
        yield f"{key}: {column.dtype}, expected uint8"
    elif pictures:
        column[:]  # raises when the file is damaged there


def _number_problems(column: Any, key: str, _: bool) -> Iterator[str]:
    if column.dtype.kind not in "fiub":
        yield f"{key}: {column.dtype}, expected numbers"
    elif (bad := np.argwhere(~np.isfinite(values := column[:]))).size:
        first = values[tuple(bad[0])]
        yield f"{key}: {len(bad)} values are not finite, the first is {first} at {bad[0].tolist()}"


def _fits(shape: tuple[int, ...], row: tuple[int | None, ...]) -> bool:
    return len(shape) == 1 + len(row) and all(n in (None, size) for n, size in zip(row, shape[1:], strict=True))


def _succeeded(demo: Any) -> bool:
    return bool((demo["dones"][:] >= 1).any() or (demo["rewards"][:] >= 1).any())


def _is_late(demo: Any) -> bool:
    """Return whether the observations are from after the action of their row."""
    joints, simulated = demo["obs/joint_states"][:], demo["states"][:, JOINTS]
    after, before = (np.abs(joints[:-1] - other).mean() for other in (simulated[1:], simulated[:-1]))
    return bool(after < before)
