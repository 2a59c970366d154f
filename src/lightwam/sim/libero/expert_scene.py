"""The scene for LIBERO's expert, which a policy does not see: the hand, shapes, grasps and goals.

Objects are unions of boxes: the bounding boxes of their colliding geoms. Lengths are metres.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float64

from lightwam.sim.libero.simulator import COLLISION_GEOMS, LiberoSimulator

Point = Float64[np.ndarray, " 3"]
Axis = Float64[np.ndarray, " 2"]
"""a horizontal direction or displacement"""

FINGER_SPAN = 0.068
"""width that fits between the open fingers, with some clearance"""
FINGERTIP = 0.012
"""length of the fingers below the grip site"""
GRASP_DEPTH = 0.022
"""distance of a grasp below the object's top"""
RIM_DEPTH, RIM = 0.015, 0.006
"""the same for a rim, and the distance of its wall's middle from the edge"""
CLEARANCE = 0.004
"""between the fingers and other objects"""
PATH_WIDTH = 0.14
"""distance from a carried object's path within which others are in the way of the hand"""
BOTTOM_THICKNESS = 0.02
"""assumed, of a plate or bowl"""
HAND_POINTS = np.array(
    [
        *product((-0.05, 0.05), (-0.01, 0.01), (-FINGERTIP / 2, 0.012, 0.03)),
        *product((-0.1, -0.05, 0.0, 0.05, 0.1), (-0.03, 0.03), (0.035, 0.075, 0.115)),
    ]
)
"""points of the open fingers and the palm, relative to the grip: along the fingers' motion, across it, and up"""
DRAWER_DISTANCE, SPACING = 0.13, 0.02
"""from an object's middle to an open drawer that the hand fits between, and between objects on the table"""
MAX_HALF_SIZE = 2.0
"""half a side; larger geoms are ground and walls"""
CORNERS = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3), axis=-1).reshape(8, 3)
"""of a box, in units of half its sides"""
UPRIGHT = np.zeros(2)
"""the lean of a hand that points straight down, in metres sideways per metre down"""


@dataclass(frozen=True)
class Grasp:
    """The position of the grip site, and the horizontal axis along which the fingers open."""

    point: Point
    axis: Axis


class Scene:
    """One episode's world in its present state."""

    def __init__(self, simulator: LiberoSimulator) -> None:
        self._simulator, self.env = simulator, simulator.env
        self.model, self.data = self.env.sim.model._model, self.env.sim.data._data
        """MuJoCo's, of this episode"""
        self.solid = (self.model.geom_group == COLLISION_GEOMS) & (self.model.geom_aabb[:, 3:].max(1) < MAX_HALF_SIZE)
        """mask of the geoms that collide, without ground and walls"""
        self._roots = self.model.body_rootid[self.model.geom_bodyid]
        self._robot, self._site = int(self.model.body("robot0_base").id), int(self.env.robots[0].eef_site_id)

    @property
    def grip(self) -> Point:
        """Position of the grip site."""
        return np.array(self.data.site_xpos[self._site], np.float64)  # a copy: MuJoCo updates its arrays

    @property
    def axis(self) -> Axis:
        """Horizontal direction along which the fingers open now: the grip site's x."""
        x = self.data.site_xmat[self._site].reshape(3, 3)[:2, 0]
        return np.asarray(x / np.linalg.norm(x), np.float64)

    @property
    def opening(self) -> float:
        """Distance between the fingers."""
        return float(np.abs(self._simulator.raw["robot0_gripper_qpos"]).sum())

    def turn(self, axis: Axis, lean: Axis = UPRIGHT) -> Point:
        """Return the rotation, axis times angle, to a lean of the hand with the fingers opening along `axis`."""
        down = hand_direction(lean)
        x = np.array([*(axis if axis @ self.axis > 0 else -axis), 0.0])  # the fingers are interchangeable
        x = x - (x @ down) * down
        x /= np.linalg.norm(x)
        wanted = np.stack((x, np.cross(down, x), down), axis=1)
        error = wanted @ self.data.site_xmat[self._site].reshape(3, 3).T
        vector = np.array([error[2, 1] - error[1, 2], error[0, 2] - error[2, 0], error[1, 0] - error[0, 1]]) / 2
        sine, cosine = np.linalg.norm(vector), (np.trace(error) - 1) / 2
        return vector * (np.arctan2(sine, cosine) / max(sine, 1e-9))

    def grasp(self, obj: str, axis: Axis | None = None) -> Grasp:
        """Return the unobstructed grasp that turns the hand least and is nearest to the middle of the arm's reach.

        Across the object or over its rim; by a handle, where the object itself is in the way of all of those.
        """
        turns = np.radians(np.arange(-90, 90, 15)) if axis is None else np.zeros(1)
        ways = [(rotated(self.axis if axis is None else axis, turn), float(abs(turn))) for turn in turns]
        direct = [(grasp, turn) for way, turn in ways for grasp in self._grasps(obj, way)]
        grasps = [(grasp, turn) for grasp, turn in direct if not self._blocked(self._root(obj), grasp)]
        grasps = grasps or [(grasp, turn) for way, turn in ways for grasp in self._handles(obj, way)] or direct
        others = self._others(obj)
        cost = [10 * self._blocked(others, grasp) + turn + abs(grasp.point[1]) for grasp, turn in grasps]
        return grasps[int(np.argmin(cost))][0]

    def _grasps(self, obj: str, axis: Axis) -> Iterator[Grasp]:
        """Yield the grasp across the object if it is narrow enough along an axis, else over its rim on either side."""
        points = self.points(obj)
        low, top = points[:, 2].min(), points[:, 2].max()
        height = max(low + FINGERTIP, top - GRASP_DEPTH)
        level = points[np.abs(points[:, 2] - height) < 0.02]
        flat = (level if len(level) > 2 else points)[:, :2]
        if np.ptp(flat @ axis) < FINGER_SPAN:
            frame = np.stack((axis, rotated(axis, np.pi / 2)))
            across = flat @ frame.T
            yield Grasp(np.array([*(across.min(0) + across.max(0)) / 2 @ frame, height]), axis)
            return
        rim = points[points[:, 2] > (low + top) / 2][:, :2]  # all of it, also of a tilted object
        middle = (rim.min(0) + rim.max(0)) / 2
        for side in (axis, -axis):
            edge = middle + side * (np.max((rim - middle) @ side) - RIM)
            yield Grasp(np.array([*edge, max(low + FINGERTIP, top - RIM_DEPTH)]), side)

    def _handles(self, obj: str, axis: Axis) -> Iterator[Grasp]:
        """Yield grasps across each tall, narrow part with room between the fingers and the rest of the object."""
        for geom in self._parts(self._root(obj)):
            points = self.corners([geom])
            middle, low, top = (points.min(0) + points.max(0)) / 2, points[:, 2].min(), points[:, 2].max()
            grasp = Grasp(np.array([*middle[:2], max(low + FINGERTIP, top - GRASP_DEPTH)]), axis)
            narrow, tall = np.ptp(points[:, :2] @ axis) < FINGER_SPAN / 2, top - low > GRASP_DEPTH
            if narrow and tall and not self._blocked(self._root(obj), grasp):
                yield grasp

    def _blocked(self, roots: Any, grasp: Grasp) -> int:
        """Count the points of the hand that a grasp puts inside these bodies' parts."""
        model, data, parts = self.model, self.data, self._parts(roots)
        frame = np.eye(3)
        frame[0, :2], frame[1, :2] = grasp.axis, rotated(grasp.axis, np.pi / 2)
        points = grasp.point + HAND_POINTS @ frame
        local = np.einsum("gji,gpj->gpi", data.geom_xmat[parts].reshape(-1, 3, 3), points - data.geom_xpos[parts, None])
        inside = np.abs(local - model.geom_aabb[parts, None, :3]) < model.geom_aabb[parts, None, 3:] + CLEARANCE
        return int(inside.all(-1).any(0).sum())

    def free_position(self, obj: str, opened: Float64[np.ndarray, "n 2"]) -> Point | None:
        """Return the nearest position for an object that is in the hand's way at a drawer; None if it is not.

        `opened` are the corners of the open drawer. Searched within 30 cm; if nothing is free, the position farthest
        from the drawer. Edges of the table are not considered.
        """
        points = self.points(obj)
        middle, low = (points.min(0) + points.max(0))[:2] / 2, points[:, 2].min()
        room = np.ptp(points[:, :2], axis=0).max() / 2 + SPACING
        grid = np.stack(np.meshgrid(*[np.arange(-0.3, 0.31, 0.02)] * 2), axis=-1).reshape(-1, 2)
        spots = middle + grid[np.argsort(np.linalg.norm(grid, axis=1))]
        away = _distance(spots, opened)
        if away[0] > DRAWER_DISTANCE:
            return None
        boxes = [self.corners([geom]) for geom in self._parts(self._others(obj))]
        free = [_distance(spots, box[:, :2]) > room for box in boxes if box[:, 2].max() > low + CLEARANCE]
        good = np.all([away > DRAWER_DISTANCE, *free], axis=0)
        return np.array([*spots[int(np.argmax(good if good.any() else away))], low])

    def achieved(self, goal: tuple[str, ...]) -> bool:
        """Return whether LIBERO counts a goal as achieved."""
        return bool(self.env._eval_predicate(list(goal)))

    def fitting_turn(self, obj: str, target: str) -> float:
        """Return the smallest turn, rad, by which an object fits into a region; 0 if none does or it is no region."""
        if (room := self._region_size(target)) is None:
            return 0.0
        flat = self.points(obj)[:, :2]
        turns = sorted(np.radians(np.arange(-90, 91, 5)), key=abs)
        fits = (turn for turn in turns if (np.ptp(rotated(flat, turn), axis=0) + CLEARANCE < room).all())
        return float(next(fits, 0.0))

    def slot_offset(self, obj: str, target: str, slot: int, count: int) -> Axis:
        """Return the offset from a region's middle of object number `slot` of `count` side by side."""
        if (room := self._region_size(target)) is None:
            return np.zeros(2)
        slim = int(np.argmin(np.ptp(self.points(obj)[:, :2], axis=0)))
        return np.eye(2)[slim] * room[slim] * ((slot + 0.5) / count - 0.5)

    def _region_size(self, target: str) -> Axis | None:
        """Return a region's size along the world's axes; None if it is no region."""
        if (site := self.env.object_sites_dict.get(target)) is None:
            return None
        half = self.env.sim.data.get_site_xmat(target) @ site.size  # abs comes last, as in LIBERO's test of what is in
        return np.asarray(2 * np.abs(half)[:2], np.float64)

    def trailing_part(self, obj: str, inward: Axis) -> Point:
        """Return the middle of the object's part that comes last when it moves `inward`: of a mug, its handle."""
        middles = self.data.geom_xpos[self._parts(self._root(obj))]
        return np.asarray(min(middles, key=lambda middle: float(middle[:2] @ inward)), np.float64)

    def holds(self, obj: str) -> bool:
        """Return whether the object, or its rim, is between the fingers."""
        points = self.points(obj)
        return bool((points.min(0) - 0.01 < self.grip).all() and (self.grip < points.max(0) + 0.01).all())

    def highest_on_path(self, obj: str, goal: Axis, top: float) -> float:
        """Return the greatest height of anything on an object's path to its goal."""
        position = self.position(obj)[:2]
        way = goal - position
        for geom in self._parts(self._others(obj)):
            corners = self.corners([geom])
            part = np.clip((corners[:, :2] - position) @ way / max(way @ way, 1e-9), 0, 1)
            if np.linalg.norm(corners[:, :2] - position - part[:, None] * way, axis=1).min() < PATH_WIDTH:
                top = max(top, float(corners[:, 2].max()))
        return top

    def goal(self, target: str) -> tuple[Axis, float]:
        """Return the point over which an object is released, and the target's height there."""
        site, data = self.env.object_sites_dict.get(target), self.env.sim.data
        owner = target if site is None else site.parent_name
        point = self.position(target) if site is None else np.asarray(data.get_site_xpos(target), np.float64)
        if owner not in self.env.objects_dict:
            return point[:2], float(point[2])
        points = self.points(owner)
        low, high = points.min(0), points.max(0)
        middle = (low + high) / 2 if site is None else point
        return middle[:2], float(high[2] if "contain" in target else low[2] + BOTTOM_THICKNESS)

    def position(self, obj: str) -> Point:
        """Return the position of an object's body."""
        return np.asarray(self.data.xpos[self.env.obj_body_id[obj]], np.float64)

    def points(self, obj: str) -> Float64[np.ndarray, "n 3"]:
        """Return the corners of an object's colliding parts, in the world."""
        return self.corners(self._parts(self._root(obj)))

    def corners(self, geoms: Any) -> Float64[np.ndarray, "n 3"]:
        """Return the corners of the bounding boxes of geoms, in the world."""
        middle, half = self.model.geom_aabb[geoms, None, :3], self.model.geom_aabb[geoms, None, 3:]
        turned = np.einsum("gij,gcj->gci", self.data.geom_xmat[geoms].reshape(-1, 3, 3), middle + CORNERS * half)
        return np.asarray((self.data.geom_xpos[geoms, None] + turned).reshape(-1, 3), np.float64)

    def _root(self, obj: str) -> int:
        return int(self.model.body_rootid[self.env.obj_body_id[obj]])

    def _parts(self, roots: Any) -> Any:
        """Return the colliding parts of these root bodies."""
        return np.flatnonzero(self.solid & np.isin(self._roots, roots))

    def _others(self, obj: str) -> Any:
        """Return the root bodies that collide, except the object's and the robot's."""
        return np.setdiff1d(self._roots[self.solid], [self._root(obj), self._robot])


def hand_direction(lean: Axis) -> Point:
    """Return the direction of a hand that leans."""
    down = np.array([*lean, -1.0])
    return down / np.linalg.norm(down)


def _distance(points: Float64[np.ndarray, "n 2"], corners: Float64[np.ndarray, "m 2"]) -> Float64[np.ndarray, " n"]:
    """Return the distances of points from the box around some corners."""
    beyond = np.maximum(corners.min(0) - points, points - corners.max(0))
    return np.asarray(np.linalg.norm(np.maximum(beyond, 0), axis=1), np.float64)


def rotated(axis: Float64[np.ndarray, "*n 2"], angle: float) -> Float64[np.ndarray, "*n 2"]:
    """Rotate one or more axes counterclockwise, rad."""
    (x, y), cosine, sine = np.moveaxis(axis, -1, 0), np.cos(angle), np.sin(angle)
    return np.stack((cosine * x - sine * y, sine * x + cosine * y), axis=-1)
