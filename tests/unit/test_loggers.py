"""training/loggers.py: what the log says, said elsewhere too; and which extra is missing."""

import importlib
import json
import resource
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lightwam.config.schema import Recipe
from lightwam.errors import ConfigError, LightwamError
from lightwam.training.loggers import check, open_loggers

ROW = {"loss": 0.5, "grad_norm": 2.0}


def with_loggers(recipe: Recipe, *names: str) -> Recipe:
    return replace(recipe, train=replace(recipe.train, loggers=names))


def tracker(name: str, calls: list[tuple[Any, ...]]) -> ModuleType:
    """A stand-in with the interface that wandb and trackio share."""
    fake: Any = ModuleType(name)
    fake.init = lambda **named: calls.append(("init", named))
    fake.log = lambda row, step: calls.append(("log", step, row))
    fake.finish = lambda: calls.append(("finish",))
    return fake


def board(calls: list[tuple[Any, ...]]) -> ModuleType:
    fake: Any = ModuleType("torch.utils.tensorboard")

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int | None) -> None:
            calls.append(("open", folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append((name, value, step))

        def close(self) -> None:
            calls.append(("close",))

    fake.SummaryWriter = SummaryWriter
    return fake


def test_no_logger_by_default(tiny_recipe: Recipe, tmp_path: Path) -> None:
    with open_loggers(tiny_recipe, tmp_path) as loggers:
        assert loggers == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_hears_the_config_and_every_row(
    name: str, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setitem(sys.modules, name, tracker(name, calls))
    with open_loggers(with_loggers(tiny_recipe, name), tmp_path / "mine") as (logger,):
        logger(20, ROW)
    (first, settings), *rest = calls
    assert first == "init"
    assert settings["project"] == "lightwam"
    assert settings["name"].startswith("point-mine")
    assert settings["resume"] == "allow"
    assert settings["config"]["train"]["steps"] == 6
    assert rest == [("log", 20, ROW), ("finish",)]


def test_tensorboard_gets_a_scalar_a_value_and_all_are_closed_after_an_error(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    heard: list[tuple[Any, ...]] = []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board(calls))
    monkeypatch.setitem(sys.modules, "wandb", tracker("wandb", heard))
    recipe = with_loggers(tiny_recipe, "tensorboard", "wandb")
    with pytest.raises(KeyError), open_loggers(recipe, tmp_path) as loggers:
        for logger in loggers:
            logger(3, ROW)
        raise KeyError
    assert calls == [("open", str(tmp_path / "tensorboard"), None), ("loss", 0.5, 3), ("grad_norm", 2.0, 3), ("close",)]
    assert heard[-1] == ("finish",)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_names_its_extra(
    name: str, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def missing(module: str) -> ModuleType:
        if module.rpartition(".")[2] == name:
            raise ImportError(f"No module named {name!r}")
        return real(module)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError) as caught:
        check(with_loggers(tiny_recipe, name))
    assert f'pip install "lightwam[{name}]"' in str(caught.value)
    assert "train.loggers" in str(caught.value)


@pytest.fixture
def no_log_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine where nobody logged in to W&B; returns its user's home."""
    for name in ("API_KEY", "MODE", "DISABLED", "BASE_URL", "IDENTITY_TOKEN_FILE", "CONFIG_DIR", "DIR", "RUN_ID"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    home = tmp_path / "home"
    (home / ".config" / "wandb").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    monkeypatch.setitem(sys.modules, "wandb", tracker("wandb", []))
    return home


def test_a_package_that_breaks_while_it_is_imported_is_named(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trackio.py").write_text("raise TypeError('Descriptors cannot be created directly')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    with pytest.raises(ConfigError, match=r"cannot be imported(.|\n)*trackio \(TypeError: Descriptors"):
        check(with_loggers(tiny_recipe, "trackio"))


def test_without_a_key_for_wandb_the_run_is_refused_at_once(tiny_recipe: Recipe, no_log_in: Path) -> None:
    with pytest.raises(ConfigError, match="wandb login") as caught:
        check(with_loggers(tiny_recipe, "wandb"))
    assert "WANDB_API_KEY" in str(caught.value) and "WANDB_MODE=offline" in str(caught.value)
    check(with_loggers(tiny_recipe))


@pytest.mark.parametrize(
    ("variable", "value"),
    [("WANDB_API_KEY", "k"), ("WANDB_MODE", "offline"), ("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "true")],
)
def test_the_environment_may_hold_wandbs_key_or_spare_it(
    tiny_recipe: Recipe, no_log_in: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    check(with_loggers(tiny_recipe, "wandb"))


def test_files_may_hold_wandbs_key_or_spare_it(
    tiny_recipe: Recipe, no_log_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, netrc = with_loggers(tiny_recipe, "wandb"), no_log_in / ".netrc"
    for host in ("api.wandb.ai", "api.forge.coreweave.com"):
        netrc.write_text(f"machine {host}\n  login user\n  password k\n")
        netrc.chmod(0o600)
        check(recipe)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(ConfigError, match="wandb login"):
        check(recipe)
    settings = no_log_in / ".config" / "wandb" / "settings"
    settings.write_text("[default]\nmode = offline\n")  # `wandb offline`
    check(recipe)
    settings.write_text("torn [")
    with pytest.raises(ConfigError, match="wandb login"):
        check(recipe)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_resumed_run_has_the_same_id_and_logs_no_step_twice(
    name: str, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setitem(sys.modules, name, tracker(name, calls))
    recipe, key = with_loggers(tiny_recipe, name), "id" if name == "wandb" else "name"
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)

    def attempt(begun: int, logged: int, *steps: int) -> tuple[str, list[int]]:
        calls.clear()
        with open_loggers(recipe, tmp_path / "run", begun=begun, logged=logged) as (logger,):
            for step in steps:
                logger(step, ROW)
        (_, settings), *rest, _ = calls
        assert settings["resume"] == "allow"
        return settings[key], [step for _, step, _ in rest]

    first, told = attempt(0, 0, 1, 2, 3, 4)
    assert told == [1, 2, 3, 4]
    assert attempt(2, 4, 3, 4, 5) == (first, [5])  # killed after step 4, its last checkpoint of step 2
    assert attempt(2, 2, 3, 4, 5, 6) == (first, [5, 6])  # killed again at once: the log has step 2, step 4 was told
    calls.clear()
    with open_loggers(recipe, tmp_path / "elsewhere" / "run"):
        assert calls[0][1][key] != first


def test_a_run_id_that_the_user_gives_is_taken(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setitem(sys.modules, "wandb", tracker("wandb", calls))
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    with open_loggers(with_loggers(tiny_recipe, "wandb"), tmp_path / "run"):
        assert calls[0][1]["id"] == "mine"
    assert json.loads((tmp_path / "run" / "loggers.json").read_text()) == {"wandb": {"run": "mine", "step": 0}}


def test_a_full_disk_stops_only_tensorboard_and_is_reported_once(
    tiny_recipe: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, said = resource.getrlimit(resource.RLIMIT_FSIZE), list[str]()
    hook = threading.excepthook
    with open_loggers(with_loggers(tiny_recipe, "tensorboard"), tmp_path, say=said.append) as (logger,):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # the system lets no file grow beyond
        try:
            for step in range(10_000):
                logger(step, ROW)
                if said:
                    break
                time.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (line,) = said
    assert "tensorboard failed" in line and "File too large" in line
    assert "Traceback" not in capfd.readouterr().err and threading.excepthook is hook


def test_tensorboard_hides_what_comes_again(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board(calls))
    with open_loggers(with_loggers(tiny_recipe, "tensorboard"), tmp_path, begun=20, logged=30):
        assert calls == [("open", str(tmp_path / "tensorboard"), 21)]


def test_a_logger_that_cannot_start_has_a_next_step(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tracker("wandb", [])

    def refuse(**_: Any) -> None:
        raise RuntimeError("api_key not configured (no-tty)\nand more")

    monkeypatch.setattr(fake, "init", refuse)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    recipe = with_loggers(tiny_recipe, "wandb")
    with pytest.raises(ConfigError, match="wandb cannot start") as caught, open_loggers(recipe, tmp_path):
        pass
    assert "api_key not configured (no-tty)\n  next" in str(caught.value) and "wandb login" in str(caught.value)


def test_a_failing_logger_is_reported_once_and_the_others_continue(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, calls, said = tracker("wandb", []), list[tuple[Any, ...]](), list[str]()

    def log(row: Any, step: int) -> None:
        raise ConnectionError("network unreachable")

    monkeypatch.setattr(failing, "log", log)
    monkeypatch.setitem(sys.modules, "wandb", failing)
    monkeypatch.setitem(sys.modules, "trackio", tracker("trackio", calls))
    with open_loggers(with_loggers(tiny_recipe, "wandb", "trackio"), tmp_path, say=said.append) as told:
        for step in (1, 2):
            for logger in told:
                logger(step, ROW)
    (line,) = said
    assert "wandb failed at step 1" in line and "network unreachable" in line and "log.jsonl" in line
    assert [call[1] for call in calls if call[0] == "log"] == [1, 2]


def test_the_file_of_older_runs_is_read_with_a_warning(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setitem(sys.modules, "wandb", tracker("wandb", calls))
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "listeners.json").write_text('{"wandb": {"run": "older", "step": 4}}')
    recipe = with_loggers(tiny_recipe, "wandb")
    with pytest.warns(FutureWarning, match="is now loggers.json"), open_loggers(recipe, tmp_path, begun=4, logged=4):
        pass
    assert json.loads((tmp_path / "loggers.json").read_text()) == {"wandb": {"run": "older", "step": 4}}


@pytest.mark.parametrize("content", ["{", "[]", '{"wandb": 3}', '{"wandb": {"run": "a", "step": "x"}}'])
def test_a_broken_note_of_the_loggers_is_named(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", tracker("wandb", []))
    (tmp_path / "loggers.json").write_text(content)
    with (
        pytest.raises(LightwamError, match=r"loggers\.json"),
        open_loggers(with_loggers(tiny_recipe, "wandb"), tmp_path),
    ):
        pass
