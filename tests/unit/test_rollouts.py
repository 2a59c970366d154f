"""evaluation/rollouts.py: a worker's steps; test_evaluate.py shows that it executes and films the policy's actions."""

from dataclasses import replace

import numpy as np

from lightwam.config.schema import Recipe
from lightwam.evaluation.rollouts import EpisodeJob, SimulatorWorker, StepJob
from lightwam.sim.disturb import Disturbance


def test_a_worker_counts_steps_and_stops_at_the_limit(tiny_recipe: Recipe) -> None:
    worker = SimulatorWorker(replace(tiny_recipe.sim, max_steps=5))
    episode, still = EpisodeJob("red", 1), np.zeros((3, 2), np.float32)
    begun = worker(episode)
    assert (begun.steps, begun.success) == (0, False)
    assert begun.observation is not None
    assert worker(StepJob(episode, still)).steps == 3
    over = worker(StepJob(episode, still))
    assert (over.observation, over.steps, over.success) == (None, 5, False)
    assert worker(EpisodeJob("red", 2)).steps == 0


def test_a_disturbance_is_of_its_episode_alone(tiny_recipe: Recipe) -> None:
    worker, still = SimulatorWorker(tiny_recipe.sim), np.zeros((2, 2), np.float32)

    def after_two(disturbance: Disturbance | None) -> np.ndarray:
        episode = EpisodeJob("red", 1, disturbance)
        worker(episode)
        result = worker(StepJob(episode, still))
        assert result.observation is not None
        return result.observation.frames["top"]

    plain, disturbed = after_two(None), after_two(Disturbance("object", 1, 0))
    assert (plain != disturbed).any()
    assert np.array_equal(after_two(None), plain)


def test_films_show_all_that_the_camera_sees(tiny_recipe: Recipe) -> None:
    sim = replace(tiny_recipe.sim, height=30, width=40)
    film = SimulatorWorker(sim).simulator("red", film=True)
    film.reset(1)
    assert film.observe().frames["top"].shape == (240, 320, 3)
