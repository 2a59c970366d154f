"""lightwam's simulators as environments of LeRobot: the same worlds, pictures and seeds as those of `lightwam eval`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lerobot.envs import make_env, make_env_config
from lerobot.envs.utils import NEW_ROLLOUT_OPTION, env_to_policy_features

from lerobot_policy_lightwam.environment import LightWAMEnvConfig
from lightwam.config.recipes import point
from lightwam.errors import ConfigError
from lightwam.sim import registry
from lightwam.types import Observation

NEW = {NEW_ROLLOUT_OPTION: True}


def envs(task: str | None = None, num: int = 1, in_processes: bool = False) -> dict[str, Any]:
    config = make_env_config("lightwam", recipe="point", task=task)
    return {name: group[0] for name, group in make_env(config, num, in_processes).items()}


def test_features_are_those_of_a_dataset_that_lightwam_collects() -> None:
    config = LightWAMEnvConfig(recipe="point", task="red")
    features = env_to_policy_features(config)
    shapes = {name: tuple(feature.shape) for name, feature in features.items()}
    assert shapes == {"action": (2,), "observation.state": (2,), "observation.images.top": (3, 32, 32)}
    assert config.fps == 10


def test_each_task_has_its_environments() -> None:
    assert list(envs()) == list(point().sim.tasks)
    assert list(envs("red, blue")) == ["red", "blue"]
    with pytest.raises(ConfigError, match="did you mean 'blue'"):
        LightWAMEnvConfig(recipe="point", task="bleu")
    with pytest.raises(ConfigError, match="demo"):
        LightWAMEnvConfig(recipe="demoo")


@pytest.mark.parametrize("in_processes", [False, True])
def test_episodes_are_those_of_the_evaluation(in_processes: bool) -> None:
    """Pictures, states and successes of two environments, driven by the expert, against the simulator itself."""
    recipe = point()
    several = envs("blue", 2, in_processes)["blue"]
    observation, info = several.reset(seed=[0, 3], options=NEW)
    assert list(several.call("task_description")) == ["move to the blue dot"] * 2
    assert several.call("_max_episode_steps")[0] == recipe.sim.max_steps
    simulators = [registry.make_simulator(recipe.sim, "blue") for _ in range(2)]
    experts = []
    for simulator, number in zip(simulators, (0, 3), strict=True):
        simulator.reset(recipe.eval.first_seed + number)
        experts.append(registry.make_expert(recipe.sim, simulator))
    over, steps = [False, False], 0
    while not all(over):
        for i, simulator in enumerate(simulators):
            assert_same(observation, i, simulator.observe())
        actions = np.stack([expert.action() for expert in experts])
        observation, reward, terminated, truncated, info = several.step(actions)
        for i, simulator in enumerate(simulators):
            if not over[i]:
                success = simulator.step(actions[i]).success
                assert (reward[i], terminated[i], info["is_success"][i]) == (success, success, success)
                over[i] = bool(terminated[i])
        steps += 1
    assert not truncated.any() and 1 < steps < recipe.sim.max_steps
    again, _ = several.reset(seed=[3, 0], options=NEW)
    simulators[0].reset(recipe.eval.first_seed + 3)
    assert_same(again, 0, simulators[0].observe())
    several.close()


def assert_same(got: dict[str, object], index: int, expected: Observation) -> None:
    np.testing.assert_array_equal(got["pixels"]["top"][index], expected.frames["top"])
    np.testing.assert_array_equal(got["agent_pos"][index], expected.state)


def test_an_episode_ends_at_the_step_limit() -> None:
    (one,) = envs("red")["red"].envs
    one.reset(seed=1, options=NEW)
    still = np.zeros(2, np.float32)
    ends = [one.step(still)[2:4] for _ in range(point().sim.max_steps)]
    assert ends[-1] == (False, True) and not any(any(end) for end in ends[:-1])


def test_without_a_seed_an_episode_is_still_unseen() -> None:
    (one,) = envs("red")["red"].envs
    first, _ = one.reset(options=NEW)
    second, _ = one.reset(options=NEW)
    assert (first["agent_pos"] != second["agent_pos"]).any()
    assert one.render().shape == (32, 32, 3)
