"""LIBERO's own files, at the size of a test, and a Hub that is a folder."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


@dataclass
class FakeHub:
    """A folder that answers as the Hugging Face Hub does: repos, one commit each, and what was asked of it."""

    root: Path
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    fails: dict[str, Exception] = field(default_factory=dict)
    """name of a call -> what it raises"""
    public: set[str] = field(default_factory=set)

    def asked(self, name: str, **given: Any) -> None:
        self.calls.append((name, given))
        if name in self.fails:
            raise self.fails[name]

    def repo(self, repo_id: str) -> Path:
        return self.root / "repos" / repo_id

    def files(self, repo_id: str) -> list[str]:
        return files_of(self.repo(repo_id))

    def snapshot_download(self, repo_id: str, *, revision: str | None = None, allow_patterns: Sequence[str]) -> str:
        """Like the Hub's cache: a folder a revision, which grows by the files that match."""
        self.asked("snapshot_download", repo_id=repo_id, revision=revision, allow_patterns=allow_patterns)
        cache = self.root / "cache" / repo_id / (revision or "main")
        for name in self.files(repo_id):
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (cache / name).parent.mkdir(parents=True, exist_ok=True)
                (cache / name).unlink(missing_ok=True)
                (cache / name).symlink_to(self.repo(repo_id) / name)
        return str(cache)

    def api(self, token: str | None = None) -> SimpleNamespace:
        self.asked("HfApi", token=token)
        calls = (self.create_repo, self.repo_info, self.upload_folder)
        return SimpleNamespace(**{call.__name__: call for call in calls})

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        self.asked("create_repo", repo_id=repo_id, private=private)
        assert exist_ok
        if not self.repo(repo_id).exists():
            self.repo(repo_id).mkdir(parents=True)
            if not private:
                self.public.add(repo_id)
        return f"https://hub.test/{repo_id}"

    def repo_info(self, repo_id: str) -> SimpleNamespace:
        self.asked("repo_info", repo_id=repo_id)
        return SimpleNamespace(private=repo_id not in self.public)

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: Sequence[str]
    ) -> None:
        self.asked("upload_folder", repo_id=repo_id, commit_message=commit_message)
        for name in self.files(repo_id):
            if any(fnmatch(name, pattern) for pattern in delete_patterns):
                (self.repo(repo_id) / name).unlink()
        shutil.copytree(folder_path, self.repo(repo_id), dirs_exist_ok=True)


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """In the place of huggingface_hub's door; nothing goes over a network."""
    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", hub.api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    return hub
