"""system/ray_workers.py on a cluster of two nodes in this machine, one of which is lost."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightwam.config.schema import EvalConfig, Recipe, SimConfig
from lightwam.errors import ConfigError, SimulatorError
from lightwam.evaluation.episodes import read_episodes
from lightwam.evaluation.evaluate import evaluate
from lightwam.system import ray_workers
from lightwam.system.machine import versions
from lightwam.system.ray_workers import RayWorkers
from lightwam.system.workers import WorkerDied
from lightwam.types import Observation

SMALL = {"num_cpus": 1, "object_store_memory": 80_000_000}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """One node of one CPU, which finds out about another's loss in a second."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}
    made = Cluster(True, head_node_args=SMALL | {"_system_config": quick})
    yield made
    ray.shutdown()
    made.shutdown()


def quiet(line: str) -> None:
    """What is said is not of interest."""


def all_up(workers: RayWorkers, count: int) -> None:
    until = time.monotonic() + 120
    while len(workers.idle) < count:
        assert list(workers.answers(1.0)) == [] and time.monotonic() < until


def answer(workers: RayWorkers, job: str) -> Any:
    all_up(workers, 1)
    workers.submit(job, workers.idle[0])
    while not (found := list(workers.answers(1.0))):
        assert workers.idle == []
    ((given, content),) = found
    assert given == job
    return content


@pytest.mark.slow
def test_jobs_errors_and_deaths_arrive_as_they_do_from_processes(cluster: Any) -> None:
    with RayWorkers[str, Any](1, eval, cluster.address, quiet) as workers:
        assert workers.idle == []
        zeros = answer(workers, "__import__('numpy').zeros(3)")
        assert zeros.flags.writeable
        with pytest.raises(SimulatorError, match=r"where: 1/0[\s\S]*ZeroDivisionError"):
            answer(workers, "1/0")
        assert isinstance(died := answer(workers, "__import__('os')._exit(3)"), WorkerDied)
        assert "died" in died.how or "exit" in died.how
        assert workers.idle == []  # until another actor is up
        assert answer(workers, "6 * 7") == 42


@pytest.mark.slow
def test_other_versions_on_a_node_are_refused(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers, "versions", lambda names: versions(names) | {"mujoco": "9.9.9"})
    told = r"other versions\s+got: {'mujoco': .*}\s+expected: {'mujoco': '9.9.9'}"
    with (
        RayWorkers[str, Any](1, eval, cluster.address, quiet) as workers,
        pytest.raises(SimulatorError, match=told),
    ):
        all_up(workers, 1)


class Stuck:
    """Cannot be unpickled, as where its package is missing."""

    def __reduce__(self) -> Any:
        return eval, ("__import__('no_such_simulator')",)

    def __call__(self, job: str) -> None:
        """Never comes to it."""


@pytest.mark.slow
def test_actors_that_cannot_start_are_not_asked_for_for_ever(cluster: Any) -> None:
    told = r"3 actors in a row did not start[\s\S]*no_such_simulator[\s\S]*next: is lightwam"
    with (
        RayWorkers[str, Any](1, Stuck(), cluster.address, quiet) as workers,
        pytest.raises(SimulatorError, match=told),
    ):
        all_up(workers, 1)


@pytest.mark.slow
def test_a_full_cluster_is_told_once(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers, "PATIENCE_SECONDS", 0.5)
    said: list[str] = []
    with (
        RayWorkers[str, Any](1, eval, cluster.address, quiet) as first,
        RayWorkers[str, Any](1, eval, cluster.address, said.append) as second,
    ):
        all_up(first, 1)
        for _ in range(3):
            assert list(second.answers(0.5)) == []
    assert said == ["ray: no simulator is up yet; waiting for a free CPU of the cluster (`ray status` tells more)"]


class Still:
    """Hardly moves, and tells who asks."""

    def __init__(self, recipe: Recipe, on_asked: Any) -> None:
        self.recipe, self.on_asked = recipe, on_asked

    def identity(self) -> dict[str, Any]:
        return {"recipe": self.recipe.name}

    def check_evaluation(self, sim: SimConfig, settings: EvalConfig) -> None:
        """Anything."""

    def act_batch(self, observations: Sequence[Observation]) -> np.ndarray:
        self.on_asked(observations)
        return np.stack([np.tile(seen.state * 0.1, (self.recipe.model.horizon, 1)) for seen in observations])


def outcomes(place: Path) -> dict[tuple[str, int], tuple[Any, ...]]:
    return {
        key: (row["success"], row["steps"], row["video"] and (place / row["video"]).read_bytes())
        for key, row in read_episodes(place).items()
    }


@pytest.mark.slow
def test_a_lost_node_costs_its_running_episodes_only(tmp_path: Path, tiny_recipe: Recipe, cluster: Any) -> None:
    import ray

    node = cluster.add_node(**SMALL)
    cluster.wait_for_nodes()
    said: list[str] = []

    def pool_factory(count: int, run: Any) -> RayWorkers:
        workers: RayWorkers = RayWorkers(count, run, cluster.address, said.append)
        all_up(workers, count)  # the first would have done all before the second is up
        return workers

    def lose(_: Sequence[Observation]) -> None:
        if cluster.worker_nodes:  # at the first look; both nodes have an episode since before it
            cluster.remove_node(node, allow_graceful=False)
            while sum(known["Alive"] for known in ray.nodes()) == 2:
                time.sleep(0.1)

    recipe = replace(tiny_recipe, eval=replace(tiny_recipe.eval, workers=2, trials=3))
    evaluate(tmp_path / "a", policy=Still(recipe, lose), pool_factory=pool_factory, say=said.append)
    assert not cluster.worker_nodes
    (line,) = [line for line in said if "died" in line]
    assert "its node has died" in line and "begins again, try 2 of 3" in line
    evaluate(tmp_path / "b", replace(recipe.eval, workers=1), policy=Still(recipe, len), say=quiet)
    assert len(outcomes(tmp_path / "a" / "eval")) == 6
    assert outcomes(tmp_path / "a" / "eval") == outcomes(tmp_path / "b" / "eval")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"lightwam\[ray\]"):
        RayWorkers[str, Any](1, eval, say=quiet)


def test_without_a_cluster_it_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def refuse(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ConfigError, match=r"where: there:6379\s+got: Could not find[\s\S]*ray start --head"):
        RayWorkers[str, Any](1, eval, "there:6379", quiet)
