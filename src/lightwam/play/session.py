"""A session: a policy that acts in a simulator's process, one control step at a time, as the pages ask.

Observations, replanning and the worker are those of `lightwam eval`, so with the same seed, sentence, replan and
engine the actions are the same, bit for bit, whatever is paused, shown or imagined meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from lightwam.errors import ConfigError, LightwamError, SimulatorError
from lightwam.evaluation.rollouts import EpisodeJob, SimulatorWorker
from lightwam.play import commands
from lightwam.play.board import Board
from lightwam.play.commands import Attention, Begin, Command, CommandQueue, Event, Reply, one_line
from lightwam.play.model_view import ModelView, finite_chunk
from lightwam.play.saving import FOLDER, PlayedEpisode, save
from lightwam.play.scene import Controls, Scene, about, check_replan, status
from lightwam.play.world import DisturbJob, IdleJob, OneStepJob, PlayWorker, ResetJob, WorldJob
from lightwam.policy.episode import Episode
from lightwam.policy.observations import ObservationLike
from lightwam.policy.policy import Policy
from lightwam.serving.sentences import CheckSentence
from lightwam.system.cpu import one_thread
from lightwam.system.workers import WorkerDied, Workers
from lightwam.types import Observation

PAUSE_SECONDS = 1.0
"""between an episode's end and the next seed"""
WAIT_SECONDS = 0.2
"""between two looks at whether the session is to end"""
IDLE_SECONDS = 1.0
"""between two looks at whether the simulator's process lives, while it has nothing to do"""


class Stopped(Exception):
    """The session was asked to end while the simulator was working."""


class Session:
    """The state behind the page. `run` is its thread; `ask` and `stop` may be called from any."""

    def __init__(
        self,
        policy: Policy,
        load_engine: Callable[[], Policy],
        check_sentence: CheckSentence,
        board: Board,
        *,
        imagine_steps: int = 20,
        view_height: int = 0,
        num_workers: int = 1,
    ) -> None:
        """`policy` is the plain one; `load_engine` is called when a page first asks for the engine.

        `view_height`: of larger pictures; 0: the pages show the policy's own. With `num_workers` 0 the simulator runs
        in this process, for tests. ConfigError for a run without a simulator.
        """
        self.recipe, self.sim = policy.recipe, policy.recipe.simulation
        self._plain, self._load_engine, self._check_sentence = policy, load_engine, check_sentence
        self._engine: Policy | None = None
        self._board, self._num_workers, self._view_height = board, num_workers, view_height
        self._pool: Workers[WorldJob, Any] | None = None
        self._commands = CommandQueue()
        self._stopping, self._due, self._idle_since = threading.Event(), 0.0, 0.0
        self.view = ModelView(policy, board, imagine_steps)
        self.scene: Scene | None = None
        first = Begin(self.sim.tasks[0], self.recipe.eval.first_seed)
        self.controls = Controls(self.recipe.eval.replan, first)
        world = {"mode": "simulator", "tasks": list(self.sim.tasks), "max_steps": self.sim.max_steps}
        self._board.put({"about": about(policy, self.view) | world})

    def ask(self, command: Command, reply: Reply) -> None:
        """Queue a command; it is obeyed between two control steps."""
        self._commands.put(command, reply)

    def stop(self) -> None:
        """End the session soon."""
        self._stopping.set()

    def run(self) -> None:
        """Play until `stop`; an error that is not a user's is raised, and ends the session."""
        worker = PlayWorker(SimulatorWorker(self.sim, self._plain.n_obs_steps), self._view_height)
        with one_thread(), Workers(self._num_workers, worker) as self._pool:  # the simulator has the other cores
            try:
                self._guard(lambda: self._begin(self.controls.begun), self._tell_all)
                while not self._stopping.is_set():
                    self._obey()
                    if self.controls.playing and time.monotonic() >= self._due:
                        self._guard(self._advance, self._tell_all)
            except Stopped:
                return

    # commands

    def _obey(self) -> None:
        """Do what a page asks for; waits for it until the next step is due."""
        seconds = max(0.0, self._due - time.monotonic()) if self.controls.playing else WAIT_SECONDS
        asked = self._commands.next(min(seconds, WAIT_SECONDS))
        if asked is None:
            if not self.controls.playing and time.monotonic() > self._idle_since + IDLE_SECONDS:
                self._guard(self._check_alive, self._tell_all)
            return
        command, reply = asked
        self._guard(lambda: self._do(command), reply)

    def _guard(self, do: Callable[[], None], reply: Reply) -> None:
        """Do something; a user's error goes to `reply`, the death of the simulator's process to all pages."""
        try:
            do()
        except WorkerDied as death:
            self.controls.playing = False
            self._show("died", f"The simulator's process ended: {death}.")
        except LightwamError as error:
            reply(one_line(error))
            if self.scene is None:
                self.controls.playing = False
                self._show("failed", one_line(error))

    def _tell_all(self, message: str) -> None:
        self.controls.playing = False
        self._show("ready" if self.scene else "failed", message)

    def _do(self, command: Command) -> None:
        match command:
            case Begin():
                self._begin(command)
            case commands.Restart():
                self._begin(self.controls.begun)
            case commands.Transport():
                self._transport(command.action)
            case commands.Speed():
                self.controls.speed, self._due = command.times, time.monotonic()
            case commands.Switch():
                self._switch(command.name, command.on)
            case Attention():
                self.view.choice = command
                self.view.show_attention()
            case commands.Sentence():
                self._make(Event(self._running().seen.steps, "sentence", command.text))
            case commands.Replan():
                self._make(Event(self._running().seen.steps, "replan", number=command.steps))
            case commands.Disturb():
                seed = len(self._running().events)
                self._make(Event(self._running().seen.steps, command.what, number=seed))
            case commands.Save():
                self._save()
            case _:
                raise ConfigError("there is no recorded episode here", next_step="lightwam play RUN --recorded")
        self._show()

    def _transport(self, action: str) -> None:
        is_over = self._running().seen.is_over
        self.controls.playing, self.controls.message = action == "play" and not is_over, ""
        self._due = time.monotonic()
        if action == "step" and not is_over:
            self._advance()

    def _switch(self, name: str, on: bool) -> None:
        if name == "engine":
            self._make(Event(self._running().seen.steps, "engine", number=int(on)))
        elif name == "next_seed":
            self.controls.goes_on = on
        elif name == "imagine":
            self.view.imagines = on
        elif name == "attention":
            self.view.attends = on
        else:
            self.view.watches = on
        self.view.hide()

    # the episode

    def _begin(self, asked: Begin) -> None:
        self._check(asked)
        controls = self.controls
        controls.begun, self.scene = asked, None
        controls.playing = controls.playing if asked.playing is None else asked.playing
        self._show("loading", "")
        job = EpisodeJob(asked.task, asked.seed)
        world, seen = self._wait(ResetJob(job), job)
        sentence = world.instruction if asked.sentence is None else asked.sentence
        if asked.events is not None:  # a repetition begins as its original did
            controls.replan, controls.uses_engine = self.recipe.eval.replan, False
        kept = [] if asked.events is not None else self._settings()
        pending = sorted((*kept, *(asked.events or ())), key=lambda event: event.step)
        player = Episode(self._ask_policy, controls.replan)
        self.scene = Scene(job, sentence, world, seen, player, pending=pending)
        self.view.begin(world.fps, asked.task)
        controls.step_times.clear()
        self._board.put({"world": asdict(world)} | self.scene.pictures())
        self._due = time.monotonic()
        self._show("ready", "")
        self._make_pending()
        self._show()

    def _settings(self) -> list[Event]:
        """Return the settings that a repetition needs, as changes before the first step."""
        settings = []
        if self.controls.replan != self.recipe.eval.replan:
            settings.append(Event(0, "replan", number=self.controls.replan))
        if self.controls.uses_engine:
            settings.append(Event(0, "engine", number=1))
        return settings

    def _check(self, asked: Begin) -> None:
        """Raise SimulatorError or ConfigError for an episode that cannot be begun, before another one is ended."""
        if asked.task not in self.sim.tasks:
            raise SimulatorError("unknown task", got=repr(asked.task), expected=", ".join(self.sim.tasks))
        if asked.sentence is not None:
            self._check_sentence(asked.sentence)
        for event in asked.events or ():
            self._check_event(event)

    def _check_event(self, event: Event) -> None:
        if event.what == "sentence":
            self._check_sentence(event.text)
        if event.what == "replan":
            check_replan(self._plain, event.number)

    def _running(self) -> Scene:
        if self.scene is None or self.controls.phase == "died":
            raise SimulatorError("no episode is running", next_step="restart the simulator")
        return self.scene

    def _make(self, event: Event) -> None:
        """Make a change at the present step, and note it for a repetition."""
        scene = self._running()
        self._check_event(event)
        if event.what == "sentence":
            scene.sentence = event.text
            scene.player.reset()  # the rest of the chunk was for another sentence
        elif event.what == "replan":
            self.controls.replan = scene.player.replan = event.number
        elif event.what == "engine":
            if event.number and self._engine is None:
                with self._saying("Folding the engine."):
                    self._engine = self._load_engine()
            self.controls.uses_engine = bool(event.number)
        elif scene.seen.is_over:
            raise SimulatorError("the episode is over", next_step="reset it first")
        else:
            scene.seen = self._wait(DisturbJob(scene.job, event.what, event.number), scene.job)
            self._board.put(scene.pictures())
        scene.events.append(event)

    def _make_pending(self) -> None:
        scene = self._running()
        while scene.pending and scene.pending[0].step <= scene.seen.steps:
            self._make(scene.pending.pop(0))

    def _advance(self) -> None:
        """Do one control step; after the end of an episode, begin the next seed if that was asked for."""
        scene, controls = self._running(), self.controls
        if scene.seen.is_over:
            if controls.goes_on:
                self._begin(Begin(scene.job.task, scene.job.seed + 1, controls.begun.sentence))
            else:
                controls.playing = False
            return
        seconds = 1 / (scene.world.fps * controls.speed) if controls.speed else 0.0
        self._due = max(self._due + seconds, time.monotonic())
        action = scene.player.action(scene.seen.observation)
        scene.seen = self._wait(OneStepJob(scene.job, action), scene.job)
        scene.actions.append(action)
        controls.step_times.append(time.monotonic())
        self.view.saw(scene.seen.steps, scene.seen.observation)
        if scene.seen.is_over:
            controls.num_episodes += 1
            controls.num_successes += scene.seen.success
            controls.playing = controls.playing and controls.goes_on
            self._due = time.monotonic() + PAUSE_SECONDS
        else:
            self._make_pending()
        self._board.put(scene.pictures())
        self._show()

    def _ask_policy(self, observation: ObservationLike) -> Float32[np.ndarray, "H A"]:
        """Return the next chunk, and show it with what the model imagines and attends to."""
        scene = self._running()
        assert isinstance(observation, Observation)
        told = observation
        if scene.sentence != told.instruction:
            told = replace(told, instruction=scene.sentence)
        policy = self._engine if self.controls.uses_engine and self._engine is not None else self._plain
        chunk = finite_chunk(policy.act(told), f"{scene.job}, step {scene.seen.steps}")
        self.view.asked(scene.seen.steps, told, chunk, scene.player.replan)
        return chunk

    def _wait(self, job: WorldJob, episode: EpisodeJob) -> Any:
        """Have the simulator's process do a job; WorkerDied when it dies, Stopped when the session is to end."""
        assert self._pool is not None
        self._pool.submit(job, 0)
        while not self._stopping.is_set():
            for _, outcome in self._pool.answers(WAIT_SECONDS):
                self._idle_since = time.monotonic()
                return outcome.unwrap(episode)
        raise Stopped

    def _check_alive(self) -> None:
        """Notice the death of a process that has nothing to do."""
        if self.scene is not None and self.controls.phase == "ready":
            self._wait(IdleJob(), self.scene.job)

    def _save(self) -> None:
        scene = self._running()
        if not scene.actions or self._plain.run is None:
            raise SimulatorError("there is nothing to save yet", next_step="play or step first")
        actions, sentence = np.stack(scene.actions), self.controls.begun.sentence
        played = PlayedEpisode(scene.job, sentence, tuple(scene.events), scene.seen, actions)
        with self._saying("Filming: the episode is executed again."):
            name = save(self._plain, played, lambda job: self._wait(job, scene.job))
        self._board.put({"saved": {"name": name, "folder": str(self._plain.run / FOLDER / name)}})

    @contextmanager
    def _saying(self, message: str) -> Iterator[None]:
        """Show a message while something takes long."""
        self._show(message=message)
        try:
            yield
        finally:
            self.controls.message = ""

    def _show(self, phase: str | None = None, message: str | None = None) -> None:
        """Show the session's state, with another phase or message if one is given."""
        self.controls.phase = phase or self.controls.phase
        self.controls.message = self.controls.message if message is None else message
        self._board.put({"status": status(self.controls, self.scene, self.view)})
