"""play/session.py and its parts: the actions are those of an evaluation, changes are repeated, refusals say why."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playing import Driven, driven, read

from lightwam.errors import SimulatorError, WireError
from lightwam.evaluation.evaluate import evaluate
from lightwam.evaluation.watch.surprise import Predictions, calibrate
from lightwam.play import commands
from lightwam.play.board import Board
from lightwam.play.commands import (
    Attention,
    Begin,
    Disturb,
    Event,
    Replan,
    Restart,
    Save,
    Sentence,
    Speed,
    Switch,
    Transport,
    parse,
)
from lightwam.policy.policy import Policy

FAST = Speed(0.0)


@pytest.fixture(scope="module")
def run(tiny_once: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run in a folder that may be written to."""
    copy = tmp_path_factory.mktemp("played") / "run"
    shutil.copytree(tiny_once.run, copy)
    return copy


@pytest.fixture(scope="module")
def session(run: Path) -> Any:
    with driven(run) as one:
        one.ask(FAST)
        yield one


def actions(one: Driven) -> np.ndarray:
    scene = one.session.scene
    assert scene is not None
    return np.stack(scene.actions)


@pytest.mark.parametrize("engine", [False, True])
def test_the_actions_are_those_of_an_evaluation_bit_for_bit(
    session: Driven, run: Path, tmp_path: Path, engine: bool
) -> None:
    policy = Policy.load(run, device="cpu", engine=engine)
    settings = replace(policy.recipe.eval, trials=1, videos_per_task=0)
    evaluate(tmp_path, settings, policy=policy, say=lambda line: None)
    seed = settings.first_seed
    for task in policy.recipe.simulation.tasks[:2]:
        for name in ("imagine", "attention"):  # what is shown changes nothing
            session.ask(Switch(name, task == "red"))
        session.begin(task, seed)
        session.ask(Switch("engine", engine))
        session.step(3)
        status = session.play()
        expected = np.load(tmp_path / "eval" / "actions" / f"{task}-{seed}.npy")
        assert status["step"] == len(expected)
        assert np.array_equal(actions(session), expected)
    session.ask(Switch("engine", False))


def test_changes_in_the_middle_are_repeated_bit_for_bit(session: Driven) -> None:
    session.begin("red", 5)
    session.ask(Replan(2))
    session.step(2)
    session.ask(Sentence("move to the blue dot"))
    session.step()
    session.ask(Disturb("object"))
    session.ask(Disturb("camera"))
    session.step()
    session.ask(Disturb("frozen"))
    status = session.play()
    assert [event["what"] for event in status["events"]] == ["replan", "sentence", "object", "camera", "frozen"]
    assert status["sentence"] == "move to the blue dot"
    first = actions(session)
    session.ask(Replan(3))
    session.until(lambda status: status["replan"] == 3)
    events = tuple(Event(**event) for event in status["events"])
    session.ask(Begin("red", 5, None, events, True))
    again = session.until(lambda status: status["over"] and status["replan"] == 2)
    assert again["events"] == status["events"]
    assert np.array_equal(actions(session), first)
    session.begin("red", 5, events=())
    session.play()
    assert not np.array_equal(actions(session)[: len(first)], first)
    assert session.parts()["status"]["replan"] == session.session.recipe.eval.replan


def test_a_sentence_is_acted_on_at_the_next_step(session: Driven) -> None:
    session.begin("red", 5, events=())
    session.step(2)
    assert session.parts()["chunk"]["step"] == 0
    session.ask(Sentence("move to the blue dot"))
    session.step()
    assert session.parts()["chunk"]["step"] == 2


def test_a_setting_of_the_session_is_part_of_the_next_episodes_changes(session: Driven) -> None:
    session.begin("red", 5, events=())
    session.ask(Replan(1))
    status = session.begin("blue", 6)
    assert session.until(lambda status: bool(status["events"]))["events"] == [
        {"step": 0, "what": "replan", "text": "", "number": 1}
    ]
    assert status["replan"] == 1
    session.begin("red", 5, events=())


def test_disturbing_changes_the_pictures_at_once(session: Driven) -> None:
    session.begin("red", 5, events=())
    before = session.parts()
    session.ask(Disturb("object"))
    session.until(lambda status: len(status["events"]) == 1)
    after = session.parts()
    assert after["camera/top"] != before["camera/top"]
    assert after["status"]["step"] == 0


def test_an_imagined_future_stands_beside_what_came(session: Driven) -> None:
    for name in ("imagine", "attention"):
        session.ask(Switch(name, True))
    session.begin("red", 5, events=(), playing=False)
    session.step()
    parts = session.parts()
    future = parts["future"]
    assert (future["step"], future["came"][0], future["times"][0]) == (0, True, "now")
    assert parts["imagined/0"][:2] == parts["came/0"][:2] == b"\xff\xd8"
    assert parts["attended"]["peak"] >= 1
    picture = parts["attention"]
    session.ask(Attention(0, 1))
    session.until(lambda status: status["query"] == 1)
    assert session.parts()["attended"]["query"] == 1
    assert session.parts()["attention"] != picture
    session.play()
    future = session.parts()["future"]
    assert future["count"] > 0
    assert len(future["mean_errors"]) == 2
    for name in ("imagine", "attention"):
        session.ask(Switch(name, False))


def test_episodes_and_successes_are_counted(session: Driven) -> None:
    before = session.begin("red", 5, events=())
    after = session.play()
    assert after["episodes"] == before["episodes"] + 1
    assert after["successes"] == before["successes"] + after["success"]


def test_the_next_seed_follows_where_asked_for(session: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightwam.play.session.PAUSE_SECONDS", 0.0)
    session.ask(Switch("next_seed", True))
    session.begin("red", 5, sentence="move to the blue dot", events=(), playing=True)
    status = session.until(lambda status: status["seed"] > 6)
    assert (status["task"], status["first_sentence"]) == ("red", "move to the blue dot")
    session.ask(Switch("next_seed", False))
    session.begin("red", 5, events=(), playing=False)


def test_larger_pictures_are_of_the_same_episode(session: Driven, run: Path) -> None:
    def pictures(one: Driven) -> tuple[np.ndarray, np.ndarray]:
        assert one.session.scene is not None
        seen = one.session.scene.seen
        return seen.observation.frames["top"], seen.pictures["top"]

    with driven(run, view_height=96) as larger:
        for one in (larger, session):
            one.begin("red", 5, events=())
            one.step(2)
            one.ask(Disturb("object"))
            one.ask(Disturb("camera"))
            one.step(2)
        assert np.array_equal(actions(larger), actions(session))
        (own, shown), (expected, _) = pictures(larger), pictures(session)
        assert np.array_equal(own, expected) and shown.shape == (96, 96, 3)
        middles = shown[1::3, 1::3].astype(int)  # a pixel of 32 is the middle of three of 96
        assert np.array_equal(middles, own)


def test_surprise_is_scored_at_every_chunk_of_a_calibrated_run(run: Path, tmp_path: Path) -> None:
    policy = Policy.load(run, device="cpu")
    rows, columns = (side // (2 * policy.latents.spatial_stride) for side in policy.codec.config.canvas)
    rng = np.random.default_rng(0)
    episodes = [
        Predictions(*rng.normal(size=(2, 5, policy.latents.channels, rows, columns)).astype(np.float32))
        for _ in range(12)
    ]
    calibration = calibrate(episodes, {"red": 12}, executed=4, step=policy.step, false_alarms=0.2)
    shutil.copytree(run, tmp_path / "run")
    calibration.write(tmp_path / "run")
    with driven(tmp_path / "run") as session:
        session.ask(FAST)
        session.step(9)
        surprise = session.parts()["surprise"]
        assert surprise["threshold"] == calibration.threshold
        assert [score["step"] for score in surprise["scores"]] == [4, 8]
        session.ask(Replan(2))
        session.ask(Switch("surprise", False))
        session.step(4)
        assert len(session.parts()["surprise"]["scores"]) == 2
        session.begin("red", 5)
        assert session.parts()["surprise"]["scores"] == []


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (Sentence(" ".join(["word"] * 100)), "must fit the text encoder"),
        (Sentence(""), "0 words"),
        (Replan(0), "replan is out of range"),
        (Replan(99), "replan is out of range"),
        (Begin("purple", 1), "unknown task"),
        (Begin("red", 1, events=(Event(0, "sentence", text=""),)), "must fit the text encoder"),
        (Begin("red", 1, events=(Event(0, "replan", number=99),)), "replan is out of range"),
    ],
)
def test_what_cannot_be_done_is_refused_and_the_episode_stays(
    session: Driven, command: commands.Command, why: str
) -> None:
    before = session.begin("red", 5, events=())
    session.refused.clear()
    session.ask(command)
    session.step()
    assert len(session.refused) == 1 and why in session.refused[0]
    assert session.parts()["status"]["task"] == before["task"]


def test_a_simulator_that_cannot_be_reset_is_said_and_can_be_restarted(
    session: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(simulator: Any, seed: int) -> None:
        raise SimulatorError("no driver")

    session.refused.clear()
    with monkeypatch.context() as patch:
        patch.setattr("lightwam.sim.point.PointSimulator.reset", broken)
        session.ask(Begin("red", 5))
        status = session.until(lambda status: status["phase"] == "failed")
        assert session.refused == ["no driver"] and status["message"] == "no driver"
        session.ask(Save())
        session.until(lambda status: len(session.refused) == 2)
        assert "no episode is running" in session.refused[1]
    session.ask(Restart())
    session.until(lambda status: status["phase"] == "ready" and not status["message"])
    session.step()


def test_actions_that_are_not_finite_are_not_executed(session: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    session.begin("red", 5, events=(), playing=False)
    with monkeypatch.context() as patch:
        patch.setattr(Policy, "act", lambda policy, observation: np.full((8, 2), np.nan, np.float32))
        session.ask(Transport("play"))
        status = session.until(lambda status: "must be finite" in status["message"])
    assert (status["playing"], status["step"]) == (False, 0)
    session.step()


def test_a_saved_episode_has_its_actions_and_film(session: Driven, run: Path) -> None:
    session.begin("red", 5, events=())
    session.ask(Disturb("object"))
    session.step(2)
    session.ask(Save())
    session.until(lambda status: "saved" in session.parts())
    folder = Path(session.parts()["saved"]["folder"])
    assert folder == run / "play" / "red-5-1"
    assert np.array_equal(np.load(folder / "actions.npy"), actions(session))
    content = json.loads((folder / "episode.json").read_text(encoding="utf-8"))
    assert (content["steps"], content["over"], [event["what"] for event in content["events"]]) == (2, False, ["object"])
    assert (folder / "film.mp4").stat().st_size > 500
    session.step()  # the film's simulator is another one
    assert session.parts()["status"]["step"] == 3


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[1]",
        '{"kind": "dance"}',
        '{"kind": "begin", "task": "red"}',
        '{"kind": "begin", "task": "red", "seed": -1}',
        '{"kind": "begin", "task": "red", "seed": 1, "colour": 2}',
        '{"kind": "speed", "times": NaN}',
        '{"kind": "speed", "times": 3}',
        '{"kind": "disturb", "what": "gravity"}',
        '{"kind": "begin", "task": "red", "seed": 1, "events": [{"step": 1, "what": "dance"}]}',
        '{"kind": "begin", "task": "\\ud800", "seed": 1}',
        '{"kind": "begin", "task": "red", "seed": 1, "events": [{"step": 0, "what": "frozen", "text": "\\ud800"}]}',
        "[" * 100_000,
    ],
)
def test_other_commands_are_refused(text: str) -> None:
    with pytest.raises(WireError):
        parse(text)


def test_commands_are_read() -> None:
    assert parse('{"kind": "begin", "task": "red", "seed": 7}') == Begin("red", 7)
    event = {"step": 2, "what": "object", "number": 3}
    text = json.dumps({"kind": "begin", "task": "red", "seed": 7, "events": [event], "playing": True})
    assert parse(text) == Begin("red", 7, None, (Event(2, "object", "", 3),), True)
    assert parse('{"kind": "attention", "layer": 1, "query": null}') == Attention(1)


def test_a_viewer_gets_the_newest_of_what_it_lacks() -> None:
    board = Board()
    board.put({"a": 1, "b": 2})
    first = board.news(0)
    board.put({"a": 3})
    board.put({"a": 4, "c": b"\xff"})
    assert first is not None
    assert read(first.message) == {"a": 1, "b": 2}
    second = board.news(first.version)
    assert second is not None
    assert read(second.message) == {"a": 4, "c": b"\xff"}
    assert board.news(second.version) is None
