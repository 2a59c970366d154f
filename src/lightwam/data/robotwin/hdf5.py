"""One demonstration of RoboTwin in HDF5, read and checked, in both layouts: before August 2026 and since.

The older one has states only: the action of a frame is the state of the next one, and the last frame has none, as in
RoboTwin's own conversions. The newer one, XPolicyLab's, has actions that are shifted like this already. Either may have
either kind of JPEG (`system.images`). Camera matrices (`extrinsic_matrix` or `extrinsics_matrix`), depths, poses and
point clouds are not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8

from lightwam.config.robotwin_tasks import CAMERAS, SIDES
from lightwam.data.hdf5_files import UNREADABLE, open_hdf5
from lightwam.errors import DatasetError, first_few
from lightwam.system.images import PictureError, decode

Split = Literal["seen", "unseen"]
"""sentences made of templates for training, or of those kept for evaluation"""
EPISODE = re.compile(r"episode_?(\d+)")
"""the stem of a file's name"""
MAX_BYTES = 1 << 28
"""of one decoded picture"""


@dataclass(frozen=True)
class Layout:
    """The names of one layout's datasets."""

    name: str
    joints: tuple[str, str]
    """a side's arm and gripper, {side}"""
    groups: tuple[str, ...]
    """the groups that hold the joints: of the state, and of the action if it has one"""
    cameras: Mapping[str, str]
    """camera -> its pictures"""
    folders: tuple[int, int]
    """how many folders above `data` those of the task and of its configuration are"""

    def keys(self, group: str) -> tuple[str, ...]:
        """Return the datasets that make up a vector: left arm, left gripper, right arm, right gripper."""
        return tuple(f"{group}/{joint.format(side=side)}" for side in SIDES for joint in self.joints)


OLDER = Layout(
    name="RoboTwin HDF5",
    joints=("{side}_arm", "{side}_gripper"),
    groups=("joint_action",),
    cameras={camera: f"observation/{camera}/rgb" for camera in CAMERAS},
    folders=(2, 1),
)
"""TASK/CONFIG/data/episodeN.hdf5"""
NEWER = Layout(
    name="XPolicyLab HDF5",
    joints=("{side}_arm_joint_states", "{side}_ee_joint_states"),
    groups=("state", "action"),
    cameras={
        "head_camera": "vision/cam_head/colors",
        "left_camera": "vision/cam_left_wrist/colors",
        "right_camera": "vision/cam_right_wrist/colors",
    },
    folders=(2, 3),
)
"""CONFIG/TASK/EMBODIMENT/data/episode_000000N.hdf5"""


@dataclass(frozen=True)
class Scan:
    """What `scan` found in a file."""

    problems: tuple[str, ...]
    """each with the file and the dataset; with problems, the rest may be empty"""
    layout: Layout | None = None
    state: Float32[np.ndarray, "T P"] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """left arm in radians, left gripper (1 open, 0 closed), right arm, right gripper: the drives' targets"""
    action: Float32[np.ndarray, "T P"] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """the same numbers, of the next frame"""
    length: int = 0
    """rows of both, the file's last frame left out where it has no action"""
    arm_joints: int = 0
    """of one arm"""
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """camera -> height and width of its first picture"""
    label_hz: int | None = None
    """the rate that the file states, which need not be true"""


def scan(path: Path, pictures: bool = False) -> Scan:
    """Check a file: all its numbers, and with `pictures` every picture; lists all problems, not only the first."""
    problems: list[str] = []
    try:
        with open_file(path) as file:
            layout = _layout(file)
            if layout is None:
                got = first_few(sorted(file))
                return Scan((f"{path}: no joint_action, and no state and vision (has {got}): not of RoboTwin",))
            vectors = _vectors(file, layout, problems)
            sizes = _cameras(file, layout, pictures, problems)
            label = file.get("additional_info/frequency")
            label_hz = None if label is None else int(np.asarray(label[()]).reshape(-1)[0])
    except UNREADABLE as error:
        return Scan((*problems, f"{path}: cannot be read ({error}): cut short or overwritten, copy it again"))
    found = tuple(f"{path} {problem}" for problem in problems)
    if vectors is None:
        return Scan(found, layout)
    state, action = vectors
    return Scan(found, layout, state, action, len(state), state.shape[1] // 2 - 1, sizes, label_hz)


def frames(path: Path, layout: Layout, camera: str, length: int) -> UInt8[np.ndarray, "T height width 3"]:
    """Decode the first `length` pictures of a camera; DatasetError when one is broken or of another size."""
    key = layout.cameras[camera]
    try:
        with open_file(path) as file:
            stored = file[key][:length]
    except UNREADABLE as error:
        step = "copy the file again"
        raise DatasetError("pictures cannot be read", where=f"{path} {key}", got=error, next_step=step) from error
    clip: np.ndarray | None = None
    for row, data in enumerate(stored):
        picture = _picture(data, where := f"{path} {key} row {row}")
        clip = np.empty((length, *picture.shape), np.uint8) if clip is None else clip
        if picture.shape != (size := clip.shape[1:]):
            raise DatasetError("pictures must keep their size", where=where, got=picture.shape, expected=size)
        clip[row] = picture
    assert clip is not None
    return clip


def sentences(path: Path, split: Split) -> tuple[str, ...]:
    """Return an episode's instructions of a split: in the file, or in `instructions/episodeN.json` beside `data`.

    Since August 2026 that folder is named `instruction`, and a file has only the seen ones. Instructions of no split
    count as seen. () without any; DatasetError when the JSON file is broken.
    """
    with open_file(path) as file:
        stored = [_text(file[key][()]) for key in ("instructions", "instruction") if key in file]
    if any(found := [_split(value, split) for value in stored]):
        return next(filter(None, found))
    number, folder = episode_number(path), path.parent.parent
    for name in (f"instructions/episode{number}.json", f"instruction/episode_{number:07}.json"):
        if (folder / name).is_file():
            try:
                return _split(json.loads((folder / name).read_text(encoding="utf-8-sig")), split)
            except ValueError as error:
                raise DatasetError("instructions must be JSON", where=folder / name, got=error) from error
    return ()


def episode_number(path: Path) -> int:
    """Return the number in a file's name, episodeN.hdf5 or episode_000000N.hdf5; -1 in any other name."""
    found = EPISODE.fullmatch(path.stem)
    return int(found[1]) if found else -1


def open_file(path: Path) -> Any:
    """Open an episode's file for reading."""
    return open_hdf5(path, "robotwin")


def layout_of(path: Path) -> Layout | None:
    """Return a file's layout; None if it has none of the two, or cannot be read."""
    try:
        with open_file(path) as file:
            return _layout(file)
    except UNREADABLE:
        return None


def _layout(file: Any) -> Layout | None:
    if "joint_action" in file:
        return OLDER
    return NEWER if "state" in file and "vision" in file else None


def _vectors(file: Any, layout: Layout, problems: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Read state and action; None if there are problems, which are added to the list."""
    parts = {group: [_column(file, key, problems) for key in layout.keys(group)] for group in layout.groups}
    columns = [column for group in parts.values() for column in group]
    if any(column is None for column in columns):
        return None
    widths = {tuple(column.shape[1] for column in group if column is not None) for group in parts.values()}
    lengths = {len(column) for column in columns if column is not None}
    if len(widths) > 1 or len(set(next(iter(widths))[::2])) > 1 or set(next(iter(widths))[1::2]) != {1}:
        problems.append(f"{layout.groups[0]}: widths {sorted(widths)}, expected one of both arms, and grippers of 1")
        return None
    if len(lengths) > 1 or min(lengths) < 2:
        problems.append(f"{layout.groups[0]}: {sorted(lengths)} rows, expected one length, 2 or more")
        return None
    rows = [np.concatenate([column for column in group if column is not None], 1) for group in parts.values()]
    if len(rows) == 1:
        rows = [rows[0][:-1], rows[0][1:]]
    elif np.array_equal(rows[0], rows[1]) and np.ptp(rows[0], axis=0).any():
        step = "convert it again without --same-index-action"
        problems.append(f"action: equals the state of the same row, expected that of the next row: {step}")
        return None
    return rows[0], rows[1]


def _column(file: Any, key: str, problems: list[str]) -> Float32[np.ndarray, "T n"] | None:
    column = file.get(key)
    shape = getattr(column, "shape", None)  # a group has none
    if shape is None or len(shape) not in (1, 2) or column.dtype.kind not in "fiu":
        got = "missing" if column is None else f"shape {shape}" if shape is not None else "a group"
        problems.append(f"{key}: {got}, expected numbers (T, n) or (T,)")
        return None
    values = column[()].astype(np.float32).reshape(len(column), -1)
    if (bad := np.argwhere(~np.isfinite(values))).size:
        problems.append(
            f"{key}: {len(bad)} values are not finite, the first is {values[tuple(bad[0])]} at {bad[0].tolist()}"
        )
        return None
    return values


def _cameras(file: Any, layout: Layout, pictures: bool, problems: list[str]) -> dict[str, tuple[int, int]]:
    """Return the size of the cameras that the file has; without `pictures` only the first picture is decoded."""
    sizes: dict[str, tuple[int, int]] = {}
    length = len(file[key]) if (key := layout.keys(layout.groups[0])[0]) in file else None
    for camera, key in layout.cameras.items():
        if key not in file:
            continue
        rows = file[key]
        if length is not None and len(rows) != length:
            problems.append(f"{key}: {len(rows)} pictures, expected {length}, one a row")
        for row in range(len(rows) if pictures else min(1, len(rows))):
            try:
                size = _picture(rows[row], "").shape[:2]
            except DatasetError as error:
                problems.append(f"{key} row {row}: {error.what} ({error.got})")
                continue
            if sizes.setdefault(camera, (size[0], size[1])) != size:
                problems.append(f"{key} row {row}: {size}, expected {sizes[camera]} as the first")
    if not sizes:
        problems.append(f"{layout.cameras['head_camera']}: no picture, expected those of at least one camera")
    return sizes


def _picture(stored: Any, where: str) -> UInt8[np.ndarray, "height width 3"]:
    """Return one stored picture in RGB: an encoded one, which may be padded with NUL, or an array."""
    if isinstance(stored, np.ndarray) and stored.ndim == 3:
        if stored.dtype != np.uint8 or stored.shape[2] != 3:
            got = f"{stored.dtype} {stored.shape}"
            raise DatasetError("a picture must be RGB", where=where, got=got, expected="uint8 (height, width, 3)")
        return stored
    data = (stored.tobytes() if isinstance(stored, np.ndarray) else bytes(stored)).rstrip(b"\0")
    try:
        return decode(data, MAX_BYTES, swapped_jpeg=True)
    except PictureError as error:
        raise DatasetError("a picture cannot be decoded", where=where, got=error, next_step="copy it again") from error


def _text(value: Any) -> Any:
    """Return what a dataset of text holds: JSON's value, or the text itself, or a list of texts."""
    if isinstance(value, np.ndarray):
        return [_text(one) for one in value.reshape(-1)]
    words = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    try:
        return json.loads(words)
    except ValueError:
        return words


def _split(value: Any, split: Split) -> tuple[str, ...]:
    """Return the sentences of a split in any of the forms that occur: a text, a list, or either under names."""
    if isinstance(value, Mapping):
        names: Sequence[str] = (split, "instructions", "instruction") if split == "seen" else (split,)
        return next(filter(None, (_words(value.get(name)) for name in names)), ())
    return _words(value) if split == "seen" else ()


def _words(value: Any) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value if isinstance(value, Sequence) else []
    return tuple(dict.fromkeys(word.strip() for word in words if isinstance(word, str) and word.strip()))
