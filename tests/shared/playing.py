"""A session of the live page in a thread, without a page: asked and looked at as a viewer does."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightwam.evaluation.recorded import recorded_episodes
from lightwam.play.board import Board
from lightwam.play.commands import Begin, Command, Transport
from lightwam.play.recorded import RecordedSession
from lightwam.play.session import Session
from lightwam.policy.policy import Policy
from lightwam.serving.sentences import sentence_check

TIMEOUT_SECONDS = 60.0


def read(message: bytes) -> dict[str, Any]:
    """The parts of a message: JSON values, and pictures as bytes."""
    (length,) = struct.unpack(">I", message[:4])
    at, parts = 4 + length, {}
    for name, kind, size in json.loads(message[4:at]):
        body = message[at : at + size]
        parts[name] = json.loads(body) if kind == "json" else body
        at += size
    assert at == len(message)
    return parts


class Driven:
    """A running session; `refused` are the reasons that it gave."""

    def __init__(self, session: Any, board: Board) -> None:
        self.session, self.board, self.refused = session, board, list[str]()

    def parts(self) -> dict[str, Any]:
        news = self.board.news(0)
        return read(news.message) if news else {}

    def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until the status fulfils a condition, and return it."""
        end = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < end:
            status = self.parts().get("status")
            if status is not None and holds(status):
                return status
            time.sleep(0.01)
        raise AssertionError(f"still {self.parts().get('status')}, refused {self.refused}")

    def ask(self, command: Command) -> None:
        self.session.ask(command, self.refused.append)

    def step(self, count: int = 1) -> dict[str, Any]:
        """Do single steps, each after the one before."""
        for _ in range(count):
            step = self.until(lambda status: status["phase"] == "ready")["step"]
            self.ask(Transport("step"))
            status = self.until(lambda status, step=step: status["step"] == step + 1)
        return status

    def play(self) -> dict[str, Any]:
        """Play to the episode's end."""
        self.ask(Transport("play"))
        return self.until(lambda status: status["over"])

    def begin(self, task: str, seed: int, **more: Any) -> dict[str, Any]:
        self.ask(Begin(task, seed, **more))
        wanted = {"task": task, "seed": seed, "phase": "ready", "step": 0}
        return self.until(lambda status: all(status[name] == value for name, value in wanted.items()))


@contextmanager
def driven(run: Path, num_workers: int = 0, **settings: Any) -> Iterator[Driven]:
    """Run a session of a run's policy until the block ends; by default the simulator is in this process."""
    policy, board = Policy.load(run, device="cpu"), Board()
    check = sentence_check(policy.recipe, policy.prompts.known)
    session = Session(policy, engine_of(run), check, board, num_workers=num_workers, **settings)
    with running(Driven(session, board)) as one:
        yield one


@contextmanager
def scrubbed(run: Path) -> Iterator[Driven]:
    """Run a session on the recorded episodes of a run until the block ends."""
    policy, board = Policy.load(run, device="cpu"), Board()
    check = sentence_check(policy.recipe, policy.prompts.known)
    recorded = recorded_episodes(policy, say=lambda line: None)
    with running(Driven(RecordedSession(policy, recorded, engine_of(run), check, board), board)) as one:
        yield one


def engine_of(run: Path) -> Callable[[], Policy]:
    return lambda: Policy.load(run, device="cpu", engine=True)


@contextmanager
def running(one: Driven) -> Iterator[Driven]:
    failures = list[BaseException]()

    def play() -> None:
        try:
            one.session.run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=play)
    thread.start()
    try:
        one.until(lambda status: status["phase"] in ("ready", "failed"))
        yield one
    finally:
        one.session.stop()
        thread.join(TIMEOUT_SECONDS)
    assert not thread.is_alive()
    if failures:
        raise failures[0]
