"""The paper's sizes with random weights: the engine is the model there, too. Minutes, and 14 GiB."""

import pytest
import torch

from lightwam.config import recipe_files
from lightwam.engine.folded_model import FoldedWAM
from lightwam.engine.folding import Placement
from lightwam.policy.benchmark import random_model
from lightwam.system.cpu import keep_memory


@pytest.mark.slow
@torch.inference_mode()
def test_the_engine_is_the_model() -> None:
    keep_memory()
    torch.manual_seed(0)
    recipe, place = recipe_files.recipe("libero-10"), Placement(torch.device("cpu"), torch.float32)
    model = random_model(recipe, place.device, place.dtype)
    folded = FoldedWAM(model, place)
    height, width = recipe.codec.canvas
    latent = torch.randn(1, recipe.model.backbone.latent_channels, 1, height // 8, width // 8)
    context, state = torch.randn(1, recipe.text.num_tokens, recipe.text.dim), torch.randn(1, recipe.model.state_dim)
    context[:, 40:] = 0
    ours = folded.act(latent, folded.batch_prompts([folded.encode_prompt(context[0])]), state)
    expected = model.act(latent, context, state)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)
