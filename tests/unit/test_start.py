"""training/start.py: a run that starts from another keeps its statistics, unless they are to be measured anew."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.lerobot.writer import LeRobotWriter
from lightwam.errors import CheckpointError, LightwamError
from lightwam.policy import run_directory
from lightwam.training.start import Start, load_start
from lightwam.training.train import train


@dataclass(frozen=True)
class Two:
    """A trained run, and a dataset of the same robot with other ranges."""

    recipe: Any
    old: Path
    dataset: Path


@pytest.fixture(scope="module")
def wider(tiny_once: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstrations again, their second action three times as large, the first state moved by 10."""
    root, data = tmp_path_factory.mktemp("wider") / "dataset", LeRobotDataset(tiny_once.dataset)
    size = (tiny_once.recipe.sim.height, tiny_once.recipe.sim.width)
    camera = tiny_once.recipe.sim.cameras[0]
    with LeRobotWriter(root, round(data.fps), "point", {camera: size}, ("x", "y"), ("x", "y")) as writer:
        for number in range(2):
            state = np.linspace([9.9, 0], [10.1, 0.1], 12, dtype=np.float32) + number
            action = np.linspace([-0.5, -3], [0.5, 3], 12, dtype=np.float32)
            writer.add_episode({camera: np.full((12, *size, 3), 90, np.uint8)}, state, action, data.tasks[0])
    return root


@pytest.fixture
def two(tiny_once: Any, wider: Path, tmp_path: Path) -> Two:
    shutil.copytree(wider, tmp_path / "wider")
    return Two(tiny_once.recipe, tiny_once.run, tmp_path / "wider")


def begin(two: Two, run: Path, **words: Any) -> list[str]:
    """What is said by a training that stops before its first step."""
    said: list[str] = []
    train(two.recipe, two.dataset, run, stop_after=0, say=said.append, **words)
    return [line for line in said if line.startswith("statistics")]


def test_statistics_are_kept_and_that_is_said(two: Two, tmp_path: Path) -> None:
    (line,) = begin(two, tmp_path / "new", start_from=two.old)
    assert f"kept from {two.old}" in line and "--statistics new" in line
    assert "dims of the new data leave its range" in line and "state[0]: 9.9 to 11.1, was" in line
    assert (tmp_path / "new" / "processing.json").read_bytes() == (two.old / "processing.json").read_bytes()
    told = run_directory.read_json(tmp_path / "new" / "start.json")
    assert told == {"run": str(two.old), "step": 6, "statistics": "kept"}


def test_new_statistics_are_measured_on_request_and_reported(two: Two, tmp_path: Path) -> None:
    (line,) = begin(two, tmp_path / "new", start_from=two.old, statistics="new")
    assert f"not kept from {two.old}" in line and "begin in other units, most state[0]" in line
    codec, measured = run_directory.read_processing(tmp_path / "new")
    old, theirs = run_directory.read_processing(two.old)
    assert codec.state.max[0] == pytest.approx(11.1) and old.state.max[0] < 2
    assert measured != theirs


def test_training_data_stay_within_the_normalised_range(tiny_once: Any, tmp_path: Path) -> None:
    same = Two(tiny_once.recipe, tiny_once.run, tiny_once.dataset)
    (line,) = begin(same, tmp_path / "kept", start_from=same.old)
    assert "no new value leaves its range" in line
    (line,) = begin(same, tmp_path / "new", start_from=same.old, statistics="new")
    assert "which are the same" in line


def test_a_resumed_run_keeps_its_statistics(two: Two, tmp_path: Path) -> None:
    run = tmp_path / "new"
    begin(two, run, start_from=two.old)  # killed before its first checkpoint
    before = (run / "processing.json").read_bytes()
    start = load_start(run, two.recipe, None, "kept")
    assert isinstance(start, Start) and start.statistics == "kept"
    train(replace(two.recipe, notes="more"), two.dataset, run, stop_after=2, say=lambda line: None)
    assert load_start(run, two.recipe, None, "kept") is None
    assert load_start(run, two.recipe, two.old, "kept") is None
    with pytest.raises(CheckpointError, match="--statistics must be as"):
        train(two.recipe, two.dataset, run, start_from=two.old, statistics="new", say=lambda line: None)
    with pytest.raises(CheckpointError, match="--start-from must be the run"):
        train(two.recipe, two.dataset, run, start_from=tmp_path / "other", say=lambda line: None)
    assert (run / "processing.json").read_bytes() == before


@pytest.mark.parametrize("state_frequencies", [0, 2])
def test_the_first_weights_are_those_of_the_run_even_after_a_kill(
    state_frequencies: int, two: Two, tmp_path: Path
) -> None:
    """Learning nothing, the run ends with the weights that it began with; an expert's new ones are zero."""
    frozen = replace(two.recipe.train, learning_rate=1e-30, muon_learning_rate=0.0, steps=1)
    expert = replace(two.recipe.model.expert, state_frequencies=state_frequencies)
    still = replace(two.recipe, train=frozen, model=replace(two.recipe.model, expert=expert))
    begin(replace(two, recipe=still), tmp_path / "new", start_from=two.old)
    train(still, two.dataset, tmp_path / "new", say=lambda line: None)
    given = run_directory.run_weights(two.old, run_directory.load(two.old))
    found = run_directory.load(tmp_path / "new").model
    new = set(found) - set(given)
    assert new == ({"expert.state_reader.proj.weight", "expert.state_reader.proj.bias"} if state_frequencies else set())
    for name, value in found.items():
        torch.testing.assert_close(value, torch.zeros_like(value) if name in new else given[name])


def test_statistics_that_do_not_fit_are_refused_before_the_run_exists(two: Two, tmp_path: Path) -> None:
    (place,) = two.recipe.codec.places
    others = {
        "codec.action_norm": replace(two.recipe, codec=replace(two.recipe.codec, action_norm="z_score")),
        "codec.places": replace(
            two.recipe, codec=replace(two.recipe.codec, places=(replace(place, crop=(0.0, 0.0, 0.5, 0.5)),))
        ),
        "model.state_dim": replace(two.recipe, model=replace(two.recipe.model, state_dim=5)),
        "latents": replace(two.recipe, latents=replace(two.recipe.latents, luma_channels=2, chroma_channels=3)),
    }
    for name, recipe in others.items():
        with pytest.raises(LightwamError) as caught:
            begin(replace(two, recipe=recipe), tmp_path / "new", start_from=two.old)
        step = "train from scratch" if name.startswith("model.") else "--statistics new"
        assert name in str(caught.value) and step in str(caught.value)
        assert not (tmp_path / "new").exists()
    begin(replace(two, recipe=others["codec.action_norm"]), tmp_path / "new", start_from=two.old, statistics="new")


def test_a_run_to_start_from_is_looked_at_before_anything_is_written(
    two: Two, tmp_path: Path, cache_folder: Path
) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        begin(two, tmp_path / "new", start_from=tmp_path / "nowhere")
    deeper = replace(two.recipe, model=replace(two.recipe.model, horizon=16, supervised_prefix=16))
    wide = replace(deeper, model=replace(two.recipe.model, expert=replace(two.recipe.model.expert, trunk_width=80)))
    with pytest.raises(CheckpointError, match="of another model"):
        begin(replace(two, recipe=wide), tmp_path / "new", start_from=two.old)
    damaged = tmp_path / "damaged"
    shutil.copytree(two.old, damaged)
    spoil(damaged)
    with pytest.raises(CheckpointError, match=r"not finite: .*\(1 NaN and 0 inf"):
        begin(two, tmp_path / "new", start_from=damaged)
    assert not (tmp_path / "new").exists() and not cache_folder.exists()


def spoil(run: Path) -> None:
    """One NaN in the newest checkpoint's average, with a digest that fits."""
    place = run_directory.checkpoint_dir(run)
    weights = safetensors.torch.load_file(place / "ema.safetensors")
    next(iter(weights.values())).view(-1)[0] = float("nan")
    safetensors.torch.save_file(weights, place / "ema.safetensors")
    meta = run_directory.read_json(place / "meta.json")
    meta["files"]["ema.safetensors"] = run_directory._digest(place / "ema.safetensors")
    (place / "meta.json").write_text(json.dumps(meta))


def test_a_run_of_an_older_version_has_no_note(two: Two, tmp_path: Path) -> None:
    run = tmp_path / "new"
    begin(two, run)
    assert not (run / "start.json").exists()
    assert load_start(run, two.recipe, None, "kept") is None
    start = load_start(run, two.recipe, two.old, "kept")
    assert start is not None and start.statistics == "new"  # which is what that version did


@pytest.mark.parametrize("content", ["[]", '{"run": "a"}', '{"run": "a", "step": "1", "statistics": "kept"}'])
def test_a_broken_note_is_named(two: Two, tmp_path: Path, content: str) -> None:
    run = tmp_path / "new"
    begin(two, run)
    (run / "start.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"start\.json"):
        load_start(run, two.recipe, None, "kept")


def test_the_note_of_an_attempt_that_never_began_does_not_count(two: Two, tmp_path: Path) -> None:
    run = tmp_path / "new"
    begin(two, run, start_from=two.old)
    (run / "processing.json").unlink()  # with it the run has begun
    begin(two, run)
    assert not (run / "start.json").exists() and load_start(run, two.recipe, None, "kept") is None
