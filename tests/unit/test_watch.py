"""watch.py and watch_scores.py: disturbed and undisturbed episodes are driven, kept, and told apart or not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightwam.cli.watch import run as run_command
from lightwam.cli.watch import table
from lightwam.errors import CheckpointError, ConfigError
from lightwam.evaluation.watch.measure import watch
from lightwam.evaluation.watch.scores import ANY, PICTURES, STATE, WATCH, WITHOUT, WatchedEpisode, measure
from lightwam.evaluation.watch.settings import WatchConfig
from lightwam.evaluation.watch.surprise import Calibration, calibrate
from lightwam.report import write_report
from lightwam.system import timing

SHAPE, REPLAN = (2, 3, 3), 4
SETTINGS = WatchConfig(undisturbed=5, trials=1, false_alarms=0.2, workers=0)


def shown(seed: int, kind: str = "quiet", look: int = 1, looks: int = 5, jump: float = 0.0) -> WatchedEpisode:
    """An episode that drifts as foreseen, and jumps after the look `look`."""
    rng = np.random.default_rng([seed, len(kind)])
    drift = rng.normal(size=(looks, *SHAPE))
    present = np.cumsum(0.5 * drift + 0.1 * rng.normal(size=drift.shape), 0)
    present[look + 1 :] += jump
    foreseen = np.roll(drift, -1, 0)
    states = np.cumsum(np.ones((looks, 2)) + 0.01 * rng.normal(size=(looks, 2)), 0)
    return WatchedEpisode(
        task="t", seed=seed, kind=kind, look=look, disturbed_at=-1 if kind == "quiet" else REPLAN * look + 2,
        steps=REPLAN * looks, success=True, present=present.astype(np.float32),
        expected=(present + foreseen).astype(np.float32), states=states.astype(np.float32),
        actions=np.ones((looks, REPLAN, 2), np.float32), pixels=np.abs(np.diff(present, axis=0)).mean((1, 2, 3)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def quiet() -> list[WatchedEpisode]:
    return [shown(i, look=-1) for i in range(40)]


@pytest.fixture(scope="module")
def calibration(quiet: list[WatchedEpisode]) -> Calibration:
    return calibrate([one.predictions for one in quiet], {"t": 40}, executed=REPLAN, step=1,
                     false_alarms=0.1)  # fmt: skip


def test_a_jump_is_detected_at_the_next_observation(quiet: list[WatchedEpisode], calibration: Calibration) -> None:
    tried = [one for i in range(100, 130) for one in (shown(i), shown(i, "object", jump=3.0), shown(i, "camera"))]
    result = measure(calibration, quiet, tried)
    found, nothing = result["kinds"]["object"], result["kinds"]["camera"]
    assert found["ways"][WATCH]["area"] == 1
    assert found["ways"][WATCH]["alarms"] == found["episodes"] == 30
    assert found["ways"][WATCH]["delay_steps"] == 2  # disturbed at step 6, seen at 8
    assert found["ways"][PICTURES]["area"] > 0.9
    low, high = nothing["ways"][WATCH]["soon"]["interval_95"]
    assert low < 0.5 < high
    assert abs(found["ways"][STATE]["soon"]["area"] - 0.5) < 0.2  # the robot itself noticed nothing
    assert result["kinds"][ANY]["episodes"] == 60
    assert result["quiet"]["episodes"] == 30
    assert 0.9 < result["foreseen_share"] < 1  # 0.25 of the change's square is foreseen, 0.01 noise
    assert result["quiet"]["alarms"][WATCH] <= 8
    assert len(found["ways"][WITHOUT]["curve"]) == 2
    assert "30 of 30  2 steps" in table(result)
    json.dumps(result)


def test_where_the_model_knows_more_than_the_picture_before_the_gain_says_so(
    quiet: list[WatchedEpisode], calibration: Calibration
) -> None:
    tried = [one for i in range(200, 240) for one in (shown(i), shown(i, "object", jump=0.25))]
    gain = measure(calibration, quiet, tried)["kinds"]["object"]["gain_over_soon"][WITHOUT]
    assert gain["interval_95"][0] > 0


def test_an_episode_that_ends_before_an_observation_is_counted(
    quiet: list[WatchedEpisode], calibration: Calibration
) -> None:
    tried = [one for i in range(300, 306) for one in (shown(i), shown(i, "object", jump=3.0))]
    tried.append(shown(310, "object", look=4))
    row = measure(calibration, quiet, tried)["kinds"]["object"]
    assert (row["episodes"], row["ended_before"]) == (6, 1)


def test_the_example_is_a_median_episode(quiet: list[WatchedEpisode], calibration: Calibration) -> None:
    tried = [one for i, jump in enumerate((9.0, 3.0, 1.5)) for one in (shown(i), shown(i, "object", jump=jump))]
    example = measure(calibration, quiet, tried)["examples"][0]
    assert (example["seed"], example["kind"], example["look"], example["disturbed_at"]) == (1, "object", 1, 6)
    assert example["look_steps"] == [4, 8, 12, 16]
    assert np.argmax(example["scores"]) == 1


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "REPETITIONS", 2)
    monkeypatch.setattr(timing, "WARM_UP", 1)


@pytest.mark.usefixtures("brief")
def test_a_watch_is_calibrated_tested_reported_and_resumed(tiny: Any) -> None:
    said: list[str] = []
    result = watch(tiny.run, SETTINGS, say=said.append)
    assert set(result["kinds"]) == {"object", "camera", "frozen", ANY}
    calibration = Calibration.read(tiny.run)
    assert calibration.num_episodes == 10
    assert json.loads((tiny.run / "watch" / "result.json").read_text())["calibration_episodes"] == 10
    looks = sorted((tiny.run / "watch" / "looks").rglob("*.npz"))
    assert len(looks) == 10 + 2 * 4
    before = {path: path.stat().st_mtime_ns for path in looks}
    looks[0].unlink()
    again = watch(tiny.run, SETTINGS, say=said.append)
    assert again["kinds"] == result["kinds"]
    assert {path: path.stat().st_mtime_ns for path in looks[1:]} == {path: before[path] for path in looks[1:]}
    text = write_report(tiny.run).read_text()
    assert "Runtime watch" in text and "detects disturbances has not" not in text
    assert text.count('<article class="example">') == 3
    with pytest.raises(CheckpointError, match="other settings"):
        watch(tiny.run, replace(SETTINGS, trials=2), say=said.append)
    looks[0].write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="a watched episode cannot be read"):
        watch(tiny.run, SETTINGS, say=said.append)


def test_too_few_episodes_are_refused_before_any_is_run(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="too few undisturbed"):
        watch(tiny.run, replace(SETTINGS, false_alarms=0.05))
    assert not (tiny.run / "watch").exists()


def test_the_command_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    for words in (["--undisturbed", "0"], ["--false-alarms", "1"], ["--workers", "-1"]):
        with pytest.raises(ConfigError, match="settings of the watch are out of range"):
            run_command([str(tmp_path), *words])
