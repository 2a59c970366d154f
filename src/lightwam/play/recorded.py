"""A session without a simulator: recorded episodes to scrub through, with what the policy predicts beside them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

from lightwam.errors import ConfigError, LightwamError
from lightwam.evaluation.recorded import Recorded, RecordedEpisode
from lightwam.play import commands
from lightwam.play.board import Board
from lightwam.play.commands import Attention, Command, CommandQueue, Reply, one_line
from lightwam.play.model_view import DIGITS, ModelView, finite_chunk
from lightwam.play.scene import MOST_SHOWN, about, check_replan
from lightwam.policy.policy import Policy
from lightwam.report.images import jpeg_bytes
from lightwam.serving.sentences import CheckSentence
from lightwam.types import Observation

WAIT_SECONDS = 0.2
"""between two looks at whether the session is to end"""


class RecordedSession:
    """The state behind the page. `run` is its thread; `ask` and `stop` may be called from any."""

    def __init__(
        self,
        policy: Policy,
        recorded: Recorded,
        load_engine: Callable[[], Policy],
        check_sentence: CheckSentence,
        board: Board,
        *,
        imagine_steps: int = 20,
    ) -> None:
        """The arguments are those of `Session`, and the episodes."""
        self._plain, self._load_engine, self._check_sentence = policy, load_engine, check_sentence
        self._engine: Policy | None = None
        self._recorded, self._board, self._commands = recorded, board, CommandQueue()
        self._stopping, self._decoder = threading.Event(), recorded.episodes[0].dataset.decoder()
        self.view = ModelView(policy, board, imagine_steps)
        self.place, self.step, self.asked_at = 0, 0, 0
        self.sentence: str | None = None
        self.playing, self.speed, self.uses_engine, self.replan = False, 1.0, False, policy.recipe.eval.replan
        self._due = 0.0
        self._board.put({"about": about(policy, self.view) | self._about()})

    def ask(self, command: Command, reply: Reply) -> None:
        """Queue a command; it is obeyed between two control steps."""
        self._commands.put(command, reply)

    def stop(self) -> None:
        """End the session soon."""
        self._stopping.set()

    def run(self) -> None:
        """Play until `stop`; an error that is not a user's is raised, and ends the session."""
        with closing(self._decoder):
            self._guard(lambda: self._open(0), lambda why: self._show(why))
            while not self._stopping.is_set():
                seconds = max(0.0, self._due - time.monotonic()) if self.playing else WAIT_SECONDS
                if asked := self._commands.next(min(seconds, WAIT_SECONDS)):
                    self._obey(*asked)
                if self.playing and time.monotonic() >= self._due:
                    self._guard(self._advance, lambda why: self._show(why))

    @property
    def episode(self) -> RecordedEpisode:
        """The open episode."""
        return self._recorded.episodes[self.place]

    def _obey(self, command: Command, reply: Reply) -> None:
        self._guard(lambda: self._do(command), reply)

    def _guard(self, do: Callable[[], None], reply: Reply) -> None:
        """Do something; a user's error goes to `reply`."""
        try:
            do()
        except LightwamError as error:
            self.playing = False
            reply(one_line(error))

    def _do(self, command: Command) -> None:
        match command:
            case commands.OpenEpisode():
                if command.place >= len(self._recorded.episodes):
                    expected = f"0 to {len(self._recorded.episodes) - 1}"
                    raise ConfigError("no such episode", got=command.place, expected=expected)
                self._open(command.place)
            case commands.Seek():
                self._seek(min(command.step, len(self.episode) - 1))
            case commands.Transport():
                self.playing, self._due = command.action == "play", time.monotonic()
                if command.action == "step":
                    self._advance()
            case commands.Speed():
                self.speed, self._due = command.times, time.monotonic()
            case commands.Sentence():
                self._check_sentence(command.text)
                self.sentence = None if command.text == self.episode.instruction else command.text
                self._seek(self.step)
            case commands.Replan():
                check_replan(self._plain, command.steps)
                self.replan = command.steps
                self._seek(self.step)
            case Attention():
                self.view.choice = command
                self.view.show_attention()
            case commands.Switch():
                self._switch(command.name, command.on)
            case _:
                raise ConfigError("there is no simulator here", next_step="lightwam play RUN, of a run with one")
        self._show()

    def _switch(self, name: str, on: bool) -> None:
        if name == "engine":
            self._engine = self._engine or (self._load_engine() if on else None)
            self.uses_engine = on
        elif name == "imagine":
            self.view.imagines = on
        elif name == "attention":
            self.view.attends = on
        elif name == "surprise":
            self.view.watches = on
        self.view.hide()
        self._seek(self.step)

    def _open(self, place: int) -> None:
        self.place, self.sentence = place, None
        self.view.begin(self._recorded.fps, self._recorded.episodes[place].instruction)
        self._board.put({"world": {"action_names": list(self.episode.dataset.action_names), "disturbances": []}})
        self._seek(0)
        self._show()

    def _seek(self, step: int) -> None:
        """Go to a step and ask the policy there."""
        self.step = step
        self.view.leave()
        self._ask_policy(self._observe(step))

    def _advance(self) -> None:
        """Go on by a step; the policy is asked every `replan` of them."""
        if self.step + 1 >= len(self.episode):
            self.playing = False
            self._show()
            return
        self.step += 1
        seconds = 1 / (self._recorded.fps * self.speed) if self.speed else 0.0
        self._due = max(self._due + seconds, time.monotonic())
        observation = self._observe(self.step)
        if self.step >= self.asked_at + self.replan:
            self._ask_policy(observation)
        self._show()

    def _observe(self, step: int) -> Observation:
        """Show the pictures and actions of a step; return the observation, with the sentence that was told."""
        (seen,) = self.episode.pick(self._decoder, self._plain.cameras, [step])
        first, action = max(0, step - MOST_SHOWN // 2), self.episode.action
        rows = action[first : step + self._plain.recipe.model.horizon].round(DIGITS).astype(float).tolist()
        pictures = {f"camera/{name}": jpeg_bytes(frame, 2) for name, frame in seen.frames.items()}
        self._board.put(pictures | {"actions": {"first": first, "rows": rows, "now": step}})
        return seen if self.sentence is None else replace(seen, instruction=self.sentence)

    def _ask_policy(self, observation: Observation) -> None:
        """Show the policy's chunk at the present step, and the recorded future beside the imagined one."""
        self.asked_at = self.step
        policy = self._engine if self.uses_engine and self._engine is not None else self._plain
        chunk = finite_chunk(policy.act(observation), f"recorded episode {self.episode.index}, step {self.step}")
        self.view.asked(self.step, observation, chunk, self.replan)
        if self.view.imagines:
            horizon, stride = self._plain.recipe.model.horizon, self._plain.recipe.codec.video_stride
            steps = [step for step in range(self.step, self.step + horizon + 1, stride) if step < len(self.episode)]
            for step, seen in zip(steps, self.episode.pick(self._decoder, self._plain.cameras, steps), strict=True):
                self.view.saw(step, seen)
            self.view.leave_future()

    def _about(self) -> dict[str, Any]:
        episodes = [
            {"number": each.index, "sentence": each.instruction, "steps": len(each)} for each in self._recorded.episodes
        ]
        folder = self._recorded.episodes[0].dataset.root.resolve().name
        return {"mode": "recorded", "episodes": episodes, "held_out": self._recorded.held_out, "dataset": folder}

    def _show(self, message: str = "") -> None:
        view = self.view
        status = {
            "phase": "ready",
            "message": message,
            "playing": self.playing,
            "place": self.place,
            "step": self.step,
            "steps": len(self.episode),
            "sentence": self.episode.instruction if self.sentence is None else self.sentence,
            "speed": self.speed,
            "rate": 0,
            "replan": self.replan,
            "engine": self.uses_engine,
            "imagine": view.imagines,
            "attention": view.attends,
            "layer": view.choice.layer,
            "query": view.choice.query,
            "surprise": view.watches,
        }
        self._board.put({"status": status})
