"""LIBERO end to end: the harness loses nothing, and demonstrations become a dataset. Minutes: `make slow`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightwam.config import recipes
from lightwam.config.libero_protocols import FIRST_STATE
from lightwam.config.schema import EvalConfig, Recipe, SimConfig
from lightwam.data.collect import collect
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.evaluation.episodes import read_episodes
from lightwam.evaluation.evaluate import evaluate
from lightwam.sim import registry
from lightwam.types import Observation

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
