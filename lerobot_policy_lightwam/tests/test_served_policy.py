"""A served policy acts as LeRobot's own loop does: chunks, observations before, noise, ensembles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import make_policy_config

from lerobot_policy_lightwam.served_policy import ServedPolicy, camera_features, find_checkpoint
from lightwam.config.recipes import point
from lightwam.errors import CheckpointError, ConfigError, WireError
from lightwam.sim.point import PointSimulator
from lightwam.types import Observation
from tiny_policies import ACTION, EXECUTED, FEATURES, lerobots_actions, save_policy

NUM_STEPS = 10


@pytest.fixture(scope="module")
def act(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy("act", tmp_path_factory.mktemp("act"))


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy("diffusion", tmp_path_factory.mktemp("diffusion"), n_obs_steps=2)


def episode(seed: int, num_observations: int = 1) -> list[Observation]:
    """What is seen while the point goes somewhere, each with the observations before, as the evaluation sends them."""
    simulator, rng = PointSimulator(point().sim, "red"), np.random.default_rng(seed)
    simulator.reset(seed)
    seen: list[Observation] = []
    for step in range(NUM_STEPS):
        seen.append(replace(simulator.observe(), episode=seed, step=step))
        simulator.step(rng.uniform(-1, 1, 2).astype(np.float32))
    padded = [seen[0]] * (num_observations - 1) + seen
    return [replace(one, history=tuple(padded[i : i + num_observations - 1])) for i, one in enumerate(seen)]


def test_actions_are_those_of_lerobots_loop(act: Path, diffusion: Path, tmp_path: Path) -> None:
    """Bit for bit, for policies that act on one observation, on two and on three."""
    three = save_policy("diffusion", tmp_path, n_obs_steps=3)
    for folder, number, horizon in ((act, 1, 8), (diffusion, 2, EXECUTED), (three, 3, EXECUTED)):
        served = ServedPolicy.load(str(folder), "cpu")
        assert (served.num_observations, served.horizon, served.replan) == (number, horizon, EXECUTED)
        assert served.n_obs_steps == (0 if number == 1 else number)
        for seed in (1, 2):
            seen = episode(seed, number)
            expected = np.stack(list(lerobots_actions(folder, seen)))
            got = [served.act(seen[step])[:EXECUTED] for step in range(0, NUM_STEPS, EXECUTED)]
            np.testing.assert_array_equal(np.concatenate(got)[:NUM_STEPS], expected)


def test_actions_depend_on_the_observations_before(diffusion: Path) -> None:
    served, two, three = ServedPolicy.load(str(diffusion), "cpu"), episode(1, 2)[3], episode(1, 3)[3]
    expected = served.act(two)
    np.testing.assert_array_equal(served.act(three), expected)  # more than it uses
    assert np.abs(served.act(replace(two, history=(two,))) - expected).max() > 1e-4


def test_noise_depends_on_the_seed_and_the_observation(diffusion: Path) -> None:
    served, other = (ServedPolicy.load(str(diffusion), "cpu", seed=seed) for seed in (0, 1))
    first, later = episode(1, 2)[0], replace(episode(1, 2)[0], step=3)
    expected = served.act(first)
    for policy, observation in ((other, first), (served, later)):
        assert np.abs(policy.act(observation) - expected).max() > 1e-4
    np.testing.assert_array_equal(served.act(replace(first, episode=5)), expected)
    unknown = replace(first, step=None)
    assert np.abs(served.act(unknown) - served.act(unknown)).max() > 1e-4


def test_temporal_ensembles_are_kept_by_episode(tmp_path: Path) -> None:
    """Two episodes in turns, each as if it were alone; one with a missing step is refused."""
    folder = save_policy("act", tmp_path, n_action_steps=1, temporal_ensemble_coeff=0.1)
    served = ServedPolicy.load(str(folder), "cpu")
    assert (served.horizon, served.replan, served.n_obs_steps) == (1, 1, 1)
    seen = [episode(1), episode(2)]
    expected = [list(lerobots_actions(folder, one)) for one in seen]
    assert np.abs(expected[0][5] - served.act(replace(seen[0][5], step=0))[0]).max() > 1e-6
    for step in range(NUM_STEPS):
        for i in range(2):
            np.testing.assert_array_equal(served.act(seen[i][step]), expected[i][step][None])
    last = seen[0][-1]
    for observation in (replace(last, step=NUM_STEPS + 1), replace(last, episode=9), replace(last, step=None)):
        with pytest.raises(WireError, match="temporal ensembling"):
            served.act(observation)
    np.testing.assert_array_equal(served.act(seen[0][0]), expected[0][0][None])


def test_overrides_change_the_policys_config(act: Path) -> None:
    served = ServedPolicy.load(str(act), "cpu", {"n_action_steps": "5"})
    assert (served.horizon, served.replan) == (8, 5)
    for overrides in ({"n_action_step": "5"}, {"n_action_steps": "50"}):
        with pytest.raises(ConfigError, match="overrides"):
            ServedPolicy.load(str(act), "cpu", overrides)


def test_policies_that_need_more_than_observations_are_refused() -> None:
    planner = make_policy_config("tdmpc", input_features=dict(FEATURES), output_features=dict(ACTION), device="cpu")
    with pytest.raises(ConfigError, match=r"last observations(.|\n)*tdmpc"):
        camera_features(planner)
    state = {"observation.environment_state": PolicyFeature(FeatureType.ENV, (3,))}
    for inputs in (state, dict(FEATURES) | state):
        with pytest.raises(ConfigError, match="pictures"):
            camera_features(make_policy_config("act", input_features=inputs, output_features=ACTION, device="cpu"))


def test_a_checkpoint_is_found_in_the_output_of_training(act: Path, tmp_path: Path) -> None:
    last = tmp_path / "out" / "checkpoints" / "last"
    last.mkdir(parents=True)
    (last / "pretrained_model").symlink_to(act)
    assert find_checkpoint(str(tmp_path / "out")) == str(last / "pretrained_model")
    assert find_checkpoint("lerobot/act_aloha") == "lerobot/act_aloha"
    for missing in (str(tmp_path), "outputs", f"{tmp_path}/no/such"):
        with pytest.raises(CheckpointError, match="no policy"):
            find_checkpoint(missing)
