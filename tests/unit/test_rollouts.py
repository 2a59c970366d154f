"""evaluation/rollouts.py: a player's steps; that it plays and films what the policy chose, test_evaluate.py shows."""

from dataclasses import replace

import numpy as np

from lightwam.config.schema import Recipe
from lightwam.evaluation.rollouts import SimulatorWorker, StepJob, StepResult
from lightwam.sim.disturb import Disturbance


def test_a_player_counts_steps_and_stops_at_the_limit(tiny_recipe: Recipe) -> None:
    player = SimulatorWorker(replace(tiny_recipe.sim, max_steps=5))
    begun = player(StepJob(0, "red", 1, None))
    assert (begun.steps, begun.success) == (0, False)
    assert begun.observation is not None
    still = np.zeros((3, 2), np.float32)
    assert player(StepJob(0, "red", 1, still)).steps == 3
    over = player(StepJob(0, "red", 1, still))
    assert (over.observation, over.steps, over.success) == (None, 5, False)
    assert player(StepJob(0, "red", 2, None)).steps == 0


def test_a_disturbance_is_of_its_episode_alone(tiny_recipe: Recipe) -> None:
    player, still = SimulatorWorker(tiny_recipe.sim), np.zeros((2, 2), np.float32)

    def after_two(disturbance: Disturbance | None) -> np.ndarray:
        player(StepJob(0, "red", 1, None, disturbance))
        seen = player(StepJob(0, "red", 1, still))
        assert isinstance(seen, StepResult) and seen.observation is not None
        return seen.observation.frames["top"]

    plain, disturbed = after_two(None), after_two(Disturbance("object", 1, 0))
    assert (plain != disturbed).any()
    assert np.array_equal(after_two(None), plain)
