"""Open loop: recorded episodes, chunks replayed by the player, errors beside baselines, and what is said about them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arm import EPISODES, NAMES, SENTENCES, STEPS, targets, write_dataset

from lightwam.cli.main import main
from lightwam.config.commands import ControlSettings, OpenLoopSettings
from lightwam.config.schema import CodecConfig
from lightwam.errors import CheckpointError, ConfigError, DatasetError
from lightwam.evaluation.open_loop import Predicted, evaluate_open_loop, measure, predict
from lightwam.evaluation.open_loop_text import best_way, tables, verdict
from lightwam.evaluation.recorded import Recorded, recorded_episodes
from lightwam.evaluation.recorded_latency import bench_recorded_control
from lightwam.evaluation.replay import replay, smoothness, switch_dims
from lightwam.policy.policy import Policy
from lightwam.robot.chunks import Crossfade, Ensemble
from lightwam.robot.player import Play
from lightwam.training.dataset import open_training_data

REPLANS = [2, 4, 8]


@pytest.fixture(scope="module")
def policy(arm_once: Any) -> Policy:
    return Policy.load(arm_once.run)


@pytest.fixture(scope="module")
def recorded(policy: Policy) -> Recorded:
    return recorded_episodes(policy)


def perfect(recorded: Recorded, horizon: int = 8) -> Predicted:
    """What a policy would predict that knows the recorded actions; told another sentence it does nothing."""
    last = np.repeat(recorded.episode_start[1:] - 1, np.diff(recorded.episode_start))
    steps = np.minimum(np.arange(recorded.num_steps)[:, None] + np.arange(horizon), last[:, None])
    chunks = recorded.action[steps]
    other_at = np.arange(0, recorded.num_steps, 3)
    return Predicted(chunks, other_at, np.zeros_like(chunks[other_at]))


def result_of(policy: Policy, recorded: Recorded, predicted: Predicted) -> dict[str, Any]:
    return measure(policy, recorded, predicted, OpenLoopSettings(blend=2), REPLANS)


def test_episodes_are_those_held_out_of_training(policy: Policy, recorded: Recorded, arm_once: Any) -> None:
    cache, _ = open_training_data(arm_once.recipe, arm_once.dataset, arm_once.run, lambda line: None)
    assert cache.sampling.held_out == tuple(each.index for each in recorded.episodes)
    assert recorded.held_out and len(recorded.episodes) == 2 and recorded.num_steps == 2 * STEPS
    assert sorted(each.instruction for each in recorded.episodes) == sorted(SENTENCES) == list(recorded.sentences)
    for each in recorded.episodes:
        np.testing.assert_array_equal(each.action, targets(each.index))
        first, *_, last = each.observations(policy.cameras)
        assert first.instruction == each.instruction and first.frames["front"].shape == (32, 32, 3)
        np.testing.assert_array_equal(last.state, each.state[-1])
        assert np.abs(last.frames["front"].astype(int) - first.frames["front"]).max() > 50


def test_the_dataset_of_training_is_not_held_out(policy: Policy, arm_once: Any) -> None:
    everything = recorded_episodes(policy, arm_once.dataset)
    assert not everything.held_out and len(everything.episodes) == EPISODES


def test_of_a_chunk_the_supervised_steps_are_measured(policy: Policy, recorded: Recorded) -> None:
    shorter = Policy.load(policy.run)
    shorter.recipe = replace(policy.recipe, model=replace(policy.recipe.model, supervised_prefix=5))
    predicted = predict(shorter, recorded, lambda line: None)
    assert predicted.chunks.shape == (recorded.num_steps, 5, 3) and predicted.other.shape[1:] == (5, 3)


def test_of_long_datasets_some_episodes_of_each_sentence_are_used(
    policy: Policy, arm_once: Any, tmp_path: Path
) -> None:
    other = recorded_episodes(policy, shutil.copytree(arm_once.dataset, tmp_path / "copy"), most_steps=3 * STEPS + 5)
    assert other.held_out and [each.index for each in other.episodes] == [0, 1, 2]
    assert len(recorded_episodes(policy, arm_once.dataset, most_steps=1).episodes) == 1


def test_a_run_that_held_nothing_out_is_measured_on_its_training_episodes(policy: Policy) -> None:
    trained = Policy.load(policy.run)
    trained.recipe = replace(policy.recipe, held_out=replace(policy.recipe.held_out, share=0.0))
    everything = recorded_episodes(trained)
    assert not everything.held_out and len(everything.episodes) == EPISODES
    result = result_of(trained, everything, perfect(everything))
    assert "trained on" in result["verdict"][0] and "training episodes" in tables(result)


def test_a_perfect_policy_has_no_error_and_moves_as_was_recorded(policy: Policy, recorded: Recorded) -> None:
    result = result_of(policy, recorded, perfect(recorded))
    assert result["overall"]["policy"] == result["first_step"]["policy"] == 0 < result["overall"]["hold"]
    assert result["windows"] == recorded.num_steps - 2 and result["counts"][:2] == [46, 44]
    for row in result["replays"]:
        if row["joining"] == "at once":
            assert row["error"] == [0, 0, 0] and row["jump"] == row["recorded_jump"] and row["jitter"] == 1
            assert row["held"] == 0 and row["age"] == pytest.approx((row["replan"] - 1) / 2, abs=0.5)
    learned, first, reads, border, best = result["verdict"]
    assert learned.startswith("It learned: error 0,") and "no worse than repeating" in first
    assert reads.startswith("It reads the sentence") and "is smooth" in border and best.startswith("Try first: replan ")


def test_a_policy_that_repeats_the_last_action_did_not_learn(policy: Policy, recorded: Recorded) -> None:
    chunks = np.repeat(np.concatenate([recorded.action[:1], recorded.action[:-1]])[:, None], 8, 1)
    predicted = perfect(recorded)
    result = result_of(policy, recorded, Predicted(chunks, predicted.other_at, chunks[predicted.other_at]))
    assert result["overall"]["policy"] == pytest.approx(result["overall"]["repeat"])
    assert result["verdict"][0].startswith("It is not better than") and "does not read" in result["verdict"][2]


def test_chunks_that_start_elsewhere_jump_at_their_borders(policy: Policy, recorded: Recorded) -> None:
    exact = perfect(recorded)
    chunks = exact.chunks + np.float32([12, 12, 0]) * np.linspace(1, 0, 8, dtype=np.float32)[:, None]
    result = result_of(policy, recorded, Predicted(chunks, exact.other_at, exact.other))
    assert "worse than repeating" in result["verdict"][1] and "jumps" in result["verdict"][3]
    rows = {(row["replan"], row["joining"]): row for row in result["replays"]}
    assert rows[4, "at once"]["jump"][0] > 1 + rows[4, "at once"]["recorded_jump"][0]
    assert rows[4, "cross-fade 2"]["jump"][0] < rows[4, "at once"]["jump"][0]
    way = best_way(result)
    assert way is None or way["jitter"] <= 2


def test_a_rough_way_of_playing_is_not_recommended(policy: Policy, recorded: Recorded) -> None:
    result = result_of(policy, recorded, perfect(recorded))
    for row in result["replays"]:  # the rougher, the smaller the error
        row["jitter"] = 2.5 if row["joining"] == "at once" else 1.5
        row["error"] = [0.1] * 3 if row["joining"] == "at once" else [1.0] * 3
    way = best_way(result)
    assert way is not None and way["joining"] != "at once"
    assert verdict(result)[-1] == f"Try first: replan 2, {way['joining']} (error 1, jitter 1.5 times the recording's)."
    for row in result["replays"]:
        row["jitter"] *= 2
    assert best_way(result) is None and verdict(result)[-1].startswith("No way of playing is smooth: the least jitter")


def test_a_player_is_answered_late_and_holds_when_it_has_no_chunk_left() -> None:
    steps = np.arange(12, dtype=np.float32)[:, None]
    chunks = (steps + np.arange(6, dtype=np.float32))[..., None]  # the action of step t is t
    for latency in (0, 1, 3):
        played = replay(chunks, Play(3), latency)
        np.testing.assert_array_equal(played.action, steps)  # late steps are dropped
        assert np.flatnonzero(played.border)[0] == 3 + latency and played.age[3 + latency] == latency
        measured = smoothness([played], [steps], ())
        assert measured.error.tolist() == [0] and measured.held == 0 and measured.jump.tolist() == [1]
    assert played.age.tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5]
    late = replay(chunks, Play(3, compensate=False), 3)
    assert smoothness([late], [steps], ()).error[0] > 0
    gone = replay(chunks, Play(6), 9)  # six steps, asked again with the last one, and the answer comes too late
    assert gone.played.tolist() == [True] * 6 + [False] * 6 and gone.action[6:].tolist() == [[5]] * 6
    assert smoothness([gone], [steps], ()).held == 0.5 and smoothness([gone], [steps], ()).error[0] == 0


@pytest.mark.parametrize("join", [Crossfade(3), Ensemble(0.01)])
def test_joining_is_the_players_own(join: Any) -> None:
    offsets = np.random.default_rng(0).normal(size=(20, 1, 2)).astype(np.float32)
    rough, joined = (replay(offsets.repeat(8, 1), Play(2, how, (1,))) for how in (Crossfade(), join))
    recorded = [np.zeros((20, 2), np.float32)]
    assert smoothness([joined], recorded, (1,)).jump[0] < smoothness([rough], recorded, (1,)).jump[0]
    np.testing.assert_array_equal(joined.action[:, 1], rough.action[:, 1])  # a switch is never blended


def test_switches_are_what_is_neither_motion_nor_relative_or_else_the_grippers() -> None:
    config = CodecConfig(canvas=(8, 8), places=())
    assert switch_dims(config, ("pan.pos", "Gripper.pos")) == (1,)
    assert switch_dims(replace(config, delta_action_dims=(0, 2)), ("x", "grip", "z")) == (1,)
    assert switch_dims(replace(config, relative_action_dims=(0,)), ("x", "y")) == (1,)


def test_the_command_measures_writes_and_prints(arm_once: Any, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    shutil.copytree(arm_once.run, run)
    main(["eval", str(run), "--replan", "4", "8"])
    printed = capsys.readouterr().out
    assert "2 held-out episodes of dataset, 46 chunks" in printed and NAMES[0] in printed and "cross-fade 4" in printed
    saved = json.loads((run / "eval" / "open_loop.json").read_text())
    assert set(saved["by_dim"]) == {"policy", "hold", "repeat"} and [row["replan"] for row in saved["replays"]][
        ::3
    ] == [4, 8]
    assert saved["sentences"]["windows"] == 46 and saved["policy"]["checkpoint_step"] == 20
    with np.load(run / "eval" / "open_loop.npz") as arrays:
        assert arrays["chunks"].shape == (12, 8, 3) and arrays["action"].shape == (48, 3)
        assert arrays["chunk_start"].tolist() == [*range(0, 48, 4)] and "state" not in arrays
    assert not (run / "eval" / "result.json").exists()


def test_what_cannot_be_measured_is_refused(policy: Policy, arm_once: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="replan is out of range"):
        evaluate_open_loop(arm_once.run, OpenLoopSettings(replan=(9,)), policy=policy)
    run = tmp_path / "run"
    shutil.copytree(arm_once.run, run)
    moved = Policy.load(run)
    record = json.loads((run / "dataset.json").read_text())
    (run / "dataset.json").write_text(json.dumps(record | {"path": str(tmp_path / "gone")}))
    with pytest.raises(DatasetError, match=r"not there(.|\n)*--dataset"):
        recorded_episodes(moved)
    (run / "dataset.json").write_text(json.dumps(record | {"others": [record]}))
    with pytest.raises(CheckpointError, match=r"the datasets of its recipe(.|\n)*2 datasets(.|\n)*next: "):
        recorded_episodes(moved)
    (run / "dataset.json").write_text(json.dumps(record | {"episodes": 5}))
    with pytest.raises(DatasetError, match="as it was when the run began"):
        recorded_episodes(moved)
    (run / "dataset.json").unlink()
    with pytest.raises(CheckpointError, match="what it was trained on"):
        recorded_episodes(moved)
    moved.recipe = replace(moved.recipe, model=replace(moved.recipe.model, action_dim=2))
    with pytest.raises(DatasetError, match="the policy's width"):
        recorded_episodes(moved, write_dataset(tmp_path / "again"))


def test_latency_is_measured_along_recorded_episodes(arm_once: Any, capsys: Any) -> None:
    main(["bench", "control", str(arm_once.run), "--latencies-ms", "0", "200", "--replan", "3"])
    printed = capsys.readouterr().out
    assert "2 held-out episodes at 10 Hz" in printed and "200 ms = 2" in printed and "+ compensation" in printed
    policy = Policy.load(arm_once.run)
    result = bench_recorded_control(policy, ControlSettings(latencies_ms=(0.0, 200.0)), 3, lambda line: None)
    rows = {(row["latency_ms"], row["way"]): row for row in result["rows"]}
    assert rows[200.0, "+ compensation"]["age_steps"] > rows[0.0, "+ compensation"]["age_steps"] + 1
    with pytest.raises(ConfigError, match="one rate"):
        bench_recorded_control(policy, ControlSettings(rates_hz=(5.0,)), 3, lambda line: None)
