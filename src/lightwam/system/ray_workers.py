"""Jobs on the nodes of a Ray cluster, for one parent: `Workers` for many machines.

Jobs and outcomes travel as pickled bytes, as through a pipe: arrays that Ray itself hands over are read-only, and a
simulator may write to them. Ray's own retries are off, because a job may depend on the ones before it: a lost actor is
a `WorkerDied`, and `JobRunner` begins the episode again.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Generic

from lightwam.errors import ConfigError, SimulatorError
from lightwam.system.jobs import MAX_DEATHS
from lightwam.system.machine import OURS, SIMULATORS, versions
from lightwam.system.workers import Answer, Job, Outcome, WorkerDied, run_job

PATIENCE_SECONDS = 60.0
"""without any actor for this long, the user is told why"""


class Actor:
    """A worker on a node; `ray.remote` makes an actor of it."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work

    def versions(self) -> dict[str, str]:
        """Return the versions on which simulations depend."""
        return versions((*OURS, *SIMULATORS))

    def run(self, job: bytes) -> bytes:
        """Turn a pickled job into its pickled outcome."""
        return pickle.dumps(run_job(self._work, pickle.loads(job)))


@dataclass
class _Slot:
    actor: Any
    awaited: Any
    """Ray's reference to what comes next: the node's versions, then an outcome; None when idle"""
    up: bool = False


class RayWorkers(Generic[Job, Answer]):
    """`count` actors with a copy of `work` each, wherever the cluster at `address` has a free CPU for one.

    `address` is Ray's: host:port, or "auto" for RAY_ADDRESS and then the cluster of this machine. An actor without a
    CPU yet is not idle, and the others work meanwhile; when nodes are lost, fewer actors go on. Every node needs
    lightwam, and the simulator in the same versions as here (SimulatorError).
    """

    def __init__(
        self, count: int, work: Callable[[Job], Answer], address: str = "auto", say: Callable[[str], None] = print
    ) -> None:
        """Raise ConfigError when Ray is not installed or no cluster answers."""
        self._ray, self._say = _ray(), say
        self._connected_here = not self._ray.is_initialized()
        if self._connected_here:
            try:
                self._ray.init(address=address, log_to_driver=False, logging_level="warning")
            except (ConnectionError, ValueError, RuntimeError) as error:
                step = "start one (`ray start --head`, and `ray start --address HOST:6379` on other machines)"
                raise ConfigError("no Ray cluster can be used", where=address, got=error, next_step=step) from error
        # without this, Ray hides all GPUs from actors that ask for none, and EGL could not draw
        env = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        options = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0, "runtime_env": {"env_vars": env}}
        self._actor_class = self._ray.remote(**options)(Actor)
        self._work = self._ray.put(work)
        self._slots = [self._start_actor() for _ in range(count)]
        self._num_failures = 0
        self._last_up: float | None = time.monotonic()

    def __enter__(self) -> RayWorkers[Job, Answer]:
        return self

    def __exit__(self, *_: object) -> None:
        for slot in self._slots:
            self._ray.kill(slot.actor)
        self._slots.clear()
        if self._connected_here:
            self._ray.shutdown()

    @property
    def idle(self) -> list[int]:
        """The slots whose actor is up and has no job."""
        return [number for number, slot in enumerate(self._slots) if slot.up and slot.awaited is None]

    def submit(self, job: Job, slot: int) -> None:
        """As `WorkerPool.submit`."""
        idle = self._slots[slot]
        assert idle.up and idle.awaited is None, "this actor has a job"
        idle.awaited = idle.actor.run.remote(pickle.dumps(job))

    def answers(self, timeout_seconds: float) -> Iterator[tuple[int, Outcome[Answer]]]:
        """As `WorkerPool.answers`; a lost actor, also that of a lost node, is replaced by another."""
        awaited = {slot.awaited: number for number, slot in enumerate(self._slots) if slot.awaited is not None}
        if not awaited:
            return
        ready, _ = self._ray.wait(list(awaited), num_returns=1, timeout=timeout_seconds)
        if ready:  # and all others that are: the policy answers them in one batch
            ready, _ = self._ray.wait(list(awaited), num_returns=len(awaited), timeout=0)
        for reference in ready:
            number = awaited[reference]
            slot = self._slots[number]
            try:
                content = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                self._slots[number] = self._start_actor()
                if slot.up:
                    yield number, Outcome(error=WorkerDied(_summary(error)))
                else:
                    self._count_failure(error)
                continue
            slot.awaited = None
            if slot.up:
                yield number, pickle.loads(content)
            else:
                self._accept(slot, content)
        self._report_waiting()

    def _start_actor(self) -> _Slot:
        actor = self._actor_class.remote(self._work)
        return _Slot(actor, actor.versions.remote())

    def _accept(self, slot: _Slot, there: dict[str, str]) -> None:
        here = versions((*OURS, *SIMULATORS))
        odd = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        if odd:
            got, expected = ({name: installed.get(name) for name in odd} for installed in (there, here))
            step = "install the same on every node: results of different simulators must not be mixed"
            raise SimulatorError("a node of the cluster has other versions", got=got, expected=expected, next_step=step)
        slot.up, self._num_failures = True, 0

    def _count_failure(self, error: Exception) -> None:
        """Raise SimulatorError when actors keep dying before they are up."""
        self._num_failures += 1
        if self._num_failures >= MAX_DEATHS:
            what = f"{self._num_failures} actors in a row did not start"
            step = "is lightwam, with the simulator's extra, installed on every node?"
            raise SimulatorError(what, got=error, next_step=step) from error

    def _report_waiting(self) -> None:
        if any(slot.up for slot in self._slots):
            self._last_up = time.monotonic()
        elif self._last_up is not None and time.monotonic() - self._last_up > PATIENCE_SECONDS:
            self._last_up = None
            self._say("ray: no simulator is up yet; waiting for a free CPU of the cluster (`ray status` tells more)")


def _summary(error: Exception) -> str:
    """Return the last line of Ray's message that is not indented."""
    return [line for line in str(error).splitlines() if line.lstrip() == line][-1]


def _ray() -> ModuleType:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ConfigError("Ray is not installed", got=error, next_step="pip install 'lightwam[ray]'") from error
    return ray
