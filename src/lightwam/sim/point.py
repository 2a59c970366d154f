"""A NumPy simulator for tests that run in milliseconds: a white point is moved onto the dot of the named colour.

The world is the square [-1, 1] x [-1, 1], y up; an action is a velocity, and a simulator step at full speed covers 0.1.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8

from lightwam.config.schema import SimConfig
from lightwam.sim.simulator import RobotUnits, Simulator, StepOutcome, check_seed, finite_action, not_reset
from lightwam.types import Observation

COLOURS = {"red": (220, 40, 40), "blue": (50, 80, 230), "green": (40, 180, 60), "yellow": (235, 205, 40)}
TASKS = tuple(COLOURS)
CAMERAS = ("top", "near")

STEP = 0.1
DOT_RADIUS, POINT_RADIUS, REACH = 0.2, 0.12, 0.12
MOVE, BUMP_DEGREES = (0.2, 0.4), (4.0, 10.0)
"""range of a disturbance: of a dot's position, of the pictures' rotation"""
UNITS = RobotUnits(
    state=dict.fromkeys(("x", "y"), "-1 to 1 across the picture"),
    action=dict.fromkeys(("velocity_x", "velocity_y"), f"-1 to 1, 1 is {STEP:g} a simulator step"),
    steps_per_second=10.0,
)
NEAR_SPAN = 0.5
"""half the width of the view of the "near" camera, which moves with the point"""


class PointSimulator(Simulator):
    """A point, and a dot of each colour, at seeded positions that do not overlap."""

    robot = "point"
    state_names, action_names = tuple(UNITS.state), tuple(UNITS.action)
    disturbances = ("object", "camera")

    def __init__(self, config: SimConfig, task: str) -> None:
        self.task, self.instruction = task, f"move to the {task} dot"
        self.cameras, self.fps = config.cameras, UNITS.steps_per_second / config.action_repeat
        self._repeat = config.action_repeat
        self._x = (np.arange(config.width) + 0.5) / config.width * 2 - 1
        self._y = (1 - (np.arange(config.height) + 0.5) / config.height * 2)[:, None]
        self._at: list[float] | None = None
        self._dots: dict[str, tuple[float, float]] = {}
        self._turn = 0.0

    def reset(self, seed: int) -> None:
        """Place the point and the dots."""
        check_seed(seed, f"point/{self.task}")
        rng = np.random.default_rng(seed)
        positions: list[tuple[float, float]] = []
        while len(positions) < len(COLOURS) + 1:
            x, y = (float(value) for value in rng.uniform(-0.8, 0.8, 2))
            if all((x - a) ** 2 + (y - b) ** 2 > (2.2 * DOT_RADIUS) ** 2 for a, b in positions):
                positions.append((x, y))
        self._at = list(positions[0])
        self._dots = dict(zip(COLOURS, positions[1:], strict=True))
        self._turn = 0.0

    def observe(self) -> Observation:
        """Draw every camera."""
        x, y = self._position()
        frames = {camera: self._draw(camera) for camera in self.cameras}
        return Observation(frames, np.array([x, y], np.float32), self.instruction)

    def step(self, action: np.ndarray) -> StepOutcome:
        """Move the point; velocities beyond [-1, 1] are clipped."""
        at = self._position()
        velocity = finite_action(action, self.action_dim, f"point/{self.task}").tolist()
        success = False
        for _ in range(self._repeat):
            for axis in (0, 1):
                at[axis] = min(1.0, max(-1.0, at[axis] + STEP * min(1.0, max(-1.0, velocity[axis]))))
            x, y = self.target
            success = success or (at[0] - x) ** 2 + (at[1] - y) ** 2 <= REACH**2
        return StepOutcome(success)

    def close(self) -> None:
        """End the episode."""
        self._at = None

    def move_object(self, rng: np.random.Generator) -> float:
        """Move the task's dot in any direction, within the world; return the intended distance."""
        self._position()
        distance, angle = rng.uniform(*MOVE), rng.uniform(0, 2 * np.pi)
        x, y = self.target
        moved = np.clip([x + distance * np.cos(angle), y + distance * np.sin(angle)], -0.8, 0.8).tolist()
        self._dots[self.task] = (moved[0], moved[1])
        return float(distance)

    def bump_camera(self, rng: np.random.Generator) -> float:
        """Turn every picture about its middle; return degrees."""
        self._position()
        degrees = float(rng.uniform(*BUMP_DEGREES))
        self._turn = float(np.deg2rad(degrees) * rng.choice((-1, 1)))
        return degrees

    @property
    def target(self) -> tuple[float, float]:
        """Position of the task's dot, for the expert."""
        return self._dots[self.task]

    def _position(self) -> list[float]:
        if self._at is None:
            raise not_reset(f"point/{self.task}")
        return self._at

    def _draw(self, camera: str) -> UInt8[np.ndarray, "height width 3"]:
        at = self._position()
        cos, sin = np.cos(self._turn), np.sin(self._turn)
        x, y = cos * self._x - sin * self._y, sin * self._x + cos * self._y
        x, y = (x, y) if camera == "top" else (at[0] + NEAR_SPAN * x, at[1] + NEAR_SPAN * y)
        picture = np.full((self._y.size, self._x.size, 3), 60, np.uint8)
        for colour, (dot_x, dot_y) in self._dots.items():
            picture[(x - dot_x) ** 2 + (y - dot_y) ** 2 <= DOT_RADIUS**2] = COLOURS[colour]
        picture[(x - at[0]) ** 2 + (y - at[1]) ** 2 <= POINT_RADIUS**2] = 255
        return picture


class PointExpert:
    """A controller that goes straight to the target at full speed, and stays there."""

    def __init__(self, config: SimConfig, simulator: PointSimulator) -> None:
        self._simulator, self._reach = simulator, STEP * config.action_repeat

    def action(self) -> Float32[np.ndarray, " 2"]:
        """Return the velocity toward the target."""
        (x, y), (goal_x, goal_y) = self._simulator._position(), self._simulator.target
        return np.clip(np.array([goal_x - x, goal_y - y], np.float32) / self._reach, -1, 1)


make, make_expert = PointSimulator, PointExpert
