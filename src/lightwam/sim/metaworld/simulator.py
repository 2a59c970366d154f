"""Meta-World's 50 tasks (metaworld 3.1.1, MuJoCo 3.3): a Sawyer arm at a table, 80 control steps a second.

State: hand x, y, z (metres) and how far the gripper is open (0 to 1). Action: hand motion x, y, z and gripper effort,
each in [-1, 1] (1 is 1 cm a simulator step). Pictures have no shadows and less detail (see `mujoco_renderer`): twenty
times as fast on a CPU, but a policy must be trained on the same pictures. "corner*" cameras, which Meta-World mounts
upside down, are turned upright.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from lightwam.config.schema import SimConfig
from lightwam.errors import SimulatorError
from lightwam.sim.disturb import turn_cameras
from lightwam.sim.mujoco_renderer import MujocoRenderer
from lightwam.sim.opengl import choose_gl
from lightwam.sim.simulator import RobotUnits, Simulator, StepOutcome, check_seed, finite_action, not_reset
from lightwam.sim.versions import PackageVersions
from lightwam.types import Observation

CAMERAS = ("topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV")
UNITS = RobotUnits(
    state={"hand_x": "m", "hand_y": "m", "hand_z": "m", "gripper": "0 closed to 1 open"},
    action=dict.fromkeys(("motion_x", "motion_y", "motion_z"), "-1 to 1, 1 is 1 cm a simulator step")
    | {"gripper": "effort, -1 to 1"},
    steps_per_second=80.0,
)
TESTED = {
    "metaworld": PackageVersions(("3.1.1",)),
    # 3.5 has no cam_orthographic
    "mujoco": PackageVersions(("3.3.0",), "its physics moves with the version", breaks_from="3.5.0"),
}
INSTRUCTIONS = {
    "assembly": "pick up the ring and put it on the peg",
    "basketball": "put the basketball through the hoop",
    "bin-picking": "move the block from one bin into the other",
    "box-close": "put the lid on the box",
    "button-press": "press the button on the wall side",
    "button-press-topdown": "press the button from above",
    "button-press-topdown-wall": "reach over the wall and press the button from above",
    "button-press-wall": "go around the wall and press the button",
    "coffee-button": "press the button of the coffee machine",
    "coffee-pull": "pull the mug away from the coffee machine",
    "coffee-push": "push the mug under the coffee machine",
    "dial-turn": "turn the dial",
    "disassemble": "take the ring off the peg",
    "door-close": "close the door",
    "door-lock": "lock the door",
    "door-open": "open the door",
    "door-unlock": "unlock the door",
    "drawer-close": "close the drawer",
    "drawer-open": "open the drawer",
    "faucet-close": "turn the faucet off",
    "faucet-open": "turn the faucet on",
    "hammer": "pick up the hammer and drive in the nail",
    "hand-insert": "put the hand into the hole",
    "handle-press": "press the handle down",
    "handle-press-side": "press the sideways handle down",
    "handle-pull": "pull the handle up",
    "handle-pull-side": "pull the sideways handle up",
    "lever-pull": "pull the lever up",
    "peg-insert-side": "insert the peg into the hole from the side",
    "peg-unplug-side": "pull the peg out of the hole to the side",
    "pick-out-of-hole": "take the block out of the hole",
    "pick-place": "pick up the puck and hold it at the goal",
    "pick-place-wall": "pick up the puck and carry it over the wall to the goal",
    "plate-slide": "slide the plate forward into the cabinet",
    "plate-slide-back": "slide the plate back out of the cabinet",
    "plate-slide-back-side": "slide the plate out of the cabinet to the side",
    "plate-slide-side": "slide the plate sideways into the cabinet",
    "push": "push the puck to the goal",
    "push-back": "pull the block back to the goal",
    "push-wall": "push the puck around the wall to the goal",
    "reach": "move the hand to the goal",
    "reach-wall": "move the hand over the wall to the goal",
    "shelf-place": "put the block on the shelf",
    "soccer": "push the ball into the goal net",
    "stick-pull": "grasp the stick and pull the thermos with it",
    "stick-push": "grasp the stick and push the thermos with it",
    "sweep": "sweep the block off the table",
    "sweep-into": "sweep the block into the hole",
    "window-close": "close the window",
    "window-open": "open the window",
}
TASKS = tuple(INSTRUCTIONS)

MOVABLE = {
    "button-press-topdown": "box",
    "door-open": "door",
    "drawer-close": "drawer",
    "drawer-open": "drawer",
    "peg-insert-side": "box",
    "pick-place": "obj",
    "push": "obj",
    "reach": "goal",
    "window-close": "window",
    "window-open": "window",
}
"""task -> the body that `move_object` moves, or the goal's mark"""
MOVE_METRES, BUMP_DEGREES = (0.04, 0.08), (1.0, 3.0)
"""range of a disturbance: of an object along the table, of a camera's rotation"""

MESH_DETAIL = 0.008
"""metres; finer detail of the arm's meshes is not drawn: half a pixel at 96 x 96, and twice as fast"""


class MetaWorldSimulator(Simulator):
    """One Meta-World task with seeded resets; success counts when any simulator step of a control step succeeds.

    Episodes never end by themselves: Meta-World's limit of 500 steps is lifted, `SimConfig.max_steps` decides. MuJoCo
    is loaded by the first `reset`, so that a process that needs only names and sizes stays small.
    """

    robot = "sawyer"
    state_names, action_names = tuple(UNITS.state), tuple(UNITS.action)
    disturbances = ("object", "camera")

    def __init__(self, config: SimConfig, task: str) -> None:
        self.task, self.instruction = task, INSTRUCTIONS[task]
        self.cameras, self.fps = config.cameras, UNITS.steps_per_second / config.action_repeat
        self._repeat, self._size = config.action_repeat, (config.height, config.width)
        self._env: Any = None
        self._full_observation: Any = None
        self._renderer: MujocoRenderer | None = None
        self._camera_rotations: Any = None

    def reset(self, seed: int) -> None:
        """Place hand, objects and goal at random positions of `seed`.

        Meta-World's own `reset(seed=...)` ignores its seed, hence the private switches: goal visible to the expert,
        positions drawn from the seeded generator. The last forward pass updates sites and cameras, which the first
        picture would otherwise show at their old positions.
        """
        check_seed(seed, f"metaworld/{self.task}")
        if self._env is None:
            choose_gl()
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS

            self._env = ALL_V3_ENVIRONMENTS[f"{self.task}-v3"]()
            self._env.max_path_length = sys.maxsize
            self._camera_rotations = self._env.model.cam_quat.copy()
        import mujoco

        env = self._env
        env.model.cam_quat[:] = self._camera_rotations
        env._partially_observable = False
        env._freeze_rand_vec = False
        env.seeded_rand_vec = True
        env._set_task_called = True
        env.__dict__.pop("sawyer_observation_space", None)
        env.seed(seed)
        self._full_observation, _ = env.reset()
        mujoco.mj_forward(env.model, env.data)

    def observe(self) -> Observation:
        """Draw every camera."""
        state = self.full_observation[:4].astype(np.float32)
        return Observation({camera: self._draw(camera) for camera in self.cameras}, state, self.instruction)

    def step(self, action: np.ndarray) -> StepOutcome:
        """Repeat the action, clipped to [-1, 1], `action_repeat` times."""
        env = self._running()
        clipped = np.clip(finite_action(action, self.action_dim, f"metaworld/{self.task}"), -1, 1)
        success = False
        for _ in range(self._repeat):
            self._full_observation, _, _, _, info = env.step(clipped)
            success = success or bool(info["success"])
        return StepOutcome(success)

    def close(self) -> None:
        """Free MuJoCo's world and the drawing context; otherwise the process's exit does."""
        if self._renderer is not None:
            self._renderer.close()
        self._env, self._full_observation, self._renderer, self._camera_rotations = None, None, None, None

    def move_object(self, rng: np.random.Generator) -> float:
        """Move the task's object along the table, a fixed one together with its goal; return metres."""
        if self.task not in MOVABLE:
            what = "objects can be moved only in the tasks of MOVABLE"
            raise SimulatorError(what, where=f"metaworld/{self.task}", expected=", ".join(MOVABLE))
        env, distance, angle = self._running(), rng.uniform(*MOVE_METRES), rng.uniform(0, 2 * np.pi)
        by = distance * np.array([np.cos(angle), np.sin(angle), 0.0])
        import mujoco

        model, data, name = env.model, env.data, MOVABLE[self.task]
        joint = -1 if name == "goal" else int(model.body(name).jntadr[0])
        if joint >= 0 and model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE:
            start = int(model.jnt_qposadr[joint])
            data.qpos[start : start + 3] += by
        else:
            if name != "goal":
                model.body(name).pos += by
            env._target_pos = env._target_pos + by
            if mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, "goal") >= 0:
                model.site("goal").pos += by
        mujoco.mj_forward(model, data)
        return float(distance)

    def bump_camera(self, rng: np.random.Generator) -> float:
        """Turn each camera about a random axis in its picture's plane, all by the same angle; return degrees."""
        env, degrees = self._running(), rng.uniform(*BUMP_DEGREES)
        import mujoco

        turn_cameras(env.model.cam_quat, degrees, rng)
        mujoco.mj_forward(env.model, env.data)
        return float(degrees)

    def _running(self) -> Any:
        """Return Meta-World's environment; SimulatorError outside an episode."""
        if self._full_observation is None:
            raise not_reset(f"metaworld/{self.task}")
        return self._env

    @property
    def full_observation(self) -> Float64[np.ndarray, " 39"]:
        """Meta-World's full observation with objects and goal, for experts only."""
        self._running()
        return self._full_observation

    @property
    def fingertips(self) -> Float64[np.ndarray, " 3"]:
        """The middle between the fingertips, x, y, z in metres, for experts only."""
        return np.asarray(self._running().tcp_center, np.float64)

    def _draw(self, camera: str) -> UInt8[np.ndarray, "height width 3"]:
        if self._renderer is None:
            self._renderer = MujocoRenderer(self._env.model, *self._size, MESH_DETAIL)
        picture = self._renderer.draw(self._env.data, camera)
        return np.ascontiguousarray(picture[::-1, ::-1] if camera.startswith("corner") else picture)


make = MetaWorldSimulator
