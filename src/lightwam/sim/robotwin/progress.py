"""How far an episode has come: whether something was reached, grasped, lifted and placed, by either arm."""

from __future__ import annotations

from typing import Any

import numpy as np

STAGES = ("reached", "grasped", "lifted", "placed")
NEAR = 0.03
"""metres between a gripper's grasp point and the thing: reached"""
RAISED = 0.02
"""metres above where it lay: lifted"""
MOVED = 0.03
"""metres along the table from where it lay: placed, once it was lifted, no finger touches it and it lies still"""
STILL = 0.02
"""metres a second"""


class Progress:
    """The stages that an episode has reached so far, of the things that its task is about. Looking changes nothing."""

    def __init__(self, env: Any) -> None:
        """Note where things lie; `env` is RoboTwin's task object."""
        import sapien

        self._env, self._seen = env, dict.fromkeys(STAGES, False)
        things = (value.actor for value in vars(env).values() if type(value).__name__ == "Actor")
        bodies = (thing.find_component_by_type(sapien.physx.PhysxRigidDynamicComponent) for thing in things)
        self._bodies = [body for body in bodies if body is not None and not body.kinematic]
        self._began = [body.entity.pose.p for body in self._bodies]
        self._lifted: set[int] = set()
        robot = env.robot
        self._fingers = [{joint[0].child_link for joint in side} for side in (robot.left_gripper, robot.right_gripper)]

    def update(self) -> None:
        """Look at the world after an action."""
        touched = self._touched()
        grasp_points = [
            np.array(pose[:3]) for pose in (self._env.robot.get_left_tcp_pose(), self._env.robot.get_right_tcp_pose())
        ]
        for number, (body, began) in enumerate(zip(self._bodies, self._began, strict=True)):
            place = body.entity.pose.p
            fingers = [len(side & touched[number]) for side in self._fingers]
            if place[2] > began[2] + RAISED and max(fingers):
                self._lifted.add(number)
            lies = not any(fingers) and np.linalg.norm(body.linear_velocity) < STILL
            now = {
                "reached": min(_distance(body, point) for point in grasp_points) < NEAR,
                "grasped": max(fingers) >= 2,
                "lifted": number in self._lifted,
                "placed": number in self._lifted and lies and np.linalg.norm((place - began)[:2]) > MOVED,
            }
            self._seen = {stage: self._seen[stage] or bool(now[stage]) for stage in STAGES}

    def stages(self) -> dict[str, bool]:
        """Return which stages were reached."""
        return dict(self._seen)

    def _touched(self) -> list[set[Any]]:
        """Return, for each thing, the links that press on it."""
        touched: list[set[Any]] = [set() for _ in self._bodies]
        for contact in self._env.scene.get_contacts():
            if not any(np.any(point.impulse) for point in contact.points):
                continue
            for one, other in (contact.bodies, contact.bodies[::-1]):
                if one in self._bodies:
                    touched[self._bodies.index(one)].add(other)
        return touched


def _distance(body: Any, point: np.ndarray) -> float:
    """Return how far a point is from a box, or from the middle of another shape, in metres."""
    pose = body.entity.pose
    local = (pose.inv() * type(pose)(point)).p
    half = getattr(body.collision_shapes[0], "half_size", np.zeros(3))
    return float(np.linalg.norm(np.maximum(np.abs(local) - half, 0)))
