"""The paper-scale recipe at a tiny size, the whole way: cache, train, resume, evaluate, export, load, act."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightwam.cli.main import main
from lightwam.config.schema import LATENTS, Recipe
from lightwam.data.cache.latents import LatentCache
from lightwam.encoders.frozen import vae_identity
from lightwam.errors import CheckpointError, DatasetError
from lightwam.evaluation.evaluate import evaluate
from lightwam.model.light_wam import dtype_of
from lightwam.policy import run_directory
from lightwam.policy.policy import Policy
from lightwam.sim import registry
from lightwam.training import published, wan_backbone
from lightwam.training.adopt import adopt, export
from lightwam.training.caches import DatasetSource
from lightwam.training.dataset import open_training_data
from lightwam.training.precompute import make_cache
from lightwam.training.train import train
from lightwam.types import to_pixels


def quiet(line: str) -> None:
    """What is said is not of interest."""


@pytest.fixture(scope="module")
def dataset(tiny_once: Any, paper_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny demonstrations with latents and prompts beside them."""
    folder = tmp_path_factory.mktemp("paper") / "data"
    shutil.copytree(tiny_once.dataset, folder)
    make_cache(paper_recipe, DatasetSource(folder, cache=folder), device="cpu", say=quiet)
    return folder


@pytest.fixture(scope="module")
def run(paper_recipe: Recipe, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained in two sessions."""
    run = tmp_path_factory.mktemp("paper") / "run"
    train(paper_recipe, dataset, run, stop_after=2, device="cpu", say=quiet)
    return train(paper_recipe, dataset, run, device="cpu", say=quiet)


@pytest.fixture
def run_of_another_vae(run: Path, tmp_path: Path) -> Path:
    """A copy of the run that says that another VAE made its latents."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    data = json.loads((copy / "processing.json").read_text())
    data["latents"]["vae"] = "0" * 16
    (copy / "processing.json").write_text(json.dumps(data))
    return copy


def seen(recipe: Recipe) -> list[Any]:
    simulator = registry.make_simulator(recipe.sim, recipe.sim.tasks[0])
    simulator.reset(7)
    return [simulator.observe()]


def test_lerobot_train_resume_and_eval(paper_recipe: Recipe, dataset: Path, run: Path, tmp_path: Path) -> None:
    unbroken = train(paper_recipe, dataset, tmp_path / "unbroken", device="cpu", say=quiet)
    one, other = run_directory.load(run), run_directory.load(unbroken)
    assert all(torch.equal(one.model[name], other.model[name]) for name in one.model)
    assert one.ema is not None and other.ema is not None
    assert all(torch.equal(one.ema[name], other.ema[name]) for name in one.ema)

    result = evaluate(run, say=quiet)
    assert result["trials"] == 2 * len(paper_recipe.sim.tasks)

    file = export(run, tmp_path / "published.pt")
    adopted = adopt(paper_recipe, file, dataset, tmp_path / "adopted")
    action = Policy.load(run).act_batch(seen(paper_recipe))
    np.testing.assert_array_equal(Policy.load(adopted).act_batch(seen(paper_recipe)), action)
    state = Policy.load(run).model.state_dict()
    exported = published.read(file, paper_recipe.model).state
    assert exported.keys() == state.keys()
    assert all(torch.equal(value.to(state[name].dtype), state[name]) for name, value in exported.items())


def test_training_changes_what_is_trained_and_nothing_else(paper_recipe: Recipe, run: Path) -> None:
    weights = run_directory.run_weights(run, run_directory.load(run), ema=False)
    began = wan_backbone.backbone(paper_recipe.weights, paper_recipe.model.backbone)
    frozen = run_directory.read_tensors(run / run_directory.FROZEN)
    for name, value in began.items():
        same = torch.equal(weights[f"dit.{name}"].float(), value.to(dtype_of(name, torch.bfloat16)).float())
        trained = name.startswith(("proj_out", "scale_shift_table"))
        assert same != trained, name
        assert (f"dit.{name}" in frozen) != trained
    assert all(value.dtype == dtype_of(name, torch.bfloat16) for name, value in frozen.items())
    masters = run_directory.load(run).model
    assert all(value.dtype == torch.float32 for value in masters.values())
    assert any((value.bfloat16().float() != value).any() for value in masters.values()), (
        "finer than the model's weights"
    )
    assert masters["dit.blocks.0.attn1.lora_q.up.weight"].any()


def test_the_cache_is_what_the_encoder_makes(paper_recipe: Recipe, dataset: Path, tmp_path: Path) -> None:
    from lightwam.encoders.frozen import encode_clip
    from lightwam.encoders.wan_vae import WanVaeLatents

    run = tmp_path / "run"
    run_directory.start_run(run, paper_recipe)
    cache, _ = open_training_data(paper_recipe, dataset, run, quiet)
    assert isinstance(cache, LatentCache)
    frames = np.load(next((dataset / "cache").glob("*/frames.npy")))
    stride, horizon = paper_recipe.codec.video_stride, paper_recipe.model.horizon
    last = cache.episode_start[1] - 1
    for start in (0, 3, last):
        clip = np.minimum(start + np.arange(0, horizon + 1, stride), last)
        live = encode_clip(WanVaeLatents.load(paper_recipe.weights), to_pixels(frames[clip][None]))
        kept = cache.video(clip[None])
        torch.testing.assert_close(kept.present, live.present, rtol=2**-8, atol=1e-4)
        torch.testing.assert_close(kept.clip, live.clip, rtol=2**-7, atol=2e-3)


def test_a_cache_of_another_encoder_is_refused(
    paper_recipe: Recipe, dataset: Path, tiny_wan: Path, tmp_path: Path
) -> None:
    from diffusers import AutoencoderKLWan

    other = tmp_path / "wan"
    shutil.copytree(tiny_wan, other)
    torch.manual_seed(1)
    AutoencoderKLWan(
        base_dim=4, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    ).save_pretrained(other / "vae")
    recipe = replace(paper_recipe, weights=str(other))
    assert vae_identity(recipe) != vae_identity(paper_recipe)
    with pytest.raises(DatasetError, match="encoder"):
        train(recipe, dataset, tmp_path / "run", device="cpu", say=quiet)


def test_a_policy_with_another_vae_is_refused(run_of_another_vae: Path) -> None:
    with pytest.raises(CheckpointError, match="VAE"):
        Policy.load(run_of_another_vae)


def test_another_vae_is_refused_on_going_on(paper_recipe: Recipe, dataset: Path, run_of_another_vae: Path) -> None:
    with pytest.raises(CheckpointError, match="VAE"):
        train(paper_recipe, dataset, run_of_another_vae, device="cpu", say=quiet)


def test_without_latents_training_says_how_to_make_them(paper_recipe: Recipe, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="lightwam cache"):
        train(paper_recipe, tiny.dataset, tmp_path / "new", device="cpu", say=quiet)


def test_the_check_of_a_dataset_reads_its_latents(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "dataset", str(dataset)]) == 0
    assert re.search(r"latents/\S+: sound", capsys.readouterr().out)
    copy = tmp_path / "data"
    shutil.copytree(dataset, copy)
    (shard,) = (copy / LATENTS).glob("*/shards/00000.bin")
    data = bytearray(shard.read_bytes())
    data[-9] ^= 1
    shard.write_bytes(data)
    assert main(["check", "dataset", str(copy)]) == 2
    assert "00000.bin" in capsys.readouterr().err


def test_without_prompts_training_says_how_to_make_them(paper_recipe: Recipe, dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(dataset, copy)
    (copy / LATENTS / run_directory.PROMPTS).unlink()
    with pytest.raises(DatasetError, match=r"(?s)prompt.*lightwam cache"):
        train(paper_recipe, copy, tmp_path / "run", device="cpu", say=quiet)


def test_a_sentence_that_was_cached_needs_no_text_encoder(
    paper_recipe: Recipe, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy.load(run)
    (observation,) = seen(paper_recipe)
    with monkeypatch.context() as patch:
        patch.setattr("lightwam.encoders.frozen.open_text", lambda *given: pytest.fail("it was opened"))
        policy.act(observation)
    known = policy.prompts.states([observation.instruction])
    policy.prompts.known.clear()
    torch.testing.assert_close(policy.prompts.states([observation.instruction]), known.float(), rtol=2**-8, atol=1e-3)


def test_the_frozen_weights_belong_to_the_checkpoints(
    paper_recipe: Recipe, dataset: Path, run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    frozen = run_directory.read_tensors(copy / run_directory.FROZEN)
    name = next(iter(frozen))
    run_directory.write_tensors(copy / run_directory.FROZEN, frozen | {name: frozen[name] + 1})
    with pytest.raises(CheckpointError, match=r"damaged(.|\n)*frozen\.safetensors"):
        Policy.load(copy)
    (copy / run_directory.FROZEN).unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        train(paper_recipe, dataset, copy, device="cpu", say=quiet)


def test_a_run_starts_from_another_ones_weights(paper_recipe: Recipe, dataset: Path, run: Path, tmp_path: Path) -> None:
    longer = replace(paper_recipe, train=replace(paper_recipe.train, steps=6))
    adopted = adopt(longer, export(run, tmp_path / "published.pt"), dataset, tmp_path / "adopted")
    with pytest.raises(CheckpointError, match="--start-from"):
        train(longer, dataset, adopted, device="cpu", say=quiet)
    still = replace(paper_recipe, train=replace(paper_recipe.train, steps=1, learning_rate=1e-12, warmup_steps=0))
    new = train(still, dataset, tmp_path / "new", device="cpu", say=quiet, start_from=adopted)
    assert run_directory.steps(new) == [1]
    given = run_directory.run_weights(adopted, run_directory.load(adopted, training=False))
    for name, value in run_directory.run_weights(new, run_directory.load(new), ema=False).items():
        torch.testing.assert_close(value.float(), given[name].float(), rtol=2**-8, atol=1e-6)


def test_prompts_of_another_text_encoder_are_encoded_again(
    paper_recipe: Recipe, dataset: Path, tiny_wan: Path, tmp_path: Path
) -> None:
    from transformers import UMT5EncoderModel

    data, other = tmp_path / "data", tmp_path / "wan"
    shutil.copytree(dataset, data)
    shutil.copytree(tiny_wan, other)
    encoder = UMT5EncoderModel.from_pretrained(other / "text_encoder")
    encoder.shared.weight.data += 1
    encoder.save_pretrained(other / "text_encoder")
    inside, prompts = DatasetSource(data, cache=data), data / LATENTS / run_directory.PROMPTS
    before = run_directory.read_tensors(prompts)
    make_cache(paper_recipe, inside, device="cpu", say=quiet)
    after = run_directory.read_tensors(prompts)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    make_cache(replace(paper_recipe, weights=str(other)), inside, device="cpu", say=quiet)
    after = run_directory.read_tensors(prompts)
    assert all(not torch.equal(after[name], value) for name, value in before.items())


def test_a_dataset_of_another_robot_is_not_adopted(
    paper_recipe: Recipe, dataset: Path, run: Path, tmp_path: Path
) -> None:
    wider = replace(paper_recipe, model=replace(paper_recipe.model, state_dim=3))
    file = export(run, tmp_path / "published.pt")
    with pytest.raises(CheckpointError, match="proprio"):
        adopt(wider, file, dataset, tmp_path / "new")
    place = replace(paper_recipe.codec.places[0], camera="front")
    with pytest.raises(DatasetError, match="front"):
        adopt(replace(paper_recipe, codec=replace(paper_recipe.codec, places=(place,)),
                      sim=replace(paper_recipe.sim, cameras=("front",))), file, dataset, tmp_path / "new")  # fmt: skip
    assert not (tmp_path / "new").exists()


def test_memory_that_runs_out_says_what_to_lower(
    paper_recipe: Recipe, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr("lightwam.engine.packed_step.packed_loss", lambda *given, **settings: full())
    with pytest.raises(Exception, match=r"(?s)ran out of memory.*9 GiB.*--train\.micro-batch 1") as caught:
        train(paper_recipe, dataset, tmp_path / "run", device="cpu", say=quiet)
    assert type(caught.value).__name__ == "ConfigError"


def test_a_run_is_not_adopted_over(paper_recipe: Recipe, dataset: Path, run: Path, tmp_path: Path) -> None:
    file = export(run, tmp_path / "published.pt")
    with pytest.raises(CheckpointError, match="not empty"):
        adopt(paper_recipe, file, dataset, run)
    wider = replace(paper_recipe.model, backbone=replace(paper_recipe.model.backbone, lora_rank=3))
    with pytest.raises(CheckpointError, match=r"another shape.*lora"):
        adopt(replace(paper_recipe, model=wider), file, dataset, tmp_path / "new")
    assert not (tmp_path / "new").exists()
