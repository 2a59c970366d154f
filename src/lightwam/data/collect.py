"""Demonstrations by scripted experts, from all tasks at once, into one LeRobot dataset.

The dataset depends on the recipe only: a task's demonstrations are its first successful seeds in rising order, tasks
take turns, and neither the number of workers nor an interruption changes an episode or its place.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8

from lightwam.config.checks import check_seed
from lightwam.config.schema import CollectConfig, Recipe, SimConfig
from lightwam.errors import DatasetError, SimulatorError
from lightwam.sim import registry
from lightwam.sim.simulator import Simulator, Trial
from lightwam.system.progress import Progress
from lightwam.system.workers import (
    DeathCounter,
    PoolFactory,
    WorkerDied,
    Workers,
    interrupt_as_flag,
    require_main_guard,
)
from lightwam.types import Observation

if TYPE_CHECKING:
    from lightwam.data.lerobot.writer import EpisodeNote, LeRobotWriter

FAILURES_IN_A_ROW = 30
"""an expert that fails this often on end is reported, not waited for"""


@dataclass(frozen=True)
class CollectReport:
    """What is in the dataset, and what this call did for it."""

    dataset: Path
    episodes: int
    frames: int
    """control steps, all episodes together"""
    attempts: Mapping[str, int]
    """task -> seeds tried, earlier calls included"""
    successes: Mapping[str, int]
    """task -> episodes in the dataset"""
    new_episodes: int
    new_frames: int
    wall_seconds: float


@dataclass(frozen=True)
class Demonstration:
    """One demonstration; row t is what was seen before action t."""

    frames: Mapping[str, UInt8[np.ndarray, "T height width 3"]]
    state: Float32[np.ndarray, "T P"]
    action: Float32[np.ndarray, "T A"]
    """what the expert wanted, without the noise it was executed with"""
    steps_to_success: int


def collect(
    recipe: Recipe,
    dataset: Path | str,
    say: Callable[[str], None] = print,
    *,
    pool_factory: PoolFactory | None = None,
) -> CollectReport:
    """Records as many successes of every task as `recipe.collect` wants in `dataset`; goes on with what is there.

    Ctrl-C ends the work in hand, closes the dataset with all that is done, and raises KeyboardInterrupt; the same call
    continues it. A seed whose worker process dies is tried again in another. Raises DatasetError when `dataset` holds
    another dataset or one made with other simulator versions, or the disk is full; SimulatorError when a simulator or
    an expert fails or a seed ends its worker again and again, naming task and seed; what is done is kept then too.
    LeRobot's fps is a whole number, so a rate such as 80 / 3 is rounded there.
    """
    from lightwam.data.lerobot.writer import LeRobotWriter

    began, sim, dataset = time.monotonic(), recipe.sim, Path(dataset)
    check_seed("collect.first_seed", recipe.collect.first_seed)
    if recipe.collect.workers and pool_factory is None:
        require_main_guard()
    for warning in registry.version_warnings(sim.name):
        say(f"collect: {warning}")
    simulators = [registry.make_simulator(sim, task) for task in sim.tasks]
    first = simulators[0]
    sizes = {camera: (sim.height, sim.width) for camera in first.cameras}
    fps = max(1, round(first.fps))
    writer = LeRobotWriter(dataset, fps, first.robot, sizes, first.state_names, first.action_names)
    plan = _Plan(recipe, writer.notes, dataset)
    sentences = {simulator.task: simulator.instruction for simulator in simulators}
    before = sum(note.length for note in writer.notes)
    num_before = writer.num_episodes
    try:
        try:
            _work(recipe, plan, writer, sentences, say, pool_factory or Workers)
        finally:
            writer.close()
    except KeyboardInterrupt:
        say(f"collect: stopped; {writer.num_episodes} episodes are safe in {dataset}, the same command goes on")
        raise
    frames = sum(note.length for note in writer.notes)
    return CollectReport(
        dataset=dataset,
        episodes=writer.num_episodes,
        frames=frames,
        attempts=plan.attempts,
        successes=plan.successes,
        new_episodes=writer.num_episodes - num_before,
        new_frames=frames - before,
        wall_seconds=time.monotonic() - began,
    )


def _work(
    recipe: Recipe,
    plan: _Plan,
    writer: LeRobotWriter,
    sentences: Mapping[str, str],
    say: Callable[[str], None],
    pool_factory: PoolFactory,
) -> None:
    """Runs the plan to its end; KeyboardInterrupt, between two episodes, when Ctrl-C came first."""
    total = sum(max(recipe.collect.demos(task), done) for task, done in plan.successes.items())
    if plan.num_missing == 0:
        return
    num_workers = min(recipe.collect.workers, plan.num_missing)
    demonstrate = Demonstrator(recipe.sim, recipe.collect)
    began, drawn = time.monotonic(), 0
    deaths, again = DeathCounter("collect", say), list[Trial]()

    def submit() -> None:
        while workers.idle and (job := again.pop(0) if again else plan.next_job()):
            workers.submit(job, workers.idle[0])

    with (
        interrupt_as_flag() as interrupt,
        Progress("collect", total, done=writer.num_episodes, unit="ep", say=say) as progress,
        pool_factory(num_workers, demonstrate) as workers,
    ):
        while plan.num_missing and not interrupt.pressed:
            submit()
            for job, episode in workers.answers(timeout_seconds=0.2):
                if isinstance(episode, WorkerDied):
                    deaths.note(job, episode)
                    again.append(job)
                    continue
                plan.note(job, episode)
                drawn += len(episode.state) if episode else 0
            submit()
            for job, episode, extra in plan.settled():
                writer.add_episode(episode.frames, episode.state, episode.action, sentences[job.task], extra)
                rate = drawn / (time.monotonic() - began)
                progress.advance(f"{plan.success_share:.0%} of attempts succeed, {rate:.0f} frames/s")
        if plan.num_missing:
            raise KeyboardInterrupt


@dataclass
class Demonstrator:
    """Runs in a worker: one seed's demonstration, or None when the expert fails.

    Simulators are kept from job to job, as loading one takes half a second.
    """

    sim: SimConfig
    collect: CollectConfig
    simulators: dict[str, Simulator] = field(default_factory=dict)

    def __call__(self, job: Trial) -> Demonstration | None:
        """The episode of `job`."""
        if job.task not in self.simulators:
            self.simulators[job.task] = registry.make_simulator(self.sim, job.task)
        simulator = self.simulators[job.task]
        simulator.reset(job.seed)
        rng = np.random.default_rng([job.seed, zlib.crc32(job.task.encode())])
        # a stream of its own, so that wander_steps does not shift the noise
        walk = np.random.default_rng([job.seed, zlib.crc32(job.task.encode()), 1])
        direction = walk.uniform(-1, 1, simulator.action_dim).astype(np.float32)
        for _ in range(walk.integers(self.collect.wander_steps, endpoint=True)):
            outcome = simulator.step(direction)
            if outcome.success or outcome.ended:
                return None
        expert = registry.make_expert(self.sim, simulator)
        seen: list[Observation] = []
        actions: list[np.ndarray] = []
        steps_to_success: int | None = None
        last_step = self.sim.max_steps
        while len(actions) < last_step:
            seen.append(simulator.observe())
            actions.append(expert.action())
            outcome = simulator.step(self._with_noise(actions[-1], rng))
            if outcome.success and steps_to_success is None:
                steps_to_success = len(actions)
                last_step = min(last_step, steps_to_success + self.collect.extra_steps)
            if outcome.ended:
                break
        return _episode(seen, actions, steps_to_success) if steps_to_success is not None else None

    def _with_noise(self, action: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        # drawn also where it is not used, so that noise_probability does not shift the generator
        noise, lot = rng.normal(0.0, 1.0, action.shape), rng.random()
        if lot >= self.collect.noise_probability:
            return action
        return (action + self.collect.noise_std * noise).astype(np.float32)


def _episode(seen: Sequence[Observation], actions: Sequence[np.ndarray], steps_to_success: int) -> Demonstration:
    frames = {camera: np.stack([one.frames[camera] for one in seen]) for camera in seen[0].frames}
    state = np.stack([one.state for one in seen])
    return Demonstration(frames, state, np.stack(actions).astype(np.float32), steps_to_success)


@dataclass
class _Turn:
    """One task's seeds: handed out, answered, settled."""

    next_seed: int
    demos: int = 0
    """in the dataset"""
    answers: dict[int, Demonstration | None] = field(default_factory=dict)
    settled_seed: int = 0
    """seeds below this one are in the dataset or known failures"""
    failed: list[int] = field(default_factory=list)
    """seeds that failed since the last success"""


class _Plan:
    """Which seed comes next, and which answer goes into the dataset next.

    At most as many seeds are handed out as demonstrations are missing, each counted as if it will succeed, so nothing
    is recorded in vain. The task that lacks the largest share of its own, counted in whole turns, goes first.
    """

    def __init__(self, recipe: Recipe, notes: Sequence[EpisodeNote], root: Path) -> None:
        first = recipe.collect.first_seed
        self._wanted = {task: recipe.collect.demos(task) for task in recipe.sim.tasks}
        self._first_seed, self._settings, self._block = first, _settings(recipe), recipe.collect.demos_per_turn
        self._versions = registry.installed_versions(recipe.sim.name)
        self._turns = {task: _Turn(first, settled_seed=first) for task in recipe.sim.tasks}
        for index, note in enumerate(notes):
            self._take_up(index, note, root)

    @property
    def attempts(self) -> dict[str, int]:
        """Task -> seeds that are settled."""
        return {task: turn.settled_seed - self._first_seed for task, turn in self._turns.items()}

    @property
    def successes(self) -> dict[str, int]:
        """Task -> demonstrations in the dataset."""
        return {task: turn.demos for task, turn in self._turns.items()}

    @property
    def success_share(self) -> float:
        """Successes among all settled attempts."""
        return sum(self.successes.values()) / max(1, sum(self.attempts.values()))

    @property
    def num_missing(self) -> int:
        """Demonstrations that the dataset still lacks."""
        return sum(max(0, self._wanted[task] - turn.demos) for task, turn in self._turns.items())

    def next_job(self) -> Trial | None:
        """The seed to try next, None when all that are needed are under way."""
        hoped = {task: self._hoped(turn) for task, turn in self._turns.items()}
        task = min(hoped, key=lambda task: self._share(task, hoped[task]))
        if hoped[task] >= self._wanted[task]:
            return None
        turn = self._turns[task]
        turn.next_seed += 1
        return Trial(task, turn.next_seed - 1)

    def note(self, job: Trial, episode: Demonstration | None) -> None:
        """Takes an answer."""
        self._turns[job.task].answers[job.seed] = episode

    def settled(self) -> list[tuple[Trial, Demonstration, dict[str, Any]]]:
        """Episodes whose turn it is, in the dataset's order, each with what to note beside it."""
        ready: list[tuple[Trial, Demonstration, dict[str, Any]]] = []
        while self.num_missing:
            task = min(self._turns, key=lambda task: self._share(task, self._turns[task].demos))
            turn = self._turns[task]
            while turn.settled_seed in turn.answers and turn.answers[turn.settled_seed] is None:
                self._settle_failure(task, turn)
            episode = turn.answers.pop(turn.settled_seed, None)
            if episode is None:
                break
            job = Trial(task, turn.settled_seed)
            extra = {"task": task, "seed": job.seed, "failed_seeds": list(turn.failed),
                     "steps_to_success": episode.steps_to_success, "settings": self._settings,
                     "versions": self._versions}  # fmt: skip
            ready.append((job, episode, extra))
            turn.settled_seed, turn.demos, turn.failed = turn.settled_seed + 1, turn.demos + 1, []
        return ready

    def _share(self, task: str, demos: int) -> float:
        """Of what is wanted of a task, what counts for its next turn: whole turns, and all when it is done."""
        wanted = self._wanted[task]
        return demos / wanted if demos >= wanted else demos // self._block * self._block / wanted

    def _hoped(self, turn: _Turn) -> int:
        failures = sum(episode is None for episode in turn.answers.values())
        return turn.demos + (turn.next_seed - turn.settled_seed) - failures

    def _settle_failure(self, task: str, turn: _Turn) -> None:
        turn.answers.pop(turn.settled_seed)
        turn.failed.append(turn.settled_seed)
        turn.settled_seed += 1
        if len(turn.failed) >= FAILURES_IN_A_ROW:
            raise SimulatorError(
                "the scripted expert keeps failing",
                where=f"task {task!r}, seeds {turn.failed[0]} to {turn.failed[-1]}",
                got=f"{len(turn.failed)} failures in a row",
                next_step="raise sim.max_steps, lower collect.noise_std, or leave this task out",
            )

    def _take_up(self, index: int, note: EpisodeNote, root: Path) -> None:
        extra, where = note.extra, f"{root} episode {index}"
        turn = self._turns.get(str(extra.get("task")))
        if turn is None or extra.get("settings") != self._settings:
            raise DatasetError(
                "this dataset was made otherwise",
                where=where,
                got={"task": extra.get("task"), **(extra.get("settings") or {})},
                expected={"task": " or ".join(self._turns), **self._settings},
                next_step="collect into another folder, or remove this one",
            )
        then, now = extra.get("versions") or {}, self._versions  # older datasets have no versions
        if odd := {name: then[name] for name in then.keys() & now.keys() if then[name] != now[name]}:
            raise DatasetError("this dataset was made by other versions of the simulator", where=where, got=odd,
                               expected={name: now[name] for name in odd},
                               next_step="install those versions again, or collect into another folder")  # fmt: skip
        turn.demos += 1
        turn.next_seed = turn.settled_seed = int(extra["seed"]) + 1


def _settings(recipe: Recipe) -> dict[str, Any]:
    """All that an episode depends on, apart from its task and seed (and what the dataset's own features say)."""
    sim, collect = recipe.sim, recipe.collect
    return {
        "simulator": sim.name,
        "max_steps": sim.max_steps,
        "action_repeat": sim.action_repeat,
        "noise_std": collect.noise_std,
        "noise_probability": collect.noise_probability,
        "wander_steps": collect.wander_steps,
        "extra_steps": collect.extra_steps,
        "first_seed": collect.first_seed,
        "turn": collect.demos_per_turn,
        "protocol": sim.protocol,
    }
