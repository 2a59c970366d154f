"""training/train.py: what a step is made of, and that going on is the same as never having stopped."""

import json
import math
import resource
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from runs import bits

from lightwam.config.schema import Recipe, TrainConfig
from lightwam.engine.packed_step import PackedLoss
from lightwam.errors import CheckpointError, ConfigError, DatasetError, LightwamError
from lightwam.policy import run_directory
from lightwam.training.batches import flow_draw
from lightwam.training.caches import DatasetSource
from lightwam.training.optimizer import ema_decay, learning_rate
from lightwam.training.train import open_training_data, train
from lightwam.types import Batch, Losses


def quiet(line: str) -> None:
    """What is said is not of interest."""


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def shorter(recipe: Recipe, **settings: Any) -> Recipe:
    return replace(recipe, train=replace(recipe.train, **settings))


def test_two_steps_and_two_more_are_four(tiny: Any, tmp_path: Path) -> None:
    recipe = shorter(tiny.recipe, steps=4)
    train(recipe, tiny.dataset, tmp_path / "whole", say=quiet)
    train(recipe, tiny.dataset, tmp_path / "parts", stop_after=2, say=quiet)
    assert run_directory.steps(tmp_path / "parts") == [2]
    train(recipe, tiny.dataset, tmp_path / "parts", say=quiet)
    whole, parts = bits(tmp_path / "whole"), bits(tmp_path / "parts")
    assert any("exp_avg_sq" in name for name in whole)
    assert any(name.startswith("/ema/") for name in whole)
    assert [name for name in whole if whole[name] != parts[name]] == []
    assert whole.keys() == parts.keys()
    # and it did learn something between the two
    name = next(name for name in whole if name.startswith("/model/") and name.endswith("weight"))
    assert bits(tmp_path / "parts", 2)[name] != whole[name]
    for one, other in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        clocks = {"seconds", "samples_per_second", "wait_share"}
        assert {k: v for k, v in one.items() if k not in clocks} == {k: v for k, v in other.items() if k not in clocks}


def test_a_finished_run_is_left_alone(tiny: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in (tiny.run / "checkpoints").rglob("*")}
    log = (tiny.run / "log.jsonl").read_text()
    said: list[str] = []
    train(tiny.recipe, tiny.dataset, tiny.run, say=said.append)
    assert "done: all 6 steps are trained; a larger --train.steps goes on" in said
    assert not any("resuming" in line for line in said)
    assert {path: path.stat().st_mtime_ns for path in (tiny.run / "checkpoints").rglob("*")} == before
    assert (tiny.run / "log.jsonl").read_text() == log


def test_lines_after_the_last_checkpoint_and_a_torn_one_are_written_again(tiny: Any) -> None:
    (tiny.run / "checkpoints" / "step_00000006").rename(tiny.run / "gone")
    with (tiny.run / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "loss": 1}\n{"step": 8, "lo')
    train(tiny.recipe, tiny.dataset, tiny.run, say=quiet)
    assert [row["step"] for row in rows(tiny.run)] == [1, 2, 3, 4, 5, 6]
    assert run_directory.steps(tiny.run) == [4, 6]
    again = run_directory.load(tiny.run)
    (tiny.run / "checkpoints" / "step_00000006").rename(tiny.run / "new")
    (tiny.run / "gone").rename(tiny.run / "checkpoints" / "step_00000006")
    assert all(torch.equal(again.model[name], value) for name, value in run_directory.load(tiny.run).model.items())


def test_a_full_disk_while_logging_is_reported_and_the_run_resumes(tiny: Any, tmp_path: Path) -> None:
    run = tmp_path / "new"
    train(tiny.recipe, tiny.dataset, run, stop_after=0, say=quiet)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))  # the system lets no file grow beyond: one line of log
    try:
        with pytest.raises(CheckpointError, match=r"could not save(.|\n)*log\.jsonl(.|\n)*larger than allowed"):
            train(tiny.recipe, tiny.dataset, run, say=quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [row["step"] for row in rows(run)] == [1] and run_directory.steps(run) == []
    train(tiny.recipe, tiny.dataset, run, say=quiet)
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4, 5, 6]
    assert bits(run) == bits(tiny.run)


def test_a_broken_line_of_the_log_is_named(tiny: Any) -> None:
    log = tiny.run / "log.jsonl"
    first, *others = log.read_text().splitlines()
    log.write_text("\n".join([first, '{"loss": 1}', *others]) + "\n")
    with pytest.raises(CheckpointError, match=r"log\.jsonl:2(.|\n)*delete this line"):
        train(tiny.recipe, tiny.dataset, tiny.run, say=quiet)


def test_loggers_are_checked_before_decoding(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_folder: Path
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    shutil.rmtree(tiny.dataset / "cache")
    with pytest.raises(ConfigError, match="must be installed"):
        train(shorter(tiny.recipe, loggers=("wandb",)), tiny.dataset, tmp_path / "new", say=quiet)
    assert not (tmp_path / "new").exists() and not cache_folder.exists()


def test_a_logger_can_be_added_to_a_resumed_run(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    wandb: Any = ModuleType("wandb")
    wandb.init, wandb.finish = lambda **_: None, lambda: None
    wandb.log = lambda row, step: told.append(step)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_MODE", "offline")
    recipe = shorter(tiny.recipe, loggers=("wandb",))
    for _ in range(2):
        shutil.rmtree(tiny.run / "checkpoints" / "step_00000006")
        train(recipe, tiny.dataset, tiny.run, say=quiet)
        assert told == [5, 6]  # the second time both were told already: the log has them


def test_the_log_has_what_the_report_reads(tiny_once: Any) -> None:
    names = {"step", "loss", "loss_video", "loss_action", "grad_norm", "learning_rate", "samples_per_second",
             "seconds", "wait_share"}  # fmt: skip
    weight = tiny_once.recipe.model.action_loss_weight
    for row in rows(tiny_once.run):
        assert row.keys() == names
        assert all(math.isfinite(value) for value in row.values())
        assert row["loss"] == pytest.approx(row["loss_video"] + weight * row["loss_action"], rel=1e-5)
        assert 0 <= row["wait_share"] <= 1
    assert sorted(row["seconds"] for row in rows(tiny_once.run)) == [row["seconds"] for row in rows(tiny_once.run)]


def test_another_recipe_is_refused_before_anything_is_touched(tiny: Any) -> None:
    before = (tiny.run / "log.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"train\.learning_rate"):
        train(shorter(tiny.recipe, learning_rate=0.5), tiny.dataset, tiny.run, say=quiet)
    assert (tiny.run / "log.jsonl").read_bytes() == before


def test_the_average_is_the_average_of_the_trained_weights(tiny: Any, tmp_path: Path) -> None:
    recipe = shorter(tiny.recipe, steps=3, save_every=1)
    run = train(recipe, tiny.dataset, tmp_path / "new", stop_after=2, say=quiet)
    before = run_directory.load(run, 2)
    train(recipe, tiny.dataset, run, say=quiet)
    after = run_directory.load(run, 3)
    assert before.ema is not None
    assert after.ema is not None
    keep = min(0.9, 4 / 13)
    expected = {name: keep * before.ema[name] + (1 - keep) * value for name, value in after.model.items()}
    torch.testing.assert_close(after.ema, expected)


def test_pictures_are_decoded_once(tiny: Any, tmp_path: Path) -> None:
    said: list[str] = []
    (frames,) = (tiny.dataset / "cache").glob("*/frames.npy")
    before = frames.stat().st_mtime_ns
    open_training_data(tiny.recipe, tiny.dataset, tiny.run, said.append)
    assert (frames.stat().st_mtime_ns, said) == (before, [])
    frames.with_name("cache.json").unlink()
    open_training_data(tiny.recipe, tiny.dataset, tiny.run, said.append)
    assert said
    assert "decode" in said[-1]


def test_pictures_of_another_codec_are_decoded_again(tiny: Any, tmp_path: Path) -> None:
    said: list[str] = []
    (place,) = tiny.recipe.codec.places
    cropped = replace(tiny.recipe.codec, places=(replace(place, crop=(0.0, 0.0, 0.5, 0.5)),))
    (frames,) = (tiny.dataset / "cache").glob("*/frames.npy")
    before = np.load(frames)
    recipe, run = replace(tiny.recipe, codec=cropped), tmp_path / "new"
    run_directory.start_run(run, recipe)
    cache, _ = open_training_data(recipe, tiny.dataset, run, said.append)
    assert len(said) == 1
    assert f"decode {len(before)}/{len(before)}" in said[0]
    assert cache.frames.shape == before.shape
    assert (cache.frames != before).any()
    open_training_data(recipe, tiny.dataset, run, said.append)
    assert len(said) == 1


def test_two_codecs_that_take_turns_decode_once_each(tiny: Any, tmp_path: Path) -> None:
    said: list[str] = []
    (place,) = tiny.recipe.codec.places
    cropped = replace(tiny.recipe.codec, places=(replace(place, crop=(0.0, 0.0, 0.5, 0.5)),))
    other = replace(tiny.recipe, codec=cropped)
    for turn in range(2):
        open_training_data(tiny.recipe, tiny.dataset, tiny.run, said.append)
        open_training_data(other, tiny.dataset, tmp_path / "other", said.append)
        assert len(said) == 1, turn


def test_a_dataset_is_left_as_it_is_and_its_cache_shared(tiny: Any, tmp_path: Path, cache_folder: Path) -> None:
    said: list[str] = []
    shutil.rmtree(tiny.dataset / "cache")
    before = contents(tiny.dataset)
    cache, _ = open_training_data(tiny.recipe, tiny.dataset, tiny.run, said.append)
    again, _ = open_training_data(shorter(tiny.recipe, steps=7), tiny.dataset, tmp_path / "other", said.append)
    assert contents(tiny.dataset) == before and len(said) == 1
    assert cache.path == again.path and cache.path.parent == cache_folder / "dataset.lightwam" / "cache"


def contents(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("by", ["option", "variable"])
def test_a_cache_elsewhere_leaves_the_dataset_alone(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    said: list[str] = []
    shutil.rmtree(tiny.dataset / "cache")
    (tmp_path / "link").symlink_to(tiny.dataset)
    before, given = contents(tiny.dataset), Path("c") if by == "option" else None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTWAM_CACHE", "c" if by == "variable" else "")
    for path in (tiny.dataset, tmp_path / "link"):
        dataset = DatasetSource(path, cache=given)
        open_training_data(tiny.recipe, dataset, tiny.run, said.append)
    assert len(list((tmp_path / "c" / "dataset.lightwam" / "cache").glob("*/frames.npy"))) == 1
    assert len(said) == 1 and contents(tiny.dataset) == before


def test_an_older_cache_in_the_datasets_folder_is_used(tiny: Any) -> None:
    said: list[str] = []
    (folder,) = (tiny.dataset / "cache").iterdir()
    for path in folder.iterdir():
        path.rename(folder.parent / path.name)
    folder.rmdir()
    cache, _ = open_training_data(tiny.recipe, tiny.dataset, tiny.run, said.append)
    assert cache.path == tiny.dataset / "cache" and said == []


def test_the_next_start_removes_what_a_killed_one_left(tiny: Any) -> None:
    left = tiny.dataset / "cache.draft-999999999", tiny.dataset / "cache" / "16x16-top-ab.part-0123456789abcdef"
    for folder in left:
        folder.mkdir()
        (folder / "frames.npy").write_bytes(b"x")
    open_training_data(tiny.recipe, DatasetSource(tiny.dataset, cache=tiny.dataset), tiny.run, quiet)
    assert not any(folder.exists() for folder in left)


def test_a_run_does_not_go_on_with_another_dataset(tiny: Any, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tiny.dataset, elsewhere)
    train(tiny.recipe, elsewhere, tiny.run, say=quiet)  # the same, at another place
    info = elsewhere / "meta" / "info.json"
    info.write_text(info.read_text() + "\n")
    before = (tiny.run / "log.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="another dataset") as caught:
        train(tiny.recipe, elsewhere, tiny.run, say=quiet)
    assert str(elsewhere) in str(caught.value)
    assert "meta/info.json" in str(caught.value)
    assert (tiny.run / "log.jsonl").read_bytes() == before


def test_to_stop_after_no_step_is_not_to_do_them_all(tiny: Any, tmp_path: Path) -> None:
    train(tiny.recipe, tiny.dataset, tmp_path / "new", stop_after=0, say=quiet)
    assert not (tmp_path / "new" / "log.jsonl").exists()
    assert run_directory.steps(tmp_path / "new") == []


def test_statistics_belong_to_the_run(tiny: Any) -> None:
    before = (tiny.run / "processing.json").read_bytes()
    _, processing = open_training_data(tiny.recipe, tiny.dataset, tiny.run, quiet)
    assert (tiny.run / "processing.json").read_bytes() == before
    codec, measured = run_directory.read_processing(tiny.run)
    assert processing.codec.to_dict() == codec.to_dict()
    assert processing.latents.to_dict() == measured
    assert processing.prompts.shape == (2, 8, 32)
    assert not torch.equal(processing.prompts[0], processing.prompts[1])


def test_a_dataset_of_another_robot_is_refused(tiny: Any, tmp_path: Path) -> None:
    wider = replace(tiny.recipe, model=replace(tiny.recipe.model, state_dim=3))
    with pytest.raises(DatasetError, match=r"observation\.state") as caught:
        train(wider, tiny.dataset, tmp_path / "new", say=quiet)
    assert "expected: 3" in str(caught.value)
    assert not (tmp_path / "new").exists()  # the right recipe may have it


def test_a_nan_among_the_actions_is_refused(tiny: Any, tmp_path: Path) -> None:
    (path,) = (tiny.dataset / "cache").glob("*/action.npy")
    actions = np.load(path)
    actions[3, 1] = np.nan
    np.save(path, actions)
    with pytest.raises(LightwamError, match="action is not finite"):
        train(tiny.recipe, tiny.dataset, tmp_path / "new", say=quiet)
    assert run_directory.steps(tmp_path / "new") == []


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(tiny: Any, tmp_path: Path) -> None:
    exploding = shorter(tiny.recipe, learning_rate=1e30, warmup_steps=0, steps=20, save_every=20)
    with pytest.raises(DatasetError, match="must be finite") as caught:
        train(exploding, tiny.dataset, tmp_path / "new", say=quiet)
    assert "learning_rate" in str(caught.value)
    assert run_directory.steps(tmp_path / "new") == []


def test_muon_is_not_sharded(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Muon.*whole matrices"):
        train(shorter(tiny.recipe, muon_learning_rate=0.1), tiny.dataset, tmp_path / "new", parallel="fsdp", say=quiet)
    assert not (tmp_path / "new").exists()


def test_micro_batches_change_nothing_but_rounding(tiny: Any, tmp_path: Path) -> None:
    recipe = shorter(tiny.recipe, steps=2)
    whole = train(recipe, tiny.dataset, tmp_path / "whole", say=quiet)
    parts = train(shorter(recipe, micro_batch=1, checkpointing=True), tiny.dataset, tmp_path / "parts", say=quiet)
    for one, other in zip(rows(whole), rows(parts), strict=True):
        for name in ("loss", "loss_video", "loss_action", "grad_norm"):
            assert other[name] == pytest.approx(one[name], rel=1e-4), name
    # and neither setting binds a run
    train(shorter(recipe, micro_batch=2), tiny.dataset, parts, say=quiet)


@pytest.mark.parametrize(("share", "micro_batch", "videos"), [(1.0, 0, [4]), (0.5, 0, [2]), (0.5, 2, [1, 1])])
def test_a_share_of_the_samples_has_the_video_pass(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, micro_batch: int, videos: list[int]
) -> None:
    seen: list[int] = []
    forward = PackedLoss.forward

    def watched(self: PackedLoss, batch: Batch, u: torch.Tensor, noise: torch.Tensor) -> Losses:
        assert len(u) == len(noise)
        has_clip = batch.clip.flatten(1).any(dim=1).tolist()  # a clip that is not needed is not read
        assert has_clip == [row < len(u) for row in range(len(has_clip))]
        seen.append(len(u))
        return forward(self, batch, u, noise)

    monkeypatch.setattr(PackedLoss, "forward", watched)
    recipe = shorter(tiny.recipe, video_share=share, micro_batch=micro_batch)
    train(recipe, tiny.dataset, tmp_path / "mine", stop_after=1, say=quiet)
    assert seen == videos


def test_training_lowers_the_loss(tiny: Any, tmp_path: Path) -> None:
    recipe = shorter(tiny.recipe, steps=60, warmup_steps=5, batch_size=8, log_every=10, save_every=60)
    run = train(recipe, tiny.dataset, tmp_path / "new", say=quiet)
    table = rows(run)
    assert [row["step"] for row in table] == [10, 20, 30, 40, 50, 60]
    for name in ("loss_action", "loss_video"):
        assert table[-1][name] < 0.8 * rows(tiny.run)[0][name]  # the tiny run logged its first step


def test_the_rate_warms_up_and_falls_as_half_a_cosine() -> None:
    settings = TrainConfig(steps=110, batch_size=1, learning_rate=2.0, warmup_steps=10, final_learning_rate=0.5)
    assert [learning_rate(step, settings) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert [learning_rate(step, settings) for step in (10, 60, 110, 500)] == pytest.approx([2.0, 1.25, 0.5, 0.5])
    assert learning_rate(35, settings) == pytest.approx(0.5 + 1.5 * 0.5 * (1 + math.sqrt(0.5)))
    flat_start = replace(settings, warmup_steps=0)
    assert learning_rate(0, flat_start) == 2.0
    assert learning_rate(5, replace(settings, warmup_steps=200)) == pytest.approx(0.06)


def test_the_average_forgets_the_start_soon() -> None:
    assert [ema_decay(step, 0.995) for step in (0, 1, 8)] == pytest.approx([0.1, 2 / 11, 0.5])
    assert ema_decay(100_000, 0.995) == 0.995
    assert ema_decay(8, 0.3) == 0.3


def batch_of(size: int, content: float) -> Batch:
    return Batch(
        present=torch.full((size, 3, 1, 4, 6), content),
        clip=torch.full((size, 3, 2, 2, 3), content),
        context=torch.zeros(size, 2, 4),
        state=torch.zeros(size, 2),
        action=torch.zeros(size, 4, 2),
        action_is_pad=torch.zeros(size, 4, dtype=torch.bool),
        frame_is_pad=torch.zeros(size, 5, dtype=torch.bool),
    )


def test_a_steps_noise_depends_on_seed_and_step_only() -> None:
    u, noise = flow_draw(3, 7, 8, batch_of(8, 0.0).clip)
    torch.manual_seed(99)
    torch.rand(5)
    again = flow_draw(3, 7, 8, batch_of(8, 5.0).clip)
    assert torch.equal(u, again[0])
    assert torch.equal(noise, again[1])
    assert noise.shape == (8, 3, 2, 2, 3)
    for seed, step in ((3, 8), (4, 7)):
        other = flow_draw(seed, step, 8, batch_of(8, 0.0).clip)
        assert not torch.equal(u, other[0])
        assert not torch.equal(noise, other[1])


def test_noise_levels_are_stratified_over_the_batch() -> None:
    for step in range(20):
        u, _ = flow_draw(0, step, 8, batch_of(8, 0.0).clip)
        assert sorted((u * 8).long().tolist()) == list(range(8))
    orders = {tuple((flow_draw(0, step, 8, batch_of(8, 0.0).clip)[0] * 8).long().tolist()) for step in range(20)}
    assert len(orders) > 10
