"""What a user can get wrong, through the command line: exit code 2, what and where, and the next step; no traceback."""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightwam.cli.main import main
from lightwam.config import recipes

VIDEO = Path("videos/observation.images.top/chunk-000/file-000.mp4")
SAME = ["--collect.demos-per-task", "3", "--train.steps", "6", "--train.batch-size", "4"]

Told = Callable[..., str]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """told("train", ...) runs the command line, which must be refused, and returns what stderr says."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        try:
            code: object = main([str(word) for word in arguments])
        except SystemExit as exit_:  # tyro's way
            code = exit_.code
        err = capsys.readouterr().err
        assert code == 2, err
        assert "Traceback" not in err
        return err

    return run


def train_words(tiny: Any, run: Path) -> list[object]:
    return ["train", "point", "--dataset", tiny.dataset, "--run", run, *SAME]


def test_a_truncated_video(tiny: Any, tmp_path: Path, told: Told, cache_folder: Path) -> None:
    shutil.rmtree(tiny.dataset / "cache")
    video = tiny.dataset / VIDEO
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    text = told(*train_words(tiny, tmp_path / "new"))
    assert str(VIDEO.name) in text
    assert "observation.images.top" in text
    assert not list(cache_folder.rglob("*.npy"))


def test_a_truncated_video_does_not_hide_behind_the_cache(tiny: Any, tmp_path: Path, told: Told) -> None:
    video = tiny.dataset / VIDEO
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    assert VIDEO.name in told(*train_words(tiny, tmp_path / "new"))


def test_a_missing_video(tiny: Any, tmp_path: Path, told: Told) -> None:
    (tiny.dataset / VIDEO).unlink()
    assert str(VIDEO) in told(*train_words(tiny, tmp_path / "new"))


def test_no_dataset_at_all(tiny: Any, tmp_path: Path, told: Told) -> None:
    assert "nowhere" in told("train", "point", "--dataset", tmp_path / "nowhere", "--run", tmp_path / "new")


@pytest.mark.parametrize(("dim", "feature"), [("state-dim", "observation.state"), ("action-dim", "action")])
def test_a_dataset_of_other_shapes(tiny: Any, tmp_path: Path, told: Told, dim: str, feature: str) -> None:
    text = told(*train_words(tiny, tmp_path / "new"), f"--model.{dim}", "3", "--codec.delta-action-dims", "0", "1")
    assert feature in text
    assert "got: 2" in text
    assert "expected: 3" in text


def test_a_camera_that_the_dataset_lacks(tiny: Any, tmp_path: Path, told: Told) -> None:
    info = tiny.dataset / "meta" / "info.json"
    info.write_text(info.read_text().replace("observation.images.top", "observation.images.front"))
    shutil.move(tiny.dataset / "videos/observation.images.top", tiny.dataset / "videos/observation.images.front")
    text = told(*train_words(tiny, tmp_path / "new"))
    assert "front" in text or "observation.images" in text


def rename_tasks(dataset: Path, sentence: str) -> None:
    """Give every task of a dataset a sentence that ends with its number."""
    path = dataset / "meta" / "tasks.parquet"
    tasks = pq.read_table(path).to_pylist()
    (name,) = (key for key in tasks[0] if key != "task_index")
    new = {row[name]: f"{sentence}{row['task_index']}" if sentence else "" for row in tasks}
    for table in (path, *(dataset / "meta" / "episodes").rglob("*.parquet")):
        found = pq.read_table(table)
        for column in {name, "tasks"} & set(found.column_names):
            given = [[new[one] for one in v] if isinstance(v, list) else new[v] for v in found[column].to_pylist()]
            found = found.set_column(found.column_names.index(column), column, pa.array(given))
        pq.write_table(found.replace_schema_metadata(pq.read_schema(table).metadata), table)


def test_a_sentence_that_is_too_long_costs_nothing(tiny: Any, tmp_path: Path, told: Told, cache_folder: Path) -> None:
    shutil.rmtree(tiny.dataset / "cache")
    rename_tasks(tiny.dataset, "move slowly and with great care to the dot number ")
    for command in ("train", "cache"):
        run = ["--run", tmp_path / "new"] if command == "train" else []
        text = told(command, "point", "--dataset", tiny.dataset, *run, *SAME)
        assert f"{tiny.dataset} task 0: 'move slowly" in text
        assert "got: 11 words" in text and "--text.num-tokens" in text
        assert not (tmp_path / "new").exists() and not cache_folder.exists()
    assert main([str(word) for word in [*train_words(tiny, tmp_path / "new"), "--text.num-tokens", "11"]]) == 0


def test_a_sentence_that_no_row_has_need_not_fit(tiny: Any, tmp_path: Path) -> None:
    table = pq.read_table(tiny.dataset / "meta" / "tasks.parquet")
    more = pa.table({"task_index": [5], "__index_level_0__": ["never said, " * 100]}, schema=table.schema)
    pq.write_table(pa.concat_tables([more, table]), tiny.dataset / "meta" / "tasks.parquet")
    assert main([str(word) for word in train_words(tiny, tmp_path / "new")]) == 0


def test_a_camera_that_is_not_there_costs_nothing(tiny: Any, tmp_path: Path, told: Told) -> None:
    near = ["--codec.places.0.camera", "near", "--sim.cameras", "near"]
    assert "expected: near" in told(*train_words(tiny, tmp_path / "new"), *near)
    assert "expected: near" in told("cache", "point", "--dataset", tiny.dataset, *near)
    assert not (tmp_path / "new").exists()


def test_a_dataset_that_cannot_be_written_to(
    tiny: Any, tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch, cache_folder: Path
) -> None:
    shutil.rmtree(tiny.dataset / "cache")
    able, closed = os.access, [tiny.dataset, cache_folder]
    cache_folder.mkdir(parents=True)
    with monkeypatch.context() as patch:  # as root, rights alone refuse nothing
        patch.setattr(os, "access", lambda path, *rest: Path(path) not in closed and able(path, *rest))
        text = told(*train_words(tiny, tmp_path / "new"))
        assert f"{cache_folder} cannot be written to" in text and "--cache DIR" in text
        assert not (tmp_path / "new").exists() and not list(cache_folder.iterdir())
        closed.remove(cache_folder)
        assert main([str(word) for word in train_words(tiny, tmp_path / "new")]) == 0
    assert not (tiny.dataset / "cache").exists()
    (tmp_path / "file").write_text("")
    assert "got: a file" in told(*train_words(tiny, tmp_path / "other"), "--cache", tmp_path / "file")
    assert not (tmp_path / "other").exists()


def test_a_demo_that_cannot_work_costs_nothing(tmp_path: Path, told: Told) -> None:
    demo = ["demo", "point", "--run", tmp_path / "new"]
    assert "got: 5 words" in told(*demo, "--text.num-tokens", "3")
    text = told(*demo, "--model.state-dim", "3")
    assert "where: --model.state-dim" in text and "expected: 2 (point/red)" in text
    assert not (tmp_path / "new").exists()


def test_a_camera_that_the_simulator_lacks(tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipes.point()
    tip = replace(recipe.codec.places[0], camera="tip")
    lacking = replace(recipe, sim=replace(recipe.sim, cameras=("tip",)), codec=replace(recipe.codec, places=(tip,)))
    monkeypatch.setitem(recipes.RECIPES, "point", lambda: lacking)  # type: ignore[index]
    text = told("collect", "point", "--dataset", tmp_path / "new")
    assert "unknown point camera" in text
    assert "did you mean 'top'" in text


def test_a_camera_that_the_simulator_does_not_draw(tmp_path: Path, told: Told) -> None:
    text = told("collect", "point", "--dataset", tmp_path / "new", "--sim.cameras", "near")
    assert "got: top" in text
    assert "near" in text


def test_a_run_of_another_config(tiny: Any, told: Told) -> None:
    text = told("train", "point", "--dataset", tiny.dataset, "--run", tiny.run, "--train.batch-size", "5")
    assert "train.batch_size: run has 4, asked 5" in text


def test_weights_of_another_config(tiny: Any, told: Told) -> None:
    recipe = json.loads((tiny.run / "recipe.json").read_text())
    recipe["model"]["backbone"]["num_blocks"] = 3
    (tiny.run / "recipe.json").write_text(json.dumps(recipe))
    text = told("eval", tiny.run)
    assert "the weights do not fit the model" in text
    assert "blocks.2" in text


def test_a_damaged_checkpoint(tiny: Any, told: Told) -> None:
    weights = tiny.run / "checkpoints" / "step_00000006" / "ema.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    text = told("eval", tiny.run)
    assert str(weights) in text
    assert "older checkpoint" in text


def test_more_steps_than_were_supervised(tiny: Any, told: Told) -> None:
    assert "never supervised" in told("eval", tiny.run, "--eval.replan", "9")


def test_an_unknown_recipe(told: Told) -> None:
    text = told("train", "piont")
    assert "'piont'" in text
    assert "did you mean 'point'" in text


def test_an_unknown_option(told: Told) -> None:
    assert "--train.steps" in told("train", "point", "--train.stepps", "3")


def test_a_value_of_the_wrong_type(told: Told) -> None:
    assert "many" in told("train", "point", "--train.steps", "many")


def test_a_simulator_that_is_not_installed(tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    gone = ("metaworld", "mujoco")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in gone else real(name, *a))
    text = told("collect", "demo", "--dataset", tmp_path / "new")
    assert "pip install 'lightwam[metaworld]'" in text
