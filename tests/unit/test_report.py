"""The report: every part of a full run, every part missing, broken files, and the recording of moments."""

from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightwam.config.recipes import recipe
from lightwam.config.schema import to_dict
from lightwam.errors import CheckpointError, ConfigError
from lightwam.evaluation.statistics import wilson
from lightwam.report import write_report
from lightwam.report.charts import even_ticks, log_ticks, moving_average, thin
from lightwam.report.evidence import read_evidence
from lightwam.report.formatting import duration, figures, percent
from lightwam.report.images import jpeg, overlay, spread
from lightwam.report.imagination import differing
from lightwam.report.training import leaves

POINT = recipe("point")
PLAN = replace(
    POINT,
    collect=replace(POINT.collect, demos_per_task=20),
    train=replace(POINT.train, steps=300, batch_size=16, log_every=10),
)
"""sizes of this file's own, so that its sentences do not follow the recipe's"""


TASKS = {"red": "move to the red dot", "blue": "move to the <blue> dot"}
SIZE, FRAMES, QUERIES = 32, 5, 6


def moving_square(task: str, frames: int, size: int = SIZE) -> np.ndarray:
    """A square that walks over a plain ground: uint8 [frames, size, size, 3]."""
    film = np.full((frames, size, size, 3), 60, np.uint8)
    for i in range(frames):
        at = int((size - 8) * i / max(frames - 1, 1))
        film[i, at : at + 8, at : at + 8] = (220, 60, 40) if task == "red" else (40, 90, 220)
    return film


def write_film(path: Path, frames: np.ndarray) -> None:
    """An H.264 mp4 of uint8 frames [T, h, w, 3]."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 20)
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def write_log(run: Path, steps: int, every: int) -> None:
    rng = np.random.default_rng(0)
    with (run / "log.jsonl").open("w") as file:
        for step in range(every, steps + 1, every):
            video, action = (0.1 + 0.9 * np.exp(-step / 400)), (0.004 + 0.4 * np.exp(-step / 300))
            video, action = (value * float(np.exp(0.15 * rng.standard_normal())) for value in (video, action))
            row = {"step": step, "loss": video + action, "loss_video": video, "loss_action": action,
                   "grad_norm": 0.4 + 0.2 * rng.random(),
                   "learning_rate": 1e-3 * min(step / 100, 1 - step / (steps + 1)),
                   "samples_per_second": 240 + 10 * rng.standard_normal(), "seconds": 0.13 * step,
                   "wait_share": 0.004 * rng.random()}  # fmt: skip
            file.write(json.dumps(row) + "\n")


def write_eval(run: Path, tasks: dict[str, str], trials: int, films: dict[str, np.ndarray]) -> None:
    folder, rows, scores = run / "eval", [], {}
    folder.mkdir(parents=True)
    for order, (task, instruction) in enumerate(tasks.items()):
        won = trials - order
        scores[task] = {
            "successes": won,
            "trials": trials,
            "interval_95": list(wilson(won, trials)),
            "instruction": instruction,
        }
        for i in range(trials):
            success, seed = i >= order, 1_000_000 + i
            name = f"videos/{task}-{seed}-{'success' if success else 'failure'}.mp4" if i < 2 else None
            if name:
                write_film(folder / name, films[task])
            rows.append({"task": task, "seed": seed, "success": success, "steps": 40, "video": name,
                         "steps_to_success": 31 if success else None, "seconds": 1.5})  # fmt: skip
    (folder / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    won, ran = sum(s["successes"] for s in scores.values()), trials * len(tasks)
    result = {"successes": won, "trials": ran, "interval_95": list(wilson(won, ran)), "tasks": scores,
              "protocol": {"eval": {"trials": trials, "replan": 8, "first_seed": 1_000_000},
                           "sim": {"tasks": list(tasks), "max_steps": 77},
                           "versions": {"torch": "2.13.0"}},
              "latency_ms": {"p50": 14.2, "p95": 18.9, "p99": 25.1},
              "wall_seconds": {"total": 104.0}}  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "protocol.json").write_text(json.dumps(result["protocol"]))
    whole = {
        **result,
        "machine": {"cores": 2},
        "wall_seconds": {"collect": 171.0, "cache": 9.0, "train": 470.0, "eval": 104.0, "total": 760.0},
    }
    (run / "result.json").write_text(json.dumps(whole))
    swapped = {"right": {"successes": won, "trials": ran}, "swapped": {"successes": 1, "trials": ran}, "tasks": {}}
    for task in tasks:
        other = next(sentence for name, sentence in tasks.items() if name != task)
        swapped["tasks"][task] = {"right": {"successes": trials, "trials": trials}, "swapped_instruction": other,
                                  "swapped": {"successes": 0, "trials": trials}}  # fmt: skip
    (folder / "swap.json").write_text(json.dumps(swapped))


def write_moments(
    path: Path, tasks: dict[str, str], films: dict[str, np.ndarray], taps: tuple[int, ...], tokens: int
) -> None:
    rng, names = np.random.default_rng(1), [task for task in tasks for _ in range(2)]
    real = np.stack([films[task][np.linspace(0, len(films[task]) - 1, FRAMES).astype(int)] for task in names])
    mean = np.concatenate([real[:, :1], real[:, 1:].mean(1, keepdims=True).repeat(FRAMES - 1, 1)], 1)
    weight = rng.dirichlet(np.full(tokens * tokens, 0.08), (len(names), len(taps), QUERIES))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        tasks=np.asarray(names), instructions=np.asarray([tasks[task] for task in names]),
        seeds=np.full(len(names), 1_000_000), steps=np.asarray([0, 24] * len(tasks)), fps=np.float64(20.0),
        video_stride=np.int64(4), imagine_steps=np.int64(20), taps=np.asarray(taps), real=real,
        imagined=np.clip(mean + rng.normal(0, 4, mean[:, :1].shape), 0, 255).astype(np.uint8),
        real_coded=mean.astype(np.uint8),
        real_is_pad=np.zeros(real.shape[:2], bool),
        attention=weight.reshape(len(names), len(taps), QUERIES, tokens, tokens).astype(np.float32),
    )  # fmt: skip


def write_watch(run: Path) -> None:
    """Three looks of each example; the second one raises an alarm."""
    curve = [[0.0, 0.0, 1.0], [0.0, 0.8, 1.0]]

    def way(area: float) -> dict[str, object]:
        return {"area": area, "interval_95": [area - 0.1, 1.0], "curve": curve, "alarms": 9, "delay_steps": 3.0}

    ways = {"watch": way(0.9), "without the world model": way(0.8), "picture difference": way(0.6)}
    gain = {"without the world model": {"area": 0.1, "interval_95": [-0.02, 0.2]}}
    row = {"episodes": 10, "ways": ways, "gain_over": gain, "gain_over_soon": gain}
    kinds = {kind: row for kind in ("object", "frozen", "any")}
    examples = [
        {"kind": kind, "task": "red", "seed": 4, "look": 0, "disturbed_at": 2, "scores": [5.5, 1.0],
         "look_steps": [4, 8], "threshold": 3.0}
        for kind in ("object", "frozen")
    ]  # fmt: skip
    whole = {
        "calibration_episodes": 80, "soon_steps": 8, "false_alarms": 0.05, "kinds": kinds, "examples": examples,
        "quiet": {"episodes": 10, "alarms": {name: 1 for name in ways}},
        "cost_ms": {"see": {"p50_ms": 1.5}, "act": {"p50_ms": 3.0}},
    }  # fmt: skip
    (run / "watch").mkdir()
    (run / "watch" / "result.json").write_text(json.dumps(whole))
    np.savez(run / "watch" / "examples.npz", object=moving_square("red", 3), frozen=moving_square("blue", 3))


def write_weights(run: Path) -> None:
    header = json.dumps(
        {"a": {"dtype": "F32", "shape": [1000, 3000], "data_offsets": [0, 0]}, "__metadata__": {}}
    ).encode()
    folder = run / "checkpoints" / "step_00003000"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    stray = run / "checkpoints" / "step_00003000.bak"  # what a person set aside is not the run's
    stray.mkdir()
    (stray / "model.safetensors").write_bytes(b"")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A whole run of two tasks with synthetic numbers."""
    path = tmp_path / "runs" / "point"
    path.mkdir(parents=True)
    plan = PLAN
    (path / "recipe.json").write_text(json.dumps(to_dict(plan)))
    (path / "dataset.json").write_text('{"path": "x", "episodes": 40, "fingerprint": {}}')
    films = {task: moving_square(task, 12) for task in TASKS}
    write_log(path, plan.train.steps, plan.train.log_every)
    write_eval(path, TASKS, 5, films)
    write_moments(path / "eval" / "probe.npz", TASKS, films, plan.model.backbone.taps, 2)
    write_watch(path)
    write_weights(path)
    return path


class Outline(html.parser.HTMLParser):
    """Checks that tags nest, and collects what a test asks about."""

    VOID = frozenset({"meta", "img", "br", "line", "rect", "path", "polyline", "circle", "input"})

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
    """What a reader reads."""
    without = re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", without).replace("\u202f", " ").split())


def test_a_whole_run_shows_every_part(run: Path) -> None:
    text, outline = report(run)
    read = plain(text)
    assert (
        "A 3M-parameter Light-WAM trained on 40 demonstrations of 2 point tasks succeeds in 9 of 10 episodes it never "
        "saw: 90 % (95 % interval 60 to 98 %), in 12 min 40 s of wall time." in read
    )
    assert [attributes["id"] for attributes in outline.all("section")] == [
        "success", "rollouts", "imagination", "attention", "swap", "watch", "curves", "time", "reproduce"
    ]  # fmt: skip
    assert len(outline.all("video")) == 4
    assert read.count("✗ failure") + text.count("&#10007; failure") == 1
    assert "+0.2 to 0.8 s" in read
    assert "it reads" not in read and "the policy does read the instruction" in read
    assert "14.2 ms" in read and "1 min 44 s" in read and "8 of them executed" in read
    assert "model.backbone.width" in read and "machine.cores" in read and "versions.torch" in read
    assert "This makes it" not in read


def test_the_page_stands_alone_and_is_accessible(run: Path) -> None:
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


def test_the_same_run_gives_the_same_bytes_and_leaves_nothing_beside(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert [path.name for path in run.glob("*report*")] == ["report.html"]


@pytest.mark.parametrize(
    ("gone", "said", "command"),
    [
        (["log.jsonl"], "This run has not been trained yet", "lightwam train point --run"),
        (["eval/result.json", "eval/episodes.jsonl"], "has not been run in closed loop yet", "lightwam eval"),
        (["eval/result.json"], "10 of 10 episodes are done", "lightwam eval"),
        (["eval/episodes.jsonl"], "No episode has been recorded", "lightwam eval"),
        (["eval/result.json"], "latency of an action has not been measured", "lightwam eval"),
        (["eval/probe.npz"], "No moments have been recorded", "lightwam report"),
        (["eval/probe.npz"], "No attention has been recorded", "lightwam report"),
        (["eval/swap.json"], "Nobody has told the policy the wrong sentences", "lightwam report"),
        (["watch/result.json"], "Nobody has measured how well the policy notices", "lightwam watch"),
    ],
)
def test_a_missing_part_is_named_with_its_command(run: Path, gone: list[str], said: str, command: str) -> None:
    for name in gone:
        (run / name).unlink()
    read = plain(report(run)[0])
    assert said in read
    assert re.search(rf"{said}.*?This makes it: {re.escape(command)} ?\S*point", read)


def test_a_run_with_a_recipe_alone_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(to_dict(PLAN)))
    read = plain(report(tmp_path)[0])
    assert "A Light-WAM to be trained on 40 demonstrations of 2 point tasks" in read
    assert read.count("This makes it:") >= 7


def test_numbers_are_of_the_run_and_not_of_its_recipe(run: Path) -> None:
    """It may have been trained on another dataset, and evaluated for other lengths, than the recipe would have it."""
    (run / "dataset.json").write_text('{"path": "x", "episodes": 7, "fingerprint": {}}')
    read = plain(report(run)[0])
    assert "trained on 7 demonstrations of 2 point tasks" in read and "within 77 control steps" in read
    (run / "dataset.json").write_text('{"path": "x", "fingerprint": {}}')
    assert "trained on demonstrations of 2 point tasks" in plain(report(run)[0])
    (run / "eval" / "result.json").unlink()
    edit(run / "eval" / "protocol.json", eval={"trials": 3}, sim={"tasks": ["a", "b", "c"]})
    assert "10 of 9 episodes are done" in plain(report(run)[0])


def test_an_evaluation_without_latencies_is_told_as_that(run: Path) -> None:
    edit(run / "eval" / "result.json", latency_ms=None)
    assert "not measured: no episode was left to run" in plain(report(run)[0])


def test_an_unfinished_evaluation_counts_by_its_own_protocol(run: Path) -> None:
    (run / "eval" / "result.json").unlink()
    edit(run / "eval" / "protocol.json", eval={"trials": 50})
    assert "10 of 100 episodes are done" in plain(report(run)[0])


def test_training_that_stopped_early_is_said(run: Path) -> None:
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(lines[:7]))
    assert "Training is at step 70 of 300." in plain(report(run)[0])


def test_a_torn_last_line_is_tolerated_and_said_only_then(run: Path) -> None:
    assert "was cut off" not in plain(report(run)[0])
    for name in ("log.jsonl", "eval/episodes.jsonl"):
        path = run / name
        path.write_text(path.read_text() + '{"step": 310, "lo')
    read = plain(report(run)[0])
    assert "last line of log.jsonl was cut off" in read and "last line of episodes.jsonl was cut off" in read


def test_a_diverged_run_has_a_report_that_says_so(run: Path) -> None:
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
    "result count": (lambda run: edit(run / "eval/result.json", successes=99), "result.json: successes"),
    "result interval": (lambda run: edit(run / "eval/result.json", interval_95=[0.9, 0.1]), "interval_95"),
    "wall": (lambda run: edit(run / "result.json", wall_seconds={"train": -1, "total": 3}), "wall_seconds: train"),
    "swap": (lambda run: edit(run / "eval/swap.json", tasks={"red": {}}), "swap.json: tasks: red"),
    "recipe": (lambda run: edit(run / "recipe.json", colour="red"), "recipe.json: recipe"),
    "probe cut": (lambda run: cut(run / "eval/probe.npz"), "probe.npz"),
    "probe keys": (lambda run: np.savez(run / "eval/probe.npz", tasks=np.zeros(3)), "probe.npz"),
    "film": (lambda run: cut(run / "eval/videos/red-1000001-success.mp4"), "red-1000001-success.mp4"),
    "weights": (lambda run: cut(run / "checkpoints/step_00003000/model.safetensors"), "model.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_file_is_refused_with_its_place(run: Path, name: str) -> None:
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


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a run directory"):
        write_report(tmp_path)


def test_videos_that_are_gone_or_too_large_are_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "eval/videos/red-1000000-success.mp4").unlink()
    text, outline = report(run)
    assert "is not in the run any more" in text and len(outline.all("video")) == 3
    monkeypatch.setattr("lightwam.report.success.FILM_BYTES", 0)
    text, outline = report(run)
    assert text.count("Left out to keep this page small") == 3 and not outline.all("video")
    assert 'href="eval/videos/red-1000001-success.mp4"' in text


def test_sentences_that_change_nothing_are_called_that(run: Path) -> None:
    score = {"successes": 9, "trials": 10}
    edit(run / "eval" / "swap.json", right=score, swapped={**score, "successes": 8})
    assert "does not show that the policy reads the instruction" in plain(report(run)[0])


def test_an_imagination_worse_than_a_frozen_picture_is_called_that(run: Path) -> None:
    assert "closer to it than a frozen picture" in plain(report(run)[0])
    path = run / "eval" / "probe.npz"
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    np.savez(path, **{**arrays, "imagined": 255 - arrays["imagined"]})
    assert "no closer to it than a frozen picture" in plain(report(run)[0])


def test_the_watch_is_shown_with_its_baselines_and_examples(run: Path) -> None:
    text, outline = report(run)
    read = plain(text)
    assert "this does not show that the world model adds anything" in read
    assert "+0.100, 95 % interval -0.020 to +0.200" in read
    assert "Object moved 0.90 0.80" in read and "9 of 10 3 steps" in read and "Undisturbed 1 of 10" in read
    assert read.count("score 5.5 alarm") == 2 and "score 1.0 alarm" not in read
    lines = [str(one["class"]) for one in outline.all("polyline") if str(one["class"]).startswith("score")]
    assert sorted(lines) == sorted(["score watch"] * 6 + ["score without", "score pictures"] * 2)


@pytest.mark.parametrize(("low", "high", "said"), [(0.01, 0.2, "makes the score better"), (-0.3, -0.1, "worse")])
def test_what_the_world_model_is_worth_is_told_by_the_interval(run: Path, low: float, high: float, said: str) -> None:
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
        ("examples.npz", lambda data: data["examples"][0].update(scores=[1.0])),
    ],
)
def test_a_broken_watch_is_refused_with_its_place(run: Path, file: str, spoil: Callable[[Any], object]) -> None:
    path = run / "watch" / "result.json"
    data = json.loads(path.read_text())
    spoil(data)
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError) as error:
        write_report(run)
    assert str(run / "watch" / file) in str(error.value.where)


def test_examples_that_are_no_archive_are_refused(run: Path) -> None:
    (run / "watch" / "examples.npz").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="examples cannot be read"):
        write_report(run)


def test_wilson_agrees_with_known_values() -> None:
    assert wilson(0, 20) == pytest.approx((0.0, 0.16113), abs=1e-5)
    assert wilson(19, 20) == pytest.approx((0.76387, 0.99112), abs=1e-5)
    assert wilson(20, 20)[1] == 1.0


def test_numbers_read_well() -> None:
    assert [figures(v) for v in (0.0, 0.0123, 3000.0, 460e3, 1e-4, 1.5e-5, 45.23)] == [
        "0", "0.0123", "3,000", "460k", "1e-4", "1.5e-5", "45.2"
    ]  # fmt: skip
    assert [percent(v).replace("\u202f", " ") for v in (0.0, 0.003, 0.95, 0.9999, 1.0)] == [
        "0 %", "0.3 %", "95 %", "99.9 %", "100 %"
    ]  # fmt: skip
    assert [duration(v).replace("\u202f", " ") for v in (4.21, 59.7, 83.0, 3725.0)] == [
        "4.2 s",
        "1 min 0 s",
        "1 min 23 s",
        "1 h 2 min",
    ]


def test_ticks_are_round_and_within() -> None:
    assert even_ticks(0.0, 3000.0, 4) == [0, 1000, 2000, 3000]
    assert even_ticks(0.0, 0.93) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert log_ticks(0.004, 0.4) == pytest.approx([0.005, 0.01, 0.02, 0.05, 0.1, 0.2])
    assert log_ticks(1e-6, 1.0) == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0])


def test_a_long_curve_keeps_its_spikes_and_its_mean() -> None:
    value = np.ones(20_000)
    value[12_345] = 9.0
    kept = thin(value)
    assert 12_345 in kept and len(kept) < 600
    line = np.arange(100.0)
    assert moving_average(line) == pytest.approx(line)


def test_attention_is_spread_over_the_picture_where_it_belongs() -> None:
    weight = np.zeros((2, 4), np.float32)
    weight[1, 0] = 1.0
    full = spread(weight, (20, 40))
    assert full.shape == (20, 40) and full[19, 0] == 1.0 and full[0, 0] == 0.0 and full[19, 39] == 0.0
    picture = np.full((20, 40, 3), 200, np.uint8)
    drawn = overlay(picture, weight)
    assert drawn.shape[0] >= 160 and drawn[-1, 0].sum() > drawn[0, -1].sum()


def test_queries_that_differ_are_chosen() -> None:
    maps = np.full((5, 2, 2), 1.0, np.float32)
    maps[1, 0, 0], maps[3, 1, 1] = 4.0, 3.0
    assert differing(maps, 2) == [1, 3]
    assert differing(maps[:1], 4) == [0]


def test_a_picture_survives_its_coding(tmp_path: Path) -> None:
    import base64
    import io

    import av

    picture = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    uri = jpeg(picture, 2)
    assert uri.startswith("data:image/jpeg;base64,")
    with av.open(io.BytesIO(base64.b64decode(uri.split(",")[1])), format="mjpeg") as container:
        back = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(back.astype(int) - picture.astype(int)).mean() < 4


def test_settings_are_flattened() -> None:
    assert leaves({"a": {"b": 1, "c": "x"}, "d": [1, 2], "e": [{"f": None}]}) == [
        ("a.b", "1"), ("a.c", "x"), ("d", "[1, 2]"), ("e[0].f", "null")
    ]  # fmt: skip


class FakePolicy:
    """Walks right; imagines the present standing still; looks evenly."""

    def __init__(self, codec: object, latents: object) -> None:
        self.recipe = replace(PLAN, eval=replace(PLAN.eval, replan=3))
        self.codec, self.latents = codec, latents
        self.asked = 0

    def act(self, observation: object) -> np.ndarray:
        self.asked += 1
        return np.tile(np.asarray([0.5, 0.0], np.float32), (8, 1))

    def imagine(self, observation: object, seed: int, num_steps: int) -> np.ndarray:
        return self.codec.canvas(observation.frames)[None].repeat(FRAMES, 0)

    def look(self, observation: object) -> list[np.ndarray]:
        return [np.full((4, 2, 2), 0.25, np.float32)] * 2


@pytest.fixture
def policy() -> FakePolicy:
    import torch

    from lightwam.data.codec import Codec
    from lightwam.data.statistics import measure
    from lightwam.encoders.dct import DctLatents

    plan = PLAN
    both = measure(np.random.default_rng(0).uniform(-1, 1, (50, 2)).astype(np.float32))
    latents = DctLatents.fit(plan.latents, torch.rand(4, 3, SIZE, SIZE) * 2 - 1)
    return FakePolicy(Codec(plan.codec, both, both), latents)


def test_moments_are_recorded_as_they_came(policy: FakePolicy, run: Path) -> None:
    from lightwam.evaluation.probe import record_probe
    from lightwam.sim.registry import make_simulator as make

    plan, path = policy.recipe, run / "eval" / "probe.npz"
    simulators = {task: make(plan.sim, task) for task in TASKS}
    record_probe(policy, simulators, path, moments=(0, 5), imagine_steps=3)
    probe = read_evidence(run).probe
    assert probe is not None
    assert probe.tasks == ("red", "red", "blue", "blue") and probe.steps.tolist() == [0, 5, 0, 5]
    assert probe.imagine_steps == 3 and probe.fps == simulators["red"].fps and not probe.real_is_pad.any()

    alone = make(plan.sim, "red")
    alone.reset(plan.eval.first_seed)
    came = []
    for _ in range(14):
        came.append(policy.codec.canvas(alone.observe().frames))
        alone.step(np.asarray([0.5, 0.0], np.float32))
    assert (probe.real[0] == np.stack(came[0:9:2])).all()
    assert (probe.real[1] == np.stack(came[5:14:2])).all()
    assert (probe.imagined[1] == came[5]).all()
    assert (probe.real_coded[0, 1] == probe.real_coded[0, 4]).all()
    assert policy.asked == 2 * len(range(0, 14, 3))
    write_report(run)


def test_an_episode_that_ends_early_is_marked(policy: FakePolicy, run: Path) -> None:
    from lightwam.evaluation.probe import record_probe
    from lightwam.sim.registry import make_simulator as make
    from lightwam.sim.simulator import StepOutcome

    simulator = make(policy.recipe.sim, "red")
    step, count = simulator.step, iter(range(100))
    simulator.step = lambda action: StepOutcome(step(action).success, next(count) == 3)
    record_probe(policy, {"red": simulator}, run / "eval" / "probe.npz", moments=(0, 30))
    probe = read_evidence(run).probe
    assert probe is not None
    assert probe.real_is_pad.tolist() == [[False, False, False, True, True]]
    assert (probe.real[0, 3] == probe.real[0, 2]).all() and (probe.real[0, 2] != probe.real[0, 0]).any()
    with pytest.raises(ConfigError, match="no moment"):
        record_probe(policy, {}, run / "eval" / "probe.npz")
