"""RoboTwin's installed code as a library: imported once a process, without what it names and does not need here.

The task classes, robot, cameras and `take_action` are RoboTwin's. Replaced are its planners (`planner`) and, while a
world is made, what it tells SAPIEN about pictures: the shader, the size of pictures and of shadow maps.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import random
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lightwam.config.robotwin_protocols import Pictures
from lightwam.sim.robotwin import installation
from lightwam.sim.robotwin.planner import ActionTimer, ArmPlanner
from lightwam.sim.robotwin.robot import write_stand_in

SHADOW_MAP = 512
"""width of a rasterised picture's shadow maps; SAPIEN's own is 2048, on which a CPU spends most of its time"""
SAMPLES, DEPTH = 32, 8
"""of a ray-traced picture, as published"""
NOT_NEEDED: Mapping[str, tuple[str, ...]] = {
    "open3d": (),
    "curobo": (),
    "curobo.types": (),
    "curobo.types.math": ("Pose",),
    "curobo.types.robot": ("JointState",),
    "curobo.wrap": (),
    "curobo.wrap.reacher": (),
    "curobo.wrap.reacher.motion_gen": ("MotionGen", "MotionGenConfig", "MotionGenPlanConfig", "PoseCostMetric"),
    "curobo.util": ("logger",),
    "mplib": (),
    "mplib.planner": (),
    "mplib.sapien_utils": ("SapienPlanner", "SapienPlanningWorld"),
    "pytorch3d": (),
    "pytorch3d.ops": (),
    "huggingface_hub": ("snapshot_download",),
    "torch": ("manual_seed",),
    "torch.multiprocessing": ("Pipe", "Process"),
}
"""module -> names that RoboTwin imports from it: for cuRobo, point clouds, downloads, and rewards"""


@functools.cache
def task_class(name: str) -> type[Any]:
    """Return RoboTwin's class of a task."""
    _load()
    with _absent_packages(), _quiet():
        module = importlib.import_module(f"robotwin.envs.{name}")
    _tame(module)
    found: type[Any] = getattr(module, name)
    return found


def description(task: str) -> Mapping[str, Any]:
    """Return RoboTwin's lists of sentences of a task; no other part of RoboTwin is imported."""
    module: Any = importlib.import_module("robotwin.description.instructions")
    found: Mapping[str, Any] = module.load_task_instructions(task)
    return found


def arguments(scene: str, task: str, eval_mode: bool) -> dict[str, Any]:
    """Return what a task's `setup_demo` takes: the configuration `scene`, and the robot."""
    import yaml

    config = importlib.import_module("robotwin.config").load_task_config(scene)
    robot = installation.embodiment() or _stand_in()[0]
    text = (robot / "config.yml").read_text(encoding="utf-8")
    return {
        **config,
        "task_name": task,
        "eval_mode": eval_mode,
        "left_robot_file": str(robot),
        "right_robot_file": str(robot),
        "left_embodiment_config": yaml.safe_load(text),
        "right_embodiment_config": yaml.safe_load(text),
        "dual_arm_embodied": True,
        "planner_backend": "mplib",
        "render_freq": 0,
        "eval_video_log": False,
    }


@contextlib.contextmanager
def making(pictures: Pictures, height: int, width: int) -> Iterator[None]:
    """Make SAPIEN draw as `pictures` says and RoboTwin's cameras have this size, in worlds that are made inside."""
    _load()
    import sapien
    from sapien.wrapper.scene import Scene

    camera = importlib.import_module("robotwin.envs.camera.camera")
    render, traced = sapien.render, pictures == "ray-traced"
    shader, denoiser = render.set_camera_shader_dir, render.set_ray_tracing_denoiser
    d435 = {"fovy": 37, "w": width, "h": height}
    replaced: list[tuple[Any, str, Any]] = [
        (render, "set_camera_shader_dir", lambda _: shader("rt" if traced else "default")),
        (render, "set_ray_tracing_denoiser", lambda _: denoiser("none")),  # OIDN needs CUDA
        (camera, "load_task_config", lambda _: {"D435": d435}),
    ]
    if not traced:
        shadows: dict[str, Any] = {"shadow": False} if pictures == "no-shadows" else {"shadow_map_size": SHADOW_MAP}
        for name in ("add_directional_light", "add_point_light"):
            replaced.append((Scene, name, _with(getattr(Scene, name), shadows)))
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        with _assets_in_environment(), quiet():
            yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignore warnings inside, which RoboTwin's and SAPIEN's code raise about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class RandomStream:
    """The states of NumPy's and Python's global generators of one world: RoboTwin draws from these."""

    def __init__(self) -> None:
        self._states: tuple[Any, Any] | None = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Let the code inside go on with this stream; everybody else's comes back afterwards."""
        others = np.random.get_state(), random.getstate()
        if self._states is not None:
            np.random.set_state(self._states[0])
            random.setstate(self._states[1])
        try:
            yield
        finally:
            self._states = np.random.get_state(), random.getstate()
            np.random.set_state(others[0])
            random.setstate(others[1])


@functools.cache
def _load() -> Any:
    """Import SAPIEN and RoboTwin, and return the render system, which is kept for the life of the process.

    The first picture after the last render system is gone takes six seconds. SetupError without a Vulkan device.
    """
    installation.check_packages()
    installation.choose_driver()
    with _quiet():
        import sapien
        import toppra

        toppra.setup_logging("CRITICAL")
        try:
            system = sapien.render.RenderSystem()
        except RuntimeError as error:
            raise installation.no_device(error) from error
        for package in ("gymnasium", "trimesh", "imageio", "transforms3d", "scipy.spatial"):
            importlib.import_module(package)  # they may look for the packages that are absent for RoboTwin
        with _absent_packages():
            base = importlib.import_module("robotwin.envs._base_task")
            robot: Any = importlib.import_module("robotwin.envs.robot.robot")
    robot.MplibWrapperPlanner, robot.MplibPlanner = ArmPlanner, ActionTimer
    _tame(base)
    return system


def _tame(module: types.ModuleType) -> None:
    """Silence `print` in RoboTwin's modules, and give them a torch that seeds nothing."""
    torch = types.SimpleNamespace(manual_seed=lambda seed: None)
    for name, loaded in [*sys.modules.items(), (module.__name__, module)]:
        if name.startswith("robotwin.") and loaded is not None:
            loaded.print = lambda *_, **__: None  # type: ignore[attr-defined]
            if "torch" in vars(loaded):
                loaded.torch = torch  # type: ignore[attr-defined]


@contextlib.contextmanager
def _absent_packages() -> Iterator[None]:
    """Put empty modules where RoboTwin imports packages that it does not need here; take them away at the end."""
    added = []
    nothing = type("NotInstalled", (), {})
    names = dict(NOT_NEEDED)
    try:
        importlib.import_module("cv2")
    except ImportError:  # it needs the system's libGL, and only RoboTwin's videos need it
        names["cv2"] = ()
    for name, members in names.items():
        if name in sys.modules:
            continue
        module = types.ModuleType(name)
        vars(module).update(dict.fromkeys(members, nothing))
        parent, _, child = name.rpartition(".")
        if parent in added:
            setattr(sys.modules[parent], child, module)
        sys.modules[name] = module
        added.append(name)
    try:
        yield
    finally:
        for name in added:
            sys.modules.pop(name, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _assets_in_environment() -> Iterator[None]:
    """Set the variables by which RoboTwin finds the user's assets."""
    root, names = installation.assets_root(), ("ASSETS_PATH", "ROBOTWIN_ASSETS_ROOT")
    before = {name: os.environ.get(name) for name in names}
    if root is not None:
        os.environ.update(dict.fromkeys(names, str(root)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@functools.cache
def _stand_in() -> tuple[Path, tempfile.TemporaryDirectory[str]]:
    """Return the stand-in's folder, written once a process, and what removes it at the process's end."""
    folder = tempfile.TemporaryDirectory(prefix="lightwam-robotwin-")
    return write_stand_in(Path(folder.name)), folder


def _with(method: Callable[..., Any], fixed: dict[str, Any]) -> Callable[..., Any]:
    """Return the method with these options, whatever its caller gives for them."""
    return lambda self, *args, **options: method(self, *args, **options | fixed)
