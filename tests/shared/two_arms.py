"""A robot like ALOHA, drawn: two arms of seven numbers, four cameras, 50 control steps a second, and its dataset.

    python tests/shared/two_arms.py data/two_arms

writes 40 demonstrations. The sentence says which arm lifts the ball. `TwoArms` has the methods of LeRobot's robots, so
that `PYTHONPATH=tests/shared lightwam drive runs/two_arms --robot two_arms:TwoArms` drives it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lightwam.data.lerobot.writer import LeRobotWriter

FPS = 50
SIDES = ("left", "right")
ARM = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
NAMES = tuple(f"{side}_{joint}" for side in SIDES for joint in ARM)
CAMERAS = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
SENTENCES = {side: f"lift the ball with the {side} arm" for side in SIDES}

BASES = {"left": np.array([-0.4, 0.0]), "right": np.array([0.4, 0.0])}
FORWARD = {"left": 0.0, "right": np.pi}
"""where a waist at 0 points, radians: each arm looks at the other"""
LINK, HEIGHT = 0.26, 0.12
"""length of upper arm and forearm, and height of the shoulder, in metres"""
REST = (0.0, 0.5, 1.9, 0.0, 0.0, 0.0, 1.0)
LAG = 0.35
"""share of the way to its target that a joint goes in a step"""
TABLE, WOOD, BALL_COLOUR = (214, 206, 190), (120, 100, 80), (200, 40, 40)
COLOURS = {"left": (40, 70, 140), "right": (40, 120, 70)}


def hand(side: str, joints: np.ndarray) -> np.ndarray:
    """Return elbow and hand, metres, [2, 3] as x, y, z: the two links move in the vertical plane of the waist."""
    waist, shoulder, elbow = FORWARD[side] + joints[0], joints[1], joints[1] + joints[2]
    reach = LINK * np.cumsum([np.sin(shoulder), np.sin(elbow)])
    rise = HEIGHT + LINK * np.cumsum([np.cos(shoulder), np.cos(elbow)])
    return np.stack([BASES[side][0] + reach * np.cos(waist), BASES[side][1] + reach * np.sin(waist), rise], axis=1)


def joints_for(side: str, point: np.ndarray, gripper: float) -> np.ndarray:
    """Return the seven numbers that bring the hand to a point (x, y, z)."""
    x, y = point[:2] - BASES[side]
    reach, rise = float(np.hypot(x, y)), float(point[2] - HEIGHT)
    far = min(np.hypot(reach, rise), 2 * LINK - 1e-6)
    bend = 2 * np.arccos(far / (2 * LINK))
    shoulder = np.arctan2(reach, rise) - bend / 2
    waist = (np.arctan2(y, x) - FORWARD[side] + np.pi) % (2 * np.pi) - np.pi
    wrist = np.pi - shoulder - bend  # the hand points down
    return np.array([waist, shoulder, bend, 0.2 * waist, wrist, -0.5 * waist, gripper])


class TwoArms:
    """The arms, a ball between them, and the cameras; a connected robot of LeRobot's interface."""

    def __init__(self, seed: int = 1000, size: tuple[int, int] = (120, 160)) -> None:
        self.rng, self.size = np.random.default_rng(seed), size
        self.is_connected = False
        self.ball = np.array([self.rng.uniform(-0.08, 0.08), self.rng.uniform(0.05, 0.25), 0.02])
        self.joints = np.tile(REST, 2) + self.rng.uniform(-0.05, 0.05, 14)
        self.joints[[6, 13]] = 1.0
        self.carried: str | None = None

    observation_features = property(lambda self: dict.fromkeys(NAMES, float) | dict.fromkeys(CAMERAS, (*self.size, 3)))
    action_features = property(lambda self: dict.fromkeys(NAMES, float))

    def connect(self) -> None:
        self.is_connected = True

    def disconnect(self) -> None:
        self.is_connected = False
        held = f"held by the {self.carried} arm" if self.carried else "held by no arm"
        print(f"the ball is {100 * self.ball[2]:.0f} cm above the table, {held}")

    def get_observation(self) -> dict[str, Any]:
        return dict(zip(NAMES, self.joints.tolist(), strict=True)) | self.pictures()

    def send_action(self, action: Mapping[str, float]) -> Mapping[str, float]:
        target = np.array([action[name] for name in NAMES])
        self.joints = self.joints + LAG * (target - self.joints)
        for i, side in enumerate(SIDES):
            arm = self.joints[7 * i : 7 * i + 7]
            point = hand(side, arm)[1]
            if self.carried is None and arm[6] < 0.5 and np.abs(point - self.ball).max() < 0.03:
                self.carried = side
            elif self.carried == side and arm[6] > 0.5:
                self.carried, self.ball[2] = None, 0.02
            if self.carried == side:
                self.ball = point.copy()
        return action

    def pictures(self) -> dict[str, np.ndarray]:
        """Draw what the four cameras see: from above, from the front, and around each hand from above."""
        points = {side: hand(side, self.joints[7 * i : 7 * i + 7]) for i, side in enumerate(SIDES)}
        views = {"cam_high": ((0, 1), (0.0, 0.1), 0.62), "cam_low": ((0, 2), (0.0, 0.25), 0.62)}
        views |= {f"cam_{side}_wrist": ((0, 1), tuple(points[side][1][:2]), 0.2) for side in SIDES}
        return {camera: self._draw(points, *view) for camera, view in views.items()}

    def _draw(
        self, points: Mapping[str, np.ndarray], axes: tuple[int, int], middle: tuple[float, float], span: float
    ) -> np.ndarray:
        """Draw arms and ball on two axes of the world; `span`: metres from the middle to the left border."""
        sheet = Sheet(self.size, middle, span)
        if axes[1] == 2:
            sheet.line(np.array([-1.0, -0.5]), np.array([1.0, -0.5]), 0.5, WOOD)
        ball = self.ball[list(axes)]
        sheet.line(ball, ball, 0.025, BALL_COLOUR)
        for i, side in enumerate(SIDES):
            base = np.array([*BASES[side], HEIGHT])
            chain = [base[list(axes)], *points[side][:, list(axes)]]
            for start, end, thick in zip(chain, chain[1:], (0.03, 0.02), strict=False):
                sheet.line(start, end, thick, COLOURS[side])
            opening = 0.015 + 0.02 * float(np.clip(self.joints[7 * i + 6], 0, 1))
            for jaw in (-opening, opening):
                at = chain[-1] + [jaw, 0]
                sheet.line(at, at - [0, 0.02], 0.008, (30, 30, 30))
        picture = sheet.picture + self.rng.normal(0, 1.5, (*self.size, 1)).astype(np.float32)  # a sensor's noise
        return picture.clip(0, 255).astype(np.uint8)


class Sheet:
    """A picture on which lines are drawn in metres."""

    def __init__(self, size: tuple[int, int], middle: tuple[float, float], span: float) -> None:
        height, width = size
        self.metres = 2 * span / width
        """of a pixel"""
        self.picture = np.tile(np.array(TABLE, np.float32), (height, width, 1))
        self.x = middle[0] + self.metres * (np.arange(width) - width / 2 + 0.5)
        self.y = middle[1] + self.metres * (height / 2 - 0.5 - np.arange(height))

    def line(self, start: np.ndarray, end: np.ndarray, thick: float, colour: tuple[int, int, int]) -> None:
        """Draw a line with round ends and a soft edge of a pixel; `thick`: half its width, metres."""
        margin = thick + self.metres
        rows, columns = (
            slice(int(inside.argmax()), len(inside) - int(inside[::-1].argmax())) if inside.any() else slice(0)
            for inside in (
                (at > min(start[axis], end[axis]) - margin) & (at < max(start[axis], end[axis]) + margin)
                for axis, at in ((1, self.y), (0, self.x))
            )
        )
        x, y, along = self.x[columns] - start[0], (self.y[rows] - start[1])[:, None], end - start
        share = ((x * along[0] + y * along[1]) / max(float(along @ along), 1e-9)).clip(0, 1)
        away = np.hypot(x - share * along[0], y - share * along[1])
        cover = (0.5 + (thick - away) / self.metres).clip(0, 1)[..., None].astype(np.float32)
        part = self.picture[rows, columns]
        part += cover * (np.array(colour, np.float32) - part)


def demonstration(robot: TwoArms, side: str, pace: float = 1.0) -> Iterator[np.ndarray]:
    """Yield the targets [14] of a demonstration: above the ball, down, close, lift; `pace` 2 in half the time."""
    rest = robot.joints.copy()
    first = 7 * SIDES.index(side)
    heights = ((0.1, 1.0, 40), (0.0, 1.0, 20), (0.0, 0.0, 14), (0.16, 0.0, 26))  # above the ball, gripper, steps
    last = rest[first : first + 7]
    point = robot.ball.copy()
    for height, gripper, steps in heights:
        goal = joints_for(side, point + np.array([0, 0, height]), gripper)
        for share in np.linspace(0, 1, 1 + round(steps / pace))[1:]:
            target = rest.copy()
            target[first : first + 7] = last + (3 * share**2 - 2 * share**3) * (goal - last)
            yield target
        last = goal


def record(root: Path, episodes: int = 40, size: tuple[int, int] = (120, 160), pace: float = 1.0) -> Path:
    """Write demonstrations, every second one with each arm."""
    with LeRobotWriter(root, FPS, "aloha", dict.fromkeys(CAMERAS, size), NAMES, NAMES) as writer:
        for episode in range(episodes):
            side, robot = SIDES[episode % 2], TwoArms(episode, size)
            states, actions, clips = [], [], {camera: list[np.ndarray]() for camera in CAMERAS}
            for target in demonstration(robot, side, pace):
                for camera, picture in robot.pictures().items():
                    clips[camera].append(picture)
                states.append(robot.joints)
                actions.append(target)
                robot.send_action(dict(zip(NAMES, target.tolist(), strict=True)))
            if robot.carried != side or robot.ball[2] < 0.12:
                raise AssertionError(f"demonstration {episode} failed")
            videos = {camera: np.stack(clip) for camera, clip in clips.items()}
            arrays = (np.stack(states).astype(np.float32), np.stack(actions).astype(np.float32))
            writer.add_episode(videos, *arrays, SENTENCES[side])
    return root


if __name__ == "__main__":
    record(Path(sys.argv[1]))
