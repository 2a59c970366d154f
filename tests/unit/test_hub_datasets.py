"""data/lerobot/hub.py against a Hub on this machine: one commit, the needed files, nothing twice."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hub_server import HubServer, served_hub

from lightwam import Policy
from lightwam.cli.main import main
from lightwam.config.recipe_files import read_recipe_file
from lightwam.data.cache.location import cache_home
from lightwam.data.facts import DatasetFacts
from lightwam.data.lerobot.features import parse_names
from lightwam.data.lerobot.hub import find_dataset, hub_id
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.lerobot.writer import LeRobotWriter
from lightwam.errors import CheckpointError, DatasetError
from lightwam.evaluation.recorded import recorded_episodes
from lightwam.training.train import train

ID = "someone/plates"
CAMERAS = {"front": 90, "wrist": 180}
TABLE = "data/chunk-000/file-000.parquet"
FRONT, WRIST = (f"videos/observation.images.{name}/chunk-000/file-000.mp4" for name in ("front", "wrist"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with served_hub(tmp_path, monkeypatch) as served:
        yield served


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub") / "set"
    with LeRobotWriter(root, 10, "arm", {"front": (16, 16), "wrist": (16, 16)}, ["x"], ["x"]) as out:
        for number in range(2):
            frames = {camera: np.full((4, 16, 16, 3), grey * number, np.uint8) for camera, grey in CAMERAS.items()}
            out.add_episode(frames, np.ones((4, 1), np.float32), np.ones((4, 1), np.float32), f"task {number}")
    return root


def test_the_tables_and_the_videos_of_the_needed_cameras_are_fetched_once(hub: HubServer, written: Path) -> None:
    commit, said = hub.push(ID, written), list[str]()
    root = find_dataset(ID, ["front"], say=said.append)
    assert hub_id(root) == f"{ID}@{commit}" and hub_id(written) == ""
    size = sum((written / name).stat().st_size for name in (TABLE, FRONT))
    assert said == [f"{ID}@{commit[:12]}: fetching 2 files, {size / 1e6:.1f} MB"]
    meta = sorted(path.relative_to(written).as_posix() for path in (written / "meta").rglob("*") if path.is_file())
    assert hub.fetched() == sorted([*meta, TABLE, FRONT])
    assert LeRobotDataset(root).frames(1, "front").max() == 90

    hub.requests.clear()
    assert find_dataset(f"{ID}@{commit}", ["front"]) == find_dataset(ID, ["front"], commit=commit) == root
    assert hub.requests == []  # a commit that is cached costs nothing
    assert find_dataset(f"hf://datasets/{ID}", say=said.append) == root
    assert hub.fetched() == [WRIST] and len(said) == 2
    LeRobotDataset(root).check()


def test_the_tables_alone(hub: HubServer, written: Path) -> None:
    hub.push(ID, written)
    find_dataset(Path(ID), ())
    assert hub.fetched(".mp4") == [] and hub.fetched("parquet").count(TABLE) == 1


def test_cameras_go_by_their_names_in_the_recipe(hub: HubServer, written: Path) -> None:
    hub.push(ID, written)
    find_dataset(ID, ["hand"], parse_names(["observation.images.wrist=hand"]))
    assert hub.fetched(".mp4") == [WRIST]


def test_the_older_layout(hub: HubServer, written: Path, tmp_path: Path) -> None:
    """A file an episode, chunks named by the episode."""
    old = tmp_path / "old"
    (old / "meta").mkdir(parents=True)
    info = json.loads((written / "meta/info.json").read_text()) | {
        "codebase_version": "v2.1",
        "chunks_size": 1,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (old / "meta/info.json").write_text(json.dumps(info))
    (old / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "a"}\n')
    (old / "meta/episodes.jsonl").write_text("".join(f'{{"episode_index": {i}, "length": 4}}\n' for i in range(2)))
    for i in range(2):
        for name in (f"data/chunk-00{i}/episode_00000{i}.parquet", *_old_videos(i), f"videos/chunk-00{i}/x/other.mp4"):
            (old / name).parent.mkdir(parents=True, exist_ok=True)
            (old / name).write_text(name)
    hub.push(ID, old)
    find_dataset(ID, ["wrist"])
    assert hub.fetched(".mp4") == [_old_videos(i)[1] for i in range(2)] and len(hub.fetched(".parquet")) == 2


def _old_videos(number: int) -> list[str]:
    keys = (f"observation.images.{name}" for name in ("front", "wrist"))
    return [f"videos/chunk-00{number}/{key}/episode_00000{number}.mp4" for key in keys]


def test_revisions(hub: HubServer, written: Path) -> None:
    first = hub.push(ID, written, "v1.0")
    newest = hub.push(ID, written)
    assert hub_id(find_dataset(f"{ID}@v1.0", ())) == f"{ID}@{first}"
    assert hub_id(find_dataset(ID, ())) == hub_id(find_dataset(f"{ID}@{newest}", ())) == f"{ID}@{newest}"
    with pytest.raises(DatasetError, match="RevisionNotFoundError") as caught:
        find_dataset(f"{ID}@v2.0")
    assert "branch, tag or commit" in caught.value.next_step


def test_a_cut_connection(hub: HubServer, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client asks for the rest; if it gives up, the next call fetches what is missing."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.push(ID, written)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    hub.cuts[FRONT] = 1
    root = find_dataset(ID, ["front"])
    arrived = (written / FRONT).stat().st_size // 2 // 100 * 100
    assert [line.split()[-1] for line in hub.requests if "bytes=" in line] == [f"bytes={arrived}-"]
    assert (root / FRONT).read_bytes() == (written / FRONT).read_bytes()

    hub.cuts[WRIST] = 100
    with pytest.raises(DatasetError, match="cannot be fetched") as caught:
        find_dataset(ID)
    assert "complete files are kept" in caught.value.next_step
    hub.cuts.clear()
    hub.requests.clear()
    find_dataset(ID)
    assert hub.fetched() == [WRIST] and (root / WRIST).read_bytes() == (written / WRIST).read_bytes()


def test_without_a_network(hub: HubServer, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cached is used, and told; what is not is an error."""
    commit, said = hub.push(ID, written), list[str]()
    root = find_dataset(ID, ["front"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_dataset(ID, ["front"], say=said.append) == root
    assert said == [f"{ID}: the Hub cannot be reached (OfflineModeIsEnabled); using the cached commit {commit[:12]}"]
    assert find_dataset(ID, ["front"], commit=commit, say=said.append) == root and len(said) == 1
    for name in (ID, f"{ID}@{commit}", "someone/else"):
        with pytest.raises(DatasetError, match=r"the Hub") as caught:
            find_dataset(name, ["wrist"], say=said.append)
        assert "HF_HUB_OFFLINE" in caught.value.next_step


def test_what_the_hub_refuses(hub: HubServer, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(name: str) -> DatasetError:
        with pytest.raises(DatasetError) as caught:
            find_dataset(name)
        assert len(str(caught.value).splitlines()) <= 5
        return caught.value

    assert "private repo, log in" in error("no/such").next_step
    hub.push("no/access", written)
    hub.gated.add("no/access")
    assert "accept the terms" in error("no/access").next_step
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").touch()
    hub.push("no/dataset", tmp_path / "empty")
    assert error("no/dataset").got == "no meta/info.json"
    hub.push(ID, written)
    with monkeypatch.context() as patch:
        patch.setattr(
            "lightwam.data.lerobot.hub.shutil", SimpleNamespace(disk_usage=lambda path: SimpleNamespace(free=9))
        )
        assert "HF_HOME" in error(ID).next_step
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "lightwam[hub]" in error(ID).next_step


def test_a_path_is_a_path(hub: HubServer, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(written, tmp_path / ID)
    assert find_dataset(ID) == Path(ID)
    for name in ("data/demo", "runs/demo", "plates", "./no/such", "/no/such", "a/b/c", "no/such/"):
        assert find_dataset(name) == Path(name)
    assert hub.requests == []


def test_a_run_keeps_its_commit(hub: HubServer, tiny: Any, tmp_path: Path) -> None:
    """The branch moves on while the run is stopped: it resumes with its own data, to the same bits."""
    first, run, quiet = hub.push(ID, tiny.dataset), tmp_path / "pinned", lambda line: None
    named = f"{ID}@main"
    train(tiny.recipe, named, run, stop_after=2, say=quiet)
    record = json.loads((run / "dataset.json").read_text())
    assert record["hub"] == {"id": named, "commit": first}

    other = tmp_path / "other"
    shutil.copytree(tiny.dataset, other)
    (other / "meta/stats.json").write_text("{}")  # no part of the fingerprint
    tasks = other / "meta/tasks.parquet"
    tasks.write_bytes(tasks.read_bytes() + b"?")
    second = hub.push(ID, other)
    for name in (named, ID):
        train(tiny.recipe, name, run, stop_after=4, say=quiet)
    assert main(["train", "--run", str(run)]) == 0
    assert DatasetFacts.from_dict(json.loads((run / "facts.json").read_text())).name == ID
    newest = "checkpoints/step_00000006/model.safetensors"
    assert (run / newest).read_bytes() == (tiny.run / newest).read_bytes()
    assert len(recorded_episodes(Policy.load(run), f"{ID}@{first}").sentences) == len(tiny.recipe.sim.tasks)
    assert second not in "".join(hub.requests)
    with pytest.raises((CheckpointError, DatasetError)):
        train(tiny.recipe, f"{ID}@{second}", run, say=quiet)


def test_nothing_is_written_beside_the_hubs_files(hub: HubServer, tiny: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LIGHTWAM_CACHE", raising=False)
    hub.push(ID, tiny.dataset)
    train(tiny.recipe, ID, tmp_path / "run2", stop_after=0, say=lambda line: None)
    root = find_dataset(ID)
    assert sorted(path.name for path in root.iterdir()) == ["data", "meta", "videos"]
    assert cache_home(root) == tmp_path / "home/.cache/lightwam/someone-plates.lightwam"
    assert list(cache_home(root).glob("cache/*/frames.npy"))


def test_the_command_checks_a_dataset_of_the_hub(
    hub: HubServer, written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = hub.push(ID, written)
    assert main(["check", "dataset", ID]) == 0
    out = capsys.readouterr().out
    assert f"{ID}@{commit[:12]}: fetching 3 files" in out and f"{ID}: sound; 2 episodes" in out


def test_init_pins_the_commit_and_fetches_the_cameras_it_uses(
    hub: HubServer, written: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lightwam.training.new_recipe.timed_step", lambda recipe, device: None)
    commit = hub.push(ID, written)
    assert main(["init", ID, "--to", str(tmp_path / "a.toml"), "--cameras", "front"]) == 0, capsys.readouterr().err
    recipe = read_recipe_file(tmp_path / "a.toml")
    assert [source.path for source in recipe.sources] == [f"{ID}@{commit}"]
    assert TABLE in hub.fetched() and FRONT in hub.fetched() and WRIST not in hub.fetched()
    assert "the action never moves at all" in capsys.readouterr().out
