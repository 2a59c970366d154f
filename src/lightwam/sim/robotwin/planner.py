"""A planner for RoboTwin's scripts: SAPIEN's inverse kinematics, straight lines in joint space, timed by TOPP-RA.

It takes the place of RoboTwin's planners, cuRobo (CUDA) and mplib (NumPy 1). It knows no obstacles: the scripts keep
the arms apart, and no collision was missed. It draws no random numbers: the same seed gives the same motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from lightwam.config.robotwin_tasks import PHYSICS_HZ

Path = Float64[np.ndarray, "points dof"]

SPEED_LIMIT = 1.0
"""of a joint's velocity, rad/s, and acceleration, rad/s^2: as mplib's defaults"""
STEP = 1 / PHYSICS_HZ
"""seconds of a physics step"""
NUM_STARTS = 8
"""fixed postures from which inverse kinematics starts when the present one does not lead to the pose"""
FAR = 2.0
"""radians: a solution from the present posture that turns a joint further is compared with others"""
IK_ITERATIONS = 300
STILL = 1e-4
"""radians: a motion that is shorter is none"""
GRIPPER_STEPS = 200


def time_path(path: Path, step: float = STEP, verbose: bool = False) -> tuple[Any, Any, Any, Any, float]:
    """Return times, positions, velocities, accelerations and the duration of the fastest motion along `path`.

    From rest to rest, within `SPEED_LIMIT`, every `step` seconds: what mplib's function of this place in RoboTwin's
    `take_action` does. ValueError where there is no such motion.
    """
    from toppra import SplineInterpolator
    from toppra.algorithm import TOPPRA
    from toppra.constraint import JointAccelerationConstraint, JointVelocityConstraint

    limits = np.full(path.shape[1], SPEED_LIMIT)
    bounds = [JointVelocityConstraint(limits), JointAccelerationConstraint(limits)]
    line = SplineInterpolator(np.linspace(0, 1, len(path)), path)
    motion = TOPPRA(bounds, line, parametrizer="ParametrizeConstAccel").compute_trajectory()
    if motion is None:
        raise ValueError(f"no timing for a path of {len(path)} points")
    at = np.linspace(0, motion.duration, int(motion.duration / step))
    return at, motion(at), motion(at, 1), motion(at, 2), float(motion.duration)


class ActionTimer:
    """What `take_action` needs of RoboTwin's MplibPlanner, in its place."""

    TOPP = staticmethod(time_path)

    def __init__(self, *_: object) -> None:
        """The arguments are RoboTwin's, and not needed."""


class ArmPlanner:
    """RoboTwin's MplibWrapperPlanner for one arm, in its place: names of methods, arguments and results are its."""

    def __init__(
        self,
        origin: Any,
        names: Sequence[str],
        all_joints: Sequence[str],
        *,
        move_group: str,
        robot_entity: Any,
        **_: Any,
    ) -> None:
        """`names`: the arm's joints; `all_joints`: the robot's; `move_group`: the link that is brought to a pose."""
        self._entity, self._model = robot_entity, robot_entity.create_pinocchio_model()
        self._chosen = np.array([list(all_joints).index(name) for name in names])
        self._mask = np.zeros(len(all_joints), np.int32)
        self._mask[self._chosen] = 1
        joints = robot_entity.get_active_joints()
        self._low, self._high = np.array([joints[i].limits[0] for i in self._chosen], float).T
        self._link = [link.name for link in robot_entity.get_links()].index(move_group)
        spread = np.random.RandomState(0).uniform(-1, 1, (NUM_STARTS, len(names)))
        self._starts = (self._low + self._high) / 2 + spread * (self._high - self._low) / 2

    def plan_path(self, curr_joint_pos: Any, target_gripper_pose: Any, **_: Any) -> dict[str, Any]:
        """Return the motion of the arm from the robot's posture to a pose; status "Fail" if it cannot be reached."""
        posture = np.asarray(curr_joint_pos, float)
        found = self._inverse(posture, target_gripper_pose)
        if found is None:
            return {"status": "Fail"}
        path = np.stack([posture[self._chosen], found])
        if np.abs(path[1] - path[0]).max() < STILL:
            return {"status": "Success", "position": path[1:], "velocity": np.zeros((1, len(found)))}
        position, velocity = time_path(path)[1:3]
        return {"status": "Success", "position": position, "velocity": velocity}

    def plan_batch(self, curr_joint_pos: Any, target_gripper_pose_list: Sequence[Any], **_: Any) -> dict[str, Any]:
        """Say which poses can be reached, up to the first: RoboTwin takes that one."""
        posture, count = np.asarray(curr_joint_pos, float), len(target_gripper_pose_list)
        reachable = (i for i, pose in enumerate(target_gripper_pose_list) if self._inverse(posture, pose) is not None)
        first, status = next(reachable, count), np.full(count, "Failure", object)
        status[first : first + 1] = "Success"
        return {"status": status, "position": [np.zeros((1, len(self._chosen)))] * count}

    def plan_grippers(self, now_val: Any, target_val: Any) -> dict[str, Any]:
        """Return even steps from one opening to another."""
        values = np.linspace(now_val, target_val, GRIPPER_STEPS)
        return {"num_step": GRIPPER_STEPS, "per_step": (target_val - now_val) / GRIPPER_STEPS, "result": values}

    def _inverse(self, posture: Float64[np.ndarray, " joints"], target: Any) -> Float64[np.ndarray, " dof"] | None:
        """Return the joints, nearest to the posture, that bring the link to a pose in the world; None if none do."""
        goal, here, best = self._entity.get_root_pose().inv() * target, posture[self._chosen], None
        for number, start in enumerate([here, *self._starts]):
            whole = posture.copy()
            whole[self._chosen] = start
            found, solved, _ = self._model.compute_inverse_kinematics(
                self._link, goal, whole, self._mask, max_iterations=IK_ITERATIONS
            )
            if not solved:
                continue
            angles = self._within_limits(np.asarray(found)[self._chosen], here)
            if angles is not None and (best is None or np.abs(angles - here).max() < np.abs(best - here).max()):
                best = angles
            if number == 0 and best is not None and np.abs(best - here).max() < FAR:
                break
        return best

    def _within_limits(
        self, angles: Float64[np.ndarray, " dof"], near: Float64[np.ndarray, " dof"]
    ) -> Float64[np.ndarray, " dof"] | None:
        """Return the angles plus whole turns, as near to `near` as the limits allow; None where none is allowed."""
        turn = 2 * np.pi
        angles = angles - turn * np.round((angles - near) / turn)
        angles = np.where(angles < self._low, angles + turn, np.where(angles > self._high, angles - turn, angles))
        return angles if ((angles >= self._low) & (angles <= self._high)).all() else None
