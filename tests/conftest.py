"""Every test checks the shapes and types in lightwam's signatures; a tiny trained run is there to copy."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

with contextlib.suppress(ImportError):  # before OpenGL's LLVM is loaded: a process that loads Triton's after it crashes
    import triton  # noqa: F401
install_import_hook("lightwam", "beartype.beartype")
settings.register_profile("lightwam", deadline=None)  # timings never decide a test
settings.load_profile("lightwam")

if TYPE_CHECKING:  # lightwam is imported by the fixtures alone, so that a test of `--help` starts without it
    from lightwam.config.schema import Recipe


COUNTER = itertools.count()


@dataclass(frozen=True)
class Tiny:
    """A recipe of seconds, the demonstrations it asks for, and a run trained on them."""

    recipe: Recipe
    dataset: Path
    run: Path


@pytest.fixture(scope="session", autouse=True)
def cache_folder_of_fixtures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The same for fixtures that are made once a session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTWAM_CACHE", str(tmp_path_factory.getbasetemp() / "caches" / "session"))
        yield


@pytest.fixture(autouse=True)
def cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for caches of this test, made when it is used: nothing is written into the user's home."""
    folder = tmp_path_factory.getbasetemp() / "caches" / str(next(COUNTER))
    monkeypatch.setenv("LIGHTWAM_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    """The point recipe, at sizes where everything takes seconds."""
    from lightwam.config import recipes

    point = recipes.point()
    return replace(
        point,
        collect=replace(point.collect, demos_per_task=3, workers=1),
        train=replace(
            point.train, steps=6, batch_size=4, warmup_steps=2, log_every=1, save_every=2, ema_decay=0.9, shift_pixels=1
        ),
        eval=replace(point.eval, trials=2, workers=1),
    )


@pytest.fixture(scope="session")
def tiny_once(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Recipe) -> Tiny:
    """Made once a session: look, do not touch. `tiny` is a copy to change."""
    from lightwam.data.collect import collect
    from lightwam.training.caches import DatasetSource
    from lightwam.training.train import train

    root = tmp_path_factory.mktemp("tiny")
    # 0 workers: in this process
    in_here = replace(tiny_recipe, collect=replace(tiny_recipe.collect, workers=0))
    collect(in_here, root / "dataset", say=lambda line: None)
    inside = DatasetSource(root / "dataset", cache=root / "dataset")  # copied with the dataset, and found there
    train(tiny_recipe, inside, root / "run", say=lambda line: None)
    return Tiny(tiny_recipe, root / "dataset", root / "run")


@pytest.fixture(scope="session")
def arm_once(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A run on recorded demonstrations alone, without a simulator; made once a session: look, do not touch."""
    from arm import arm_recipe, write_dataset

    from lightwam.training.train import train

    root = tmp_path_factory.mktemp("arm")
    write_dataset(root / "dataset")
    train(arm_recipe(), root / "dataset", root / "run", say=lambda line: None)
    return Tiny(arm_recipe(), root / "dataset", root / "run")


@pytest.fixture
def tiny(tiny_once: Tiny, tmp_path: Path) -> Tiny:
    """A copy of the tiny run and its dataset, for this test alone."""
    shutil.copytree(tiny_once.dataset, tmp_path / "dataset")
    shutil.copytree(tiny_once.run, tmp_path / "run")
    return Tiny(tiny_once.recipe, tmp_path / "dataset", tmp_path / "run")
