"""system/ray_workers.py, and all that runs on it, on a cluster of two nodes in this machine, one of which is lost."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightwam.config.schema import EvalConfig, Recipe, SimConfig
from lightwam.data.collect import collect
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.errors import ConfigError, SimulatorError
from lightwam.evaluation.episodes import read_episodes
from lightwam.evaluation.evaluate import evaluate
from lightwam.evaluation.expert_check import check_experts
from lightwam.evaluation.watch.measure import watch
from lightwam.evaluation.watch.settings import WatchConfig
from lightwam.system import ray_workers, timing
from lightwam.system.machine import versions
from lightwam.system.ray_workers import RayWorkers
from lightwam.system.workers import PoolFactory, WorkerDied
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
    slot = workers.idle[0]
    workers.submit(job, slot)
    while not (found := list(workers.answers(1.0))):
        assert workers.idle == []
    ((of, outcome),) = found
    assert of == slot
    return outcome.unwrap(job)


@pytest.mark.slow
def test_jobs_errors_and_deaths_arrive_as_they_do_from_processes(cluster: Any) -> None:
    with RayWorkers[str, Any](1, eval, cluster.address, quiet) as workers:
        assert workers.idle == []
        zeros = answer(workers, "__import__('numpy').zeros(3)")
        assert zeros.flags.writeable
        with pytest.raises(SimulatorError, match=r"where: 1/0[\s\S]*ZeroDivisionError"):
            answer(workers, "1/0")
        with pytest.raises(WorkerDied, match=r"died|exit"):
            answer(workers, "__import__('os')._exit(3)")
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
def test_actors_that_cannot_start_end_with_an_error(cluster: Any) -> None:
    told = r"3 actors in a row did not start[\s\S]*no_such_simulator[\s\S]*next: is lightwam"
    with (
        RayWorkers[str, Any](1, Stuck(), cluster.address, quiet) as workers,
        pytest.raises(SimulatorError, match=told),
    ):
        all_up(workers, 1)


@pytest.mark.slow
def test_a_full_cluster_is_reported_once(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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
    """A policy that hardly moves."""

    n_obs_steps = 1

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def identity(self) -> dict[str, Any]:
        return {"recipe": self.recipe.name}

    def check_evaluation(self, sim: SimConfig, settings: EvalConfig) -> None:
        """Anything."""

    def act_batch(self, observations: Sequence[Observation]) -> np.ndarray:
        return np.stack([np.tile(seen.state * 0.1, (self.recipe.model.horizon, 1)) for seen in observations])


def outcomes(place: Path) -> dict[tuple[str, int], tuple[Any, ...]]:
    return {
        key: (row["success"], row["steps"], row["video"] and (place / row["video"]).read_bytes())
        for key, row in read_episodes(place).items()
    }


@pytest.fixture
def losing(cluster: Any) -> Iterator[tuple[PoolFactory, list[str]]]:
    """A factory of pools with a slot on each of two nodes, one of which is lost when both have a job; what they say."""
    import ray

    node, said = cluster.add_node(**SMALL), list[str]()
    cluster.wait_for_nodes()

    class Losing(RayWorkers[Any, Any]):
        def answers(self, timeout_seconds: float) -> Iterator[Any]:
            if cluster.worker_nodes and all(slot.up and slot.awaited is not None for slot in self._slots):
                cluster.remove_node(node, allow_graceful=False)
                while sum(known["Alive"] for known in ray.nodes()) == 2:
                    time.sleep(0.1)
            return super().answers(timeout_seconds)

    def pool_factory(count: int, work: Any) -> RayWorkers:
        workers = Losing(count, work, cluster.address, said.append)
        if cluster.worker_nodes:
            assert count == 2
            all_up(workers, count)  # else the first could do all jobs before the second is up
        return workers

    yield pool_factory, said
    if cluster.worker_nodes:
        cluster.remove_node(node, allow_graceful=False)


def one_died(said: list[str]) -> bool:
    """Whether one job of a lost node began again."""
    died = [line for line in said if "died" in line]
    return len(died) == 1 and "its node has died" in died[0] and "begins again, try 2 of 3" in died[0]


@pytest.mark.slow
def test_evaluating_survives_a_lost_node(tmp_path: Path, tiny_recipe: Recipe, losing: Any) -> None:
    pool_factory, said = losing
    recipe = replace(tiny_recipe, eval=replace(tiny_recipe.eval, workers=2, trials=3))
    evaluate(tmp_path / "a", policy=Still(recipe), pool_factory=pool_factory, say=said.append)
    assert one_died(said)
    evaluate(tmp_path / "b", replace(recipe.eval, workers=1), policy=Still(recipe), say=quiet)
    assert len(outcomes(tmp_path / "a" / "eval")) == 6
    assert outcomes(tmp_path / "a" / "eval") == outcomes(tmp_path / "b" / "eval")


@pytest.mark.slow
def test_collecting_survives_a_lost_node(tmp_path: Path, tiny_recipe: Recipe, losing: Any) -> None:
    pool_factory, said = losing
    recipe = replace(tiny_recipe, collect=replace(tiny_recipe.collect, demos_per_task=4, workers=2))
    report = collect(recipe, tmp_path / "a", said.append, pool_factory=pool_factory)
    assert one_died(said) and report.episodes == 8
    here = collect(replace(recipe, collect=replace(recipe.collect, workers=0)), tmp_path / "b", quiet)
    assert (here.attempts, here.frames) == (report.attempts, report.frames)
    there, here_too = LeRobotDataset(tmp_path / "a"), LeRobotDataset(tmp_path / "b")
    assert np.array_equal(there.vectors.action, here_too.vectors.action)
    assert [episode.extra for episode in there.episodes] == [episode.extra for episode in here_too.episodes]


@pytest.mark.slow
def test_checking_experts_survives_a_lost_node(tiny_recipe: Recipe, losing: Any) -> None:
    pool_factory, said = losing
    settings = replace(tiny_recipe.eval, workers=2, trials=3)
    rows = check_experts(replace(tiny_recipe, eval=settings), said.append, pool_factory=pool_factory)
    assert one_died(said)
    assert rows == check_experts(replace(tiny_recipe, eval=replace(settings, workers=1)), quiet)


@pytest.mark.slow
def test_watching_survives_a_lost_node(tiny: Any, losing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "REPETITIONS", 2)
    pool_factory, said = losing
    settings = WatchConfig(undisturbed=5, trials=1, false_alarms=0.2, workers=2)
    result = watch(tiny.run, settings, pool_factory=pool_factory, say=said.append)
    assert one_died(said)
    (tiny.run / "watch").rename(tiny.run / "there")
    assert watch(tiny.run, replace(settings, workers=0), say=quiet)["quiet"].keys() == result["quiet"].keys()
    here = {path.relative_to(tiny.run / "watch"): np.load(path) for path in (tiny.run / "watch").rglob("*-*.npz")}
    there = {path.relative_to(tiny.run / "there"): np.load(path) for path in (tiny.run / "there").rglob("*-*.npz")}
    assert len(here) == 18 and here.keys() == there.keys()
    for path in here:
        assert (here[path]["steps"], here[path]["kind"]) == (there[path]["steps"], there[path]["kind"])
        np.testing.assert_allclose(here[path]["present"], there[path]["present"], atol=1e-3)


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
