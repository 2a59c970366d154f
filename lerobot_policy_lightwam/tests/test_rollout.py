"""The route to a robot by LeRobot's tools: its dataset, lightwam's training, lightwam-to-lerobot, lerobot-rollout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from commands import command
from fake_arm import CAMERAS, JOINTS, picture
from lerobot_policy_lightwam import LightWAMPolicy
from lerobot_policy_lightwam.convert import ConvertOptions, convert, main
from lightwam.config.recipes import point
from lightwam.config.schema import CameraPlace, Recipe
from lightwam.policy.policy import Policy
from lightwam.training.train import train
from lightwam.types import Observation

FPS, SENTENCE = 20, "put the cube on the red plate"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes by LeRobot's writer: targets in degrees that the arm follows."""
    folder = tmp_path_factory.mktemp("recorded") / "plates"
    joints = {"dtype": "float32", "shape": (len(JOINTS),), "names": list(JOINTS)}
    features = {"observation.state": joints, "action": joints}
    for camera, size in CAMERAS.items():
        shape = {"shape": (*size, 3), "names": ["height", "width", "channels"]}
        features[f"observation.images.{camera}"] = {"dtype": "video", **shape}
    written = LeRobotDataset.create("local/plates", FPS, features, root=folder, robot_type="fake_arm")
    for episode in range(3):
        rng, state = np.random.default_rng(episode), np.array([10, -20, 50], np.float32)
        for step in range(24):
            target = (state + rng.normal(0, 5, 3)).astype(np.float32)
            frames = {f"observation.images.{camera}": picture(camera, step) for camera in CAMERAS}
            written.add_frame({**frames, "observation.state": state, "action": target, "task": SENTENCE})
            state = (state + 0.3 * (target - state)).astype(np.float32)
        written.save_episode()
    written.finalize()
    return folder


def recipe() -> Recipe:
    """Of the robot: no simulator, cameras of two sizes, the first two joints relative to the state."""
    base = point()
    places = (CameraPlace("front", 0, 0, 32, 64), CameraPlace("wrist", 0, 64, 32, 32))
    return replace(
        base,
        name="plates",
        sim=None,
        collect=None,
        codec=replace(base.codec, canvas=(32, 96), places=places, relative_action_dims=(0, 1), delta_action_dims=()),
        model=replace(base.model, state_dim=3, action_dim=3),
        train=replace(base.train, steps=3, batch_size=4, warmup_steps=1, ema_decay=0.0, log_every=3),
    )


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(recipe(), dataset, folder, say=lambda line: None, device="cpu")
    return folder


def test_a_converted_policy_has_the_facts_of_the_run(run: Path, tmp_path: Path) -> None:
    convert(ConvertOptions(run, tmp_path / "out"))
    config = LightWAMPolicy.from_pretrained(tmp_path / "out").config
    shapes = {name: tuple(feature.shape) for name, feature in config.image_features.items()}
    assert shapes == {f"observation.images.{name}": (3, *size) for name, size in CAMERAS.items()}
    assert config.action_feature_names == list(JOINTS)
    assert (config.facts["fps"], config.facts["robot"], config.facts["sentences"]) == (FPS, "fake_arm", {SENTENCE: 3})


def test_lerobot_rollout_sends_the_runs_actions(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Chunk after chunk, each relative to the state of its first observation."""
    monkeypatch.setattr("sys.argv", ["lightwam-to-lerobot", str(run), str(tmp_path / "out")])
    main()
    said = capsys.readouterr().out
    assert "lerobot-rollout" in said and f"--fps={FPS}" in said and SENTENCE in said
    log = tmp_path / "sent.jsonl"
    command(
        "lerobot-rollout", f"--policy.path={tmp_path}/out", "--robot.type=fake_arm", f"--robot.log={log}",
        "--robot.discover_packages_path=fake_arm", f"--task={SENTENCE}", f"--fps={FPS}", "--duration=2",
        "--return_to_initial_position=false", "--play_sounds=false",
    )  # fmt: skip
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    policy, replan = Policy.load(run), recipe().eval.replan
    assert len(rows) > 2 * replan
    assert [row["observation"] for row in rows] == list(range(1, len(rows) + 1))
    for first in range(0, len(rows) - replan, replan):
        row = rows[first]
        frames = {camera: picture(camera, row["observation"]) for camera in CAMERAS}
        chunk = policy.act(Observation(frames, np.array(row["state"], np.float32), SENTENCE))
        sent = [each["action"] for each in rows[first : first + replan]]
        np.testing.assert_allclose(sent, chunk[:replan], rtol=1e-5, atol=1e-4)
