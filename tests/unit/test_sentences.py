"""Sentences that do not fit a run's text encoder: refused with their length before weights are opened, or truncated."""

import json
import urllib.error
import urllib.request
from dataclasses import replace
from typing import Any

import json_numpy
import numpy as np
import pytest
import torch
from inspect_robots_xpolicylab._client import PolicyClient
from inspect_robots_xpolicylab._protocol import WsError
from serving import message, mirror, serving

from lightwam.config import recipe_files
from lightwam.config.schema import HashedTextConfig, Recipe, Umt5Config
from lightwam.encoders import frozen
from lightwam.encoders.frozen import Prompts
from lightwam.encoders.hashed_text import HashedText
from lightwam.encoders.prompt_check import PromptCheck, check_prompts
from lightwam.errors import CheckpointError, LightwamError, PromptError, WireError
from lightwam.robot.client import Client
from lightwam.robot.errors import Refused
from lightwam.serving.sentences import sentence_check
from lightwam.types import Observation
from lightwam.wire import robot_schemas
from lightwam.wire.inspection import inspect
from lightwam.wire.robot_schema import fit_schema

LONG = "put the red mug that is on the left into the drawer"
BAD = [("", 0), (" \n\t", 0), (LONG, 12)]

# XPolicyLab's client connects in the way of before websockets 17
pytestmark = pytest.mark.filterwarnings(r"ignore:connect\(\) must be used as a context manager:DeprecationWarning")


def recipe(prompt: str = "{task}", **changes: Any) -> Recipe:
    point = recipe_files.recipe("point")
    return replace(point, prompt=prompt, text=replace(HashedTextConfig(num_tokens=8, dim=point.text.dim), **changes))


@pytest.mark.parametrize(("sentence", "words"), BAD)
def test_a_sentence_that_does_not_fit_is_refused_with_its_length(sentence: str, words: int) -> None:
    with pytest.raises(PromptError, match=f"{words} words") as caught:
        check_prompts(recipe(), ["close it", sentence])
    assert repr(sentence) in str(caught.value) and "1 to 8 words" in str(caught.value)


def test_words_of_the_recipes_prompt_count_but_do_not_fill_an_empty_sentence() -> None:
    asked = recipe("the robot is to {task} now")
    check_prompts(asked, ["a b c"])
    with pytest.raises(PromptError, match="9 words, including the recipe's own"):
        check_prompts(asked, ["a b c d"])
    with pytest.raises(PromptError, match="0 words"):
        check_prompts(asked, [" "])
    with pytest.raises(PromptError, match="0 words"):
        Prompts(asked, {}).states([" "])


def test_truncation_reads_the_first_words_and_warns() -> None:
    told: list[str] = []
    check_prompts(recipe(truncate=True), ["close it", LONG, LONG], told.append)
    assert len(told) == 1 and "has 12 words; only the first 8 are read" in told[0] and LONG in told[0]
    config = HashedTextConfig(num_tokens=8, dim=64, truncate=True)
    first = " ".join(LONG.split()[:8])
    assert torch.equal(HashedText(config).encode([LONG]), HashedText(config).encode([first]))
    with pytest.raises(PromptError, match="0 words"):
        check_prompts(recipe(truncate=True), [""])


@pytest.mark.parametrize(("sentence", "words"), BAD)
def test_long_sentence_is_the_clients_error_over_every_protocol(
    sentence: str, words: int, caplog: pytest.LogCaptureFixture
) -> None:
    bad = message(1) | {"prompt": sentence}
    with serving(check_sentence=sentence_check(recipe(), {})) as server:
        with Client(f"ws://127.0.0.1:{server.ports['openpi']}") as client:
            with pytest.raises(Refused, match=f"{words} words") as refused:
                client.act(bad)
            assert (refused.value.code, refused.value.where, refused.value.expected) == (
                "bad_message", "prompt", "1 to 8 words"
            )  # fmt: skip
            assert client.act(message(2))[0, 0] == 2
        with pytest.raises(urllib.error.HTTPError) as status:
            urllib.request.urlopen(f"http://127.0.0.1:{server.ports['openpi']}/act", json_numpy.dumps(bad).encode())
        with status.value as answer:
            told = json.loads(answer.read())["error"]
        assert status.value.code == 400
        assert (told["code"], told["where"], told["expected"]) == ("bad_message", "prompt", "1 to 8 words")
        assert f"{words} words" in told["message"]
        other = PolicyClient(f"ws://127.0.0.1:{server.ports['xpolicylab']}", "evaluation", connect_attempts=1)
        other.connect()
        other.reset("one")
        with pytest.raises(WsError, match=f"{words} words"):
            other.infer(bad, trial_id="one", step=0)
        assert np.asarray(other.infer(message(3), trial_id="one", step=1).payload["actions"])[0, 0] == 3
        other.close()
        outcomes = server.metrics.text().decode()
    assert 'outcome="internal"' not in outcomes
    assert not [record for record in caplog.records if record.exc_info]


def test_prompt_error_of_a_policy_fails_only_its_client() -> None:
    """A policy that is asked directly: one bad sentence among those that wait together."""
    encoder = HashedText(HashedTextConfig(num_tokens=8, dim=64))

    def act(observations: list[Observation]) -> np.ndarray:
        encoder.encode([one.instruction for one in observations])
        return mirror(observations)

    with serving(act, window_ms=300.0) as server:
        url = f"ws://127.0.0.1:{server.ports['openpi']}"
        with Client(url) as well, Client(url) as ill:
            well.connect()
            ill.connect()
            answers: list[np.ndarray | Exception] = []
            import threading

            def ask(client: Client, observation: dict[str, Any]) -> None:
                try:
                    answers.append(client.act(observation))
                except LightwamError as error:
                    answers.append(error)

            both = [threading.Thread(target=ask, args=(ill, message(1) | {"prompt": LONG})),
                    threading.Thread(target=ask, args=(well, message(2)))]  # fmt: skip
            for thread in both:
                thread.start()
            for thread in both:
                thread.join(20)
    (refused,) = (one for one in answers if isinstance(one, Exception))
    assert isinstance(refused, Refused) and refused.code == "bad_message" and "12 words" in refused.what
    (chunk,) = (one for one in answers if isinstance(one, np.ndarray))
    assert chunk[0, 0] == 2


@pytest.mark.parametrize(("sentence", "words"), BAD)
def test_check_client_reports_a_long_sentence(sentence: str, words: int) -> None:
    schema = fit_schema(robot_schemas.load_schema("libero"), ("agentview", "wrist"), 8, 7)
    report = inspect(message(1) | {"prompt": sentence}, schema, sentence_check(recipe(), {}))
    assert not report.fits
    (fault,) = (line for line in report.lines() if line.startswith("WRONG"))
    assert "instruction" in fault and f"{words} words" in "\n".join(report.lines())
    assert inspect(message(1), schema, sentence_check(recipe(), {})).fits


def test_truncated_sentence_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lightwam.serve")
    check = sentence_check(recipe(truncate=True), {})
    assert "longer sentences are truncated" in caplog.messages
    for sentence in (LONG, "close it", LONG):
        check(sentence)
    assert caplog.messages.count("a sentence is truncated") == 1


def test_without_the_text_encoder_the_runs_sentences_are_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def absent(asked: Recipe) -> PromptCheck:
        raise CheckpointError("there is no tokenizer", where="/nowhere")

    monkeypatch.setattr("lightwam.serving.sentences.PromptCheck", absent)
    pretrained = replace(recipe_files.recipe("point"), text=Umt5Config(), weights="/nowhere", prompt="do: {task}")
    check = sentence_check(pretrained, {"do: open the drawer"})
    assert any("without the text encoder" in line for line in caplog.messages)
    check("open the drawer")
    with pytest.raises(WireError, match="not on the server"):
        check("close the drawer")
    with pytest.raises(CheckpointError):
        sentence_check(pretrained, {})


def test_check_prompts_opens_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights were opened")

    monkeypatch.setattr(frozen, "open_text", opened)
    check_prompts(recipe(), ["close it"])
