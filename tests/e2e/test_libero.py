"""LIBERO end to end: the harness loses nothing, and demonstrations become a dataset. Minutes: `make slow`."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from serving import serving

from lightwam.config import recipes
from lightwam.config.libero_protocols import FIRST_STATE
from lightwam.config.schema import EvalConfig, Recipe, SimConfig
from lightwam.data.collect import collect
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.evaluation.episodes import read_episodes
from lightwam.evaluation.evaluate import evaluate
from lightwam.sim import registry
from lightwam.types import Observation
from lightwam.wire.robot_schemas import schemas_for

pytestmark = [pytest.mark.sim, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("libero")

TASKS = ("libero_object/1", "libero_spatial/0", "libero_goal/6")


def recipe_of(tasks: tuple[str, ...]) -> Recipe:
    whole = recipes.libero_object_small()
    return replace(whole, sim=replace(whole.sim, tasks=tasks), eval=replace(whole.eval, trials=2, videos_per_task=1))


class Remembering:
    """The expert as a policy: it knows what the expert did in the state that it sees, to the bit."""

    n_obs_steps = 1

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.known: dict[bytes, np.ndarray] = {}

    def identity(self) -> dict[str, str]:
        return {"recipe": self.recipe.name}

    def check_evaluation(self, sim: SimConfig, settings: EvalConfig) -> None:
        """Anything."""

    def watch(self, task: str, seed: int) -> tuple[bool, int]:
        """The expert's own episode: success, and steps."""
        simulator, replan = registry.make_simulator(self.recipe.sim, task), self.recipe.eval.replan
        simulator.reset(seed)
        expert, actions, success = registry.make_expert(self.recipe.sim, simulator), [], False
        states = []
        while not success and len(actions) < self.recipe.sim.max_steps:
            if len(actions) % replan == 0:
                states.append(simulator.observe().state.tobytes())
            actions.append(expert.action())
            success = simulator.step(actions[-1]).success
        rest = np.stack([*actions, *[actions[-1]] * replan])
        self.known |= {state: rest[i * replan : (i + 1) * replan] for i, state in enumerate(states)}
        simulator.close()
        return success, len(actions)

    def act_batch(self, observations: Sequence[Observation]) -> np.ndarray:
        return np.stack([self.known[observation.state.tobytes()] for observation in observations])


def test_the_expert_scores_as_a_policy_what_it_scores(tmp_path: Path) -> None:
    """In other processes, looked at every eight steps and not at every one, batched: the same episodes to the bit."""
    recipe = recipe_of(TASKS)
    policy = Remembering(recipe)
    expected = {(task, FIRST_STATE + i): policy.watch(task, FIRST_STATE + i) for task in TASKS for i in range(2)}
    result = evaluate(tmp_path, policy=policy, say=print)
    rows = read_episodes(tmp_path / "eval")
    assert {key: (row["success"], row["steps"]) for key, row in rows.items()} == expected
    assert result["successes"] == len(expected) == 6
    assert result["protocol"]["constants"]["settle_steps"] == 30
    assert len(list((tmp_path / "eval" / "videos").iterdir())) == 3


def test_vla_evals_libero_is_the_same_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its benchmark and its runner, on a server: each state that the policy gets is known to the bit, and each action
    has the same effect, gripper included."""
    monkeypatch.setattr(torch, "load", torch.load)  # their benchmark replaces it
    from vla_eval.benchmarks.libero.benchmark import LIBEROBenchmark
    from vla_eval.connection import Connection
    from vla_eval.runners.sync_runner import SyncEpisodeRunner

    recipe = recipe_of(TASKS[:1])
    assert recipe.sim is not None
    recipe = replace(recipe, sim=replace(recipe.sim, protocol="openpi", height=224, width=224))
    policy = Remembering(recipe)
    expected = policy.watch(TASKS[0], FIRST_STATE)
    monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", "egl"))

    async def episode(port: int) -> tuple[bool, int]:
        async with Connection(f"ws://127.0.0.1:{port}/vla-eval", timeout=120) as connection:
            benchmark = LIBEROBenchmark("libero_object", **connection.server_info["observation_params"])
            try:
                task = benchmark.get_tasks()[1]
                result = await SyncEpisodeRunner().run_episode(benchmark, task, connection, max_steps=280)
            finally:
                benchmark.cleanup()
            return result["metrics"]["success"], result["steps"]

    schemas = schemas_for((), recipe.sim.cameras, 8, 7, {})
    with serving(policy.act_batch, schemas_of=schemas, replan=recipe.eval.replan) as server:
        assert asyncio.run(episode(server.ports["openpi"])) == expected
    assert expected[0]


def test_demonstrations_become_a_dataset(tmp_path: Path) -> None:
    recipe = recipe_of(TASKS[:1])
    report = collect(replace(recipe, collect=replace(recipe.collect, demos_per_task=2)), tmp_path, say=print)
    data = LeRobotDataset(tmp_path)
    data.check()
    assert report.episodes == data.num_episodes == 2
    assert set(np.unique(data.vectors.action[:, 6])) == {0, 1}
    assert (
        data.state_dim == 8
        and data.fps == 20
        and data.tasks == ("pick up the cream cheese and place it in the basket",)
    )
