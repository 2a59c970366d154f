"""Scripted experts for LIBERO tasks: moving objects, opening and closing drawers, closing doors, turning knobs on.

An expert acts as a policy does, by OSC_POSE, but knows the scene (expert_scene.py, expert_fixtures.py). It achieves the
task's goals one after the other, and tries failed ones again. Each script is a generator of actions that reads the
world at every step and so corrects noise in the executed actions. Lengths are metres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float32, Float64

from lightwam.config.schema import SimConfig
from lightwam.errors import SimulatorError
from lightwam.sim.libero.expert_fixtures import Cavity, Fixtures
from lightwam.sim.libero.expert_scene import UPRIGHT, Axis, Grasp, Point, Scene, hand_direction, rotated
from lightwam.sim.libero.simulator import LiberoSimulator

OPEN, CLOSED = 1.0, 0.0
UP = np.array([0.0, 0.0, 1.0])
GAIN, TURN_GAIN = 16.0, 2.0
"""action (1 is 5 cm or half a radian) per metre and per radian of error"""
NEAR, NEARER, TURNED = 0.03, 0.006, 0.15
"""tolerances: of a waypoint, of a grasp, and of the angle"""
MAX_STEPS = 40
"""steps for one waypoint"""
INTEGRAL_RANGE, INTEGRAL_GAIN = 0.05, 0.15
"""distance below which the error is integrated, and the share that is added a step"""
STUCK, FINGERS_STOPPED = 1e-3, 5e-4
"""motion a step below which the hand is stuck, and the fingers have closed"""
TRIES = 3
"""attempts to pick an object up, and to achieve all goals"""
APPROACH, LIFT, CARRY_CLEARANCE, DROP = 0.10, 0.07, 0.04, 0.008
"""height over a grasp, first lift, clearance under a carried object, height at which it is released"""
KNOB_ANGLE, KNOB_LEAD = 1.0, 0.5
"""rad: how far a knob is turned, twice the necessary angle, and how far ahead of the hand the target is"""
RELEASE_STEPS = 5
"""steps for the fingers to open"""
PULL_LEAN, PUSH_LEAN = 2.0, 0.6
"""lean of the hand at a drawer's handle, metres sideways per metre down"""
HANDLE_GAP, PULL_LEAD = 0.004, 0.04
"""the grip's distance from a handle's middle, and a pull's lead; with more, the fingers slip"""
PUSH_START, DRAWER_TRAVEL = 0.06, 0.3
"""distance at which a push begins, and more than any drawer's length"""
CAVITY_LEAN, DOOR_DETOUR, SILL_HEIGHT = 0.6, 0.07, 0.02
"""lean of the hand into a cavity, sideways distance around its open door, height over its floor"""
DOOR_LEAD, BELOW_EDGE = 0.03, 0.02
"""a push's lead ahead of a door's face, and its distance below the upper edge"""

Action = Float64[np.ndarray, " 7"]
Spot = tuple[Point, float]


class LiberoExpert:
    """A controller that achieves the task's goals one by one, then holds still."""

    def __init__(self, config: SimConfig, simulator: LiberoSimulator) -> None:
        """SimulatorError for a task with a goal that has no script."""
        self.scene = Scene(simulator)
        self.fixtures = Fixtures(self.scene)
        goals = [tuple(goal) for goal in simulator.env.parsed_problem["goal_state"]]
        self.goals = sorted(goals, key=lambda goal: goal[0] == "close")  # close last: objects go in first
        if unsupported := [goal for goal in self.goals if not self._supports(*goal)]:
            expected = "moving objects, turning knobs on, opening drawers, closing drawers and doors"
            what, step = "no expert for this task", "leave it out by --sim.tasks (lightwam check expert)"
            raise SimulatorError(what, where=simulator.task, got=unsupported, expected=expected, next_step=step)
        self._high = self.scene.grip[2]  # the height at which the hand starts and travels
        self._script = self._solve()

    def _supports(self, verb: str, obj: str, target: str = "") -> bool:
        if verb == "close" and self.fixtures.has_door(obj):
            return True
        return verb in ("in", "on", "turnon") or (verb in ("open", "close") and self.fixtures.is_drawer(obj))

    def action(self) -> Float32[np.ndarray, " 7"]:
        """Return motion in [-1, 1], and the gripper."""
        return next(self._script).astype(np.float32)

    def _solve(self) -> Iterator[Action]:
        for _ in range(TRIES):
            for goal in self.goals:
                if goal[0] == "close" and not all(map(self.scene.achieved, self.goals[: self.goals.index(goal)])):
                    break  # objects that are not in yet would stay outside
                if not self.scene.achieved(goal):
                    yield from self._achieve(*goal)
        here, axis = self.scene.grip, self.scene.axis
        while True:
            yield self._toward(here, OPEN, axis)

    def _achieve(self, verb: str, obj: str, target: str = "") -> Iterator[Action]:
        shut = self._close_drawer if self.fixtures.is_drawer(obj) else self._close_door
        if script := {"turnon": self._turn_on, "open": self._open_drawer, "close": shut}.get(verb):
            yield from script(obj)
        elif (cavity := self.fixtures.cavity(target)) is not None:
            yield from self._put_in(obj, cavity)
        else:
            if self.fixtures.is_drawer(target) and not self.scene.achieved(("open", target)):
                if (free_position := self.scene.free_position(obj, self.fixtures.drawer(target).opened)) is not None:
                    yield from self._bring(obj, lambda: (free_position, 0.0))
                yield from self._open_drawer(target)
            yield from self._bring(obj, lambda: self._spot(obj, target))

    def _bring(self, obj: str, spot: Callable[[], Spot]) -> Iterator[Action]:
        for _ in range(TRIES):
            yield from self._pick(obj)
            if self.scene.holds(obj):
                yield from self._place(obj, *spot())
                return

    def _pick(self, obj: str) -> Iterator[Action]:
        grasp = self.scene.grasp(obj)
        axis, high = grasp.axis, max(self._high, grasp.point[2] + APPROACH)
        yield from self._move(np.array([*grasp.point[:2], high]), OPEN, NEAR, axis)
        yield from self._grasp(self.scene.grasp(obj, axis), distance=NEAR, near=2 * NEARER)
        yield from self._move(self.scene.grip + LIFT * UP, CLOSED, NEAR, axis)

    def _grasp(
        self, grasp: Grasp, lean: Axis = UPRIGHT, *, distance: float = APPROACH, near: float = NEAR
    ) -> Iterator[Action]:
        """Approach a grasp from a distance along the hand, and close the fingers until they stop."""
        yield from self._move(grasp.point - distance * hand_direction(lean), OPEN, near, grasp.axis, lean)
        yield from self._move(grasp.point, OPEN, NEARER, grasp.axis, lean)
        before = np.inf
        for step in range(MAX_STEPS):
            yield self._toward(grasp.point, CLOSED, grasp.axis, lean)
            if step > 2 and before - self.scene.opening < FINGERS_STOPPED:
                return
            before = self.scene.opening

    def _spot(self, obj: str, target: str) -> Spot:
        """Return where an object is put, with room for the target's other objects, and its turn on the way."""
        goal, top = self.scene.goal(target)
        sharing = [goal[1] for goal in self.goals if goal[2:] == (target,)]
        if len(sharing) > 1:
            goal = goal + self.scene.slot_offset(obj, target, sharing.index(obj), len(sharing))
        return np.array([*goal, top]), self.scene.fitting_turn(obj, target)

    def _place(self, obj: str, spot: Point, turn: float) -> Iterator[Action]:
        scene, goal, top = self.scene, spot[:2], spot[2]
        axis = rotated(scene.axis, turn)
        bottom = scene.points(obj)[:, 2].min() - scene.position(obj)[2]

        def carried(height: float) -> Point:
            """Return the grip that puts the object's lowest point at a height over the goal."""
            return scene.grip + np.array([*goal, height - bottom]) - scene.position(obj)

        here, travel = scene.grip, scene.highest_on_path(obj, goal, top) + CARRY_CLEARANCE
        yield from self._follow(lambda: np.array([*here[:2], carried(travel)[2]]), CLOSED, NEAR, axis)
        yield from self._follow(lambda: carried(travel), CLOSED, NEAR, axis)
        yield from self._follow(lambda: carried(top + DROP), CLOSED, NEARER, axis)
        rest = scene.grip
        for _ in range(RELEASE_STEPS):
            yield self._toward(rest, OPEN, axis)
        yield from self._move(np.array([*rest[:2], max(self._high, rest[2] + APPROACH)]), OPEN, NEAR, axis)

    def _put_in(self, obj: str, cavity: Cavity) -> Iterator[Action]:
        """Put an object in from the side, by its handle, which must be on the side of the entrance."""
        scene, inward = self.scene, np.array([*cavity.inward, 0.0])
        lean, axis = CAVITY_LEAN * cavity.inward, rotated(cavity.inward, np.pi / 2)
        handle = scene.trailing_part(obj, cavity.inward)
        before = handle - APPROACH * hand_direction(lean)
        yield from self._move(np.array([*before[:2], self._high]), OPEN, NEAR, axis, lean)
        yield from self._grasp(Grasp(handle, axis), lean)
        points = scene.points(obj)
        depth = np.max(points[:, :2] @ cavity.inward)
        hold = scene.grip - np.array([*scene.position(obj)[:2], points[:, 2].min()])
        inside = cavity.back + inward * (scene.position(obj)[:2] @ cavity.inward - depth) + hold + SILL_HEIGHT * UP
        outside = inside - DRAWER_TRAVEL * inward + np.array([*DOOR_DETOUR * cavity.aside, 0.0])
        yield from self._move(np.array([*scene.grip[:2], inside[2]]), CLOSED, NEAR, axis, lean)
        if not scene.holds(obj):
            return
        for point in (outside, inside, inside - SILL_HEIGHT * UP):
            yield from self._move(point, CLOSED, NEARER, axis, lean)
        rest = scene.grip
        for _ in range(RELEASE_STEPS):
            yield self._toward(rest, OPEN, axis, lean)
        away = rest - APPROACH * inward
        yield from self._move(away, OPEN, NEAR, axis, lean)
        yield from self._move(np.array([*away[:2], self._high]), OPEN, NEAR, axis)

    def _close_door(self, fixture: str) -> Iterator[Action]:
        """Close a door by pushing its outer face below the upper edge, the palm above it."""
        door, axis = self.fixtures.door(fixture), self.scene.axis
        height = door.top - BELOW_EDGE
        front = door.face[:2] - PUSH_START * door.closing
        for high in (self._high, height):
            yield from self._move(np.array([*front, high]), CLOSED, NEAR, axis)
        for _ in range(3 * MAX_STEPS):
            if self.scene.achieved(("close", fixture)):
                break
            door = self.fixtures.door(fixture)
            yield self._toward(np.array([*door.face[:2] + DOOR_LEAD * door.closing, height]), CLOSED, axis)
        yield from self._move(self.scene.grip - np.array([*PUSH_START * door.closing, 0.0]), CLOSED, NEAR, axis)

    def _turn_on(self, fixture: str) -> Iterator[Action]:
        """Turn the fin of the fixture's knob counterclockwise."""
        grasp = self.fixtures.knob(fixture)
        yield from self._grasp(grasp)
        for _ in range(MAX_STEPS):
            if self.fixtures.angle(fixture) > KNOB_ANGLE:
                break
            yield self._toward(grasp.point, CLOSED, rotated(self.scene.axis, KNOB_LEAD))
        axis = self.scene.axis
        for gripper in [CLOSED] * RELEASE_STEPS + [OPEN] * RELEASE_STEPS:  # at rest: moving fingers turn it back
            yield self._toward(grasp.point, gripper, axis)
        yield from self._move(grasp.point + APPROACH * UP, OPEN, NEAR, axis)

    def _open_drawer(self, region: str) -> Iterator[Action]:
        """Open a drawer, with the fingers above and below its handle."""
        drawer = self.fixtures.drawer(region)
        lean, axis, out = -PULL_LEAN * drawer.out, drawer.out, np.array([*drawer.out, 0.0])
        down = hand_direction(lean)
        grasp = Grasp(drawer.handle - HANDLE_GAP * down, axis)
        yield from self._grasp(grasp, lean)
        for _ in range(2 * MAX_STEPS):
            if self.scene.achieved(("open", region)):
                break
            here = np.array([*self.scene.grip[:2], grasp.point[2]])
            yield self._toward(here + PULL_LEAD * out, CLOSED, axis, lean)
        here = self.scene.grip
        for _ in range(RELEASE_STEPS):
            yield self._toward(here, OPEN, axis, lean)
        yield from self._move(here - APPROACH * down, OPEN, NEAR, axis, lean)

    def _close_drawer(self, region: str) -> Iterator[Action]:
        """Close a drawer by pushing its handle, with the hand leaning away from the drawers above."""
        drawer = self.fixtures.drawer(region)
        lean, axis, out = -PUSH_LEAN * drawer.out, rotated(drawer.out, np.pi / 2), np.array([*drawer.out, 0.0])
        front = drawer.handle + PUSH_START * out
        for point in (np.array([*front[:2], self._high]), front, front - DRAWER_TRAVEL * out):  # until it is stuck
            yield from self._move(point, CLOSED, NEAR, axis, lean)
        yield from self._move(self.scene.grip + APPROACH * out, CLOSED, NEAR, axis, lean)

    def _move(self, point: Point, gripper: float, near: float, axis: Axis, lean: Axis = UPRIGHT) -> Iterator[Action]:
        return self._follow(lambda: point, gripper, near, axis, lean)

    def _follow(
        self, target: Callable[[], Point], gripper: float, near: float, axis: Axis, lean: Axis = UPRIGHT
    ) -> Iterator[Action]:
        """Move toward a point that may move, until it is near, the hand is stuck, or MAX_STEPS are over."""
        before, num_still, integral = self.scene.grip, 0, np.zeros(3)
        for _ in range(MAX_STEPS):
            point = target()
            away = point - self.scene.grip
            if np.linalg.norm(away) < near and np.linalg.norm(self.scene.turn(axis, lean)) < TURNED:
                return
            # near the end of the arm's reach the controller stops short of its target
            integral = integral + INTEGRAL_GAIN * away if np.linalg.norm(away) < INTEGRAL_RANGE else np.zeros(3)
            yield self._toward(point + integral, gripper, axis, lean)
            num_still = num_still + 1 if np.linalg.norm(self.scene.grip - before) < STUCK else 0
            if num_still > 3:
                return
            before = self.scene.grip

    def _toward(self, point: Point, gripper: float, axis: Axis, lean: Axis = UPRIGHT) -> Action:
        motion = np.clip(GAIN * (point - self.scene.grip), -1, 1)
        return np.concatenate((motion, np.clip(TURN_GAIN * self.scene.turn(axis, lean), -1, 1), [gripper]))


make_expert = LiberoExpert
