"""LIBERO's own files, at the size of a test."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest


@dataclass(frozen=True)
class Demo:
    """One demonstration to be written, as a simulator would have gone through it."""

    number: int
    steps: int = 6
    idle: tuple[int, ...] = ()
    """steps without motion, the gripper as before"""
    late: bool = True
    """observations from after the action, as LIBERO's script stores them"""
    failed: bool = False

    def action(self) -> np.ndarray:
        """[steps, 7]; the gripper closes in the middle."""
        action = np.random.default_rng(self.number).uniform(0.1, 1, (self.steps, 7))
        action[list(self.idle), :6] = 0
        action[:, 6] = np.where(np.arange(self.steps) < self.steps // 2, -1, 1)
        return action

    def seen(self, width: int) -> np.ndarray:
        """[steps + 1, width]: some numbers of the world before every action, and after the last."""
        return np.random.default_rng([self.number, width]).normal(size=(self.steps + 1, width))

    def pictures(self, size: int) -> np.ndarray:
        """[steps + 1, size, size, 3], upright: quarters of four colours, the upper left one tells the moment."""
        half, frames = size // 2, np.zeros((self.steps + 1, size, size, 3), np.uint8)
        frames[:, :half, :half, 0] = (60 + 20 * np.arange(self.steps + 1))[:, None, None]
        frames[:, :half, half:] = (0, 250, 0)
        frames[:, half:, :half] = (0, 0, 250)
        frames[:, half:, half:] = (250, 250, 250)
        return frames


@pytest.fixture
def write_demos() -> Callable[..., Path]:
    """Writes FOLDER/TASK_demo.hdf5 in LIBERO's layout; wrist pictures are the others mirrored."""

    def write(
        folder: Path, demos: Sequence[Demo], task: str = "open_the_drawer", noted: object = "", size: int = 16
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{task}_demo.hdf5"
        with h5py.File(path, "w") as file:
            data = file.create_group("data")
            data.attrs["problem_info"] = json.dumps({"language_instruction": noted}) if noted else "{}"
            data.attrs["env_args"] = json.dumps({"env_name": "Libero_Tabletop_Manipulation"})
            for demo in demos:
                _write(data.create_group(f"demo_{demo.number}"), demo, size)
        return path

    def _write(group: h5py.Group, demo: Demo, size: int) -> None:
        rows = slice(1, None) if demo.late else slice(None, -1)
        joints, zeros = demo.seen(7), np.zeros((demo.steps + 1, 5))
        group["actions"] = demo.action()
        group["states"] = np.hstack([zeros[:, :1], joints, zeros])[:-1]
        group["dones"] = group["rewards"] = np.arange(demo.steps) == demo.steps - 1 - demo.failed * demo.steps
        obs = group.create_group("obs")
        obs["joint_states"] = joints[rows]
        for name, width in (("ee_pos", 3), ("ee_ori", 3), ("gripper_states", 2)):
            obs[name] = demo.seen(10)[rows, {"ee_pos": 0, "ee_ori": 3, "gripper_states": 6}[name] :][:, :width]
        upright = demo.pictures(size)[rows]
        obs["agentview_rgb"] = upright[:, ::-1, ::-1]
        obs["eye_in_hand_rgb"] = upright[:, ::-1, ::-1][:, :, ::-1]

    return write


@pytest.fixture
def demo() -> type[Demo]:
    """What `write_demos` takes."""
    return Demo
