"""Where caches lie and who may write one: no leftover stays, no other process's work is touched, no disk surprises."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lightwam.data.cache import location
from lightwam.data.cache.location import (
    LOCK,
    cache_home,
    check_free_space,
    folder_name,
    locked_folder,
    remove_leftovers,
    temporary_folder,
)
from lightwam.errors import DatasetError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTWAM_CACHE", raising=False)


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_cache_is_in_the_users_or_the_named_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "set")
    monkeypatch.chdir(tmp_path / "set")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_home(tmp_path / "set") == tmp_path / ".cache" / "lightwam" / "set.lightwam"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_home(tmp_path / "set") == tmp_path / "xdg" / "lightwam" / "set.lightwam"
    for inside in (tmp_path / "set", tmp_path / "link"):
        assert cache_home(tmp_path / "set", inside) == tmp_path / "set"
    for root in (tmp_path / "set", tmp_path / "link", Path()):
        assert cache_home(root, tmp_path / "c") == tmp_path / "c" / "set.lightwam"
    monkeypatch.setenv("LIGHTWAM_CACHE", "here")
    assert cache_home(Path()) == Path("here/set.lightwam")
    assert cache_home(Path(), tmp_path / "c") == tmp_path / "c" / "set.lightwam"
    monkeypatch.setenv("LIGHTWAM_CACHE", "~/c")
    assert cache_home(Path()) == tmp_path / "c" / "set.lightwam"
    monkeypatch.setenv("LIGHTWAM_CACHE", "")
    assert cache_home(Path()) == tmp_path / "xdg" / "lightwam" / "set.lightwam"


def test_a_cache_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"must be in a folder(.|\n)*got: a file(.|\n)*--cache DIR"):
        cache_home(tmp_path, tmp_path / "file")
    with pytest.raises(DatasetError, match=r"writable(.|\n)*file is a file(.|\n)*--cache DIR"):
        check_free_space(tmp_path / "file" / "set.lightwam" / "cache", 0)


def test_a_folder_without_permission_or_space_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "a" / "b" / "cache"
    check_free_space(place, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
        with pytest.raises(DatasetError, match=rf"{tmp_path} cannot be written to\n.*--cache DIR.*LIGHTWAM_CACHE"):
            check_free_space(place, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 3 * 2**20))
    check_free_space(place, 3 * 2**20)
    with pytest.raises(
        DatasetError, match=r"fit on the disk(.|\n)*got: 3.0 MiB free\n.*expected: 4.0 MiB\n.*--cache DIR"
    ):
        check_free_space(place, 4 * 2**20)
    assert names(tmp_path) == []


def test_names_are_fit_for_files_and_differ() -> None:
    assert folder_name("64x64-a/b c", {"x": 1}).startswith("64x64-a-b-c-")
    assert folder_name("a", {"x": 1}) == folder_name("a", {"x": 1}) != folder_name("a", {"x": 2})
    assert len(folder_name("long" * 99, {})) < 64


def test_leftovers_of_dead_processes_are_removed_and_nothing_else(tmp_path: Path, dead: int) -> None:
    left = [f"cache.draft-{dead}", f"cache.old-{dead}", f"cache.draft-{os.getpid()}", "a.part-0123456789abcdef"]
    left += ["b.part-0123456789abcdef"]
    kept = [f"cache.draft-{os.getppid()}", "cache", "cache.draft-mine", "a.part-1", "c.part-0123456789abcdef"]
    for name in left + kept:
        (tmp_path / name).mkdir()
        (tmp_path / name / "frames.npy").write_text("x")
    (tmp_path / left[-1] / LOCK).write_text("")
    (tmp_path / f"cache.draft-{dead + 1}").write_text("a file")
    remove_leftovers(tmp_path, keep=tmp_path / kept[-1])
    assert names(tmp_path) == sorted([*kept, f"cache.draft-{dead + 1}"])
    remove_leftovers(tmp_path / "nowhere")


def test_leftovers_of_one_cache_alone(tmp_path: Path, dead: int) -> None:
    for name in (f"cache.draft-{dead}", f"mine.draft-{dead}"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path, "cache")
    assert names(tmp_path) == [f"mine.draft-{dead}"]


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A draft in which another process is at work."""
    draft = temporary_folder(tmp_path / "cache", {"x": 1})
    code = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDWR), 2); print(flush=True); sys.stdin.read()"
    draft.mkdir()
    (draft / LOCK).write_text("")
    command = [sys.executable, "-c", code, str(draft / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdout.readline()
        yield draft
        other.stdin.close()


def test_files_of_a_live_process_are_left_alone(tmp_path: Path, held: Path) -> None:
    remove_leftovers(tmp_path)
    assert held.is_dir()


def test_a_draft_is_for_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "POLL_SECONDS", 0.001)
    draft, path = temporary_folder(tmp_path / "cache", {"x": 1}), tmp_path / "cache"
    inside: list[str] = []

    def work(name: str) -> bool:
        with locked_folder(draft, lambda: None) as waited:
            assert draft.is_dir() and not inside
            inside.append(name)
            made = path.exists()
            if not made:
                (draft / "frames.npy").write_text(name)
            inside.remove(name)  # once the folder is renamed or removed, the next one may enter
            if made:
                shutil.rmtree(draft, ignore_errors=True)
            else:
                draft.rename(path)
                (path / LOCK).unlink()
        return waited

    for _ in range(30):  # each in another order
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(work, "abcd")) <= 3
        assert names(tmp_path) == ["cache"] and names(path) == ["frames.npy"]
        shutil.rmtree(path)


def test_a_draft_that_vanishes_while_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft, mkdir, calls = tmp_path / "draft", Path.mkdir, iter(range(9))

    def removed_meanwhile(self: Path, **options: bool) -> None:
        if next(calls) == 0:
            raise FileExistsError(17, "File exists")
        mkdir(self, **options)
        if next(calls) == 2:
            self.rmdir()

    monkeypatch.setattr(Path, "mkdir", removed_meanwhile)
    with locked_folder(draft, lambda: None) as waited:
        assert draft.is_dir() and not waited and next(calls) == 5
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError), locked_folder(tmp_path / "file", lambda: None):
        pass


def test_without_locks_a_draft_is_still_made_and_never_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    draft = temporary_folder(tmp_path / "cache", {"x": 1})
    with locked_folder(draft, lambda: None) as waited:
        assert not waited
    remove_leftovers(tmp_path)
    assert draft.is_dir()
