"""listeners.py: what the log says, said elsewhere too; and which extra is missing."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lightwam.config import Recipe
from lightwam.errors import ConfigError
from lightwam.listeners import listen

ROW = {"loss": 0.5, "grad_norm": 2.0}


def with_listeners(recipe: Recipe, *names: str) -> Recipe:
    return replace(recipe, train=replace(recipe.train, listeners=names))


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
        def __init__(self, folder: str) -> None:
            calls.append(("open", folder))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append((name, value, step))

        def close(self) -> None:
            calls.append(("close",))

    fake.SummaryWriter = SummaryWriter
    return fake


def test_none_by_default(tiny_recipe: Recipe, tmp_path: Path) -> None:
    with listen(tiny_recipe, tmp_path) as listeners:
        assert listeners == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_hears_the_config_and_every_row(
    name: str, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setitem(sys.modules, name, tracker(name, calls))
    with listen(with_listeners(tiny_recipe, name), tmp_path / "mine") as (listener,):
        listener(20, ROW)
    (first, settings), *rest = calls
    assert first == "init"
    assert settings["project"] == "lightwam"
    assert settings["name"] == "point-mine"
    assert settings["config"]["train"]["steps"] == 6
    assert rest == [("log", 20, ROW), ("finish",)]


def test_tensorboard_gets_a_scalar_a_value_and_all_are_closed_after_an_error(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    heard: list[tuple[Any, ...]] = []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board(calls))
    monkeypatch.setitem(sys.modules, "wandb", tracker("wandb", heard))
    recipe = with_listeners(tiny_recipe, "tensorboard", "wandb")
    with pytest.raises(KeyError), listen(recipe, tmp_path) as listeners:
        for listener in listeners:
            listener(3, ROW)
        raise KeyError
    assert calls == [("open", str(tmp_path / "tensorboard")), ("loss", 0.5, 3), ("grad_norm", 2.0, 3), ("close",)]
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
    with pytest.raises(ConfigError) as caught, listen(with_listeners(tiny_recipe, name), tmp_path):
        pass
    assert f'pip install "lightwam[{name}]"' in str(caught.value)
    assert "train.listeners" in str(caught.value)
