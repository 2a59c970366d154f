"""Scripted experts for LIBERO tasks that are made of picking things up and putting them in or on others.

An expert reads poses and shapes from the simulator, which a policy never does, and moves as a policy must: by OSC_POSE.
It achieves the task's goals one after the other. Each is a script (a generator of actions) that looks at the world
anew at every step, so that noise in what is executed is corrected on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from lightwam.config import SimConfig
from lightwam.errors import SimulatorError
from lightwam.sim.base import Simulator
from lightwam.sim.libero import COLLISION_GEOMS, LiberoSimulator

OPEN, CLOSED = 1.0, 0.0
UP = np.array([0.0, 0.0, 1.0])
GAIN = 16.0
"""motion in units of the action (5 cm), a metre of distance"""
TURN_GAIN = 2.0
"""rotation in units of the action (half a radian), a radian of error"""
NEAR, NEARER = 0.03, 0.006
"""metres at which a way point, and a grasp, is reached"""
PATIENCE = 40
"""steps for one way point"""
SPAN = 0.068
"""metres that fit between the open fingers, with some room"""
TIP = 0.012
"""metres that the fingers reach below the grip site"""
DEPTH = 0.022
"""metres below an object's top at which it is held"""
RIM = 0.006
"""metres from a hollow object's edge to the middle of its wall"""
FINE, PERSISTENCE = 0.05, 0.15
"""metres from a point within which what is missing adds up, and how much of it a step"""
STILL = 1e-3
"""metres a step of a hand that is stuck"""
TRIES = 3
"""to pick a thing up"""
ROOM = 0.004
"""metres between the fingers and other things"""
STOPPED = 5e-4
"""metres a step by which closing fingers at least move"""
ABOVE = 0.10
"""metres from a grasp to where it is approached from"""
CORNERS = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3), axis=-1).reshape(8, 3)
"""of a box, in halves of its sides"""
BESIDE = 0.10
"""metres from a carried thing's way within which others stand in it"""
CLEAR = 0.04
"""metres by which a carried object passes over others"""


@dataclass(frozen=True)
class Grasp:
    """Where the grip site goes, and along which horizontal axis the fingers open."""

    point: Float64[np.ndarray, " 3"]
    axis: Float64[np.ndarray, " 2"]


class LiberoExpert:
    """Picks and places until the task is solved, then holds still."""

    def __init__(self, simulator: LiberoSimulator) -> None:
        """SimulatorError for a task with other goals than in or on something."""
        self._simulator = simulator
        self.goals = [tuple(goal) for goal in simulator.env.parsed_problem["goal_state"]]
        if odd := [goal for goal in self.goals if len(goal) != 3 or goal[0] not in ("in", "on")]:
            raise SimulatorError("no expert for this task", where=simulator.task, got=odd,
                                 expected="goals of putting something in or on something")  # fmt: skip
        self._home = self.grip.copy()
        self._script = self._solve()

    def action(self) -> Float32[np.ndarray, " 7"]:
        """Motion in [-1, 1], and the gripper."""
        return next(self._script).astype(np.float32)

    @property
    def grip(self) -> Float64[np.ndarray, " 3"]:
        """Where the grip site is, metres."""
        return np.asarray(self._data.site_xpos[self._site], np.float64)

    def _solve(self) -> Iterator[Float64[np.ndarray, " 7"]]:
        for _, thing, target in self.goals:
            for _ in range(TRIES):
                yield from self._pick(thing)
                if self._holds(thing):
                    yield from self._place(thing, target)
                    break
        here = self.grip.copy()
        while True:
            yield self._toward(here, OPEN)

    def _pick(self, thing: str) -> Iterator[Float64[np.ndarray, " 7"]]:
        grasp = self._grasp(thing)
        high = np.array([*grasp.point[:2], max(self._home[2], grasp.point[2] + ABOVE)])
        yield from self._move(high, OPEN, NEAR, grasp.axis)
        grasp = self._grasp(thing, grasp.axis)
        yield from self._move(grasp.point + 0.03 * UP, OPEN, 2 * NEARER, grasp.axis)
        yield from self._move(grasp.point, OPEN, NEARER, grasp.axis)
        yield from self._close(grasp)
        yield from self._move(self.grip + 0.07 * UP, CLOSED, NEAR, grasp.axis)

    def _holds(self, thing: str) -> bool:
        """Whether the thing has come along: it is between the fingers, or its rim is."""
        points = self._points(thing)
        return bool((points.min(0) - 0.01 < self.grip).all() and (self.grip < points.max(0) + 0.01).all())

    def _highest(self, thing: str, goal: Float64[np.ndarray, " 2"], top: float) -> float:
        """How high anything stands on a thing's way to its goal."""
        root, position = self._roots(), self._position(thing)[:2]
        solid = np.flatnonzero(self._solid & ~np.isin(root, self._own(thing)))
        way = goal - position
        for geom in solid:
            corners = self._corners([geom])
            part = np.clip((corners[:, :2] - position) @ way / max(way @ way, 1e-9), 0, 1)
            if np.linalg.norm(corners[:, :2] - position - part[:, None] * way, axis=1).min() < BESIDE:
                top = max(top, float(corners[:, 2].max()))
        return top

    def _close(self, grasp: Grasp) -> Iterator[Float64[np.ndarray, " 7"]]:
        """Until the fingers have stopped."""
        before = np.inf
        for step in range(PATIENCE):
            yield self._toward(grasp.point, CLOSED, grasp.axis)
            fingers = float(np.abs(self._simulator.raw["robot0_gripper_qpos"]).sum())
            if step > 2 and before - fingers < STOPPED:
                return
            before = fingers

    def _place(self, thing: str, target: str) -> Iterator[Float64[np.ndarray, " 7"]]:
        goal, top = self._goal(target)
        bottom = self._points(thing)[:, 2].min() - self._position(thing)[2]
        axis = self._axis()

        def carried(height: float) -> Float64[np.ndarray, " 3"]:
            """Where the grip site has to be so that the thing's lowest point is over the goal, at a height."""
            return self.grip + np.array([*goal, height - bottom]) - self._position(thing)

        here, travel = self.grip.copy(), self._highest(thing, goal, top) + CLEAR
        yield from self._follow(lambda: np.array([*here[:2], carried(travel)[2]]), CLOSED, NEAR, axis)
        yield from self._follow(lambda: carried(travel), CLOSED, NEAR, axis)
        yield from self._follow(lambda: carried(top + 0.008), CLOSED, NEARER, axis)
        rest = self.grip.copy()
        for _ in range(5):
            yield self._toward(rest, OPEN, axis)
        yield from self._move(np.array([*rest[:2], max(self._home[2], rest[2] + ABOVE)]), OPEN, NEAR, axis)

    def _move(self, to: Any, gripper: float, near: float, axis: Any) -> Iterator[Float64[np.ndarray, " 7"]]:
        yield from self._follow(lambda: to, gripper, near, axis)

    def _follow(self, to: Any, gripper: float, near: float, axis: Any) -> Iterator[Float64[np.ndarray, " 7"]]:
        """Toward a point that may move, until it is near, the hand is stuck, or patience ends."""
        was, still, missing = self.grip.copy(), 0, np.zeros(3)
        for _ in range(PATIENCE):
            point = to()
            if np.linalg.norm(point - self.grip) < near and abs(self._turn(axis)[2]) < 0.15:
                return
            # near the end of the arm's reach the controller stops short of where it is told to go
            missing = missing + PERSISTENCE * (point - self.grip) if np.linalg.norm(point - was) < FINE else 0 * missing
            yield self._toward(point + missing, gripper, axis)
            still = still + 1 if np.linalg.norm(self.grip - was) < STILL else 0
            if still > 3:
                return
            was = self.grip.copy()

    def _toward(self, point: Any, gripper: float, axis: Any = None) -> Float64[np.ndarray, " 7"]:
        motion = np.clip(GAIN * (point - self.grip), -1, 1)
        turn = np.clip(TURN_GAIN * self._turn(self._axis() if axis is None else axis), -1, 1)
        return np.concatenate((motion, turn, [gripper]))

    def _turn(self, axis: Float64[np.ndarray, " 2"]) -> Float64[np.ndarray, " 3"]:
        """The rotation, axis times angle, that brings the hand to point down with its fingers opening along `axis`."""
        x = np.array([*(axis if axis @ self._axis() > 0 else -axis), 0.0])  # fingers are alike
        down = np.array([0.0, 0.0, -1.0])
        wanted = np.stack((x, np.cross(down, x), down), axis=1)
        error = wanted @ self._data.site_xmat[self._site].reshape(3, 3).T
        vector = np.array([error[2, 1] - error[1, 2], error[0, 2] - error[2, 0], error[1, 0] - error[0, 1]]) / 2
        sine, cosine = np.linalg.norm(vector), (np.trace(error) - 1) / 2
        return vector * (np.arctan2(sine, cosine) / max(sine, 1e-9))

    def _axis(self) -> Float64[np.ndarray, " 2"]:
        """The horizontal direction along which the fingers open now: the grip site's x."""
        x = self._data.site_xmat[self._site].reshape(3, 3)[:2, 0]
        return np.asarray(x / np.linalg.norm(x), np.float64)

    def _grasp(self, thing: str, axis: Float64[np.ndarray, " 2"] | None = None) -> Grasp:
        """The grasp with room for the fingers that turns the hand least: across the thing, or over its rim."""
        now = self._axis()
        turns = np.radians(np.arange(-90, 90, 15)) if axis is None else np.zeros(1)
        axes = [_rotated(now if axis is None else axis, turn) for turn in turns]
        found = [(grasp, turn) for one, turn in zip(axes, turns, strict=True) for grasp in self._grasps(thing, one)]
        points = [grasp.point for grasp, _ in found]
        blocked = [self._blocked(thing, grasp) for grasp, _ in found]
        cost = [10 * b + abs(turn) + abs(p[1]) for b, (_, turn), p in zip(blocked, found, points, strict=True)]
        return found[int(np.argmin(cost))][0]

    def _grasps(self, thing: str, axis: Float64[np.ndarray, " 2"]) -> Iterator[Grasp]:
        """Across the thing where it is narrow enough along an axis, else over its rim on either side."""
        points = self._points(thing)
        low, top = points[:, 2].min(), points[:, 2].max()
        height = max(low + TIP, top - DEPTH)
        level = points[np.abs(points[:, 2] - height) < 0.02]
        flat = (level if len(level) > 2 else points)[:, :2]
        if np.ptp(flat @ axis) < SPAN:
            frame = np.stack((axis, _rotated(axis, np.pi / 2)))
            across = flat @ frame.T
            yield Grasp(np.array([*(across.min(0) + across.max(0)) / 2 @ frame, height]), axis)
            return
        rim = points[points[:, 2] > (low + top) / 2][:, :2]  # all of it, of a thing that leans as well
        middle = (rim.min(0) + rim.max(0)) / 2
        for side in (axis, -axis):
            edge = middle + side * (np.max((rim - middle) @ side) - RIM)
            yield Grasp(np.array([*edge, max(low + TIP, top - 0.015)]), side)

    def _blocked(self, thing: str, grasp: Grasp) -> int:
        """How many points of the open fingers and the hand would be inside of something else."""
        model, data = self._model, self._data
        solid = np.flatnonzero(self._solid & ~np.isin(self._roots(), self._own(thing)))
        along = np.array([*grasp.axis, 0.0])
        aside = np.array([*_rotated(grasp.axis, np.pi / 2), 0.0]) * 0.01
        reach = [(side * 0.05, up) for side in (1, -1) for up in (-TIP / 2, 0.03, 0.06)]
        reach += [(side, 0.11) for side in (-0.1, -0.05, 0.05, 0.1)]
        points = np.array([grasp.point + along * out + w * aside + [0, 0, up] for out, up in reach for w in (-1, 1)])
        local = np.einsum("gji,gpj->gpi", data.geom_xmat[solid].reshape(-1, 3, 3), points - data.geom_xpos[solid, None])
        inside = np.abs(local - model.geom_aabb[solid, None, :3]) < model.geom_aabb[solid, None, 3:] + ROOM
        return int(inside.all(-1).any(0).sum())

    def _goal(self, target: str) -> tuple[Float64[np.ndarray, " 2"], float]:
        """Over which point a thing is let go, and how high the target is there."""
        env = self._simulator.env
        owner = target
        if target in env.object_sites_dict:
            owner = env.object_sites_dict[target].parent_name
            place = np.asarray(env.sim.data.get_site_xpos(target), np.float64)
        else:
            place = self._position(target)
        if owner in env.objects_dict:
            points = self._points(owner)
            if target == owner:
                place = (points.min(0) + points.max(0)) / 2
            return place[:2], float(points[:, 2].max()) if "contain" in target else float(points[:, 2].min() + 0.02)
        return place[:2], float(place[2])

    def _position(self, thing: str) -> Float64[np.ndarray, " 3"]:
        env = self._simulator.env
        return np.asarray(self._data.xpos[env.obj_body_id[thing]], np.float64)

    def _points(self, thing: str) -> Float64[np.ndarray, "n 3"]:
        """The corners of all that the thing collides with, in the world."""
        return self._corners(np.flatnonzero(self._solid & (self._roots() == self._own(thing)[0])))

    def _corners(self, geoms: Any) -> Float64[np.ndarray, "n 3"]:
        """Of the boxes around geoms, in the world."""
        middle, half = self._model.geom_aabb[geoms, None, :3], self._model.geom_aabb[geoms, None, 3:]
        turned = np.einsum("gij,gcj->gci", self._data.geom_xmat[geoms].reshape(-1, 3, 3), middle + CORNERS * half)
        return np.asarray((self._data.geom_xpos[geoms, None] + turned).reshape(-1, 3), np.float64)

    def _own(self, thing: str) -> tuple[int, int]:
        """The bodies of a thing and of the robot, by their roots."""
        return int(self._model.body_rootid[self._simulator.env.obj_body_id[thing]]), self._model.body("robot0_base").id

    def _roots(self) -> Any:
        return self._model.body_rootid[self._model.geom_bodyid]

    @property
    def _solid(self) -> Any:
        """Which geoms things collide with; the ground's and the walls' boxes have no size."""
        return (self._model.geom_group == COLLISION_GEOMS) & (self._model.geom_aabb[:, 3:].max(1) < 2)

    @property
    def _model(self) -> Any:
        return self._simulator.env.sim.model._model

    @property
    def _data(self) -> Any:
        return self._simulator.env.sim.data._data

    @property
    def _site(self) -> int:
        return int(self._simulator.env.robots[0].eef_site_id)


def _rotated(axis: Float64[np.ndarray, " 2"], angle: float) -> Float64[np.ndarray, " 2"]:
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([cosine * axis[0] - sine * axis[1], sine * axis[0] + cosine * axis[1]])


def make_expert(config: SimConfig, simulator: Simulator) -> LiberoExpert:
    """The expert of a `LiberoSimulator`."""
    if not isinstance(simulator, LiberoSimulator):
        raise SimulatorError("a LIBERO expert moves LIBERO's arm only", got=type(simulator).__name__)
    return LiberoExpert(simulator)
