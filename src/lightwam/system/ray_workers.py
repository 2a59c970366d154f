"""Jobs on the nodes of a Ray cluster, for one parent: `Workers` for many machines.

Jobs and answers travel as pickled bytes, as through a pipe: arrays that Ray itself hands over cannot be written to,
and a simulator may want to. Ray's own retries are off, since a job means something only after the ones before it: a
lost actor is a `WorkerDied` like any other, and the parent begins the episode again.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Generic

from lightwam.errors import ConfigError, SimulatorError
from lightwam.system.machine import OURS, SIMULATORS, versions
from lightwam.system.workers import DEATHS_IN_A_ROW, Answer, Job, WorkerDied, run_job, unwrap

PATIENCE_SECONDS = 60.0
"""after so long without any actor, the user is told what is waited for"""


class Actor:
    """What runs on a node; Ray makes an actor of it."""

    def __init__(self, run: Callable[[Any], Any]) -> None:
        self._run = run

    def node(self) -> dict[str, str]:
        """The versions that what is simulated here depends on."""
        return versions((*OURS, *SIMULATORS))

    def work(self, job: bytes) -> bytes:
        """One job, pickled, to its reply, pickled."""
        return pickle.dumps(run_job(self._run, pickle.loads(job)))


@dataclass
class _Slot(Generic[Job]):
    actor: Any
    awaited: Any
    """Ray's reference to what comes next: the node's versions, then an answer; None when idle"""
    up: bool = False
    job: Job | None = None


class RayWorkers(Generic[Job, Answer]):
    """`count` actors of one CPU each, with a copy of `run` each, wherever the cluster at `address` has room.

    `address` is Ray's: host:port, or "auto" for RAY_ADDRESS and then the cluster of this machine. An actor that finds
    no room yet is not idle, so nobody waits for it while others work; when nodes are lost, fewer go on. Every node
    needs lightwam, and the simulator in the same versions as here (SimulatorError). ConfigError when Ray is not
    installed or no cluster answers.
    """

    def __init__(
        self, count: int, run: Callable[[Job], Answer], address: str = "auto", say: Callable[[str], None] = print
    ) -> None:
        self._ray, self._say = _ray(), say
        self._connected_here = not self._ray.is_initialized()
        if self._connected_here:
            try:
                self._ray.init(address=address, log_to_driver=False, logging_level="warning")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(
                    "no Ray cluster can be used",
                    where=address,
                    got=error,
                    next_step="start one (`ray start --head`, and `ray start --address HOST:6379` on other machines)",
                ) from error
        # where no GPU is asked for Ray hides them all, and EGL would have none to draw with
        env = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        options = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0, "runtime_env": {"env_vars": env}}
        self._kind = self._ray.remote(**options)(Actor)
        self._run = self._ray.put(run)
        self._slots: list[_Slot[Job]] = [self._start_actor() for _ in range(count)]
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
        """The seats whose actor is up and has no job."""
        return [number for number, slot in enumerate(self._slots) if slot.up and slot.job is None]

    def submit(self, job: Job, slot: int) -> None:
        """Starts `job` in an idle seat."""
        found = self._slots[slot]
        assert found.up and found.job is None, "this actor is at work"
        found.job, found.awaited = job, found.actor.work.remote(pickle.dumps(job))

    def answers(self, timeout_seconds: float) -> Iterator[tuple[Job, Answer | WorkerDied]]:
        """As `Workers.answers`; an actor or node that is lost is a `WorkerDied`, and another actor is asked for."""
        awaited = {slot.awaited: number for number, slot in enumerate(self._slots) if slot.awaited is not None}
        if not awaited:
            return
        ready, _ = self._ray.wait(list(awaited), num_returns=1, timeout=timeout_seconds)
        if ready:  # and whoever else is: the policy answers them in one batch
            ready, _ = self._ray.wait(list(awaited), num_returns=len(awaited), timeout=0)
        for reference in ready:
            number = awaited[reference]
            slot = self._slots[number]
            try:
                content = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                self._slots[number] = self._start_actor()
                self._note_loss(slot, error)
                if slot.job is not None:
                    yield slot.job, WorkerDied([line for line in str(error).splitlines() if line.lstrip() == line][-1])
                continue
            slot.awaited = None
            if not slot.up:
                self._welcome(slot, content)
                continue
            job, slot.job = slot.job, None
            assert job is not None
            yield job, unwrap(job, pickle.loads(content))
        self._tell_if_none()

    def _start_actor(self) -> _Slot[Job]:
        actor = self._kind.remote(self._run)
        return _Slot(actor, actor.node.remote())

    def _welcome(self, slot: _Slot[Job], there: dict[str, str]) -> None:
        here = versions((*OURS, *SIMULATORS))
        odd = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        if odd:
            raise SimulatorError(
                "a node of the cluster has other versions",
                got={name: there.get(name) for name in odd},
                expected={name: here.get(name) for name in odd},
                next_step="install the same on every node: results of different simulators must not be mixed",
            )
        slot.up, self._num_failures = True, 0

    def _note_loss(self, slot: _Slot[Job], error: Exception) -> None:
        """An actor that never came up is nobody's episode, yet it must not be asked for again for ever."""
        if slot.up:
            return
        self._num_failures += 1
        if self._num_failures >= DEATHS_IN_A_ROW:
            raise SimulatorError(
                f"{self._num_failures} actors in a row did not start",
                got=error,
                next_step="is lightwam, with the simulator's extra, installed on every node?",
            ) from error

    def _tell_if_none(self) -> None:
        if any(slot.up for slot in self._slots):
            self._last_up = time.monotonic()
        elif self._last_up is not None and time.monotonic() - self._last_up > PATIENCE_SECONDS:
            self._last_up = None
            self._say("ray: no simulator is up yet; waiting for a free CPU of the cluster (`ray status` tells more)")


def _ray() -> ModuleType:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ConfigError("Ray is not installed", got=error, next_step="pip install 'lightwam[ray]'") from error
    return ray
