"""report/: every part of a full run, every part missing, and broken files."""

from __future__ import annotations

import html
import html.parser
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_run import PLAN, write_run

from lightwam.config.strict_json import to_dict
from lightwam.errors import CheckpointError
from lightwam.report import write_report
from lightwam.report.evidence import read_evidence


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("written") / "point")


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    """A run of two tasks, to change."""
    return Path(shutil.copytree(written, tmp_path / "runs" / "point"))


class Outline(html.parser.HTMLParser):
    """Checks that tags nest, and collects what a test asks about."""

    VOID = frozenset({"meta", "img", "br", "line", "rect", "path", "polyline", "circle", "wbr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def report(run: Path) -> tuple[str, Outline]:
    text = write_report(run).read_text(encoding="utf-8")
    return text, Outline(text)


def plain(text: str) -> str:
    """The text that a reader sees."""
    without = re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", without)).replace("\u202f", " ").split())


def test_a_complete_run_shows_every_part(run: Path) -> None:
    text, outline = report(run)
    read = plain(text)
    assert (
        "A 3M-parameter Light-WAM trained on 40 demonstrations of 2 point tasks succeeds in 9 of 10 episodes on unseen "
        "seeds: 90 % (95 % interval 60 to 98 %), in 12 min 40 s of wall time." in read
    )
    assert [attributes["id"] for attributes in outline.all("section")] == [
        "success", "rollouts", "imagination", "attention", "swap", "watch", "curves", "time", "reproduce"
    ]  # fmt: skip
    assert len(outline.all("video")) == 4
    assert read.count("✗ failure") == 1 and read.count("✓ success") == 3
    assert "+0.2 to 0.8 s" in read
    assert "from 90 % (9/10) to 10 % (1/10): the policy follows the instruction" in read
    assert "14.2 ms" in read and "1 min 44 s" in read and "8 of them executed" in read
    assert "model.backbone.width" in read and "machine.cores" in read and "versions.torch" in read
    assert ", run:" not in read


def test_the_page_is_self_contained_and_accessible(run: Path) -> None:
    text, outline = report(run)
    assert not re.search(r"""(src|href|url\(|poster)\s*=?\s*["'(]*(https?:)?//""", text)
    for kind in ("img", "video"):
        assert all(str(attributes["src"]).startswith("data:") for attributes in outline.all(kind))
    assert all(attributes["alt"] for attributes in outline.all("img"))
    assert all(attributes["aria-label"] for attributes in outline.all("video") + outline.all("svg"))
    assert len(outline.all("caption")) == len(outline.all("table")) > 0
    names = {attributes["id"] for _, attributes in outline.found if "id" in attributes}
    links = [str(attributes["href"]) for attributes in outline.all("a")]
    assert links and all(link.removeprefix("#") in names for link in links)
    assert len(outline.all("h1")) == 1
    assert "move to the <blue>" not in text and "move to the &lt;blue&gt; dot" in text


def test_the_report_is_deterministic_and_leaves_no_other_file(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert [path.name for path in run.glob("*report*")] == ["report.html"]


@pytest.mark.parametrize(
    ("gone", "said", "command"),
    [
        (
            ["log.jsonl"],
            "This run has not been trained yet: it has no log.jsonl",
            "lightwam train point --dataset data/point --run",
        ),
        (["eval/result.json", "eval/episodes.jsonl"], "has not been evaluated in closed loop yet", "lightwam eval"),
        (["eval/result.json"], "10 of 10 episodes are done", "lightwam eval"),
        (["eval/episodes.jsonl"], "No episode has been recorded", "lightwam eval"),
        (["eval/result.json"], "inference latency has not been measured", "lightwam eval"),
        (["eval/probe.npz"], "No predictions have been recorded", "lightwam report"),
        (["eval/probe.npz"], "No attention has been recorded", "lightwam report"),
        (["eval/swap.json"], "has not been tested with swapped instructions", "lightwam report"),
        (["watch/result.json"], "How well the policy detects disturbances has not been measured", "lightwam watch"),
    ],
)
def test_a_missing_part_is_named_with_the_command_that_adds_it(
    run: Path, gone: list[str], said: str, command: str
) -> None:
    for name in gone:
        (run / name).unlink()
    read = plain(report(run)[0])
    assert said in read
    assert re.search(rf"{re.escape(said)}[^.]*\. To [a-z ]+, run: {re.escape(command)} ?\S*point", read)


def test_a_run_with_a_recipe_alone_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(to_dict(PLAN)))
    read = plain(report(tmp_path)[0])
    assert "A Light-WAM to be trained on 40 demonstrations of 2 point tasks" in read
    assert read.count(", run: lightwam") >= 7


def test_numbers_come_from_the_run_and_not_from_its_recipe(run: Path) -> None:
    """It may have been trained on another dataset, and evaluated for other lengths, than the recipe would have it."""
    (run / "dataset.json").write_text('{"path": "x", "episodes": 7, "fingerprint": {}}')
    read = plain(report(run)[0])
    assert "trained on 7 demonstrations of 2 point tasks" in read and "within 77 control steps" in read
    (run / "dataset.json").write_text('{"path": "x", "fingerprint": {}}')
    assert "trained on demonstrations of 2 point tasks" in plain(report(run)[0])
    (run / "eval" / "result.json").unlink()
    edit(run / "eval" / "protocol.json", sim=to_dict(replace(PLAN.sim, tasks=("a", "b", "c"))))
    change_trials(run, 3)
    assert "10 of 9 episodes are done" in plain(report(run)[0])


def test_a_disturbed_evaluation_says_so(run: Path) -> None:
    assert "At each reset" not in plain(report(run)[0])
    for name in ("protocol.json", "result.json"):
        path = run / "eval" / name
        data = json.loads(path.read_text())
        (data if name == "protocol.json" else data["protocol"])["disturb"] = "camera"
        path.write_text(json.dumps(data))
    assert "At each reset the cameras are turned. Intervals" in plain(report(run)[0])


def test_an_evaluation_without_latencies(run: Path) -> None:
    edit(run / "eval" / "result.json", latency_ms=None)
    assert "not measured: every episode was finished before" in plain(report(run)[0])


def test_an_unfinished_evaluation_counts_episodes_of_its_protocol(run: Path) -> None:
    (run / "eval" / "result.json").unlink()
    change_trials(run, 50)
    assert "10 of 100 episodes are done" in plain(report(run)[0])


def test_unfinished_training_is_reported(run: Path) -> None:
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(lines[:7]))
    assert "Training is at step 70 of 300. To resume it, run: lightwam train point" in plain(report(run)[0])


def test_an_incomplete_last_line_is_left_out_and_reported(run: Path) -> None:
    assert "was incomplete" not in plain(report(run)[0])
    for name in ("log.jsonl", "eval/episodes.jsonl"):
        path = run / name
        path.write_text(path.read_text() + '{"step": 310, "lo')
    read = plain(report(run)[0])
    assert "last line of log.jsonl was incomplete" in read and "last line of episodes.jsonl was incomplete" in read


def test_the_error_on_held_out_episodes_is_drawn(run: Path) -> None:
    assert "Held-out error" not in report(run)[0]
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for row, error in zip(rows[9::10], (4.5, 2.25, 3.0), strict=True):
        row |= {"held_out": error, "held_out_hold": 13.75, "held_out_repeat": 11.5}
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = report(run)[0]
    assert "Held-out error; standing still 13.8, repeating 11.5" in html
    assert "Held-out error over 300 training steps: from 4.5 to 3; standing still has 13.8" in html


def test_diverged_training_is_reported(run: Path) -> None:
    with (run / "log.jsonl").open("a") as log:
        row = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
        log.write(json.dumps({**row, "step": 400, "loss": float("nan")}) + "\n")
    assert "1 of 31 logged losses are not finite numbers" in plain(report(run)[0])


def test_a_resumed_run_shows_each_step_once_and_the_later_line(run: Path) -> None:
    row = json.loads((run / "log.jsonl").read_text().splitlines()[4])
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps({**row, "loss": 77.0}) + "\n")
    log_read = read_evidence(run).log
    assert log_read is not None
    assert len(log_read.columns["step"]) == 30 and log_read.columns["loss"][4] == 77.0
    assert (np.diff(log_read.columns["step"]) > 0).all()


def change_trials(run: Path, trials: int) -> None:
    path = run / "eval" / "protocol.json"
    edit(path, eval=json.loads(path.read_text())["eval"] | {"trials": trials})


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop(path: Path, key: str) -> None:
    data = json.loads(path.read_text())
    del data[key]
    path.write_text(json.dumps(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_line(path: Path, number: int, text: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[number - 1] = text + "\n"
    path.write_text("".join(lines))


BREAKAGES = {
    "log line": (lambda run: spoil_line(run / "log.jsonl", 3, '{"step": 3'), "log.jsonl:3"),
    "last log line, whole": (lambda run: spoil_line(run / "log.jsonl", 30, '{"step": 3'), "log.jsonl:30"),
    "log key": (lambda run: spoil_line(run / "log.jsonl", 5, '{"step": 50}'), "log.jsonl:5"),
    "log value": (lambda run: spoil_line(run / "log.jsonl", 5, '{"step": "x"}'), "log.jsonl:5: step"),
    "log not object": (lambda run: spoil_line(run / "log.jsonl", 2, "[1]"), "log.jsonl:2"),
    "episode": (lambda run: spoil_line(run / "eval/episodes.jsonl", 2, '{"task": "red"}'), "episodes.jsonl:2"),
    "result": (lambda run: cut(run / "eval/result.json"), "result.json"),
    "result key": (lambda run: drop(run / "eval/result.json", "latency_ms"), "result.json"),
    "result count": (lambda run: edit(run / "eval/result.json", successes=99), "result.json"),
    "result interval": (lambda run: edit(run / "eval/result.json", interval_95=[0.9, 0.1]), "interval_95"),
    "wall": (lambda run: edit(run / "result.json", wall_seconds={"train": -1, "total": 3}), "wall_seconds.train"),
    "swap": (lambda run: edit(run / "eval/swap.json", tasks={"red": {}}), "swap.json.tasks.red"),
    "recipe": (lambda run: edit(run / "recipe.json", colour="red"), "recipe.json"),
    "probe cut": (lambda run: cut(run / "eval/probe.npz"), "probe.npz"),
    "probe keys": (lambda run: np.savez(run / "eval/probe.npz", tasks=np.zeros(3)), "probe.npz"),
    "video": (lambda run: cut(run / "eval/videos/red-1000001-success.mp4"), "red-1000001-success.mp4"),
    "weights": (lambda run: cut(run / "checkpoints/step_00003000/model.safetensors"), "model.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_file_is_refused_by_name(run: Path, name: str) -> None:
    breakage, where = BREAKAGES[name]
    breakage(run)
    with pytest.raises(CheckpointError) as caught:
        write_report(run)
    assert where in str(caught.value.where)
    assert not (run / "report.html").exists()


def test_a_probe_of_other_shapes_is_refused(run: Path) -> None:
    path = run / "eval" / "probe.npz"
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    np.savez(path, **{**arrays, "imagined": arrays["imagined"][:, :3]})
    with pytest.raises(CheckpointError, match="recorded moments"):
        write_report(run)


def test_a_directory_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a run directory"):
        write_report(tmp_path)


def test_missing_and_too_large_videos_are_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "eval/videos/red-1000000-success.mp4").unlink()
    text, outline = report(run)
    assert "is no longer in the run" in text and len(outline.all("video")) == 3
    monkeypatch.setattr("lightwam.report.rollouts.MAX_VIDEO_BYTES", 0)
    text, outline = report(run)
    assert text.count("Left out to keep this page small") == 3 and not outline.all("video")
    assert 'href="eval/videos/red-1000001-success.mp4"' in text


def test_swapped_instructions_without_an_effect(run: Path) -> None:
    score = {"successes": 9, "trials": 10}
    edit(run / "eval" / "swap.json", right=score, swapped={**score, "successes": 8})
    assert "does not show that the policy uses the instruction" in plain(report(run)[0])


def test_a_prediction_worse_than_a_frozen_picture(run: Path) -> None:
    assert "The prediction is closer to the real future than a frozen picture" in plain(report(run)[0])
    path = run / "eval" / "probe.npz"
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    np.savez(path, **{**arrays, "imagined": 255 - arrays["imagined"]})
    assert "The prediction is no closer to the real future than a frozen picture" in plain(report(run)[0])


def test_the_watch_is_shown_with_baselines_and_examples(run: Path) -> None:
    text, outline = report(run)
    read = plain(text)
    assert "no effect of the world model is shown" in read
    assert "+0.100, 95 % interval -0.020 to +0.200" in read
    assert "Object moved 0.90 0.80" in read and "9 of 10 3 steps" in read and "Undisturbed 1 of 10" in read
    assert read.count("score 5.5 alarm") == 2 and "score 1.0 alarm" not in read
    lines = [str(one["class"]) for one in outline.all("polyline") if str(one["class"]).startswith("score")]
    assert sorted(lines) == sorted(["score watch"] * 6 + ["score without", "score pictures"] * 2)


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.01, 0.2, "improves the score"), (-0.3, -0.1, "worsens the score")]
)
def test_the_interval_decides_whether_the_world_model_helps_the_watch(
    run: Path, low: float, high: float, said: str
) -> None:
    path = run / "watch" / "result.json"
    data = json.loads(path.read_text())
    data["kinds"]["any"]["gain_over"]["without the world model"] = {"area": low, "interval_95": [low, high]}
    path.write_text(json.dumps(data))
    assert said in plain(report(run)[0])


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        ("result.json", lambda data: data["kinds"]["object"]["ways"]["watch"].update(curve=[[0.0]])),
        ("result.json", lambda data: data["kinds"]["object"]["ways"]["watch"].update(curve=[[0.0], [1.0, 2.0]])),
        ("result.json", lambda data: data["kinds"]["object"]["gain_over"].clear()),
        ("result.json", lambda data: data.update(examples=3)),
        ("examples.npz", lambda data: data["examples"][0].update(kind="other")),
        ("examples.npz", lambda data: data["examples"][0].update(scores=[1.0], look_steps=[4.0])),
        ("result.json", lambda data: data["examples"][0].update(scores=[1.0])),
        ("result.json", lambda data: data["cost_ms"]["see"].clear()),
        ("result.json", lambda data: data["quiet"]["alarms"].update(watch=-1)),
    ],
)
def test_a_broken_watch_is_refused_by_name(run: Path, file: str, spoil: Callable[[Any], object]) -> None:
    path = run / "watch" / "result.json"
    data = json.loads(path.read_text())
    spoil(data)
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError) as error:
        write_report(run)
    assert str(run / "watch" / file) in str(error.value.where)


def test_watch_examples_that_are_not_an_archive_are_refused(run: Path) -> None:
    (run / "watch" / "examples.npz").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="examples cannot be read"):
        write_report(run)
