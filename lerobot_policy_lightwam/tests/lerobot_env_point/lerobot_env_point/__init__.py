"""lightwam's point simulator as `--env.type=point`; `--env.task` is the colour of the dot to go to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium as gym
import numpy as np
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs import EnvConfig

from lightwam.config.recipes import point
from lightwam.sim.point import COLOURS, PointSimulator

SIM = replace(point().sim, cameras=("top",))


@EnvConfig.register_subclass("point")
@dataclass
class PointEnv(EnvConfig):
    """What LeRobot's commands need to know."""

    task: str | None = "red"
    fps: int = 10
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            "action": PolicyFeature(FeatureType.ACTION, (2,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (2,)),
            "pixels/top": PolicyFeature(FeatureType.VISUAL, (SIM.height, SIM.width, 3)),
        }
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {
            "action": "action",
            "agent_pos": "observation.state",
            "pixels/top": "observation.images.top",
        }
    )

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Nothing to choose."""
        return {}


class PointGym(gym.Env):
    """An episode ends with success, or at the step limit that it is registered with."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    render_mode = "rgb_array"
    observation_space = gym.spaces.Dict(
        {
            "pixels": gym.spaces.Dict({"top": gym.spaces.Box(0, 255, (SIM.height, SIM.width, 3), np.uint8)}),
            "agent_pos": gym.spaces.Box(-1, 1, (2,), np.float32),
        }
    )
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, task: str) -> None:
        self.simulator = PointSimulator(SIM, task)
        self.task, self.task_description = task, self.simulator.instruction

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A seeded world."""
        super().reset(seed=seed)
        self.simulator.reset(int(self.np_random.integers(2**31)) if seed is None else seed)
        return self._observe(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One control step."""
        success = bool(self.simulator.step(np.asarray(action, np.float32)).success)
        return self._observe(), float(success), success, False, {"is_success": success}

    def render(self) -> np.ndarray:
        """The camera's picture."""
        return self._observe()["pixels"]["top"]

    def _observe(self) -> dict[str, Any]:
        seen = self.simulator.observe()
        return {"pixels": dict(seen.frames), "agent_pos": seen.state}


for colour in COLOURS:
    gym.register(
        f"gym_point/{colour}",
        PointGym,
        max_episode_steps=SIM.max_steps,
        kwargs={"task": colour},
        nondeterministic=False,
    )
