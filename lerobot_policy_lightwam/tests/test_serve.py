"""`lightwam-serve-lerobot` and `lightwam eval ws://...` as a user runs them: the episodes of LeRobot's own loop."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lerobot_policy_lightwam.serve import ServeOptions, greeting, main, serve
from lerobot_policy_lightwam.served_policy import ServedPolicy
from lightwam.cli.main import main as lightwam
from lightwam.config.recipes import point
from lightwam.errors import ConfigError
from lightwam.serving.settings import Serving
from lightwam.sim.point import PointSimulator
from lightwam.types import Observation
from tiny_policies import EXECUTED, lerobots_actions, save_policy

MAX_STEPS, SECONDS = 8, 120


@contextmanager
def server(folder: Path, *more: str) -> Iterator[str]:
    """The command; yields its address once it listens, and stops it as a service manager does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "lightwam-serve-lerobot"
    words = [program, folder, "--port", str(port), "--xpolicylab-port", "None", "--device", "cpu", *more]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + SECONDS
            while not is_healthy(port):
                assert process.poll() is None and time.monotonic() < deadline, process.stderr and process.stderr.read()
                time.sleep(0.1)
            yield f"ws://127.0.0.1:{port}"
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()


def is_healthy(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).status == 200
    except OSError:
        return False


@pytest.mark.parametrize("kind, asked", [("act", None), ("diffusion", 2)])
def test_lightwam_evaluates_a_policy_of_lerobots(
    kind: str, asked: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"n_obs_steps": asked} if asked else {}
    folder, out = save_policy(kind, tmp_path / "policy", **settings), tmp_path / "run"
    with server(folder) as address:
        words = ["--robot-schema", "light-wam", "--run", str(out), "--label", kind, "--sim.max-steps", str(MAX_STEPS)]
        words += ["--eval.trials", "2", "--eval.replan", str(EXECUTED), "--eval.workers", "1"]
        assert lightwam(["eval", address, "point", *words, "--eval.videos-per-task", "0"]) == 0, capsys.readouterr().err
    greeting = json.loads((out / "eval" / "protocol.json").read_text())["server"]
    assert (greeting["policy"], greeting["cameras"], greeting["replan"]) == (kind, ["top"], EXECUTED)
    assert greeting.get("n_obs_steps") == asked and greeting["weights"].split()[0] == str(
        (folder / "model.safetensors").stat().st_size
    )
    recipe = point()
    for task in recipe.sim.tasks:
        for seed in (recipe.eval.first_seed, recipe.eval.first_seed + 1):
            got = np.load(out / "eval" / "actions" / f"{task}-{seed}.npy")
            np.testing.assert_array_equal(got, lerobots_episode(folder, task, seed))


def lerobots_episode(folder: Path, task: str, seed: int) -> np.ndarray:
    simulator, actions = PointSimulator(point().sim, task), list[np.ndarray]()
    simulator.reset(seed)

    def observations() -> Iterator[Observation]:
        for step in range(MAX_STEPS):
            yield replace(simulator.observe(), step=step)

    for action in lerobots_actions(folder, observations()):
        actions.append(action)
        if simulator.step(action).success:
            break
    return np.stack(actions)


def test_lightwam_drives_a_robot_by_a_policy_of_several_observations(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The greeting has the rate, names and limits of the policy's dataset; the loop sends the history."""
    folder = save_policy("diffusion", tmp_path / "policy", n_obs_steps=2)
    words = ["--robot", "simulated:point/red", "--task", "move to the red dot", "--seconds", "1"]
    with server(folder, "--dataset", str(tiny.dataset)) as address:
        assert lightwam(["drive", address, *words]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "the time is over" in said and "diffusion on ws://" in said
    assert "velocity_x" in said and "a motion" in said and "answers in" in said


def test_a_dataset_of_another_robot_is_refused(tiny: Any, tmp_path: Path) -> None:
    policy = ServedPolicy.load(str(save_policy("act", tmp_path / "policy")), "cpu")
    policy.action_dim = 7
    with pytest.raises(ConfigError, match="the dataset must be the policy's"):
        greeting(policy, Serving(), tiny.dataset)


def test_a_server_that_others_can_reach_needs_a_key() -> None:
    """Found out before the policy is loaded, which is not there."""
    with pytest.raises(ConfigError, match="API key"):
        serve(ServeOptions("no/policy/here", Serving(host="0.0.0.0")))


def test_a_missing_policy_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^lightwam-serve-lerobot: .*no policy"):
        main([str(tmp_path)])
