"""What LIBERO's expert sees of the world, which a policy never does: the hand, shapes, grasps and goals.

Everything is solid boxes: those around the geoms that things collide with. Lengths are metres.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from lightwam.sim.libero.simulator import COLLISION_GEOMS, LiberoSimulator

Point = Float64[np.ndarray, " 3"]
Axis = Float64[np.ndarray, " 2"]
"""a horizontal direction, or way"""

SPAN = 0.068
"""what fits between the open fingers, with some room"""
TIP = 0.012
"""how far the fingers reach below the grip site"""
DEPTH = 0.022
"""how far below a thing's top it is held"""
RIM_DEPTH, RIM = 0.015, 0.006
"""the same for a rim, and how far its wall's middle is from its edge"""
ROOM = 0.004
"""between the fingers and other things"""
BESIDE = 0.14
"""from a carried thing's way, within which others stand in the hand's"""
FLOOR = 0.02
"""how thick the bottom of a plate or bowl is taken to be"""
PROBES = np.array(
    [(out, side, up) for out in (-0.05, 0.05) for side in (-0.01, 0.01) for up in (-TIP / 2, 0.012, 0.03)]
    + [
        (out, side, up)
        for out in (-0.1, -0.05, 0.0, 0.05, 0.1)
        for side in (-0.03, 0.03)
        for up in (0.035, 0.075, 0.115)
    ]
)
"""points of the open fingers, and of the palm over them, from the grip: along the fingers' way, across it, and up"""
FROM_DRAWER, APART = 0.13, 0.02
"""from the middle of a thing to an open drawer that lets the hand take it, and between things on the table"""
BOUNDLESS = 2.0
"""half a side of what is no thing: ground and walls"""
CORNERS = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3), axis=-1).reshape(8, 3)
"""of a box, in halves of its sides"""


UPRIGHT = np.zeros(2)
"""the lean, how far aside it points for each metre down, of a hand that points straight down"""


@dataclass(frozen=True)
class Grasp:
    """Where the grip site goes, and along which horizontal axis the fingers open."""

    point: Point
    axis: Axis


class Scene:
    """One episode's world, always as it is now."""

    def __init__(self, simulator: LiberoSimulator) -> None:
        self._simulator, self.env = simulator, simulator.env

    @property
    def grip(self) -> Point:
        """Where the grip site is."""
        return np.array(self.data.site_xpos[self._site], np.float64)  # a copy, as the world moves on

    @property
    def axis(self) -> Axis:
        """The horizontal direction along which the fingers open now: the grip site's x."""
        x = self._turned[:2, 0]
        return np.asarray(x / np.linalg.norm(x), np.float64)

    @property
    def opening(self) -> float:
        """Between the fingers."""
        return float(np.abs(self._simulator.raw["robot0_gripper_qpos"]).sum())

    def turn(self, axis: Axis, lean: Axis = UPRIGHT) -> Point:
        """The rotation, axis times angle, that brings the hand to its lean, with its fingers opening along `axis`."""
        down = pointing(lean)
        x = np.array([*(axis if axis @ self.axis > 0 else -axis), 0.0])  # fingers are alike
        x = x - (x @ down) * down
        x /= np.linalg.norm(x)
        wanted = np.stack((x, np.cross(down, x), down), axis=1)
        error = wanted @ self._turned.T
        vector = np.array([error[2, 1] - error[1, 2], error[0, 2] - error[2, 0], error[1, 0] - error[0, 1]]) / 2
        sine, cosine = np.linalg.norm(vector), (np.trace(error) - 1) / 2
        return vector * (np.arctan2(sine, cosine) / max(sine, 1e-9))

    def grasp(self, thing: str, axis: Axis | None = None) -> Grasp:
        """The grasp with room for the hand that turns it least, and is nearest to the middle of the arm's reach.

        Across the thing, or over its rim; by a handle, where the thing itself is in the way of all of those.
        """
        turns = np.radians(np.arange(-90, 90, 15)) if axis is None else np.zeros(1)
        ways = [(rotated(self.axis if axis is None else axis, turn), float(abs(turn))) for turn in turns]
        whole = [(grasp, turn) for way, turn in ways for grasp in self._grasps(thing, way)]
        itself = [self._root(thing)]
        found = [(grasp, turn) for grasp, turn in whole if not self._blocked(itself, grasp)]
        found = found or [(grasp, turn) for way, turn in ways for grasp in self._handles(thing, way)] or whole
        others = np.setdiff1d(self._roots()[self.solid], [*itself, self._robot])
        cost = [10 * self._blocked(others, grasp) + turn + abs(grasp.point[1]) for grasp, turn in found]
        return found[int(np.argmin(cost))][0]

    def _grasps(self, thing: str, axis: Axis) -> Iterator[Grasp]:
        """Across the thing where it is narrow enough along an axis, else over its rim on either side."""
        points = self.points(thing)
        low, top = points[:, 2].min(), points[:, 2].max()
        height = max(low + TIP, top - DEPTH)
        level = points[np.abs(points[:, 2] - height) < 0.02]
        flat = (level if len(level) > 2 else points)[:, :2]
        if np.ptp(flat @ axis) < SPAN:
            frame = np.stack((axis, rotated(axis, np.pi / 2)))
            across = flat @ frame.T
            yield Grasp(np.array([*(across.min(0) + across.max(0)) / 2 @ frame, height]), axis)
            return
        rim = points[points[:, 2] > (low + top) / 2][:, :2]  # all of it, of a thing that leans as well
        middle = (rim.min(0) + rim.max(0)) / 2
        for side in (axis, -axis):
            edge = middle + side * (np.max((rim - middle) @ side) - RIM)
            yield Grasp(np.array([*edge, max(low + TIP, top - RIM_DEPTH)]), side)

    def _handles(self, thing: str, axis: Axis) -> Iterator[Grasp]:
        """Across each tall, narrow part that leaves the fingers room beside the rest of the thing."""
        for geom in np.flatnonzero(self.solid & (self._roots() == self._root(thing))):
            points = self.corners([geom])
            middle, low, top = (points.min(0) + points.max(0)) / 2, points[:, 2].min(), points[:, 2].max()
            grasp = Grasp(np.array([*middle[:2], max(low + TIP, top - DEPTH)]), axis)
            narrow, tall = np.ptp(points[:, :2] @ axis) < SPAN / 2, top - low > DEPTH
            if narrow and tall and not self._blocked([self._root(thing)], grasp):
                yield grasp

    def _blocked(self, roots: Any, grasp: Grasp) -> int:
        """How many probes of the hand would be inside of these bodies' parts."""
        model, data = self.model, self.data
        solid = np.flatnonzero(self.solid & np.isin(self._roots(), roots))
        frame = np.eye(3)
        frame[0, :2], frame[1, :2] = grasp.axis, rotated(grasp.axis, np.pi / 2)
        points = grasp.point + PROBES @ frame
        local = np.einsum("gji,gpj->gpi", data.geom_xmat[solid].reshape(-1, 3, 3), points - data.geom_xpos[solid, None])
        inside = np.abs(local - model.geom_aabb[solid, None, :3]) < model.geom_aabb[solid, None, 3:] + ROOM
        return int(inside.all(-1).any(0).sum())

    def aside(self, thing: str, opened: Float64[np.ndarray, "n 2"]) -> Point | None:
        """Where a thing waits for a drawer to open, as near as can be; None where it does not stand in the hand's way.

        `opened` are the drawer's corners then. Looked for within 30 cm; where nothing is free, as far from the drawer
        as that goes. Not looked at: table edges.
        """
        points = self.points(thing)
        middle, low = (points.min(0) + points.max(0))[:2] / 2, points[:, 2].min()
        room = np.ptp(points[:, :2], axis=0).max() / 2 + APART
        grid = np.stack(np.meshgrid(*[np.arange(-0.3, 0.31, 0.02)] * 2), axis=-1).reshape(-1, 2)
        spots = middle + grid[np.argsort(np.linalg.norm(grid, axis=1))]
        away = _distance(spots, opened)
        if away[0] > FROM_DRAWER:
            return None
        boxes = [self.corners([geom]) for geom in self._others(thing)]
        free = [_distance(spots, box[:, :2]) > room for box in boxes if box[:, 2].max() > low + ROOM]
        good = np.all([away > FROM_DRAWER, *free], axis=0)
        return np.array([*spots[int(np.argmax(good if good.any() else away))], low])

    def met(self, goal: tuple[str, ...]) -> bool:
        """Whether LIBERO calls one of the task's goals achieved."""
        return bool(self.env._eval_predicate(list(goal)))

    def fitting(self, thing: str, target: str) -> float:
        """The least turn, rad, with which a thing fits into a region; 0 where none does, and where it is no region."""
        if (room := self._room(target)) is None:
            return 0.0
        flat = self.points(thing)[:, :2]
        turns = sorted(np.radians(np.arange(-90, 91, 5)), key=abs)
        fits = (turn for turn in turns if (np.ptp(rotated(flat, turn), axis=0) + ROOM < room).all())
        return float(next(fits, 0.0))

    def share(self, thing: str, target: str, place: int, count: int) -> Axis:
        """Where, from a region's middle, one of some things is put, so that all find room: side by side."""
        if (room := self._room(target)) is None:
            return np.zeros(2)
        slim = int(np.argmin(np.ptp(self.points(thing)[:, :2], axis=0)))
        return np.eye(2)[slim] * room[slim] * ((place + 0.5) / count - 0.5)

    def _room(self, target: str) -> Axis | None:
        """How long and wide a region is, in the world's directions."""
        if (site := self.env.object_sites_dict.get(target)) is None:
            return None
        half = self.env.sim.data.get_site_xmat(target) @ site.size  # abs comes last, as where LIBERO tells what is in
        return np.asarray(2 * np.abs(half)[:2], np.float64)

    def nearest(self, thing: str, inward: Axis) -> Point:
        """The middle of the part of a thing that comes last when it moves `inward`: of a mug, say, its handle's."""
        parts = np.flatnonzero(self.solid & (self._roots() == self._root(thing)))
        return np.array(
            min((self.data.geom_xpos[part] for part in parts), key=lambda middle: float(middle[:2] @ inward))
        )

    def holds(self, thing: str) -> bool:
        """Whether the thing has come along: it is between the fingers, or its rim is."""
        points = self.points(thing)
        return bool((points.min(0) - 0.01 < self.grip).all() and (self.grip < points.max(0) + 0.01).all())

    def highest(self, thing: str, goal: Axis, top: float) -> float:
        """How high anything stands on a thing's way to its goal."""
        position = self.position(thing)[:2]
        way = goal - position
        for geom in self._others(thing):
            corners = self.corners([geom])
            part = np.clip((corners[:, :2] - position) @ way / max(way @ way, 1e-9), 0, 1)
            if np.linalg.norm(corners[:, :2] - position - part[:, None] * way, axis=1).min() < BESIDE:
                top = max(top, float(corners[:, 2].max()))
        return top

    def goal(self, target: str) -> tuple[Axis, float]:
        """Over which point a thing is let go, and how high the target is there."""
        env = self.env
        owner = target
        if target in env.object_sites_dict:
            owner = env.object_sites_dict[target].parent_name
            place = np.asarray(env.sim.data.get_site_xpos(target), np.float64)
        else:
            place = self.position(target)
        if owner in env.objects_dict:
            points = self.points(owner)
            if target == owner:
                place = (points.min(0) + points.max(0)) / 2
            return place[:2], float(points[:, 2].max()) if "contain" in target else float(points[:, 2].min() + FLOOR)
        return place[:2], float(place[2])

    def position(self, thing: str) -> Point:
        """Of its body."""
        return np.asarray(self.data.xpos[self.env.obj_body_id[thing]], np.float64)

    def points(self, thing: str) -> Float64[np.ndarray, "n 3"]:
        """The corners of all that the thing collides with, in the world."""
        return self.corners(np.flatnonzero(self.solid & (self._roots() == self._root(thing))))

    def corners(self, geoms: Any) -> Float64[np.ndarray, "n 3"]:
        """Of the boxes around geoms, in the world."""
        middle, half = self.model.geom_aabb[geoms, None, :3], self.model.geom_aabb[geoms, None, 3:]
        turned = np.einsum("gij,gcj->gci", self.data.geom_xmat[geoms].reshape(-1, 3, 3), middle + CORNERS * half)
        return np.asarray((self.data.geom_xpos[geoms, None] + turned).reshape(-1, 3), np.float64)

    def _root(self, thing: str) -> int:
        """The body that all of a thing's hang from."""
        return int(self.model.body_rootid[self.env.obj_body_id[thing]])

    @property
    def _robot(self) -> int:
        return int(self.model.body("robot0_base").id)

    def _others(self, thing: str) -> Any:
        """The parts that things collide with of all but a thing and the robot."""
        return np.flatnonzero(self.solid & ~np.isin(self._roots(), [self._root(thing), self._robot]))

    def _roots(self) -> Any:
        return self.model.body_rootid[self.model.geom_bodyid]

    @property
    def solid(self) -> Any:
        """Which geoms things collide with; the ground's and the walls' boxes have no size."""
        return (self.model.geom_group == COLLISION_GEOMS) & (self.model.geom_aabb[:, 3:].max(1) < BOUNDLESS)

    @property
    def model(self) -> Any:
        """MuJoCo's."""
        return self.env.sim.model._model

    @property
    def data(self) -> Any:
        """MuJoCo's."""
        return self.env.sim.data._data

    @property
    def _turned(self) -> Any:
        """The hand's axes, in columns."""
        return self.data.site_xmat[self._site].reshape(3, 3)

    @property
    def _site(self) -> int:
        return int(self.env.robots[0].eef_site_id)


def pointing(lean: Axis) -> Point:
    """Where a hand that leans points to."""
    down = np.array([*lean, -1.0])
    return down / np.linalg.norm(down)


def _distance(points: Float64[np.ndarray, "n 2"], corners: Float64[np.ndarray, "m 2"]) -> Float64[np.ndarray, " n"]:
    """Of points from the box around some corners."""
    beyond = np.maximum(corners.min(0) - points, points - corners.max(0))
    return np.asarray(np.linalg.norm(np.maximum(beyond, 0), axis=1), np.float64)


def rotated(axis: Float64[np.ndarray, "*n 2"], angle: float) -> Float64[np.ndarray, "*n 2"]:
    """Counterclockwise, rad; of several, each."""
    (x, y), cosine, sine = np.moveaxis(axis, -1, 0), np.cos(angle), np.sin(angle)
    return np.stack((cosine * x - sine * y, sine * x + cosine * y), axis=-1)
