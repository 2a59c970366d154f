"""The report in a real Chromium: no errors, no requests, nothing wider than the window, on screens and on paper."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest
from chromium import Tab, executable, open_tab
from report_run import PLAN, TASKS, write_json, write_run

from lightwam.cli.pipeline import probe
from lightwam.config.strict_json import to_dict
from lightwam.evaluation.open_loop import evaluate_open_loop
from lightwam.report import write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="Chromium is not installed: `make browser` says how to install it"),
]
LONG_TASK = "put_the_black_bowl_in_the_bottom_drawer_of_the_cabinet_and_close_it"
LONG_NAMES = {
    LONG_TASK: "put the black bowl in the bottom drawer of the wooden cabinet and close it",
    "KITCHEN_SCENE3_turn_on_the_stove": "turn on the stove and put the moka pot on it",
}
SCREENS = [(width, scheme, "screen") for width in (390, 1200) for scheme in ("light", "dark")]
PAPERS = [(width, "light", "print") for width in (390, 1200)]
ERRORS = ("Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed")
TOO_WIDE = """(() => {
  const scrollable = element => /auto|scroll/.test(getComputedStyle(element).overflowX);
  const scrolls = element => element && (scrollable(element) || scrolls(element.parentElement));
  document.querySelectorAll('details').forEach(part => part.open = true);
  return [...document.body.querySelectorAll('*')].filter(element => {
    const {left, right, width} = element.getBoundingClientRect();
    return width > 0 && (right > WIDTH + 0.5 || left < -0.5) && !scrolls(element.parentElement);
  }).map(element => element.outerHTML.slice(0, 200));
})()"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_tab(tmp_path_factory.mktemp("chromium") / "profile") as tab:
        yield tab


@pytest.fixture(
    scope="module", params=["two tasks", "long names and two cameras", "a recipe alone", "recorded data alone"]
)
def page(request: pytest.FixtureRequest, tab: Tab, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report, open in the tab."""
    run = tmp_path_factory.mktemp("runs") / "point"
    if request.param == "two tasks":
        write_run(run, TASKS)
    elif request.param == "recorded data alone":
        shutil.copytree(request.getfixturevalue("arm_once").run, run)
        evaluate_open_loop(run, say=lambda line: None)
        probe(run)
    elif request.param == "a recipe alone":
        write_json(run / "recipe.json", to_dict(PLAN))
    else:
        write_run(run, LONG_NAMES, width=64)
    tab.open("about:blank")  # what the page before is still loading fails here
    tab.events.clear()
    tab.show(1200)
    tab.open(write_report(run).as_uri())
    return str(request.param)


def test_the_page_loads_without_errors_or_requests(page: str, tab: Tab) -> None:
    media = "[...document.querySelectorAll('img, video')]"
    tab.evaluate(f"Promise.all({media}.map(item => item.decode ? item.decode() : item.play()))")
    broken = tab.evaluate(f"{media}.filter(item => item.error || item.naturalWidth === 0).length")
    assert broken == 0
    errors = [event for event in tab.events if event["method"] in ERRORS or "consoleAPI" in event["method"]]
    assert not errors, json.dumps(errors, indent=1)[:2000]
    requests = [event["params"]["request"]["url"] for event in tab.events if "requestWillBeSent" in event["method"]]
    assert [url for url in requests if not url.startswith("data:")] == [tab.evaluate("location.href")]


@pytest.mark.parametrize(("width", "scheme", "media"), [*SCREENS, *PAPERS])
def test_nothing_is_wider_than_the_window(page: str, tab: Tab, width: int, scheme: str, media: str) -> None:
    tab.show(width, scheme, media)
    assert tab.evaluate(TOO_WIDE.replace("WIDTH", str(width))) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width == tab.evaluate("innerWidth")


def test_light_dark_and_print_have_different_colours(page: str, tab: Tab) -> None:
    colours = []
    for scheme, media in (("light", "screen"), ("dark", "screen"), ("dark", "print")):
        tab.show(1200, scheme, media)
        colours.append(
            tab.evaluate("getComputedStyle(document.body).backgroundColor + getComputedStyle(document.body).color")
        )
    assert len(set(colours)) == 3
    assert colours[2] == "rgb(255, 255, 255)rgb(0, 0, 0)"


def test_a_button_pauses_and_plays_all_videos(page: str, tab: Tab) -> None:
    tab.show(1200)
    paused = "[...document.querySelectorAll('video')].map(video => video.paused)"
    num_videos = len(tab.evaluate(paused))
    assert num_videos == (0 if page in ("a recipe alone", "recorded data alone") else 4)
    if num_videos:
        for state, text in ((True, "Play all videos"), (False, "Pause all videos")):
            tab.evaluate("document.querySelector('button').click()")
            assert tab.evaluate(paused) == [state] * num_videos
            assert tab.evaluate("document.querySelector('button').textContent") == text


def test_an_element_that_is_too_wide_is_noticed(page: str, tab: Tab) -> None:
    tab.show(390)
    tab.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<div id=wide style=\"width:2000px;height:9px\"></div>')"
    )
    try:
        assert ['id="wide"' in element for element in tab.evaluate(TOO_WIDE.replace("WIDTH", "390"))] == [True]
        assert tab.evaluate("document.documentElement.scrollWidth") == pytest.approx(2000, abs=50)
    finally:
        tab.evaluate("document.getElementById('wide').remove()")
