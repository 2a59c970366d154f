"""sim/opengl.py: OpenGL that does not start is one short error, or OSMesa is used instead."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from in_here import InHere

from lightwam.cli.main import main
from lightwam.errors import SetupError
from lightwam.sim import opengl

pytestmark = pytest.mark.sim
NAMES = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID", "DISPLAY", *opengl.VENDORS)
CHECK = [sys.executable, "-m", "lightwam", "check", "sim", "demo", "--task", "reach"]


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets these variables of the environment and unsets the others, for a process that has drawn nothing yet."""
    monkeypatch.setattr(opengl, "_started", set())

    def setting(**values: str) -> None:
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return setting


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"__EGL_VENDOR_LIBRARY_DIRS": "/nonexistent"}, ["EGL is installed and does not start", "libosmesa6"]),
        ({"MUJOCO_EGL_DEVICE_ID": "777"}, ["no such device", "got: '777'", "expected: one of 0", "unset MUJOCO_EGL"]),
        ({"MUJOCO_GL": "glfw"}, ["needs a display", "unset MUJOCO_GL"]),
    ],
    ids=["no driver", "a device too far", "no display"],
)
def test_a_missing_driver_device_or_display_is_one_short_error(variables: dict[str, str], told: list[str]) -> None:
    """Of the whole command, in a process of its own: PyOpenGL and MuJoCo are loaded once a process."""
    pytest.importorskip("metaworld")
    if opengl.ctypes.util.find_library("OSMesa"):
        pytest.skip("OSMesa takes EGL's place here")
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(CHECK, capture_output=True, text=True, env=kept | variables, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("lightwam: ") and len(done.stderr.splitlines()) <= 6, done.stderr
    assert all(word in done.stderr for word in told)
    assert "adapter" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"MUJOCO_GL": "disabled"}, r"rendering is switched off[\s\S]*unset MUJOCO_GL"),
        ({"MUJOCO_GL": "vulkan"}, r"must be egl, osmesa or glfw[\s\S]*'vulkan'[\s\S]*unset MUJOCO_GL"),
        (
            {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "osmesa"},
            r"must be the same[\s\S]*egl, osmesa[\s\S]*unset PYOPENGL",
        ),
        ({"PYOPENGL_PLATFORM": "x11"}, r"must be the same[\s\S]*unset, x11[\s\S]*unset PYOPENGL"),
    ],
    ids=str,
)
def test_invalid_environment_variables_are_refused(
    variables: dict[str, str], told: str, clean: Callable[..., None]
) -> None:
    clean(**variables)
    with pytest.raises(SetupError, match=told):
        opengl.choose_gl()


def test_a_device_that_is_not_a_number_is_refused(clean: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    clean(MUJOCO_EGL_DEVICE_ID="cuda:0", MUJOCO_GL="egl")
    monkeypatch.setattr(opengl, "backend_error", lambda: "ValueError: invalid literal")
    monkeypatch.setattr(opengl, "_num_devices", lambda: 2)
    with pytest.raises(SetupError, match=r"no such device[\s\S]*'cuda:0'[\s\S]*one of 0, 1[\s\S]*unset MUJOCO_EGL"):
        opengl.choose_gl()


@pytest.mark.parametrize("variables", [{"MUJOCO_GL": "osmesa"}, {"PYOPENGL_PLATFORM": "osmesa"}], ids=str)
def test_osmesa_requested_but_missing(
    variables: dict[str, str], clean: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    clean(**variables)
    monkeypatch.setattr(opengl.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(
        opengl, "backend_error", lambda: "AttributeError: 'NoneType' object has no attribute 'glGetError'"
    )
    (name,) = variables
    with pytest.raises(
        SetupError, match=rf"{name}=osmesa\s+got: it is not installed[\s\S]*libosmesa6, or unset {name} to try EGL"
    ):
        opengl.choose_gl()
    assert {name: os.environ.get(name) for name in NAMES if name in os.environ} == variables


def test_egl_requested_but_missing(clean: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    clean(MUJOCO_GL="egl")
    monkeypatch.setattr(opengl.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(opengl, "backend_error", lambda: "ImportError: Unable to load EGL library")
    with pytest.raises(SetupError, match=r"EGL is not installed[\s\S]*libegl1[\s\S]*and unset MUJOCO_GL"):
        opengl.choose_gl()


@pytest.mark.parametrize(
    ("egl", "trial", "kind", "told"),
    [
        (True, "", "egl", ""),
        (True, "ImportError: no driver", "osmesa", "EGL does not start (ImportError: no driver)"),
        (False, "", "osmesa", "EGL does not start (it is not installed)"),
    ],
    ids=["EGL", "EGL without a driver", "no EGL"],
)
def test_osmesa_replaces_an_egl_that_does_not_start(
    egl: bool,
    trial: str,
    kind: str,
    told: str,
    clean: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clean()
    there = {"EGL": "libEGL.so.1" if egl else None, "OSMesa": "libOSMesa.so.8"}
    monkeypatch.setattr(opengl.ctypes.util, "find_library", there.get)
    monkeypatch.setattr(opengl, "_egl_error", lambda: trial)
    monkeypatch.setattr(opengl, "backend_error", lambda: "")
    opengl.choose_gl()
    opengl.choose_gl()  # said once
    assert os.environ["MUJOCO_GL"] == kind
    lines = caplog.messages
    assert (len(lines) == 1 and told in lines[0]) if told else not lines


def test_egl_is_tried_in_another_process(clean: Callable[..., None]) -> None:
    """In a process of its own, as MuJoCo takes no other OpenGL where EGL has been loaded."""
    pytest.importorskip("mujoco")
    clean(__EGL_VENDOR_LIBRARY_DIRS="/nonexistent")
    reason = opengl._egl_error()
    assert reason and "\n" not in reason and "_context" not in reason


@pytest.mark.parametrize("command", [["check", "sim", "libero-object-small"], ["check", "expert", "demo"]])
def test_a_machine_without_opengl_gets_what_to_install(
    command: list[str], clean: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("libero")
    clean()
    monkeypatch.setattr(opengl.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr("lightwam.system.workers.Workers", InHere)
    assert main([*command, *(["--task", "libero_object/0"] if "sim" in command else ["--sim.tasks", "reach"])]) == 2
    assert "neither EGL nor OSMesa is installed" in capsys.readouterr().err


def test_empty_variables_are_unset_and_capitals_lowered(
    clean: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    clean(MUJOCO_EGL_DEVICE_ID="", PYOPENGL_PLATFORM="EGL")
    monkeypatch.setattr(opengl, "backend_error", lambda: "")
    opengl.choose_gl()
    assert "MUJOCO_EGL_DEVICE_ID" not in os.environ
    assert (os.environ["PYOPENGL_PLATFORM"], os.environ["MUJOCO_GL"]) == ("egl", "egl")
