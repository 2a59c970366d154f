"""training/footprint.py: tokens and the memory of a training step, counted from a recipe."""

from dataclasses import replace

import pytest
import torch

from lightwam.config import recipes
from lightwam.engine import packed_step
from lightwam.policy.benchmark import random_model
from lightwam.training.footprint import activation_bytes, num_tokens


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
