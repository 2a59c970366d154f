"""Scripted experts for LIBERO tasks: bringing things, opening drawers, closing them and doors, and turning knobs on.

An expert moves as a policy must, by OSC_POSE, but knows the scene (libero_scene.py, libero_fixtures.py). It achieves
the task's goals one after the other, and again where that failed. Each is a script (a generator of actions) that looks
at the world anew at every step, so that noise in what is executed is corrected on the way. Lengths are metres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float32, Float64

from lightwam.config.schema import SimConfig
from lightwam.errors import SimulatorError
from lightwam.sim.libero.expert_fixtures import Cavity, Fixtures
from lightwam.sim.libero.expert_scene import UPRIGHT, Axis, Grasp, Point, Scene, pointing, rotated
from lightwam.sim.libero.simulator import LiberoSimulator
from lightwam.sim.simulator import Simulator

OPEN, CLOSED = 1.0, 0.0
UP = np.array([0.0, 0.0, 1.0])
GAIN, TURN_GAIN = 16.0, 2.0
"""units of action (5 cm, half a radian) for a metre and for a radian of error"""
NEAR, NEARER, TURNED = 0.03, 0.006, 0.15
"""where a way point, and a grasp, is reached, and the angle"""
PATIENCE = 40
"""steps for one way point"""
FINE, PERSISTENCE = 0.05, 0.15
"""the distance below which what is missing is added up, and the share of it that is added a step"""
STILL, STOPPED = 1e-3, 5e-4
"""a hand that moves less than this a step is stuck; fingers that do have closed"""
TRIES = 3
"""to pick a thing up, and to achieve all goals"""
ABOVE, LIFT, CLEAR, DROP = 0.10, 0.07, 0.04, 0.008
"""approach over a grasp, first lift, room under what is carried, height from which it is let go"""
ON, TWIST = 1.0, 0.5
"""rad: how far a knob is turned, twice as far as it must be, and how far ahead of the hand the twist aims"""
LET_GO = 5
"""steps for the fingers to open"""
PULLING, PUSHING = 2.0, 0.6
"""how far the hand leans at a drawer's handle, metres aside a metre down"""
BAR, PULL = 0.004, 0.04
"""how far the grip stays from a handle's middle, and how far ahead a pull aims; by more, the fingers slip"""
BEFORE, FAR = 0.06, 0.3
"""where a push begins, and farther than any drawer is long"""
REACHING, AROUND, SILL = 0.6, 0.07, 0.02
"""how far the hand leans into a cavity, metres aside a metre down, how far aside it comes round the open door, and how
high over the cavity's floor"""
AHEAD, UNDER_EDGE = 0.03, 0.02
"""how far ahead of a door's face a push aims, and how far below its top"""

Action = Float64[np.ndarray, " 7"]
Spot = tuple[Point, float]


class LiberoExpert:
    """Achieves what the task asks for, goal by goal, then holds still."""

    def __init__(self, simulator: LiberoSimulator) -> None:
        """SimulatorError for a task with other goals than these."""
        self.scene = Scene(simulator)
        self.fixtures = Fixtures(self.scene)
        goals = [tuple(goal) for goal in simulator.env.parsed_problem["goal_state"]]
        self.goals = sorted(goals, key=lambda goal: goal[0] == "close")  # what is shut in comes first
        if odd := [goal for goal in self.goals if not self._can(*goal)]:
            raise SimulatorError("no expert for this task", where=simulator.task, got=odd,
                                 expected="bringing things, turning one on, opening drawers, closing drawers and doors",
                                 next_step="leave it out by --sim.tasks (lightwam check expert)")  # fmt: skip
        self._high = self.scene.grip[2]  # how high the hand begins, and travels
        self._script = self._solve()

    def _can(self, verb: str, thing: str, target: str = "") -> bool:
        if verb == "close" and self.fixtures.hung(thing):
            return True
        return verb in ("in", "on", "turnon") or (verb in ("open", "close") and self.fixtures.drawn(thing))

    def action(self) -> Float32[np.ndarray, " 7"]:
        """Motion in [-1, 1], and the gripper."""
        return next(self._script).astype(np.float32)

    def _solve(self) -> Iterator[Action]:
        for _ in range(TRIES):
            for goal in self.goals:
                if goal[0] == "close" and not all(map(self.scene.met, self.goals[: self.goals.index(goal)])):
                    break  # what is not in yet would be shut out
                if not self.scene.met(goal):
                    yield from self._achieve(*goal)
        here, axis = self.scene.grip, self.scene.axis
        while True:
            yield self._toward(here, OPEN, axis)

    def _achieve(self, verb: str, thing: str, target: str = "") -> Iterator[Action]:
        shut = self._shut if self.fixtures.drawn(thing) else self._shut_door
        if script := {"turnon": self._turn_on, "open": self._open, "close": shut}.get(verb):
            yield from script(thing)
            return
        if (cavity := self.fixtures.cavity(target)) is not None:
            yield from self._put_in(thing, cavity)
            return
        if self.fixtures.drawn(target) and not self.scene.met(("open", target)):
            if (aside := self.scene.aside(thing, self.fixtures.drawer(target).opened)) is not None:
                yield from self._bring(thing, lambda: (aside, 0.0))
            yield from self._open(target)
        yield from self._bring(thing, lambda: self._spot(thing, target))

    def _bring(self, thing: str, spot: Callable[[], Spot]) -> Iterator[Action]:
        for _ in range(TRIES):
            yield from self._pick(thing)
            if self.scene.holds(thing):
                yield from self._place(thing, *spot())
                return

    def _pick(self, thing: str) -> Iterator[Action]:
        grasp = self.scene.grasp(thing)
        axis, high = grasp.axis, max(self._high, grasp.point[2] + ABOVE)
        yield from self._move(np.array([*grasp.point[:2], high]), OPEN, NEAR, axis)
        grasp = self.scene.grasp(thing, axis)
        yield from self._move(grasp.point + NEAR * UP, OPEN, 2 * NEARER, axis)
        yield from self._move(grasp.point, OPEN, NEARER, axis)
        yield from self._close(grasp)
        yield from self._move(self.scene.grip + LIFT * UP, CLOSED, NEAR, axis)

    def _close(self, grasp: Grasp, lean: Axis = UPRIGHT) -> Iterator[Action]:
        """Until the fingers have stopped."""
        before = np.inf
        for step in range(PATIENCE):
            yield self._toward(grasp.point, CLOSED, grasp.axis, lean)
            if step > 2 and before - self.scene.opening < STOPPED:
                return
            before = self.scene.opening

    def _spot(self, thing: str, target: str) -> Spot:
        """Where a thing is put, and how far it turns on the way."""
        goal, top = self.scene.goal(target)
        return (np.array([*goal + self._beside(thing, target), top]), self.scene.fitting(thing, target))

    def _place(self, thing: str, spot: Point, turn: float) -> Iterator[Action]:
        scene, goal, top = self.scene, spot[:2], spot[2]
        axis = rotated(scene.axis, turn)
        bottom = scene.points(thing)[:, 2].min() - scene.position(thing)[2]

        def carried(height: float) -> Point:
            """Where the grip site has to be so that the thing's lowest point is over the goal, at a height."""
            return scene.grip + np.array([*goal, height - bottom]) - scene.position(thing)

        here, travel = scene.grip, scene.highest(thing, goal, top) + CLEAR
        yield from self._follow(lambda: np.array([*here[:2], carried(travel)[2]]), CLOSED, NEAR, axis)
        yield from self._follow(lambda: carried(travel), CLOSED, NEAR, axis)
        yield from self._follow(lambda: carried(top + DROP), CLOSED, NEARER, axis)
        rest = scene.grip
        for _ in range(LET_GO):
            yield self._toward(rest, OPEN, axis)
        yield from self._move(np.array([*rest[:2], max(self._high, rest[2] + ABOVE)]), OPEN, NEAR, axis)

    def _beside(self, thing: str, target: str) -> Axis:
        """How far from the target's middle: a thing that shares it with others leaves room for them."""
        sharing = [goal[1] for goal in self.goals if goal[2:] == (target,)]
        if len(sharing) < 2:
            return np.zeros(2)
        return self.scene.share(thing, target, sharing.index(thing), len(sharing))

    def _put_in(self, thing: str, cavity: Cavity) -> Iterator[Action]:
        """From the side, by the thing's handle, which has to be on the side of the entrance."""
        scene, inward = self.scene, np.array([*cavity.inward, 0.0])
        lean, axis = REACHING * cavity.inward, rotated(cavity.inward, np.pi / 2)
        down, handle = pointing(lean), scene.nearest(thing, cavity.inward)
        before = handle - ABOVE * down
        yield from self._move(np.array([*before[:2], self._high]), OPEN, NEAR, axis, lean)
        yield from self._move(before, OPEN, NEAR, axis, lean)
        yield from self._move(handle, OPEN, NEARER, axis, lean)
        yield from self._close(Grasp(handle, axis), lean)
        points = scene.points(thing)
        depth = np.max(points[:, :2] @ cavity.inward)
        hold = scene.grip - np.array([*scene.position(thing)[:2], points[:, 2].min()])
        inside = cavity.back + inward * (scene.position(thing)[:2] @ cavity.inward - depth) + hold + SILL * UP
        outside = inside - FAR * inward + np.array([*AROUND * cavity.aside, 0.0])
        yield from self._move(np.array([*scene.grip[:2], inside[2]]), CLOSED, NEAR, axis, lean)
        if not scene.holds(thing):
            return
        yield from self._move(outside, CLOSED, NEARER, axis, lean)
        yield from self._move(inside, CLOSED, NEARER, axis, lean)
        yield from self._move(inside - SILL * UP, CLOSED, NEARER, axis, lean)
        rest = scene.grip
        for _ in range(LET_GO):
            yield self._toward(rest, OPEN, axis, lean)
        yield from self._move(rest - ABOVE * inward, OPEN, NEAR, axis, lean)
        yield from self._move(np.array([*(rest - ABOVE * inward)[:2], self._high]), OPEN, NEAR, axis)

    def _shut_door(self, fixture: str) -> Iterator[Action]:
        """By pushing its outer face below the upper edge, the palm above it."""
        door, axis = self.fixtures.door(fixture), self.scene.axis
        height = door.top - UNDER_EDGE
        front = door.face[:2] - BEFORE * door.shutting
        yield from self._move(np.array([*front, self._high]), CLOSED, NEAR, axis)
        yield from self._move(np.array([*front, height]), CLOSED, NEAR, axis)
        for _ in range(3 * PATIENCE):
            if self.scene.met(("close", fixture)):
                break
            door = self.fixtures.door(fixture)
            yield self._toward(np.array([*door.face[:2] + AHEAD * door.shutting, height]), CLOSED, axis)
        yield from self._move(self.scene.grip - np.array([*BEFORE * door.shutting, 0.0]), CLOSED, NEAR, axis)

    def _turn_on(self, fixture: str) -> Iterator[Action]:
        """By the fin of its knob, counterclockwise."""
        grasp = self.fixtures.knob(fixture)
        yield from self._move(grasp.point + ABOVE * UP, OPEN, NEAR, grasp.axis)
        yield from self._move(grasp.point, OPEN, NEARER, grasp.axis)
        yield from self._close(grasp)
        for _ in range(PATIENCE):
            if self.fixtures.angle(fixture) > ON:
                break
            yield self._toward(grasp.point, CLOSED, rotated(self.scene.axis, TWIST))
        axis = self.scene.axis
        for gripper in [CLOSED] * LET_GO + [OPEN] * LET_GO:  # at rest, and not aside, lest the fingers turn it back
            yield self._toward(grasp.point, gripper, axis)
        yield from self._move(grasp.point + ABOVE * UP, OPEN, NEAR, axis)

    def _open(self, region: str) -> Iterator[Action]:
        """A drawer, with the fingers above and below its handle."""
        drawer = self.fixtures.drawer(region)
        lean, axis, out = -PULLING * drawer.out, drawer.out, np.array([*drawer.out, 0.0])
        down = pointing(lean)
        grasp = Grasp(drawer.handle - BAR * down, axis)
        yield from self._move(grasp.point - ABOVE * down, OPEN, NEAR, axis, lean)
        yield from self._move(grasp.point, OPEN, NEARER, axis, lean)
        yield from self._close(grasp, lean)
        for _ in range(2 * PATIENCE):
            if self.scene.met(("open", region)):
                break
            here = np.array([*self.scene.grip[:2], grasp.point[2]])
            yield self._toward(here + PULL * out, CLOSED, axis, lean)
        here = self.scene.grip
        for _ in range(LET_GO):
            yield self._toward(here, OPEN, axis, lean)
        yield from self._move(here - ABOVE * down, OPEN, NEAR, axis, lean)

    def _shut(self, region: str) -> Iterator[Action]:
        """A drawer, by pushing its handle; the hand leans away from those above, and its fingers are side by side."""
        drawer = self.fixtures.drawer(region)
        lean, axis, out = -PUSHING * drawer.out, rotated(drawer.out, np.pi / 2), np.array([*drawer.out, 0.0])
        front = drawer.handle + BEFORE * out
        yield from self._move(np.array([*front[:2], self._high]), CLOSED, NEAR, axis, lean)
        yield from self._move(front, CLOSED, NEAR, axis, lean)
        yield from self._move(front - FAR * out, CLOSED, NEAR, axis, lean)  # until it is stuck
        yield from self._move(self.scene.grip + ABOVE * out, CLOSED, NEAR, axis, lean)

    def _move(self, point: Point, gripper: float, near: float, axis: Axis, lean: Axis = UPRIGHT) -> Iterator[Action]:
        return self._follow(lambda: point, gripper, near, axis, lean)

    def _follow(
        self, target: Callable[[], Point], gripper: float, near: float, axis: Axis, lean: Axis = UPRIGHT
    ) -> Iterator[Action]:
        """Toward a point that may move, until it is near, the hand is stuck, or patience ends."""
        was, still, missing = self.scene.grip, 0, np.zeros(3)
        for _ in range(PATIENCE):
            point = target()
            away = point - self.scene.grip
            if np.linalg.norm(away) < near and np.linalg.norm(self.scene.turn(axis, lean)) < TURNED:
                return
            # near the end of the arm's reach the controller stops short of where it is told to go
            missing = missing + PERSISTENCE * away if np.linalg.norm(away) < FINE else np.zeros(3)
            yield self._toward(point + missing, gripper, axis, lean)
            still = still + 1 if np.linalg.norm(self.scene.grip - was) < STILL else 0
            if still > 3:
                return
            was = self.scene.grip

    def _toward(self, point: Point, gripper: float, axis: Axis, lean: Axis = UPRIGHT) -> Action:
        motion = np.clip(GAIN * (point - self.scene.grip), -1, 1)
        return np.concatenate((motion, np.clip(TURN_GAIN * self.scene.turn(axis, lean), -1, 1), [gripper]))


def make_expert(config: SimConfig, simulator: Simulator) -> LiberoExpert:
    """The expert of a `LiberoSimulator`."""
    if not isinstance(simulator, LiberoSimulator):
        raise SimulatorError("a LIBERO expert moves LIBERO's arm only", got=type(simulator).__name__)
    return LiberoExpert(simulator)
