"""surprise.py: what is usual is learnt from quiet episodes; what comes or is missed beside that is told, and saved."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightwam.errors import CheckpointError, ConfigError, WireError
from lightwam.evaluation.watch.surprise import (
    Calibration,
    ChangeModel,
    Predictions,
    SurpriseWatch,
    calibrate,
    conformal,
    out_of_fold,
)
from lightwam.policy.policy import Policy
from lightwam.sim import registry
from lightwam.types import Observation

SHAPE = (3, 4, 6)


def quiet_episode(seed: int, looks: int = 6, noise: float = 0.1) -> Predictions:
    """A world of which the model foresees half of every change, and noise that it does not."""
    rng = np.random.default_rng(seed)
    present = [rng.normal(size=SHAPE)]
    expected = []
    for _ in range(looks):
        foreseen = rng.normal(size=SHAPE)
        expected.append(present[-1] + foreseen)
        present.append(present[-1] + 0.5 * foreseen + noise * rng.normal(size=SHAPE))
    return Predictions(np.stack(present[:-1]).astype(np.float32), np.stack(expected).astype(np.float32))


def calibrated(count: int = 40, false_alarms: float = 0.1) -> Calibration:
    return calibrate([quiet_episode(i) for i in range(count)], {"t": count}, executed=4, step=7,
                     false_alarms=false_alarms)  # fmt: skip


def test_the_change_model_fits_the_gain_of_predicted_changes() -> None:
    moments = [quiet_episode(i).moments() for i in range(200)]
    stick = ChangeModel.fit(*(np.concatenate(column) for column in zip(*moments, strict=True)))
    np.testing.assert_allclose(stick.gain, 0.5, atol=0.02)
    np.testing.assert_allclose(stick.offset, 0, atol=0.02)
    np.testing.assert_allclose(stick.spread, 0.1, atol=0.01)


def test_a_useless_model_gets_no_weight_and_a_still_patch_a_spread() -> None:
    rng = np.random.default_rng(0)
    change, foreseen = rng.normal(size=(2, 50, *SHAPE))
    change[:, :, 0, 0] = 0
    stick = ChangeModel.fit(change, -change + 0.1 * foreseen)
    assert stick.gain.min() == 0 and stick.gain.max() < 0.1
    assert stick.spread[:, 0, 0].min() > 0.01


def test_unpredicted_and_missing_changes_are_surprising() -> None:
    calibration, looks = calibrated(), quiet_episode(99)
    assert calibration.scores(looks).max() <= calibration.threshold
    moved = looks.present.copy()
    moved[3:, :, 1:3, 1:4] += 1.0  # something else is there from the fourth look on
    scores = calibration.scores(Predictions(moved, looks.expected + (moved - looks.present)))
    assert scores.argmax() == 2
    assert scores[2] > calibration.threshold
    assert calibration.p_value(float(scores[2])) == 1 / (1 + len(calibration.moments))
    assert np.delete(scores, 2).max() <= calibration.threshold
    frozen = looks.present[[0, 0, 0, 0, 0, 0]]
    foreseen = looks.expected - looks.present
    parts = calibration.standardise(calibration.change_model.parts(*Predictions(frozen, frozen + foreseen).moments()))
    assert (parts[:, 1] > calibration.threshold).all()


def test_false_alarms_stay_at_the_rate_and_p_values_are_even() -> None:
    calibration = calibrated(60, 0.1)
    new = [calibration.scores(quiet_episode(1000 + i)) for i in range(300)]
    rate = np.mean([scores.max() > calibration.threshold for scores in new])
    assert 0.02 < rate < 0.2
    p = np.array([calibration.p_value(float(score)) for score in np.concatenate(new)])
    assert abs(np.mean(p < 0.5) - 0.5) < 0.08
    assert abs(np.mean(p < 0.1) - 0.1) < 0.05


def test_an_episode_is_judged_by_what_the_others_taught() -> None:
    """In its own yardstick a lone odd episode would look usual."""
    seen = [quiet_episode(i).moments() for i in range(10)]
    judged: list[tuple[int, int]] = []

    def parts(train: Any, test: Any) -> np.ndarray:
        judged.append((len(train[0]), len(test[0])))
        assert not any(np.array_equal(row, test[0][0]) for row in train[0])
        return np.zeros((len(test[0]), 2))

    out = out_of_fold(seen, parts)
    assert [len(rows) for rows in out] == [5] * 10
    assert judged == [(8 * 5, 5)] * 10


def test_the_threshold_is_an_order_statistic() -> None:
    assert conformal(np.arange(19.0), 0.05) == 18
    assert conformal(np.arange(18.0), 0.05) is None
    assert conformal(np.arange(99.0)[::-1], 0.1) == 89


def test_too_few_episodes_are_refused() -> None:
    with pytest.raises(ConfigError, match="too few undisturbed episodes") as error:
        calibrated(12, 0.05)
    assert error.value.expected == "at least 19 episodes"
    short = [replace_length(quiet_episode(i), 1) for i in range(30)]
    with pytest.raises(ConfigError, match="too few"):
        calibrate(short, {"t": 30}, executed=4, step=1, false_alarms=0.2)


def replace_length(looks: Predictions, length: int) -> Predictions:
    return Predictions(looks.present[:length], looks.expected[:length])


def test_a_calibration_is_saved_and_loaded(tmp_path: Path) -> None:
    calibration = calibrated()
    calibration.write(tmp_path)
    read = Calibration.read(tmp_path)
    looks = quiet_episode(3)
    np.testing.assert_allclose(read.scores(looks), calibration.scores(looks), rtol=1e-4)
    assert (read.num_episodes, read.tasks, read.executed, read.checkpoint_step) == (40, {"t": 40}, 4, 7)
    assert read.threshold == pytest.approx(calibration.threshold)


def test_a_missing_calibration_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="lightwam watch"):
        Calibration.read(tmp_path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.pop("centre"),
        lambda data: data.update(more=1),
        lambda data: data.update(format=2),
        lambda data: data["yardstick"].pop("gain"),
        lambda data: data["yardstick"].update(gain=[[1.0]]),
        lambda data: data["yardstick"].update(gain="many"),
        lambda data: data.update(moments=[1.0, float("nan")]),
        lambda data: data.update(threshold="high"),
    ],
)
def test_a_broken_calibration_is_refused_with_its_place(tmp_path: Path, spoil: Any) -> None:
    calibrated().write(tmp_path)
    data = json.loads((tmp_path / "surprise.json").read_text())
    spoil(data)
    (tmp_path / "surprise.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="is broken") as error:
        Calibration.read(tmp_path)
    assert error.value.where == tmp_path / "surprise.json"


@pytest.fixture(scope="module")
def trained(tiny_once: Any) -> Policy:
    return Policy.load(tiny_once.run)


def walk(tiny: Any, seed: int, looks: int = 4) -> list[Observation]:
    simulator = registry.make_simulator(tiny.recipe.sim, "red")
    simulator.reset(seed)
    seen = []
    for _ in range(looks):
        seen.append(simulator.observe())
        for _ in range(tiny.recipe.eval.replan):
            simulator.step(np.array([0.3, -0.5], np.float32))
    return seen


def looks_of(policy: Policy, seen: Sequence[Observation]) -> Predictions:
    return Predictions(*policy.predict_next(seen))


@pytest.fixture(scope="module")
def calibration(tiny_once: Any, trained: Policy) -> Calibration:
    episodes = [looks_of(trained, walk(tiny_once, seed)) for seed in range(12)]
    replan = tiny_once.recipe.eval.replan
    return calibrate(episodes, {"red": 12}, executed=replan, step=trained.step, false_alarms=0.2)


def test_predictions_are_deterministic(tiny_once: Any, trained: Policy) -> None:
    seen = walk(tiny_once, 3)
    present, expected = trained.predict_next(seen)
    again = trained.predict_next(seen[1:2])
    np.testing.assert_allclose(present[1], again[0][0], atol=1e-5)
    np.testing.assert_allclose(expected[1], again[1][0], atol=1e-4)
    assert present.shape == expected.shape == (4, trained.latents.channels, 2, 2)


def test_a_watched_episode_scores_like_the_calibration(
    tiny_once: Any, trained: Policy, calibration: Calibration
) -> None:
    seen, replan = walk(tiny_once, 50), tiny_once.recipe.eval.replan
    episode = SurpriseWatch(trained, calibration).episode()
    assert episode.update(seen[0], 0) is None
    told = [episode.update(one, replan) for one in seen[1:]]
    expected = calibration.scores(looks_of(trained, seen))
    np.testing.assert_allclose([surprise.score for surprise in told if surprise], expected, atol=1e-3)
    for surprise in told:
        assert surprise is not None and surprise.executed_as_calibrated
        assert surprise.alarm == (surprise.score > calibration.threshold)
        assert surprise.p_value == calibration.p_value(surprise.score)
        assert surprise.camera in tiny_once.recipe.sim.cameras
        assert json.loads(json.dumps(surprise.to_dict()))["score"] == surprise.score


def test_the_camera_that_is_odd_is_named(tiny_once: Any, trained: Policy, calibration: Calibration) -> None:
    seen, replan = walk(tiny_once, 51), tiny_once.recipe.eval.replan
    for camera in tiny_once.recipe.sim.cameras:
        episode = SurpriseWatch(trained, calibration).episode()
        episode.update(seen[0], 0)
        odd = replace(seen[1], frames={**seen[1].frames, camera: 255 - seen[1].frames[camera]})
        surprise = episode.update(odd, replan)
        assert surprise is not None
        assert (surprise.camera, surprise.alarm, surprise.missed) == (camera, True, False)


def test_observations_at_another_distance_are_marked(tiny_once: Any, trained: Policy, calibration: Calibration) -> None:
    seen, episode = walk(tiny_once, 52), SurpriseWatch(trained, calibration).episode()
    assert episode.update(seen[0], 0) is None
    surprise = episode.update(seen[1], tiny_once.recipe.eval.replan - 1)
    assert surprise is not None and not surprise.executed_as_calibrated
    assert episode.update(seen[2], 0) is None


def test_episodes_do_not_know_one_another(tiny_once: Any, trained: Policy, calibration: Calibration) -> None:
    watch, seen = SurpriseWatch(trained, calibration), walk(tiny_once, 53)
    one, two = watch.episode(), watch.episode()
    one.update(seen[0], 0)
    assert two.update(seen[1], 4) is None


def test_a_broken_observation_is_refused_and_changes_nothing(
    tiny_once: Any, trained: Policy, calibration: Calibration
) -> None:
    seen, replan = walk(tiny_once, 54), tiny_once.recipe.eval.replan
    watch = SurpriseWatch(trained, calibration)
    one, two = watch.episode(), watch.episode()
    for episode in (one, two):
        episode.update(seen[0], 0)
    with pytest.raises(WireError):
        one.update(replace(seen[1], frames={}), replan)
    assert one.update(seen[1], replan) == two.update(seen[1], replan)


def test_another_policys_calibration_is_refused(trained: Policy, calibration: Calibration, tiny: Any) -> None:
    for other in (replace(calibration, checkpoint_step=1), calibrated()):
        with pytest.raises(CheckpointError, match="another policy"):
            SurpriseWatch(trained, other)
    calibration.write(tiny.run)
    assert SurpriseWatch.load(tiny.run, trained).calibration.num_episodes == 12
