"""lerobot-env-so101's pick-and-place controller as an expert that gives joint targets."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64

from lightwam.config.schema import SimConfig
from lightwam.sim.so101.simulator import JOINTS, UNITS, So101Simulator

DECISION_SECONDS = 0.1
"""between two decisions of the controller, which was written for 10 Hz: asked 30 times a second, it overshoots, because
its target moves on while the servos lag"""
REACH_METRES = 0.018
"""longest move of the gripper's target in one decision"""
FIXED_JAW_CLEARANCE = 0.018
"""metres that the way down is moved to the fixed jaw's side. The controller leaves 4 mm between that jaw and the cube,
and 48 mm at the other jaw, which pushes the cube over"""
GRIPPER_OPEN = 70.0
"""opening where the controller asks for a fully open gripper, whose jaw would reach far to the side"""
GRIPPER_SPEED = 240.0
"""units a second at which the gripper's target moves, about a hand's speed on a leader arm"""
IK_DAMPING = 0.1
"""of the package's inverse kinematics, as in its own environment"""
APPROACH_AXIS, JAW_AXIS, JAW_DIRECTION = 0, 2, (0.0, 1.0, 0.0)
"""axes of the gripper's frame along the jaws and from jaw to jaw, and where the latter points: to the cube's sides"""


class So101Expert:
    """The controller decides where the gripper goes next; joint targets are interpolated between its decisions."""

    def __init__(self, config: SimConfig, simulator: So101Simulator) -> None:
        import mujoco
        from lerobot_env_so101.mujoco_env import grasp_point_offset
        from lerobot_env_so101.scripted.pick_place import PickPlaceController

        model, data = simulator.world
        self._simulator, self._controller = simulator, PickPlaceController(REACH_METRES)
        self._data = mujoco.MjData(model)  # inverse kinematics move joints: not those of the episode
        self._site, self._roll = model.site("gripperframe").id, model.joint("wrist_roll").id
        self._joints = np.array([model.joint(name).qposadr[0] for name in JOINTS[:-1]])
        self._offset = grasp_point_offset(model, self._site)
        self._steps_a_decision = max(1, round(DECISION_SECONDS * UNITS.steps_per_second / config.action_repeat))
        self._seconds = self._steps_a_decision * config.action_repeat / UNITS.steps_per_second
        self._step, self._holds = 0, False
        self._target: Float64[np.ndarray, " 3"] | None = None
        self._last = self._next = simulator.to_units(data.ctrl)

    def action(self) -> Float32[np.ndarray, " 6"]:
        """Return the six joint targets, in robot units."""
        part = self._step % self._steps_a_decision
        if part == 0:
            self._last, self._next = self._next, self._decide()
        self._step += 1
        targets = self._last + (part + 1) / self._steps_a_decision * (self._next - self._last)
        return targets.astype(np.float32)

    def _decide(self) -> Float64[np.ndarray, " 6"]:
        """Return the joint targets of the controller's next decision."""
        import mujoco
        from lerobot_env_so101.ik_control import control_point, roll_to_align_axis, solve_ik
        from lerobot_env_so101.mujoco_env import CARTESIAN_BOUNDS

        model, data = self._simulator.world
        own = self._data
        own.qpos[:] = data.qpos
        mujoco.mj_forward(model, own)
        point = control_point(own, self._site, self._offset)
        where = point, self._cube_to_reach(), self._simulator.goal
        *motion, opening = self._controller.act(*where)
        # it waits a second for the jaws: half is enough, and a policy cannot see how long it has waited
        if not any(motion):
            *motion, opening = self._controller.act(*where)
        if self._target is None or not (any(motion) or self._holds):  # a hold begins where the gripper is
            self._target = point
        self._holds = not any(motion)
        self._target = np.clip(self._target + REACH_METRES * np.array(motion), *CARTESIAN_BOUNDS)
        seed = own.qpos[self._joints].copy()
        # the roll is free where the gripper points down: the solution nearest to the seed is found
        seed[-1] += roll_to_align_axis(own, self._site, self._roll, JAW_AXIS, np.array(JAW_DIRECTION))
        seed[-1] = np.clip(seed[-1], *model.jnt_range[self._roll])
        angles = solve_ik(
            model,
            own,
            self._site,
            self._joints,
            self._target,
            ik_damping=IK_DAMPING,
            seed_q=seed,
            point_offset=self._offset,
            approach_axis=APPROACH_AXIS,
        )
        targets = self._simulator.to_units(np.clip(np.array([*angles, 0.0]), *self._simulator.ranges))
        step, last = GRIPPER_SPEED * self._seconds, self._next[-1]
        targets[-1] = np.clip(opening * GRIPPER_OPEN, last - step, last + step)
        return targets

    def _cube_to_reach(self) -> Float64[np.ndarray, " 3"]:
        """Return the cube's position; on the way down, one beside it that leaves both jaws room."""
        from lerobot_env_so101.scripted.pick_place import Phase

        cube = self._simulator.cube
        if self._controller.phase in (Phase.HOVER, Phase.DESCEND):
            return cube - FIXED_JAW_CLEARANCE * np.array(JAW_DIRECTION)
        return cube


make_expert = So101Expert
