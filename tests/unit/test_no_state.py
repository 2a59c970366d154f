"""A robot without a state: a recipe of state_dim 0 trains, is saved and loaded, and acts, by the engine too."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightwam.config import checks, recipes
from lightwam.config.schema import Recipe
from lightwam.data.codec import Codec
from lightwam.data.statistics import FeatureStats, measure
from lightwam.encoders.dct import DctLatents
from lightwam.encoders.frozen import Prompts
from lightwam.engine.engine import Engine
from lightwam.errors import ConfigError, WireError
from lightwam.model.light_wam import LightWAM
from lightwam.policy import run_directory
from lightwam.policy.actor import PlainActor
from lightwam.policy.policy import Policy
from lightwam.training.train import train
from lightwam.types import Batch, Observation, to_pixels

FRAMES = 40


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    point = recipes.point()
    return checks.check_recipe(replace(point, model=replace(point.model, state_dim=0)))


def batch_of(recipe: Recipe, size: int = 2) -> Batch:
    torch.manual_seed(0)
    model, (height, width) = recipe.model, recipe.codec.canvas
    channels, frames = recipe.latents.channels, 1 + recipe.model.horizon // (4 * recipe.codec.video_stride)
    clip = torch.randn(size, channels, frames, height // 16, width // 16)
    return Batch(
        present=torch.randn(size, channels, 1, height // 8, width // 8),
        clip=clip,
        context=torch.randn(size, recipe.text.num_tokens, recipe.text.dim),
        state=torch.zeros(size, 0),
        action=torch.randn(size, model.horizon, model.action_dim),
        action_is_pad=torch.zeros(size, model.horizon, dtype=torch.bool),
        frame_is_pad=torch.zeros(size, 1 + model.horizon // recipe.codec.video_stride, dtype=torch.bool),
    )


def test_a_run_without_a_state_trains_and_acts_the_same_with_the_engine(recipe: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LightWAM(recipe.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = batch_of(recipe)
    noise = torch.randn_like(batch.clip)
    before = model.proprio_encoder.bias.detach().clone()
    losses = []
    for _ in range(3):
        total = model.loss(batch, torch.tensor([0.3, 0.7]), noise).total
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
    assert losses[-1] < losses[0]
    assert model.proprio_encoder.weight.shape == (recipe.model.backbone.text_dim, 0)
    assert not torch.equal(model.proprio_encoder.bias, before), "the token that stands for no state is trained"
    run_directory.write_tensors(tmp_path / "weights.safetensors", model.state_dict())
    again = LightWAM(recipe.model)
    run_directory.load_strict(again, run_directory.read_tensors(tmp_path / "weights.safetensors"), tmp_path)

    rows = np.random.default_rng(0).normal(size=(FRAMES, 2)).astype(np.float32)
    codec = Codec(recipe.codec, measure(np.zeros((FRAMES, 0), np.float32)), measure(rows))
    assert Codec.from_dict(codec.to_dict()).state.dim == 0
    pictures = to_pixels(np.random.default_rng(1).integers(0, 256, (8, 1, *recipe.codec.canvas, 3), np.uint8))
    latents = DctLatents.fit(recipe.latents, pictures[:, :, 0])
    prompts = Prompts(recipe, {})
    plain = Policy(recipe, codec, latents, prompts, PlainActor(again, latents, prompts.states), 3)
    engine = Engine(again, latents, prompts.states, torch.device("cpu"), torch.float32)
    fast = Policy(recipe, codec, latents, prompts, engine, 3)
    picture = np.random.default_rng(2).integers(0, 256, (32, 32, 3), np.uint8)
    seen: dict[str, Any] = {"frames": {"top": picture}, "instruction": "move to the red dot"}
    chunk = plain.act(seen)
    assert chunk.shape == (recipe.model.horizon, 2) and np.isfinite(chunk).all()
    np.testing.assert_allclose(fast.act(seen), chunk, atol=1e-4)
    whole = Observation({"top": picture}, np.zeros(0, np.float32), "move to the red dot")
    assert np.array_equal(plain.act(whole), chunk)
    assert np.array_equal(plain.act({**seen, "state": [1.0, 2.0]}), chunk), "it reads no state"
    assert np.array_equal(plain.act_batch([seen, whole])[1], plain.act_batch([seen, whole])[0])


def test_a_policy_with_a_state_still_needs_it(tiny_once: Any) -> None:
    policy = Policy.load(tiny_once.run)
    with pytest.raises(WireError, match="exactly the fields"):
        policy.act({"frames": {"top": np.zeros((32, 32, 3), np.uint8)}, "instruction": "move to the red dot"})


def test_statistics_of_no_numbers_survive() -> None:
    stats = measure(np.zeros((5, 0), np.float32))
    assert stats.dim == 0 and stats.count == 5
    assert FeatureStats.from_dict(stats.to_dict()) == stats


def test_there_is_none_that_the_expert_could_read(recipe: Recipe) -> None:
    expert = replace(recipe.model.expert, state_frequencies=2)
    with pytest.raises(ConfigError, match=r"(?s)state_frequencies must be 0\.\.0.*there is no state"):
        checks.check_recipe(replace(recipe, model=replace(recipe.model, expert=expert)))


def test_a_negative_count_is_refused(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"model\.state_dim"):
        checks.check_recipe(replace(recipe, model=replace(recipe.model, state_dim=-1)))
    with pytest.raises(ConfigError, match=r"model\.action_dim"):
        checks.check_recipe(replace(recipe, model=replace(recipe.model, action_dim=0)))


@pytest.mark.parametrize("has_one", [True, False])
def test_a_dataset_is_trained_on_with_or_without_a_state(has_one: bool, tiny: Any, tmp_path: Path) -> None:
    if not has_one:
        info = tiny.dataset / "meta" / "info.json"
        about = json.loads(info.read_text())
        del about["features"]["observation.state"]
        info.write_text(json.dumps(about))
        shutil.rmtree(tiny.dataset / "cache")
    stateless = replace(tiny.recipe, model=replace(tiny.recipe.model, state_dim=0))
    run = train(stateless, tiny.dataset, tmp_path / "stateless", say=lambda line: None)
    policy = Policy.load(run, engine=True)
    picture = np.zeros((32, 32, 3), np.uint8)
    chunk = policy.act({"frames": {"top": picture}, "instruction": "move to the red dot"})
    assert np.isfinite(chunk).all()
