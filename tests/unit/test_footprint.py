"""training/footprint.py: tokens and the memory of a training step, counted from a recipe."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightwam.config import recipes
from lightwam.config.schema import TrainConfig
from lightwam.engine import packed_step
from lightwam.policy.benchmark import random_model
from lightwam.training.footprint import activation_bytes, has_video, num_tokens, step_tflop
from lightwam.types import Batch


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


def test_windows_and_tokens_of_the_paper() -> None:
    """686 tokens in both passes together; 9 frames, 3 latent frames; 128 text tokens and proprioception."""
    tokens = num_tokens(recipes.libero_10())
    assert tokens["action_pass"] + tokens["video_pass"] == 686
    assert tokens["context"] == 129
    assert (recipes.libero_10().num_frames, recipes.libero_10().latent_shape[1]) == (9, 3)


def test_activations_are_what_autograd_keeps() -> None:
    """Counted at a small size: the sum is within a fifth of the tensors that the packed step saves."""
    recipe = recipes.libero_10()
    backbone = replace(
        recipe.model.backbone, width=96, ffn_width=560, num_heads=2, num_blocks=6, taps=(1, 3), lora_rank=4, text_dim=32
    )
    recipe = replace(
        recipe, model=replace(recipe.model, backbone=backbone), text=replace(recipe.text, dim=32),
        train=replace(recipe.train, precision="float32"),
    )  # fmt: skip
    dit, saved = random_model(recipe, torch.device("cpu"), torch.float32).dit, dict[int, int]()
    memory = tuple((torch.randn(1, 9, 2, 48), torch.randn(1, 9, 2, 48)) for _ in dit.blocks)
    weights = {parameter.data_ptr() for parameter in dit.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept = packed_step.forward(
            dit, torch.randn(1, 16, 1, 28, 56), torch.randn(1, 16, 3, 14, 28), torch.rand(1), memory, False
        )
    assert kept
    assert sum(saved.values()) == pytest.approx(activation_bytes(recipe), rel=0.2)


def test_the_work_of_a_step_is_what_torch_counts() -> None:
    """Of a small model with other proportions than the paper's, forward and backward."""
    small = recipes.libero_object_small()
    expert = replace(small.model.expert, layer_width=32, trunk_width=32)
    recipe = replace(small, model=replace(small.model, expert=expert), train=replace(small.train, batch_size=2))
    model = random_model(recipe, torch.device("cpu"), torch.float32)
    channels, frames, height, width = recipe.latent_shape
    batch = Batch(
        present=torch.randn(2, channels, 1, height, width), clip=torch.randn(2, *recipe.pooled_shape),
        context=torch.randn(2, recipe.text.num_tokens, recipe.text.dim), state=torch.randn(2, recipe.model.state_dim),
        action=torch.randn(2, recipe.model.horizon, recipe.model.action_dim),
        action_is_pad=torch.zeros(2, recipe.model.horizon, dtype=torch.bool),
        frame_is_pad=torch.zeros(2, recipe.num_frames, dtype=torch.bool),
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter:
        packed_step.packed_loss(model, batch, torch.rand(2), torch.randn_like(batch.clip)).total.backward()
    assert frames > 1 and counter.get_total_flops() / 1e12 == pytest.approx(step_tflop(recipe), rel=0.25)


def test_the_first_samples_of_each_micro_batch_have_the_video_pass() -> None:
    train = TrainConfig(steps=1, batch_size=10, video_share=0.5, micro_batch=4)
    marked = has_video(train, 10)
    assert marked is not None and marked.tolist() == [1, 1, 0, 0, 1, 1, 0, 0, 1, 0]
    assert has_video(replace(train, video_share=1.0), 10) is None
