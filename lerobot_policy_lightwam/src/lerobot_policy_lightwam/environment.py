"""lightwam's simulators as environments of LeRobot: `--env.type=lightwam --env.recipe=demo --env.task=reach`."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs import EnvConfig
from lerobot.envs.utils import _LazyAsyncVectorEnv, freeze_after_episode_end
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from lightwam import ConfigError
from lightwam.config.recipe_files import recipe as read_recipe
from lightwam.config.schema import Recipe, SimConfig
from lightwam.errors import did_you_mean
from lightwam.sim import registry
from lightwam.sim.simulator import Simulator

STATE, PIXELS = "agent_pos", "pixels"
"""LeRobot's keys in the observations of an environment"""


@EnvConfig.register_subclass("lightwam")
@dataclass
class LightWAMEnvConfig(EnvConfig):
    """The simulator of a recipe, with an environment for each of its tasks."""

    recipe: str = "demo"
    """whose simulator, tasks, cameras and step limit to use: a name, a recipe file or a run directory"""
    task: str | None = None
    """one of the recipe's tasks, or several with commas between them; None: all"""
    fps: int = 0
    """control steps a second, rounded. Not an option, as are features and features_map."""
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        recipe = read_recipe(self.recipe)
        sim, tasks = recipe.simulation, self.tasks(recipe)
        simulator = registry.make_simulator(sim, tasks[0])
        self.fps = max(1, round(simulator.fps))
        vectors = {ACTION: (FeatureType.ACTION, simulator.action_dim), STATE: (FeatureType.STATE, simulator.state_dim)}
        self.features = {key: PolicyFeature(kind, (dims,)) for key, (kind, dims) in vectors.items() if dims}
        self.features_map = {ACTION: ACTION, STATE: OBS_STATE}
        for camera in sim.cameras:
            self.features[f"{PIXELS}/{camera}"] = PolicyFeature(FeatureType.VISUAL, (sim.height, sim.width, 3))
            self.features_map[f"{PIXELS}/{camera}"] = f"{OBS_IMAGES}.{camera}"
        simulator.close()

    def tasks(self, recipe: Recipe) -> tuple[str, ...]:
        """Return the tasks that `task` names; ConfigError for one that the recipe does not have."""
        names = tuple(name.strip() for name in (self.task or "").split(",") if name.strip())
        all_tasks = recipe.simulation.tasks
        for name in names:
            if name not in all_tasks:
                step, known = did_you_mean(name, all_tasks), ", ".join(all_tasks)
                what = f"the recipe {recipe.name!r} has no such task"
                raise ConfigError(what, where="env.task", got=name, expected=known, next_step=step)
        return names or all_tasks

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Return nothing: `create_envs` does not use Gymnasium's registry."""
        return {}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, Any]]:
        """Return task -> 0 -> `n_envs` environments, each in its own process if `use_async_envs`."""
        recipe = read_recipe(self.recipe)
        dims = Dims(*(self.features[key].shape[0] if key in self.features else 0 for key in (STATE, ACTION)))
        make = partial(SimulatorEnv, recipe.simulation, first_seed=recipe.eval.first_seed, dims=dims, fps=self.fps)
        return {task: {0: vectorised(partial(make, task=task), n_envs, use_async_envs)} for task in self.tasks(recipe)}


class Dims(NamedTuple):
    """Numbers in a state and in an action."""

    state: int
    action: int


def vectorised(make: Callable[[], gym.Env], num: int, in_processes: bool) -> Any:
    """Return `num` environments as one, which do nothing between the end of their episode and LeRobot's next reset.

    Processes are started when they are first used, as those of LeRobot's own benchmarks of many tasks are.
    """
    if in_processes and num > 1:
        multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])  # imported once for all processes
        one = make()  # without a simulator yet
        return _LazyAsyncVectorEnv([make] * num, one.observation_space, one.action_space, one.metadata)
    frozen = [freeze_after_episode_end(make)] * num
    return gym.vector.SyncVectorEnv(frozen, autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP)


class SimulatorEnv(gym.Env[dict[str, Any], np.ndarray]):
    """A task of a simulator; an episode ends with success or at the recipe's step limit.

    `reset(seed=i)` begins the episode that `lightwam eval` runs as its i-th: the seed of demonstrations is below
    `first_seed`, so no episode is one of training.
    """

    render_mode = "rgb_array"

    def __init__(self, sim: SimConfig, task: str, first_seed: int, dims: Dims, fps: int) -> None:
        self.task, self._sim, self._first_seed = task, sim, first_seed
        self._max_episode_steps = sim.max_steps  # LeRobot's name
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": fps}
        box = gym.spaces.Box
        pictures = {camera: box(0, 255, (sim.height, sim.width, 3), np.uint8) for camera in sim.cameras}
        spaces: dict[str, gym.Space[Any]] = {PIXELS: gym.spaces.Dict(pictures)}
        if dims.state:
            spaces[STATE] = box(-np.inf, np.inf, (dims.state,), np.float32)
        self.observation_space: gym.spaces.Dict = gym.spaces.Dict(spaces)
        self.action_space = box(-np.inf, np.inf, (dims.action,), np.float32)
        self._simulator: Simulator | None = None
        self._steps = 0

    @property
    def simulator(self) -> Simulator:
        """The simulator, made when it is first needed: in the process that uses it."""
        if self._simulator is None:
            self._simulator = registry.make_simulator(self._sim, self.task)
        return self._simulator

    @property
    def task_description(self) -> str:
        """The task as a sentence, which LeRobot gives the policy."""
        return self.simulator.instruction

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin the evaluation's episode number `seed`; without a seed, any."""
        super().reset(seed=seed)
        number = int(self.np_random.integers(2**31)) if seed is None else seed
        self.simulator.reset(self._first_seed + number)
        self._steps = 0
        return self._observe(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Do one control step; the reward is 1 at success, else 0."""
        outcome = self.simulator.step(np.asarray(action, np.float32))
        self._steps += 1
        info, is_over = {"is_success": outcome.success}, outcome.success or outcome.ended
        return self._observe(), float(outcome.success), is_over, self._steps >= self._sim.max_steps, info

    def render(self) -> np.ndarray:  # type: ignore[override]
        """Return the first camera's picture."""
        return self._observe()[PIXELS][self._sim.cameras[0]]

    def close(self) -> None:
        """Free the simulator."""
        if self._simulator is not None:
            self._simulator.close()
            self._simulator = None

    def _observe(self) -> dict[str, Any]:
        seen = self.simulator.observe()
        state = {STATE: seen.state} if STATE in self.observation_space.spaces else {}
        return {PIXELS: dict(seen.frames), **state}
