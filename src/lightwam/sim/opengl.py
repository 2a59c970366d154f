"""Which OpenGL MuJoCo draws with where there is no display, tried before the first picture is asked for.

MuJoCo is told by MUJOCO_GL. Without it EGL is taken where it starts, and OSMesa where EGL is missing or does not start.
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
"""of MUJOCO_GL: nothing is drawn"""
WINDOW = ("glfw", "glx", "enable", "enabled", "on", "true", "1")
"""of MUJOCO_GL: drawn by GLFW, which needs a display"""
HEADLESS = ("egl", "osmesa")
DEVICE, WORD, PLATFORM = "MUJOCO_EGL_DEVICE_ID", "MUJOCO_GL", "PYOPENGL_PLATFORM"
"""environment variables: EGL's device, MuJoCo's way of drawing, PyOpenGL's"""
VENDORS = ("__EGL_VENDOR_LIBRARY_DIRS", "__EGL_VENDOR_LIBRARY_FILENAMES")
"""environment variables that say where EGL looks for drivers"""
SOFTWARE = "apt install libosmesa6"
EMPTY = "<mujoco><visual><global offwidth='8' offheight='8'/></visual></mujoco>"
TRIAL = "import sys; from lightwam.sim import opengl; sys.exit(opengl.trouble() or 0)"
TRIAL_SECONDS = 60.0

_started: set[str] = set()


def choose_gl() -> None:
    """Settle how MuJoCo draws, before its first import, and draw nothing once to see that it can.

    One llvmpipe thread a process: more of them fight with the other worker processes and make each picture slower.
    SetupError, naming one next step, where nothing can be drawn, and for settings of the environment that cannot hold.
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
        for name, value in before.items():  # so that the next simulator is refused alike
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        raise _refused(kind, reason)
    _started.add(kind)


def gl_context(height: int, width: int) -> Any:
    """What MUJOCO_GL names now: mujoco itself looks at it when it is imported, which may have been too early."""
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
            warnings.simplefilter("error", UserWarning)  # all that GLFW says when it fails
            context.__init__(width, height)
    except Exception:
        context.__class__ = _Unmade
        raise
    return context


class _Unmade:
    """What becomes of a half made context: MuJoCo's own fails again when it is deleted, and Python prints that."""


def _kind() -> str:
    """What MUJOCO_GL is to be; "" where that is left to MuJoCo."""
    asked = os.environ.get(WORD, "").lower().strip()
    platform = os.environ.get(PLATFORM, "").lower().strip()
    if asked in OFF:
        raise SetupError("MuJoCo is told not to draw", where=WORD, got=asked, next_step=f"unset {WORD}")
    if sys.platform != "linux":
        return asked
    if asked and asked not in (*HEADLESS, *WINDOW):
        raise SetupError("MuJoCo knows no such way of drawing", where=WORD, got=repr(asked),
                         expected="egl, osmesa or glfw", next_step=f"unset {WORD}: what works is found")  # fmt: skip
    if platform and asked not in WINDOW and (platform not in HEADLESS or asked not in ("", platform)):
        raise SetupError("two settings of the environment contradict each other", where=f"{WORD}, {PLATFORM}",
                         got=f"{asked or 'unset'}, {platform}", expected="one way of drawing, egl or osmesa",
                         next_step=f"unset {PLATFORM}")  # fmt: skip
    if asked or platform:
        return asked or platform
    egl, osmesa = ctypes.util.find_library("EGL"), ctypes.util.find_library("OSMesa")
    if not egl and not osmesa:
        raise SetupError("MuJoCo cannot draw: neither EGL nor OSMesa is installed",
                         next_step="apt install libegl1 libgl1 (or libosmesa6), or set MUJOCO_GL yourself")  # fmt: skip
    if egl and (not osmesa or DEVICE in os.environ):  # a device that is named is wanted
        return "egl"
    reason = _trouble_elsewhere() if egl else "it is not installed"
    if not reason:
        return "egl"
    if _tells():
        print(f"lightwam: EGL does not start ({reason}), MuJoCo draws with OSMesa (set {WORD} to choose)",
              file=sys.stderr)  # fmt: skip
    return "osmesa"


def trouble() -> str:
    """Why MuJoCo cannot draw in the way that MUJOCO_GL names, in a line; "" where it can."""
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
    except Exception as error:  # drivers, PyOpenGL, GLFW and MuJoCo each have errors of their own
        number = re.search(r"\berr = (\w+)", text := " ".join(str(error).split()))  # PyOpenGL adds all arguments
        return f"{type(error).__name__}: {number[1] if number else text.partition('. ')[0][:200]}"
    return ""


def _trouble_elsewhere() -> str:
    """Why EGL does not start, in a line; "" where it does. In another process: MuJoCo takes no other OpenGL in a
    process that has loaded EGL."""
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
                          next_step=f"{SOFTWARE}, or unset {word}: EGL is taken where it starts")  # fmt: skip
    if kind != "egl":
        return SetupError("MuJoCo cannot draw in a window: it needs a display", where=f"{WORD}={kind}", got=reason,
                          next_step=f"unset {WORD}: EGL or OSMesa draw without one")  # fmt: skip
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
    """How many devices EGL has; 0 where it cannot tell."""
    from mujoco.egl import egl_ext

    try:
        return len(egl_ext.eglQueryDevicesEXT())
    except egl_ext.error.GLError:
        return 0


def _tells() -> bool:
    """Whether this process tells what holds for every one: the main process, or the first of the workers."""
    return multiprocessing.current_process().name in ("MainProcess", "worker 0")
