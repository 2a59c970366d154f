"""play/recorded.py: along recorded episodes the page shows what the policy predicts there, and what was recorded."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from playing import Driven, scrubbed

from lightwam.evaluation.recorded import recorded_episodes
from lightwam.play.commands import (
    Attention,
    Disturb,
    OpenEpisode,
    Replan,
    Save,
    Seek,
    Sentence,
    Speed,
    Switch,
    Transport,
)
from lightwam.policy.policy import Policy


@pytest.fixture(scope="module")
def session(arm_once: Any) -> Iterator[Driven]:
    with scrubbed(arm_once.run) as one:
        yield one


@pytest.fixture(scope="module")
def policy(arm_once: Any) -> Policy:
    return Policy.load(arm_once.run, device="cpu")


def seek(session: Driven, step: int) -> dict[str, Any]:
    session.ask(Seek(step))
    return session.until(lambda status: status["step"] == step)


def test_a_chunk_that_is_not_finite_is_told(session: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Policy, "act", lambda self, observation: np.full((8, 6), np.nan, np.float32))
        session.ask(Seek(3))
        session.until(lambda status: any("must be finite" in reason for reason in session.refused))
    seek(session, 2)


def test_the_chunk_is_the_policys_at_that_step_and_the_actions_are_the_recorded_ones(
    session: Driven, policy: Policy
) -> None:
    recorded = recorded_episodes(policy, say=lambda line: None)
    for place in (0, len(recorded.episodes) - 1):
        episode = recorded.episodes[place]
        session.ask(OpenEpisode(place))
        session.until(lambda status, place=place: status["place"] == place and status["step"] == 0)
        step = len(episode) // 2
        seek(session, step)
        parts = session.parts()
        assert parts["chunk"]["step"] == step
        observation = list(episode.observations(policy.cameras))[step]
        assert np.allclose(parts["chunk"]["actions"], policy.act(observation), atol=1e-4)
        actions = parts["actions"]
        rows = episode.action[actions["first"] :][: len(actions["rows"])]
        assert actions["now"] == step and np.allclose(actions["rows"], rows, atol=1e-4)


def test_pictures_are_those_of_the_step(session: Driven, policy: Policy) -> None:
    session.ask(OpenEpisode(0))
    seek(session, 3)
    before = session.parts()
    seek(session, 8)
    after = session.parts()
    assert {f"camera/{name}" for name in policy.cameras} <= after.keys()
    assert any(after[f"camera/{name}"] != before[f"camera/{name}"] for name in policy.cameras)


def test_another_sentence_changes_the_chunk_and_the_recorded_one_brings_it_back(session: Driven) -> None:
    session.ask(OpenEpisode(0))
    own = seek(session, 3)["sentence"]
    chunk = session.parts()["chunk"]
    session.ask(Sentence("do something else"))
    session.until(lambda status: status["sentence"] == "do something else")
    assert session.parts()["chunk"] != chunk
    session.ask(Sentence(own))
    session.until(lambda status: status["sentence"] == own)
    assert session.parts()["chunk"] == chunk


def test_the_imagined_future_stands_beside_the_recorded_one(session: Driven, policy: Policy) -> None:
    session.ask(OpenEpisode(0))
    for name in ("imagine", "attention"):
        session.ask(Switch(name, True))
    seek(session, 2)
    parts = session.parts()
    assert (parts["future"]["step"], all(parts["future"]["came"])) == (2, True)
    assert len(parts["future"]["errors"]) == 2
    assert parts["attended"]["peak"] > 0
    session.ask(Attention(0, 0))
    last = session.parts()["status"]["steps"] - 1
    seek(session, last)
    assert not all(session.parts()["future"]["came"])
    for name in ("imagine", "attention"):
        session.ask(Switch(name, False))
    session.until(lambda status: not status["attention"])
    assert session.parts()["future"] is None


def test_playing_asks_the_policy_every_replan_steps_and_stops_at_the_end(session: Driven) -> None:
    session.ask(OpenEpisode(0))
    session.ask(Replan(3))
    session.ask(Speed(0.0))
    session.ask(Transport("step"))
    session.until(lambda status: status["step"] == 1)
    assert session.parts()["chunk"]["step"] == 0
    session.ask(Transport("play"))
    status = session.until(lambda status: status["step"] == status["steps"] - 1 and not status["playing"])
    assert session.parts()["chunk"]["step"] == (status["steps"] - 1) // 3 * 3


def test_the_engine_acts_too(session: Driven) -> None:
    seek(session, 3)
    plain = session.parts()["chunk"]["actions"]
    session.ask(Switch("engine", True))
    session.until(lambda status: status["engine"])
    assert np.allclose(session.parts()["chunk"]["actions"], plain, atol=1e-2)
    session.ask(Switch("engine", False))


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (Disturb("object"), "no simulator"),
        (Save(), "no simulator"),
        (OpenEpisode(99), "no such episode"),
        (Replan(0), "out of range"),
        (Sentence(" ".join(["word"] * 100)), "must fit the text encoder"),
    ],
)
def test_what_cannot_be_done_is_refused(session: Driven, command: Any, why: str) -> None:
    session.refused.clear()
    session.ask(command)
    seek(session, 1)
    seek(session, 2)
    assert len(session.refused) == 1 and why in session.refused[0]


def test_a_step_beyond_the_end_is_the_last_one(session: Driven) -> None:
    session.ask(Seek(10**6))
    session.until(lambda status: status["step"] == status["steps"] - 1)
