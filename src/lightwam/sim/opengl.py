"""Choosing MuJoCo's OpenGL backend, and testing it before the first picture.

MUJOCO_GL chooses it. Without MUJOCO_GL it is EGL if that starts, else OSMesa.
"""

from __future__ import annotations

import ctypes.util
import importlib
import logging
import multiprocessing
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping
from typing import Any

from lightwam.errors import SetupError

OFF = ("disable", "disabled", "off", "false", "0")
"""values of MUJOCO_GL: no rendering"""
WINDOW = ("glfw", "glx", "enable", "enabled", "on", "true", "1")
"""values of MUJOCO_GL: rendering with GLFW, which needs a display"""
HEADLESS = ("egl", "osmesa")
BACKEND, PLATFORM, DEVICE = "MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID"
"""environment variables: MuJoCo's backend, PyOpenGL's backend, EGL's device"""
VENDORS = ("__EGL_VENDOR_LIBRARY_DIRS", "__EGL_VENDOR_LIBRARY_FILENAMES")
"""environment variables that say where EGL looks for drivers"""
PROBE_SECONDS = 60.0

_started: set[str] = set()


def choose_gl() -> None:
    """Set MuJoCo's OpenGL backend before its first import, and check that it works by creating a small context.

    Sets one llvmpipe thread a process: more compete with the other worker processes and make each picture slower.
    SetupError, with one next step, when no backend works or environment variables contradict each other.
    """
    os.environ.setdefault("LP_NUM_THREADS", "1")
    if not os.environ.get(DEVICE, "unset").strip():  # MuJoCo would parse an empty value as a number
        del os.environ[DEVICE]
    backend = _backend()
    if os.environ.get(PLATFORM):  # PyOpenGL knows lower case only
        os.environ[PLATFORM] = os.environ[PLATFORM].lower().strip()
    before = {name: os.environ.get(name) for name in (BACKEND, PLATFORM)}
    if backend:
        os.environ[BACKEND] = backend
    if backend in _started:
        return
    if reason := backend_error():
        restore_environment(before)  # so that the next simulator gets the same error
        raise _setup_error(backend, reason)
    _started.add(backend)


def restore_environment(variables: Mapping[str, str | None]) -> None:
    """Set environment variables; None unsets one."""
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def gl_context(height: int, width: int) -> Any:
    """Create a context of MUJOCO_GL's backend; mujoco itself reads it only at import, which may have been earlier."""
    backend = os.environ.get(BACKEND, "").lower().strip()
    module = importlib.import_module(f"mujoco.{backend if backend in HEADLESS else 'gl_context'}")
    context = module.GLContext.__new__(module.GLContext)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # GLFW only warns when it fails
            context.__init__(width, height)
    except Exception:
        context.__class__ = _Failed
        raise
    return context


def backend_error() -> str:
    """Try MUJOCO_GL's backend; return in one line why it fails, "" if it works."""
    try:
        import mujoco

        context = gl_context(8, 8)
        try:
            context.make_current()
            model = mujoco.MjModel.from_xml_string("<mujoco/>")
            model.vis.global_.offheight = model.vis.global_.offwidth = 8
            model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
            mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50).free()
        finally:
            context.free()
    except Exception as error:  # drivers, PyOpenGL, GLFW and MuJoCo each have their own errors
        number = re.search(r"\berr = (\w+)", text := " ".join(str(error).split()))  # PyOpenGL's text has all arguments
        return f"{type(error).__name__}: {number[1] if number else text.partition('. ')[0][:200]}"
    return ""


class _Failed:
    """Class given to a context that failed: MuJoCo's own __del__ would fail too, and Python would print that."""


def _backend() -> str:
    """Return the value for MUJOCO_GL; "" where MuJoCo chooses itself."""
    asked = os.environ.get(BACKEND, "").lower().strip()
    platform = os.environ.get(PLATFORM, "").lower().strip()
    if asked in OFF:
        raise SetupError("MuJoCo's rendering is switched off", where=BACKEND, got=asked, next_step=f"unset {BACKEND}")
    if sys.platform != "linux":
        return asked
    if asked and asked not in (*HEADLESS, *WINDOW):
        what = "MuJoCo's OpenGL backend must be egl, osmesa or glfw"
        raise SetupError(what, where=BACKEND, got=repr(asked), next_step=f"unset {BACKEND} to find one that works")
    if platform and asked not in WINDOW and (platform not in HEADLESS or asked not in ("", platform)):
        what, got = f"{BACKEND} and {PLATFORM} must be the same, egl or osmesa", f"{asked or 'unset'}, {platform}"
        raise SetupError(what, got=got, next_step=f"unset {PLATFORM}")
    return asked or platform or _installed_backend()


def _installed_backend() -> str:
    """Return egl if it starts, else osmesa; SetupError if neither is installed."""
    egl, osmesa = ctypes.util.find_library("EGL"), ctypes.util.find_library("OSMesa")
    if not egl and not osmesa:
        step = "apt install libegl1 libgl1 (or libosmesa6), or set MUJOCO_GL yourself"
        raise SetupError("MuJoCo cannot draw: neither EGL nor OSMesa is installed", next_step=step)
    if egl and (not osmesa or DEVICE in os.environ):  # a device was chosen: no fallback
        return "egl"
    reason = _egl_error() if egl else "it is not installed"
    if not reason:
        return "egl"
    if multiprocessing.current_process().name in ("MainProcess", "worker 0"):  # once, not by every worker
        message = "EGL does not start (%s), MuJoCo draws with OSMesa (set %s to choose)"
        logging.getLogger("lightwam.sim").warning(message, reason, BACKEND)
    return "osmesa"


def _egl_error() -> str:
    """Try EGL in another process; return in one line why it fails, "" if it works.

    A process that has loaded EGL cannot use another OpenGL.
    """
    variables = os.environ | {BACKEND: "egl", PLATFORM: "egl", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    probe = "import sys; from lightwam.sim import opengl; sys.exit(opengl.backend_error() or 0)"
    command = [sys.executable, "-c", probe]
    try:
        done = subprocess.run(command, capture_output=True, errors="replace", timeout=PROBE_SECONDS, env=variables)
    except subprocess.TimeoutExpired:
        return f"no answer in {PROBE_SECONDS:.0f} s"
    lines = done.stderr.splitlines()
    return "" if done.returncode == 0 else lines[-1] if lines else f"exit status {done.returncode}"


def _setup_error(backend: str, reason: str) -> SetupError:
    """Return the error of a backend that does not start, with the next step."""
    if backend == "osmesa":
        name = BACKEND if os.environ.get(BACKEND) else PLATFORM
        what, step = "MuJoCo cannot draw: OSMesa does not start", f"apt install libosmesa6, or unset {name} to try EGL"
        got = reason if ctypes.util.find_library("OSMesa") else "it is not installed"
        return SetupError(what, where=f"{name}=osmesa", got=got, next_step=step)
    if backend != "egl":
        what, step = "MuJoCo cannot draw in a window: it needs a display", f"unset {BACKEND} to draw without one"
        return SetupError(what, where=f"{BACKEND}={backend}", got=reason, next_step=step)
    if (device := os.environ.get(DEVICE)) is not None:
        count = _num_devices()
        if not device.strip().isdigit() or 0 < count <= int(device):
            expected = f"one of {', '.join(map(str, range(count)))}" if count else "a whole number"
            what, step = "EGL has no such device", f"unset {DEVICE}"
            return SetupError(what, where=DEVICE, got=repr(device), expected=expected, next_step=step)
    state = "is installed and does not start" if ctypes.util.find_library("EGL") else "is not installed"
    variables = [f"{name}={os.environ[name]}" for name in (BACKEND, DEVICE, *VENDORS) if os.environ.get(name)]
    unset = f" and unset {BACKEND}" if os.environ.get(BACKEND) else ""
    step = f"apt install libegl1 libegl-mesa0 libgl1-mesa-dri; or apt install libosmesa6{unset}"
    expected = "NVIDIA's driver (in a container NVIDIA_DRIVER_CAPABILITIES=all), or Mesa's"
    where, what = ", ".join(variables) or None, f"MuJoCo cannot draw: EGL {state}"
    return SetupError(what, where=where, got=reason, expected=expected, next_step=step)


def _num_devices() -> int:
    """Count EGL's devices; 0 where it cannot list them."""
    from mujoco.egl import egl_ext

    try:
        return len(egl_ext.eglQueryDevicesEXT())
    except egl_ext.error.GLError:
        return 0
