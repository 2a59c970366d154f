"""The live page in a real Chromium: watch, talk, disturb; two viewers; a simulator that dies, a restarted server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Tab, executable, open_tab
from played_process import PlayedProcess, free_port, played_process

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="Chromium is not installed: `make browser` says how to install it"),
]
ERRORS = ("Runtime.exceptionThrown", "Log.entryAdded")
SECONDS = 60.0
PICTURE = "document.querySelector('#cameras canvas').toDataURL()"
OUTCOME = "at('outcome').textContent"


def until(tab: Tab, expression: str) -> None:
    """Wait until a JavaScript expression holds."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if tab.evaluate(f"Boolean({expression})"):
            return
        time.sleep(0.05)
    status = tab.evaluate("JSON.stringify(parts.status)")
    raise AssertionError(f"never true: {expression}; {status}; {errors(tab)}")


def errors(tab: Tab) -> list[str]:
    return [
        json.dumps(event)[:500] for event in tab.events if event["method"] in ERRORS or "consoleAPI" in event["method"]
    ]


def press(tab: Tab, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" and len(key) == 1 else "")


def type_text(tab: Tab, text: str) -> None:
    tab.call("Input.insertText", text=text)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_tab(tmp_path_factory.mktemp("chromium") / "profile") as tab:
        yield tab


@pytest.fixture(scope="module")
def run(tiny_once: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("played") / "run"
    shutil.copytree(tiny_once.run, copy)
    return copy


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[PlayedProcess]:
    with played_process(run, free_port()) as served:
        yield served


@pytest.fixture
def page(served: PlayedProcess, tab: Tab) -> Tab:
    """The page, open on a new episode that is paused at its first step."""
    tab.open("about:blank")
    tab.events.clear()
    tab.show(1200)
    tab.open(served.address)
    until(tab, "parts.status?.phase === 'ready'")
    tab.evaluate("begin({task: 'red', seed: 5, sentence: null, events: [], playing: false})")
    until(tab, "parts.status.seed === 5 && parts.status.step === 0 && parts.status.phase === 'ready'")
    until(tab, "document.querySelector('#cameras canvas')")
    return tab


def test_a_sentence_steps_a_disturbance_and_an_episode_to_its_end(page: Tab, served: PlayedProcess) -> None:
    first = page.evaluate(PICTURE)
    page.evaluate("at('step').click()")
    until(page, "parts.status.step === 1")
    assert page.evaluate("document.querySelectorAll('#actions svg').length") == 2
    page.evaluate("document.activeElement.blur()")
    press(page, "/")
    type_text(page, "move to the blue dot")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", text="\r")
    until(page, "parts.status.sentence === 'move to the blue dot'")
    stepped = page.evaluate(PICTURE)
    page.evaluate("document.querySelector('[data-disturb=object]').click()")
    until(page, "parts.status.events.length === 2")
    until(page, f"{PICTURE} !== {stepped!r}")
    assert stepped != first
    page.evaluate("at('speed').value = '0'; at('speed').onchange()")
    page.evaluate("document.activeElement.blur()")
    press(page, " ")
    before = page.evaluate("parts.status.episodes")
    until(page, f"parts.status.over && parts.status.episodes === {before + 1}")
    until(page, f"{OUTCOME}.includes('of {before + 1} episodes succeeded')")
    assert "told “move to the blue dot”" in page.evaluate("at('changes').textContent")
    assert not errors(page)
    sent = [event["params"] for event in page.events if event["method"] == "Network.requestWillBeSent"]
    requests = [each["request"]["url"] for each in sent]
    assert requests and all(url.startswith((served.address, "data:")) for url in requests), requests


def test_what_the_text_encoder_cannot_take_is_said(page: Tab) -> None:
    page.evaluate("at('sentence').value = 'word '.repeat(100); at('say').requestSubmit()")
    until(page, "!at('refused').hidden && at('refused').textContent.includes('must fit the text encoder')")
    page.evaluate("at('sentence').value = 'move to the green dot'; at('say').requestSubmit()")
    until(page, "at('refused').hidden && parts.status.sentence === 'move to the green dot'")
    assert not errors(page)


def test_what_the_policy_imagines_and_attends_to_is_drawn(page: Tab) -> None:
    for name in ("imagine", "attention"):
        page.evaluate(f"parts.status.{name} || at('{name}').click()")
        until(page, f"parts.status.{name}")
    page.evaluate("at('step').click()")
    until(page, "parts.future && document.querySelectorAll('#future canvas').length === 2 * parts.future.times.length")
    until(page, "!at('attended').hidden")
    for canvas in ("#future canvas", "#attention-picture"):
        drawn = f"[...document.querySelector('{canvas}').getContext('2d').getImageData(0, 0, 8, 8).data].some(Boolean)"
        assert page.evaluate(drawn)
    until(page, "at('surprise-text').textContent.includes('not calibrated')")
    for name in ("imagine", "attention"):
        page.evaluate(f"at('{name}').click()")
    until(page, "!parts.status.imagine && !parts.status.attention")
    assert not errors(page)


def test_two_viewers_see_the_same_session(page: Tab, served: PlayedProcess) -> None:
    with page.another() as other:
        other.open(served.address)
        until(other, "parts.status?.seed === 5")
        until(page, "at('connection').textContent.includes('2 viewers')")
        other.evaluate("at('step').click()")
        until(page, "parts.status.step === 1")
        until(other, "parts.status.step === 1")
        assert page.evaluate(PICTURE) == other.evaluate(PICTURE)
        assert not errors(other)
    until(page, "at('connection').textContent === 'connected'")
    assert not errors(page)


def test_a_link_repeats_an_episode_with_its_changes(page: Tab, served: PlayedProcess) -> None:
    page.evaluate("at('speed').value = '0'; at('speed').onchange(); at('step').click()")
    until(page, "parts.status.step === 1")
    page.evaluate("at('sentence').value = 'move to the yellow dot'; at('say').requestSubmit()")
    until(page, "parts.status.events.length === 1")
    page.evaluate("transport('play')")
    until(page, "parts.status.over")
    link, actions = page.evaluate("replayLink()"), page.evaluate("parts.actions")
    page.evaluate("begin({seed: 6, events: []})")
    until(page, "parts.status.seed === 6")
    page.open("about:blank")
    page.open(link)
    until(page, "parts.status?.seed === 5 && parts.status.over")
    assert page.evaluate("parts.actions") == actions
    assert page.evaluate("parts.status.sentence") == "move to the yellow dot"
    assert not errors(page)


def test_a_saved_episode_has_a_film(page: Tab, run: Path) -> None:
    page.evaluate("at('step').click()")
    until(page, "parts.status.step === 1")
    page.evaluate("at('save').click()")
    until(page, "!at('saved').hidden && at('saved').textContent.includes('Saved in')")
    name = page.evaluate("parts.saved.name")
    size = page.evaluate(f"fetch('film/{name}').then(answer => answer.blob()).then(film => film.size)")
    assert size == (run / "play" / name / "film.mp4").stat().st_size
    assert not errors(page)


def test_the_death_of_the_simulator_is_said_and_a_restart_offered(page: Tab, served: PlayedProcess) -> None:
    (simulator,) = served.simulators()
    os.kill(simulator, signal.SIGKILL)
    until(page, "!at('notice').hidden && at('notice').textContent.includes('SIGKILL')")
    assert page.evaluate("at('play').disabled")
    until(page, "!at('restart').hidden")
    page.evaluate("at('restart').click()")
    until(page, "parts.status.phase === 'ready' && at('notice').hidden && !at('play').disabled")
    assert served.simulators() not in ([], [simulator])
    page.evaluate("at('step').click()")
    until(page, "parts.status.step === 1")
    assert not errors(page)


def test_recorded_episodes_are_scrubbed(tab: Tab, arm_once: Any) -> None:
    with played_process(arm_once.run, free_port()) as served:
        tab.events.clear()
        tab.show(1200)
        tab.open(served.address)
        until(tab, "parts.status?.phase === 'ready' && document.querySelector('#cameras canvas')")
        assert not tab.evaluate("at('save').offsetParent || at('seed').offsetParent") and tab.evaluate(
            "at('scrub').max > 1"
        )
        first = tab.evaluate(PICTURE)
        tab.evaluate("at('imagine').click()")
        for step in (2, 9):
            tab.evaluate(f"at('scrub').value = {step}; at('scrub').oninput()")
        until(tab, "parts.status.step === 9 && parts.chunk.step === 9 && parts.future?.step === 9")
        until(tab, f"{PICTURE} !== {first!r}")
        assert tab.evaluate("document.querySelectorAll('#actions svg').length") > 0
        press(tab, "ArrowLeft")
        until(tab, "parts.status.step === 8")
        tab.evaluate("at('episode').value = '1'; at('episode').onchange()")
        until(tab, "parts.status.place === 1 && parts.status.step === 0")
        assert not errors(tab)


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1200, "dark")])
def test_nothing_is_wider_than_the_window(page: Tab, width: int, scheme: str) -> None:
    page.evaluate("begin({playing: true})")
    page.show(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(252, 251, 249)" if scheme == "light" else "rgb(20, 22, 26)"
    )


def test_a_server_that_is_started_again_is_said_and_the_page_goes_on(run: Path, tab: Tab) -> None:
    port = free_port()
    with played_process(run, port) as served:
        tab.open(served.address)
        until(tab, "parts.status?.phase === 'ready'")
        assert served.stop() == 0
        until(tab, "at('connection').textContent.includes('away')")
    with played_process(run, port):
        until(tab, "!at('notice').hidden && at('notice').textContent.includes('started again')")
        until(tab, "parts.status.phase === 'ready'")
        tab.evaluate("at('step').click()")
        until(tab, "parts.status.step === 1")
