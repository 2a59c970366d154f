"""policy/hub.py: what is pushed is what acts, bit for bit; what the Hub cannot give is told; nothing is half done.

The Hub is a folder (conftest.py): what the real one answers to a missing or private repo is raised by hand.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard, errors

from lightwam import Policy
from lightwam.cli.main import main
from lightwam.cli.push import PushOptions
from lightwam.errors import CheckpointError, ConfigError
from lightwam.policy import hub, run_directory
from lightwam.report import publish

ID = "someone/point-policy"
NEWEST = "checkpoints/step_00000006"
PUSHED = [
    "README.md",
    f"{NEWEST}/ema.safetensors",
    f"{NEWEST}/meta.json",
    f"{NEWEST}/model.safetensors",
    "facts.json",
    "processing.json",
    "recipe.json",
]
SEEN = {
    "frames": {"top": np.full((32, 32, 3), 90, np.uint8)},
    "state": [0.25, -0.5],
    "instruction": "move to the blue dot",
}


def refused(kind: type[Exception], told: str = "no") -> Exception:
    """What the Hub's client raises, without the answer that it carries."""
    error = kind.__new__(kind)
    error.args = (told,)
    return error


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_run_pushed_and_loaded_by_its_id_acts_the_same(tiny_once: Any, fake_hub: Any) -> None:
    own = Policy.load(tiny_once.run)
    assert publish.push(tiny_once.run, ID, private=True, token="secret") == f"https://hub.test/{ID}"
    assert fake_hub.files(ID) == PUSHED
    assert [name for name, _ in fake_hub.calls] == ["HfApi", "create_repo", "repo_info", "upload_folder"]
    assert fake_hub.calls[0][1] == {"token": "secret"} and fake_hub.calls[1][1]["private"]
    fetched = Policy.load(ID)
    assert fetched.step == 6
    assert np.array_equal(fetched.act(SEEN), own.act(SEEN))
    assert np.array_equal(fetched.imagine(SEEN, num_steps=2), own.imagine(SEEN, num_steps=2))
    assert np.array_equal(Policy.load(ID, ema=False).act(SEEN), Policy.load(tiny_once.run, ema=False).act(SEEN))
    assert not np.array_equal(Policy.load(ID, ema=False).act(SEEN), own.act(SEEN))
    assert f'Policy.load("{ID}")' in (fake_hub.repo(ID) / "README.md").read_text()


def test_a_downloaded_run_can_be_pushed(tiny_once: Any, fake_hub: Any) -> None:
    """The Hub's cache is links: what goes is what they lead to."""
    publish.push(tiny_once.run, ID)
    publish.push(hub.find_run(ID), "other/copy")
    assert fake_hub.files("other/copy") == PUSHED
    assert not any(path.is_symlink() for path in fake_hub.repo("other/copy").rglob("*"))


def test_only_what_acting_needs_is_fetched(tiny: Any, fake_hub: Any) -> None:
    """Of a whole run that somebody uploaded by hand: the newest checkpoint alone, no optimiser, no videos."""
    (tiny.run / "eval" / "videos").mkdir(parents=True)
    (tiny.run / "eval" / "videos" / "red-1.mp4").touch()
    shutil.copytree(tiny.run, fake_hub.repo(ID))
    folder = hub.find_run(ID)
    assert {f"{NEWEST}/training.pt", "checkpoints/step_00000004/model.safetensors"} < set(fake_hub.files(ID))
    other = ["checkpoints/step_00000004/meta.json"]  # read to see which is newest
    assert files_of(folder) == sorted(set(PUSHED) - {"README.md"} | set(other))
    assert Policy.load(ID).step == 6
    assert Policy.load(ID, 4).step == 4
    with pytest.raises(CheckpointError, match=r"no such checkpoint(.|\n)*where: Hub repo(.|\n)*\[4, 6\]"):
        Policy.load(ID, 5)


def test_an_older_step_replaces_a_newer_one(tiny_once: Any, fake_hub: Any) -> None:
    """Else whoever loads the repo by its name would get the newer."""
    publish.push(tiny_once.run, ID)
    (fake_hub.repo(ID) / "picture.png").touch()
    publish.push(tiny_once.run, ID, 4)
    assert fake_hub.files(ID) == sorted([*(name.replace("000006", "000004") for name in PUSHED), "picture.png"])
    assert Policy.load(ID).step == 4


def test_a_revision_is_handed_on(tiny_once: Any, fake_hub: Any) -> None:
    publish.push(tiny_once.run, ID)
    assert hub.find_run(f"{ID}@refs/pr/1") != hub.find_run(ID)
    assert [given["revision"] for name, given in fake_hub.calls if name == "snapshot_download"] == [
        "refs/pr/1",
        "refs/pr/1",
        None,
        None,
    ]


def test_a_path_that_exists_is_a_path(tiny_once: Any, tmp_path: Path, monkeypatch: Any, fake_hub: Any) -> None:
    shutil.copytree(tiny_once.run, tmp_path / "someone" / "point-policy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Policy.load(ID).run == Path(ID)
    assert hub.find_run(f"~/{ID}") == tmp_path / ID
    for path in (Path("no/run"), "no/such/run", "/no/run", "run", "../run"):
        with pytest.raises(CheckpointError, match=r"recipe\.json"):
            Policy.load(path)
    assert fake_hub.calls == []


@pytest.mark.parametrize(
    ("error", "next_step"),
    [
        (refused(errors.RepositoryNotFoundError), "hf auth login"),
        (refused(errors.GatedRepoError), "hf auth login"),
        (refused(errors.RevisionNotFoundError), "branch, tag or commit"),
        (refused(errors.LocalEntryNotFoundError), "HF_HUB_OFFLINE"),
        (refused(errors.HfHubHTTPError), "try again"),
        (errors.HFValidationError("Cannot have -- in repo_id"), "check name"),
        (TimeoutError("too slow"), "network"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_missing_hub_files_are_named(fake_hub: Any, error: Exception, next_step: str) -> None:
    fake_hub.fails["snapshot_download"] = error
    with pytest.raises(CheckpointError, match="no folder of that name") as caught:
        Policy.load(ID)
    assert caught.value.where == ID and type(error).__name__ in caught.value.got
    assert next_step in caught.value.next_step and caught.value.__cause__ is error


def test_offline_without_a_cache_for_real(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real client, told to stay off the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        Policy.load("lightwam-tests/there-is-no-such-run")


def test_a_repo_that_is_no_run(fake_hub: Any) -> None:
    fake_hub.repo(ID).mkdir(parents=True)
    (fake_hub.repo(ID) / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="must be a run of lightwam") as caught:
        Policy.load(ID)
    assert caught.value.where == ID and "recipe.json" in caught.value.got
    assert len(fake_hub.calls) == 1  # no weights were asked for


def test_a_run_without_checkpoints_on_the_hub(tiny_once: Any, fake_hub: Any) -> None:
    publish.push(tiny_once.run, ID)
    shutil.rmtree(fake_hub.repo(ID) / "checkpoints")
    with pytest.raises(CheckpointError, match="at least one step"):
        Policy.load(ID)


def test_damage_on_the_way_is_noticed(tiny_once: Any, fake_hub: Any) -> None:
    publish.push(tiny_once.run, ID)
    path = fake_hub.repo(ID) / NEWEST / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match=r"damaged(.|\n)*ema\.safetensors"):
        Policy.load(ID)


@pytest.mark.parametrize("door", ["load", "push"])
def test_without_the_hubs_client(tiny_once: Any, monkeypatch: pytest.MonkeyPatch, door: str) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"lightwam\[hub\]"):
        Policy.load(ID) if door == "load" else publish.push(tiny_once.run, ID)


@pytest.mark.parametrize("repo", ["", "point", "a/b/c", "/a/b", "a/../b", "https://huggingface.co/a/b", "a b/c"])
def test_an_invalid_repo_id_is_refused(tiny_once: Any, fake_hub: Any, repo: str) -> None:
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        publish.push(tiny_once.run, repo)
    assert fake_hub.calls == []


def test_private_is_not_pushed_into_the_open(tiny_once: Any, fake_hub: Any) -> None:
    publish.push(tiny_once.run, ID)
    before = {name: (fake_hub.repo(ID) / name).stat().st_mtime_ns for name in fake_hub.files(ID)}
    with pytest.raises(CheckpointError, match="the repo exists and is public"):
        publish.push(tiny_once.run, ID, 4, private=True)
    assert before == {name: (fake_hub.repo(ID) / name).stat().st_mtime_ns for name in fake_hub.files(ID)}


@pytest.mark.parametrize("step", ["HfApi", "create_repo", "upload_folder"])
def test_a_push_that_the_hub_refuses(tiny_once: Any, fake_hub: Any, step: str) -> None:
    fake_hub.fails[step] = refused(errors.HfHubHTTPError, "403 Forbidden")
    with pytest.raises(CheckpointError, match="cannot be pushed") as caught:
        publish.push(tiny_once.run, ID)
    assert caught.value.where == ID and "403 Forbidden" in caught.value.got
    assert fake_hub.files(ID) == []


def test_a_damaged_run_does_not_leave(tiny: Any, fake_hub: Any) -> None:
    path = tiny.run / NEWEST / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match="damaged"):
        publish.push(tiny.run, ID)
    assert fake_hub.calls == []


def test_a_staged_run_is_complete_or_absent(
    tiny_once: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_hub: Any
) -> None:
    place = tmp_path / "stages" / "one"
    assert publish.stage(tiny_once.run, place, ID) == place and files_of(place) == PUSHED
    with pytest.raises(CheckpointError, match="must be new or empty"):
        publish.stage(tiny_once.run, place, ID)

    def full(source: Path, to: Path) -> None:
        if to.name == "model.safetensors":
            raise OSError(28, "No space left on device")
        to.write_bytes(source.read_bytes())

    monkeypatch.setattr("lightwam.report.publish.shutil.copyfile", full)
    with pytest.raises(CheckpointError, match=r"No space left(.|\n)*TMPDIR"):
        publish.stage(tiny_once.run, tmp_path / "stages" / "two", ID)
    with pytest.raises(CheckpointError, match="No space left"):
        publish.push(tiny_once.run, ID)
    assert [path.name for path in (tmp_path / "stages").iterdir()] == ["one"]
    assert fake_hub.calls == []


def test_a_copy_that_went_wrong_is_noticed(tiny_once: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(source: Path, to: Path) -> None:
        to.write_bytes(source.read_bytes()[:-1])

    monkeypatch.setattr("lightwam.report.publish.shutil.copyfile", torn)
    with pytest.raises(CheckpointError):
        publish.stage(tiny_once.run, tmp_path / "stage", ID)
    assert list(tmp_path.iterdir()) == []


def test_a_staged_run_is_a_run(tiny_once: Any, tmp_path: Path) -> None:
    """Without the optimiser it acts; going on with its training is refused by name."""
    run = publish.stage(tiny_once.run, tmp_path / "stage", ID, 4)
    assert np.array_equal(Policy.load(run).act(SEEN), Policy.load(tiny_once.run, 4).act(SEEN))
    with pytest.raises(CheckpointError, match=r"training\.pt"):
        run_directory.load(run)


def test_frozen_weights_and_prompts_go_along(tiny: Any, tmp_path: Path, fake_hub: Any) -> None:
    saved = run_directory.load(tiny.run)
    run_directory.write_tensors(tiny.run / run_directory.FROZEN, dict(list(saved.model.items())[:1]))
    run_directory.write_tensors(tiny.run / run_directory.PROMPTS, dict(list(saved.model.items())[:1]))
    publish.push(tiny.run, ID)
    assert fake_hub.files(ID) == sorted([*PUSHED, run_directory.FROZEN, run_directory.PROMPTS])
    assert files_of(hub.find_run(ID)) == fake_hub.files(ID)


# --- the command


def test_the_licence_is_lightwams_unless_said_otherwise() -> None:
    assert PushOptions().license == publish.LICENSE


def test_the_command_pushes(tiny_once: Any, fake_hub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["push", str(tiny_once.run), ID, "--private", "--step", "4", "--license", "mit", "--dataset", "some/data"]
    assert main(words) == 0
    assert capsys.readouterr().out.strip() == f"https://hub.test/{ID}"
    card = ModelCard.load(fake_hub.repo(ID) / "README.md").data
    assert card.license == "mit" and card.datasets == ["some/data"]
    assert ID not in fake_hub.public and Policy.load(ID).step == 4


def test_the_command_writes_a_folder_and_pushes_nothing(
    tiny_once: Any, tmp_path: Path, fake_hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(tiny_once.run), ID, "--to", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert files_of(tmp_path / "out") == PUSHED and fake_hub.calls == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "needs a run directory"),
        (["runs/demo"], "needs the name of a repo"),
        (["runs/demo", "--private"], "needs the name of a repo"),
        (["runs/demo", "demo"], "OWNER/NAME"),
        (["/no/run", ID], "not a run directory"),
    ],
)
def test_wrong_commands(words: list[str], told: str, fake_hub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", *words]) == 2
    assert told in capsys.readouterr().err
    assert fake_hub.calls == []
