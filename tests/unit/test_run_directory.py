"""policy/run_directory.py: recipes, processing and checkpoints of a run."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from disk import largest_file

from lightwam.config import recipes
from lightwam.errors import CheckpointError, LightwamError
from lightwam.evaluation import result_files
from lightwam.policy import run_directory
from lightwam.policy.run_directory import Checkpoint, open_processing


def content(step: int, *, size: int = 8, ema: bool = True) -> Checkpoint:
    """A checkpoint that tells its step apart from others."""
    model = {"a.weight": torch.full((size, size), float(step)), "a.bias": torch.arange(3, dtype=torch.bfloat16)}
    training = {"optimizer": {"state": {0: {"exp_avg": torch.ones(size)}}, "lr": 0.1}, "seconds": 1.5}
    return Checkpoint(step, model, {**model, "a.bias": torch.zeros(3)} if ema else None, training)


def same(one: dict[str, torch.Tensor] | None, other: dict[str, torch.Tensor] | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


def entries(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize("ema", [True, False])
def test_checkpoint_is_loaded_as_saved(tmp_path: Path, ema: bool) -> None:
    saved = content(7, ema=ema)
    place = run_directory.save(tmp_path, saved)
    assert place == tmp_path / "checkpoints" / "step_00000007"
    loaded = run_directory.load(tmp_path)
    assert loaded.step == 7
    assert same(loaded.model, saved.model)
    assert same(loaded.ema, saved.ema)
    assert loaded.training["seconds"] == 1.5
    assert torch.equal(loaded.training["optimizer"]["state"][0]["exp_avg"], torch.ones(8))
    assert run_directory.load(tmp_path, training=False).training == {}


def test_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        run_directory.save(tmp_path, content(step))
    assert run_directory.steps(tmp_path) == [10, 100]
    assert entries(tmp_path) == ["step_00000010", "step_00000100"]
    assert run_directory.load(tmp_path).step == 100
    assert run_directory.load(tmp_path, 10).model["a.weight"][0, 0] == 10
    with pytest.raises(CheckpointError, match="no such checkpoint") as caught:
        run_directory.load(tmp_path, 5)
    assert "[10, 100]" in str(caught.value)


def test_a_run_without_checkpoints_says_so(tmp_path: Path) -> None:
    assert run_directory.steps(tmp_path) == []
    with pytest.raises(CheckpointError, match="lightwam train"):
        run_directory.load(tmp_path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def change_one_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [truncate, change_one_byte, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "training.pt", "meta.json"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    if name == "meta.json" and damage is change_one_byte:
        damage = truncate  # its last byte is a line end
    place = run_directory.save(tmp_path, content(3))
    damage(place / name)
    with pytest.raises(CheckpointError) as caught:
        run_directory.load(tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_load_without_training_state_does_not_need_it(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """A published run has no optimiser's state: it acts, and training on is refused."""
    saved = content(3)
    damage(run_directory.save(tmp_path, saved) / "training.pt")
    assert same(run_directory.load(tmp_path, training=False).model, saved.model)
    with pytest.raises(CheckpointError, match=r"training\.pt"):
        run_directory.load(tmp_path)


def test_other_folders_are_neither_loaded_nor_deleted(tmp_path: Path) -> None:
    strays = ["notes", "step_", "step_12", "step_99999999.bak", "step_x"]
    for name in strays:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_88888888").write_text("a file")
    for step in (3, 4, 5):
        run_directory.save(tmp_path, content(step))
    assert run_directory.steps(tmp_path) == [4, 5]
    assert run_directory.load(tmp_path).step == 5
    kept = ["step_00000004", "step_00000005", "step_88888888"]
    assert entries(tmp_path) == sorted([*strays, *kept])


def test_another_format_is_refused(tmp_path: Path) -> None:
    place = run_directory.save(tmp_path, content(3))
    meta = json.loads((place / "meta.json").read_text())
    (place / "meta.json").write_text(json.dumps(meta | {"format": 99}))
    with pytest.raises(CheckpointError, match="format"):
        run_directory.load(tmp_path)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_save_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    run_directory.save(tmp_path, content(3))

    def interrupted(*_: Any) -> None:
        raise stop

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(stop):
        run_directory.save(tmp_path, content(4))
    assert entries(tmp_path) == ["step_00000003"]
    assert run_directory.load(tmp_path).step == 3


def test_leftovers_of_a_killed_save_are_removed(tmp_path: Path) -> None:
    run_directory.save(tmp_path, content(3))
    torn = tmp_path / "checkpoints" / ".step_00000004.1"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    assert run_directory.load(tmp_path).step == 3
    run_directory.save(tmp_path, content(4))
    assert entries(tmp_path) == ["step_00000003", "step_00000004"]


FULL = [
    ("safetensors.torch.save_file", OSError(28, "No space left on device")),
    ("safetensors.torch.save_file", safetensors.SafetensorError("I/O error: No space left on device (os error 28)")),
    ("torch.save", RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0: file write failed")),
    ("torch.save", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")),
    ("os.fsync", OSError(28, "No space left on device")),
    ("os.replace", OSError(28, "No space left on device")),
]


@pytest.mark.parametrize(
    ("function", "error"), FULL, ids=["os", "safetensors", "torch", "torch at the end", "fsync", "rename"]
)
def test_full_disk_is_reported_and_keeps_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: Exception
) -> None:
    run_directory.save(tmp_path, content(3))

    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(function, full)
    with pytest.raises(CheckpointError, match="could not save") as caught:
        run_directory.save(tmp_path, content(4))
    assert "MiB free" in str(caught.value)
    assert entries(tmp_path) == ["step_00000003"]
    assert run_directory.load(tmp_path).step == 3


@pytest.mark.parametrize("size", [100, 250_000])
def test_write_beyond_a_file_size_limit_is_reported(tmp_path: Path, size: int) -> None:
    """No pretence: at 100 bytes the weights cannot be written, at 250,000 the optimiser cannot."""
    run_directory.save(tmp_path, content(3))
    big = replace(content(4), training={"optimizer": torch.zeros(100_000)})
    with largest_file(size), pytest.raises(CheckpointError, match="could not save"):
        run_directory.save(tmp_path, big)
    assert entries(tmp_path) == ["step_00000003"]
    assert run_directory.load(tmp_path).step == 3


def test_other_errors_are_not_reported_as_disk_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run_directory.save(tmp_path, content(4))


def test_a_recipe_starts_a_run_once(tmp_path: Path) -> None:
    recipe = recipes.point()
    run_directory.start_run(tmp_path, recipe)
    assert run_directory.read_recipe(tmp_path) == recipe
    run_directory.start_run(tmp_path, replace(recipe, notes="notes may change"))
    other = replace(recipe, train=replace(recipe.train, batch_size=99), eval=replace(recipe.eval, replan=2))
    with pytest.raises(CheckpointError) as caught:
        run_directory.start_run(tmp_path, other)
    text = str(caught.value)
    assert f"train.batch_size: run has {recipe.train.batch_size}, asked 99" in text
    assert f"eval.replan: run has {recipe.eval.replan}, asked 2" in text
    assert "learning_rate" not in text
    assert run_directory.read_recipe(tmp_path) == recipe


def test_deeply_nested_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text('{"a":' * 100_000)
    for read in (run_directory.read_json, result_files.read_object):
        with pytest.raises(CheckpointError, match="JSON"):
            read(tmp_path / "deep.json")


def test_a_run_whose_recipe_is_gone_or_broken(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"recipe\.json"):
        run_directory.read_recipe(tmp_path)
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        run_directory.read_recipe(tmp_path)
    (tmp_path / "recipe.json").write_text('{"name": "x"}')
    with pytest.raises(CheckpointError, match="missing"):
        run_directory.read_recipe(tmp_path)


PROCESSING: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no latents": (lambda data: data.pop("latents"), r"\['codec'\]"),
    "odd": (lambda data: data.update(odd=1), "'odd'"),
    "no codec state": (lambda data: data["codec"].pop("state"), "codec"),
    "odd codec key": (lambda data: data["codec"]["config"].update(odd=1), r"codec\.config(.|\n)*odd"),
    "no statistic": (lambda data: data["codec"]["action"].pop("q99"), r"codec\.action(.|\n)*q99"),
    "latents list": (lambda data: data.update(latents=[]), "latents"),
    "no latents mean": (lambda data: data["latents"].pop("mean"), r"latents(.|\n)*\['std'\](.|\n)*'mean'"),
    "odd latents key": (lambda data: data["latents"].update(odd=[1.0]), r"latents(.|\n)*'odd'"),
    "latents words": (lambda data: data["latents"].update(std=["a"]), r"latents\.std"),
    "latents number": (lambda data: data["latents"].update(mean=1.0), r"latents\.mean"),
    "latents nan": (lambda data: data["latents"]["std"].__setitem__(0, float("nan")), "latent statistics"),
    "latents short": (lambda data: data["latents"]["std"].pop(), "latent statistics"),
}


@pytest.mark.parametrize("name", PROCESSING)
def test_processing_with_odd_or_missing_keys_is_refused_by_name(tiny_once: Any, tmp_path: Path, name: str) -> None:
    damage, told = PROCESSING[name]
    run_directory.start_run(tmp_path, tiny_once.recipe)
    data = run_directory.read_json(tiny_once.run / "processing.json")
    run_directory.write_json(tmp_path / "processing.json", data)
    open_processing(tmp_path, tiny_once.recipe)
    damage(data)
    run_directory.write_json(tmp_path / "processing.json", data)
    with pytest.raises(LightwamError, match=told) as caught:
        open_processing(tmp_path, tiny_once.recipe)
    assert "processing.json" in str(caught.value)


def test_processing_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "processing.json").write_text("[1, 2]")
    with pytest.raises(CheckpointError, match=r"layout(.|\n)*got: list"):
        run_directory.read_processing(tmp_path)


def test_json_is_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "a.json"
    run_directory.write_json(path, {"x": 1})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CheckpointError, match="could not save"):
        run_directory.write_json(path, {"x": 2})
    assert run_directory.read_json(path) == {"x": 1}


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": "移"}', encoding="utf-8-sig")
    assert run_directory.read_json(tmp_path / "a.json") == {"x": "移"}


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "frozen.safetensors"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, name: str) -> None:
    saved = content(3)
    tables = {"model.safetensors": saved.model, "ema.safetensors": saved.ema, "frozen.safetensors": {"f.weight": 1}}
    spoilt = {next(iter(tables[name] or {})): torch.tensor([1.0, float("inf")])}
    run_directory.write_tensors(tmp_path / run_directory.FROZEN, spoilt if name == run_directory.FROZEN else {})
    bad = {"model": spoilt} if name.startswith("model") else {"ema": spoilt} if name.startswith("ema") else {}
    run_directory.save(tmp_path, replace(saved, **bad))
    with pytest.raises(CheckpointError, match=r"not finite: \w+\.weight \(0 NaN and 1 inf of 2 numbers\)") as caught:
        run_directory.run_weights(tmp_path, run_directory.load(tmp_path))
    assert name in str(caught.value.where)


def test_an_optimisers_state_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    saved, moments = content(3), {"state": {7: {"exp_avg": torch.tensor([float("nan"), 0.0])}}}
    run_directory.save(tmp_path, replace(saved, training={"optimizer": moments, "steps": [1, 2]}))
    with pytest.raises(CheckpointError, match=r"not finite: optimizer\.state\.7\.exp_avg \(1 NaN") as caught:
        run_directory.load(tmp_path)
    assert "training.pt" in str(caught.value.where)
    assert run_directory.load(tmp_path, training=False).step == 3


def test_a_file_that_was_changed_is_refused_with_the_tensor_that_is_not_finite(tmp_path: Path) -> None:
    place = run_directory.save(tmp_path, content(3))
    weights = safetensors.torch.load_file(place / "model.safetensors")
    name = min(weights)
    safetensors.torch.save_file(
        weights | {name: torch.full_like(weights[name], float("nan"))}, place / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=rf"other bytes(.|\n)*not finite: {name} (.|\n)*next: copy the run again"):
        run_directory.load(tmp_path)  # there is no older one to fall back to
    (place / "model.safetensors").unlink()
    run_directory.save(tmp_path, content(4)).joinpath("model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no such file(.|\n)*an older checkpoint is used then"):
        run_directory.load(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "meta.json"])
def test_git_lfs_pointer_is_recognised(tmp_path: Path, name: str) -> None:
    place = run_directory.save(tmp_path, content(3))
    (place / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 10\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        run_directory.load(tmp_path)


@pytest.mark.parametrize("damage", ["[]", '{"format": 1}', '{"format": 1, "step": 3, "files": {}, "odd": 1}'])
def test_meta_of_another_layout_is_refused(tmp_path: Path, damage: str) -> None:
    place = run_directory.save(tmp_path, content(3))
    (place / "meta.json").write_text(damage)
    with pytest.raises(CheckpointError, match=r"format|meta\.json"):
        run_directory.load(tmp_path)
