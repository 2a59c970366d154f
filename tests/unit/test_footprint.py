"""training/footprint.py: tokens and the memory of a training step, counted from a recipe."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightwam.config import recipes
from lightwam.config.schema import Recipe, TrainConfig
from lightwam.engine import packed_step
from lightwam.kernels import choice
from lightwam.policy.benchmark import random_model
from lightwam.training.footprint import activation_bytes, has_video, num_tokens, step_tflop
from lightwam.types import Batch


def random_batch(recipe: Recipe, size: int) -> Batch:
    channels, _, height, width = recipe.latent_shape
    return Batch(
        present=torch.randn(size, channels, 1, height, width), clip=torch.randn(size, *recipe.pooled_shape),
        context=torch.randn(size, recipe.text.num_tokens, recipe.text.dim),
        state=torch.randn(size, recipe.model.state_dim),
        action=torch.randn(size, recipe.model.horizon, recipe.model.action_dim),
        action_is_pad=torch.zeros(size, recipe.model.horizon, dtype=torch.bool),
        frame_is_pad=torch.zeros(size, recipe.num_frames, dtype=torch.bool),
    )  # fmt: skip


def test_windows_and_tokens_of_a_design() -> None:
    """16 actions, a frame every 4th of them, a canvas of 96x128: 12x16 latents, a quarter of that where pooled."""
    point = recipes.point()
    codec = replace(point.codec, canvas=(96, 128), video_stride=4)
    recipe = replace(
        point, model=replace(point.model, horizon=16), codec=codec, text=replace(point.text, num_tokens=16)
    )
    channels = point.model.backbone.latent_channels
    assert recipe.num_frames == 5
    assert recipe.latent_shape == (channels, 2, 12, 16)
    assert recipe.pooled_shape == (channels, 2, 6, 8)
    assert num_tokens(recipe) == {"action_pass": 48, "video_pass": 24, "context": 17}
    assert num_tokens(replace(recipe, model=replace(recipe.model, foresight=1)))["action_pass"] == 48 + 12


def test_windows_and_tokens_of_the_paper() -> None:
    """686 tokens in both passes together; 9 frames, 3 latent frames; 128 text tokens and proprioception."""
    tokens = num_tokens(recipes.libero_10())
    assert tokens["action_pass"] + tokens["video_pass"] == 686
    assert tokens["context"] == 129
    assert (recipes.libero_10().num_frames, recipes.libero_10().latent_shape[1]) == (9, 3)


@pytest.mark.parametrize(("lora", "foresight"), [(True, 0), (False, 0), (True, 2)])
def test_activations_are_what_autograd_keeps(lora: bool, foresight: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted at a small size, with the kernels' functions; test_gpu_counts.py counts at the paper's."""
    monkeypatch.setattr(choice, "on", lambda device: True)
    recipe = recipes.libero_10()
    backbone = replace(
        recipe.model.backbone, width=96, ffn_width=560, num_heads=2, num_blocks=6, taps=(1, 3), text_dim=32,
        adapter_width=16, lora_rank=4 if lora else 0, frozen=lora,
    )  # fmt: skip
    expert = replace(recipe.model.expert, layer_width=32, trunk_width=32, num_pool_heads=2)
    recipe = replace(
        recipe, model=replace(recipe.model, backbone=backbone, expert=expert, foresight=foresight),
        text=replace(recipe.text, dim=32),
        train=replace(recipe.train, precision="float32"),
    )  # fmt: skip
    model, saved = random_model(recipe, torch.device("cpu"), torch.float32), dict[int, int]()
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    batch = random_batch(recipe, 1)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept = packed_step.packed_loss(model, batch, torch.rand(1), torch.randn_like(batch.clip))
    assert kept.total > 0
    assert sum(saved.values()) == pytest.approx(activation_bytes(recipe), rel=0.1)


@pytest.mark.parametrize("foresight", [0, 2])
def test_the_work_of_a_step_is_what_torch_counts(foresight: int) -> None:
    """Of a small model with other proportions than the paper's, forward and backward."""
    small = recipes.libero_object_small()
    expert = replace(small.model.expert, layer_width=32, trunk_width=32)
    changed = replace(small.model, expert=expert, foresight=foresight)
    recipe = replace(small, model=changed, train=replace(small.train, batch_size=2))
    model = random_model(recipe, torch.device("cpu"), torch.float32)
    batch = random_batch(recipe, 2)
    with FlopCounterMode(display=False) as counter:
        packed_step.packed_loss(model, batch, torch.rand(2), torch.randn_like(batch.clip)).total.backward()
    assert batch.clip.shape[2] > 1 and counter.get_total_flops() / 1e12 == pytest.approx(step_tflop(recipe), rel=0.25)


def test_the_first_samples_of_each_micro_batch_have_the_video_pass() -> None:
    train = TrainConfig(steps=1, batch_size=10, video_share=0.5, micro_batch=4)
    marked = has_video(train, 10)
    assert marked is not None and marked.tolist() == [1, 1, 0, 0, 1, 1, 0, 0, 1, 0]
    assert has_video(replace(train, video_share=1.0), 10) is None
