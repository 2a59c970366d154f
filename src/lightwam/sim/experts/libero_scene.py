"""What LIBERO's expert sees of the world, which a policy never does: the hand, shapes, grasps and goals.

Everything is solid boxes: those around the geoms that things collide with. Lengths are metres.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from lightwam.sim.libero import COLLISION_GEOMS, LiberoSimulator

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
PALM = (-0.1, -0.05, 0.0, 0.05, 0.1)
"""how far to the sides the hand reaches, over the fingers"""
HAND, CLEAR = 0.13, 0.02
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

    point: Float64[np.ndarray, " 3"]
    axis: Float64[np.ndarray, " 2"]


@dataclass(frozen=True)
class Drawer:
    """The middle of its handle, the horizontal direction in which it opens, and its corners from above when it has."""

    handle: Float64[np.ndarray, " 3"]
    out: Float64[np.ndarray, " 2"]
    opened: Float64[np.ndarray, "n 2"]


class Scene:
    """One episode's world, always as it is now."""

    def __init__(self, simulator: LiberoSimulator) -> None:
        self._simulator, self._env = simulator, simulator.env

    @property
    def grip(self) -> Float64[np.ndarray, " 3"]:
        """Where the grip site is."""
        return np.array(self._data.site_xpos[self._site], np.float64)  # a copy, as the world moves on

    @property
    def axis(self) -> Float64[np.ndarray, " 2"]:
        """The horizontal direction along which the fingers open now: the grip site's x."""
        x = self._turned[:2, 0]
        return np.asarray(x / np.linalg.norm(x), np.float64)

    @property
    def opening(self) -> float:
        """Between the fingers."""
        return float(np.abs(self._simulator.raw["robot0_gripper_qpos"]).sum())

    def turn(
        self, axis: Float64[np.ndarray, " 2"], lean: Float64[np.ndarray, " 2"] = UPRIGHT
    ) -> Float64[np.ndarray, " 3"]:
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

    def grasp(self, thing: str, axis: Float64[np.ndarray, " 2"] | None = None) -> Grasp:
        """The grasp with room for the fingers that turns the hand least: across the thing, or over its rim."""
        now = self.axis
        turns = np.radians(np.arange(-90, 90, 15)) if axis is None else np.zeros(1)
        axes = [rotated(now if axis is None else axis, turn) for turn in turns]
        turned = list(zip(axes, turns, strict=True))
        found = [(grasp, turn) for one, turn in turned for grasp in self._grasps(thing, one)]
        free = [one for one in found if not self._blocked(self._own(thing)[:1], one[0])]
        found = free or [(grasp, turn) for one, turn in turned for grasp in self._handles(thing, one)] or found
        points = [grasp.point for grasp, _ in found]
        others = np.setdiff1d(self._roots()[self._solid], self._own(thing))
        blocked = [self._blocked(others, grasp) for grasp, _ in found]
        cost = [10 * b + abs(turn) + abs(p[1]) for b, (_, turn), p in zip(blocked, found, points, strict=True)]
        return found[int(np.argmin(cost))][0]

    def _grasps(self, thing: str, axis: Float64[np.ndarray, " 2"]) -> Iterator[Grasp]:
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

    def _handles(self, thing: str, axis: Float64[np.ndarray, " 2"]) -> Iterator[Grasp]:
        """Across its parts that are narrow enough and have room beside them, where none has below."""
        own = self._own(thing)[:1]
        for geom in np.flatnonzero(self._solid & (self._roots() == own[0])):
            points = self._corners([geom])
            middle, low, top = (points.min(0) + points.max(0)) / 2, points[:, 2].min(), points[:, 2].max()
            grasp = Grasp(np.array([*middle[:2], max(low + TIP, top - DEPTH)]), axis)
            narrow, tall = np.ptp(points[:, :2] @ axis) < SPAN / 2, top - low > DEPTH
            if narrow and tall and not self._blocked(own, grasp):
                yield grasp

    def _blocked(self, roots: Any, grasp: Grasp) -> int:
        """How many points of the open fingers and the hand would be inside of these bodies' parts."""
        model, data = self._model, self._data
        solid = np.flatnonzero(self._solid & np.isin(self._roots(), roots))
        along = np.array([*grasp.axis, 0.0])
        aside = np.array([*rotated(grasp.axis, np.pi / 2), 0.0])
        reach = [(side, way, up) for side in (-0.05, 0.05) for way in (-0.01, 0.01) for up in (-TIP / 2, 0.012, 0.03)]
        reach += [(side, way, up) for side in PALM for way in (-0.03, 0.03) for up in (0.035, 0.075, 0.115)]
        points = np.array([grasp.point + along * out + way * aside + [0, 0, up] for out, way, up in reach])
        local = np.einsum("gji,gpj->gpi", data.geom_xmat[solid].reshape(-1, 3, 3), points - data.geom_xpos[solid, None])
        inside = np.abs(local - model.geom_aabb[solid, None, :3]) < model.geom_aabb[solid, None, 3:] + ROOM
        return int(inside.all(-1).any(0).sum())

    def knob(self, fixture: str) -> Grasp:
        """Across the fin of a fixture's knob."""
        points = self._corners(np.flatnonzero(self._solid & (self._model.geom_bodyid == self._hinge(fixture)[1])))
        top = points[:, 2].max()
        fin = points[points[:, 2] > top - DEPTH / 2][:, :2]
        axes = [rotated(self.axis, angle) for angle in np.radians(np.arange(-90, 90, 15))]
        thin = min(axes, key=lambda axis: float(np.ptp(fin @ axis)))
        return Grasp(np.array([*(fin.min(0) + fin.max(0)) / 2, top - DEPTH]), thin)

    def angle(self, fixture: str) -> float:
        """How far its knob is turned, rad; it is on from half a radian."""
        return float(self._data.qpos[self._model.jnt_qposadr[self._hinge(fixture)[0]]])

    def _hinge(self, fixture: str) -> tuple[int, int]:
        """The joint of a knob, and its body."""
        joint = self._model.joint(self._env.get_object(fixture).joints[-1]).id
        return joint, int(self._model.jnt_bodyid[joint])

    def drawn(self, region: str) -> bool:
        """Whether a goal's word names the inside of a drawer."""
        return bool(getattr(self._env.object_sites_dict.get(region), "joints", ()))

    def drawer(self, region: str) -> Drawer:
        """The one whose inside is a region."""
        model, data = self._model, self._data
        joint = model.joint(self._env.object_sites_dict[region].joints[0]).id
        way = max(model.jnt_range[joint], key=abs) - data.qpos[model.jnt_qposadr[joint]]
        axis = data.xaxis[joint][:2]
        out = axis * np.sign(max(model.jnt_range[joint], key=abs))
        parts = np.flatnonzero(self._solid & (model.geom_bodyid == model.jnt_bodyid[joint]))
        handle = max((self._corners([part]) for part in parts), key=lambda points: float((points[:, :2] @ out).max()))
        return Drawer((handle.min(0) + handle.max(0)) / 2, out, self._corners(parts)[:, :2] + way * axis)

    def aside(self, thing: str, region: str) -> Float64[np.ndarray, " 3"]:
        """The nearest free place for a thing where a drawer, once it is open, leaves the hand room to take it."""
        points, opened = self.points(thing), self.drawer(region).opened
        middle, radius, low = (
            (points.min(0) + points.max(0))[:2] / 2,
            np.ptp(points[:, :2], axis=0).max() / 2,
            points[:, 2].min(),
        )
        boxes = [
            self._corners([geom]) for geom in np.flatnonzero(self._solid & ~np.isin(self._roots(), self._own(thing)))
        ]
        others = [box[:, :2] for box in boxes if box[:, 2].max() > low + ROOM]
        grid = np.stack(np.meshgrid(*[np.arange(-0.3, 0.31, 0.02)] * 2), axis=-1).reshape(-1, 2)
        spots = middle + grid[np.argsort(np.linalg.norm(grid, axis=1))]
        free = [_outside(spots, opened, HAND), *(_outside(spots, other, radius + CLEAR) for other in others)]
        return np.array([*spots[int(np.argmax(np.all(free, axis=0)))], low])

    def met(self, goal: tuple[str, ...]) -> bool:
        """Whether LIBERO calls one of the task's goals achieved."""
        return bool(self._env._eval_predicate(list(goal)))

    def fitting(self, thing: str, target: str) -> float:
        """The least turn, rad, with which a thing fits into a region; none for what fits nohow, or on anything else."""
        if (room := self._room(target)) is None:
            return 0.0
        flat = self.points(thing)[:, :2]
        turns = sorted(np.radians(np.arange(-90, 91, 5)), key=abs)
        fits = (turn for turn in turns if (np.ptp(flat @ _frame(turn), axis=0) + ROOM < room).all())
        return float(next(fits, 0.0))

    def share(self, thing: str, target: str, place: int, count: int) -> Float64[np.ndarray, " 2"]:
        """Where, from a region's middle, one of some things is put, so that all find room: side by side."""
        if (room := self._room(target)) is None:
            return np.zeros(2)
        slim = int(np.argmin(np.ptp(self.points(thing)[:, :2], axis=0)))
        return np.eye(2)[slim] * room[slim] * ((place + 0.5) / count - 0.5)

    def _room(self, target: str) -> Float64[np.ndarray, " 2"] | None:
        """How long and wide a region is, in the world's directions."""
        if (site := self._env.object_sites_dict.get(target)) is None:
            return None
        return np.asarray(2 * np.abs(self._env.sim.data.get_site_xmat(target) @ site.size)[:2], np.float64)

    def holds(self, thing: str) -> bool:
        """Whether the thing has come along: it is between the fingers, or its rim is."""
        points = self.points(thing)
        return bool((points.min(0) - 0.01 < self.grip).all() and (self.grip < points.max(0) + 0.01).all())

    def highest(self, thing: str, goal: Float64[np.ndarray, " 2"], top: float) -> float:
        """How high anything stands on a thing's way to its goal."""
        root, position = self._roots(), self.position(thing)[:2]
        solid = np.flatnonzero(self._solid & ~np.isin(root, self._own(thing)))
        way = goal - position
        for geom in solid:
            corners = self._corners([geom])
            part = np.clip((corners[:, :2] - position) @ way / max(way @ way, 1e-9), 0, 1)
            if np.linalg.norm(corners[:, :2] - position - part[:, None] * way, axis=1).min() < BESIDE:
                top = max(top, float(corners[:, 2].max()))
        return top

    def goal(self, target: str) -> tuple[Float64[np.ndarray, " 2"], float]:
        """Over which point a thing is let go, and how high the target is there."""
        env = self._env
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

    def position(self, thing: str) -> Float64[np.ndarray, " 3"]:
        """Of its body."""
        return np.asarray(self._data.xpos[self._env.obj_body_id[thing]], np.float64)

    def points(self, thing: str) -> Float64[np.ndarray, "n 3"]:
        """The corners of all that the thing collides with, in the world."""
        return self._corners(np.flatnonzero(self._solid & (self._roots() == self._own(thing)[0])))

    def _corners(self, geoms: Any) -> Float64[np.ndarray, "n 3"]:
        """Of the boxes around geoms, in the world."""
        middle, half = self._model.geom_aabb[geoms, None, :3], self._model.geom_aabb[geoms, None, 3:]
        turned = np.einsum("gij,gcj->gci", self._data.geom_xmat[geoms].reshape(-1, 3, 3), middle + CORNERS * half)
        return np.asarray((self._data.geom_xpos[geoms, None] + turned).reshape(-1, 3), np.float64)

    def _own(self, thing: str) -> tuple[int, int]:
        """The bodies of a thing and of the robot, by their roots."""
        return int(self._model.body_rootid[self._env.obj_body_id[thing]]), self._model.body("robot0_base").id

    def _roots(self) -> Any:
        return self._model.body_rootid[self._model.geom_bodyid]

    @property
    def _solid(self) -> Any:
        """Which geoms things collide with; the ground's and the walls' boxes have no size."""
        return (self._model.geom_group == COLLISION_GEOMS) & (self._model.geom_aabb[:, 3:].max(1) < BOUNDLESS)

    @property
    def _model(self) -> Any:
        return self._env.sim.model._model

    @property
    def _data(self) -> Any:
        return self._env.sim.data._data

    @property
    def _turned(self) -> Any:
        """The hand's axes, in columns."""
        return self._data.site_xmat[self._site].reshape(3, 3)

    @property
    def _site(self) -> int:
        return int(self._env.robots[0].eef_site_id)


def pointing(lean: Float64[np.ndarray, " 2"]) -> Float64[np.ndarray, " 3"]:
    """Where a hand that leans points to."""
    down = np.array([*lean, -1.0])
    return down / np.linalg.norm(down)


def _outside(
    points: Float64[np.ndarray, "n 2"], corners: Float64[np.ndarray, "m 2"], distance: float
) -> Bool[np.ndarray, " n"]:
    """Which points are farther than a distance from the box around some corners."""
    beyond = np.maximum(corners.min(0) - points, points - corners.max(0))
    return np.asarray(np.linalg.norm(np.maximum(beyond, 0), axis=1) > distance)


def _frame(turn: float) -> Float64[np.ndarray, "2 2"]:
    """Turns rows of points by an angle, rad."""
    return np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])


def rotated(axis: Float64[np.ndarray, " 2"], angle: float) -> Float64[np.ndarray, " 2"]:
    """Counterclockwise, rad."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([cosine * axis[0] - sine * axis[1], sine * axis[0] + cosine * axis[1]])
