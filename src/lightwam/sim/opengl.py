"""Choosing MuJoCo's OpenGL backend, and testing it before the first picture.

MUJOCO_GL chooses it. Without MUJOCO_GL it is EGL if that starts, else OSMesa.
"""

from __future__ import annotations

import ctypes.util
import multiprocessing
import os
import re
import subprocess
import sys
import warnings
from typing import Any

from lightwam.errors import SetupError

OFF = ("disable", "disabled", "off", "false", "0")
"""values of MUJOCO_GL: no rendering"""
WINDOW = ("glfw", "glx", "enable", "enabled", "on", "true", "1")
"""values of MUJOCO_GL: rendering with GLFW, which needs a display"""
HEADLESS = ("egl", "osmesa")
DEVICE, WORD, PLATFORM = "MUJOCO_EGL_DEVICE_ID", "MUJOCO_GL", "PYOPENGL_PLATFORM"
"""environment variables: EGL's device, MuJoCo's backend, PyOpenGL's backend"""
VENDORS = ("__EGL_VENDOR_LIBRARY_DIRS", "__EGL_VENDOR_LIBRARY_FILENAMES")
"""environment variables that say where EGL looks for drivers"""
SOFTWARE = "apt install libosmesa6"
EMPTY = "<mujoco><visual><global offwidth='8' offheight='8'/></visual></mujoco>"
TRIAL = "import sys; from lightwam.sim import opengl; sys.exit(opengl.trouble() or 0)"
TRIAL_SECONDS = 60.0

_started: set[str] = set()


def choose_gl() -> None:
    """Set MuJoCo's OpenGL backend before its first import, and check that it works by creating a small context.

    Sets one llvmpipe thread a process: more compete with the other worker processes and make each picture slower.
    SetupError, with one next step, when no backend works or environment variables contradict each other.
    """
    os.environ.setdefault("LP_NUM_THREADS", "1")
    if not os.environ.get(DEVICE, "unset").strip():  # set to nothing, which MuJoCo takes for a number
        del os.environ[DEVICE]
    kind = _kind()
    if os.environ.get(PLATFORM):  # PyOpenGL knows small letters only
        os.environ[PLATFORM] = os.environ[PLATFORM].lower().strip()
    before = {name: os.environ.get(name) for name in (WORD, PLATFORM)}
    if kind:
        os.environ[WORD] = kind
    if kind in _started:
        return
    if reason := trouble():
        for name, value in before.items():  # so that the next simulator gets the same error
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        raise _refused(kind, reason)
    _started.add(kind)


def gl_context(height: int, width: int) -> Any:
    """Create a context of MUJOCO_GL's backend; mujoco itself reads it only at import, which may have been earlier."""
    kind = os.environ.get(WORD, "").lower().strip()
    if kind == "egl":
        from mujoco.egl import GLContext
    elif kind == "osmesa":
        from mujoco.osmesa import GLContext
    else:
        from mujoco.gl_context import GLContext
    context = GLContext.__new__(GLContext)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # GLFW only warns when it fails
            context.__init__(width, height)
    except Exception:
        context.__class__ = _Failed
        raise
    return context


class _Failed:
    """Class given to a context that failed: MuJoCo's own __del__ would fail too, and Python would print that."""


def _kind() -> str:
    """Return the value for MUJOCO_GL; "" where MuJoCo chooses itself."""
    asked = os.environ.get(WORD, "").lower().strip()
    platform = os.environ.get(PLATFORM, "").lower().strip()
    if asked in OFF:
        raise SetupError("MuJoCo's rendering is switched off", where=WORD, got=asked, next_step=f"unset {WORD}")
    if sys.platform != "linux":
        return asked
    if asked and asked not in (*HEADLESS, *WINDOW):
        raise SetupError("MuJoCo has no such OpenGL backend", where=WORD, got=repr(asked),
                         expected="egl, osmesa or glfw", next_step=f"unset {WORD} to find one that works")  # fmt: skip
    if platform and asked not in WINDOW and (platform not in HEADLESS or asked not in ("", platform)):
        raise SetupError("two environment variables contradict each other", where=f"{WORD}, {PLATFORM}",
                         got=f"{asked or 'unset'}, {platform}", expected="the same backend, egl or osmesa",
                         next_step=f"unset {PLATFORM}")  # fmt: skip
    if asked or platform:
        return asked or platform
    egl, osmesa = ctypes.util.find_library("EGL"), ctypes.util.find_library("OSMesa")
    if not egl and not osmesa:
        raise SetupError("MuJoCo cannot draw: neither EGL nor OSMesa is installed",
                         next_step="apt install libegl1 libgl1 (or libosmesa6), or set MUJOCO_GL yourself")  # fmt: skip
    if egl and (not osmesa or DEVICE in os.environ):  # a device was chosen: no fallback
        return "egl"
    reason = _trouble_elsewhere() if egl else "it is not installed"
    if not reason:
        return "egl"
    if _tells():
        print(f"lightwam: EGL does not start ({reason}), MuJoCo draws with OSMesa (set {WORD} to choose)",
              file=sys.stderr)  # fmt: skip
    return "osmesa"


def trouble() -> str:
    """Try MUJOCO_GL's backend; return in one line why it fails, "" if it works."""
    try:
        import mujoco

        context = gl_context(8, 8)
        try:
            context.make_current()
            model = mujoco.MjModel.from_xml_string(EMPTY)
            model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
            mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50).free()
        finally:
            context.free()
    except Exception as error:  # drivers, PyOpenGL, GLFW and MuJoCo each have their own errors
        number = re.search(r"\berr = (\w+)", text := " ".join(str(error).split()))  # PyOpenGL's text has all arguments
        return f"{type(error).__name__}: {number[1] if number else text.partition('. ')[0][:200]}"
    return ""


def _trouble_elsewhere() -> str:
    """Try EGL in another process; return in one line why it fails, "" if it works.

    A process that has loaded EGL cannot use another OpenGL.
    """
    command = [sys.executable, "-c", TRIAL]
    environment = os.environ | {WORD: "egl", PLATFORM: "egl", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=TRIAL_SECONDS,
                              env=environment)  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer in {TRIAL_SECONDS:.0f} s"
    lines = done.stderr.splitlines()
    return "" if done.returncode == 0 else lines[-1] if lines else f"exit status {done.returncode}"


def _refused(kind: str, reason: str) -> SetupError:
    if kind == "osmesa":
        word = WORD if os.environ.get(WORD) else PLATFORM
        reason = reason if ctypes.util.find_library("OSMesa") else "it is not installed"
        return SetupError("MuJoCo cannot draw: OSMesa does not start", where=f"{word}=osmesa", got=reason,
                          next_step=f"{SOFTWARE}, or unset {word} to try EGL")  # fmt: skip
    if kind != "egl":
        return SetupError("MuJoCo cannot draw in a window: it needs a display", where=f"{WORD}={kind}", got=reason,
                          next_step=f"unset {WORD}: EGL and OSMesa need none")  # fmt: skip
    if (device := os.environ.get(DEVICE)) is not None:
        count = _num_devices()
        if not device.strip().isdigit() or 0 < count <= int(device):
            known = ", ".join(map(str, range(count))) or "a whole number"
            return SetupError("EGL has no such device", where=DEVICE, got=repr(device),
                              expected=f"one of {known}" if count else known, next_step=f"unset {DEVICE}")  # fmt: skip
    named = [f"{name}={os.environ[name]}" for name in (WORD, DEVICE, *VENDORS) if os.environ.get(name)]
    state = "is installed and does not start" if ctypes.util.find_library("EGL") else "is not installed"
    return SetupError(f"MuJoCo cannot draw: EGL {state}", where=", ".join(named) or None,
                      got=reason, expected="NVIDIA's driver (in a container NVIDIA_DRIVER_CAPABILITIES=all), or Mesa's",
                      next_step=f"apt install libegl1 libegl-mesa0 libgl1-mesa-dri; or {SOFTWARE}"
                      + (f" and unset {WORD}" if os.environ.get(WORD) else ""))  # fmt: skip


def _num_devices() -> int:
    """Count EGL's devices; 0 where it cannot list them."""
    from mujoco.egl import egl_ext

    try:
        return len(egl_ext.eglQueryDevicesEXT())
    except egl_ext.error.GLError:
        return 0


def _tells() -> bool:
    """Whether this process prints messages that are the same in all: the main process, or the first worker."""
    return multiprocessing.current_process().name in ("MainProcess", "worker 0")
