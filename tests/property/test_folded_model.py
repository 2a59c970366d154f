"""The folded model acts as the plain one does, whatever its sizes, its prompts and its batch."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightwam.config.schema import BackboneConfig, ExpertConfig, FlowConfig, ModelConfig
from lightwam.engine.folded_model import FoldedWAM
from lightwam.engine.folding import Placement
from lightwam.model.light_wam import LightWAM

SIZES = st.fixed_dictionaries(
    {
        "head_dim": st.sampled_from([12, 18, 24]),
        "num_heads": st.integers(1, 3),
        "ffn_width": st.integers(3, 40),
        "patch": st.sampled_from([(1, 1, 1), (1, 2, 2), (1, 1, 2)]),
        "latent_channels": st.integers(1, 4),
        "text_dim": st.integers(2, 9),
        "taps": st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True),
        "spare_blocks": st.integers(0, 2),
        "adapter_width": st.integers(1, 8),
        "lora_rank": st.integers(0, 3),
    }
)
EXPERT = st.fixed_dictionaries(
    {
        "num_queries": st.integers(1, 4),
        "num_pool_heads": st.sampled_from([1, 2]),
        "layer_width": st.integers(6, 16),
        "trunk_width": st.integers(8, 24),
        "state_frequencies": st.sampled_from([0, 0, 3]),
    }
)


def config_of(
    sizes: dict[str, Any], expert: dict[str, Any], state_dim: int, action_dim: int, foresight: int
) -> ModelConfig:
    sizes = dict(sizes)
    width, taps = sizes.pop("head_dim") * sizes["num_heads"], tuple(sorted(sizes.pop("taps")))
    num_blocks = taps[-1] + 1 + sizes.pop("spare_blocks")
    backbone = BackboneConfig(width=width, num_blocks=num_blocks, taps=taps, time_code_dim=8, **sizes)
    expert_config = ExpertConfig(step_code_dim=8, **expert)
    return ModelConfig(backbone, expert_config, FlowConfig(), state_dim, action_dim, horizon=8, foresight=foresight)


def model_of(config: ModelConfig, seed: int = 0) -> LightWAM:
    """Weights that are not zero, norms that are not one."""
    torch.manual_seed(seed)
    model = LightWAM(config).double()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def inputs_of(config: ModelConfig, lengths: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, prompts of these lengths of 6 tokens, and states."""
    torch.manual_seed(seed)
    size, backbone = len(lengths), config.backbone
    context = torch.randn(size, 6, backbone.text_dim).double()
    for row, length in enumerate(lengths):
        context[row, length:] = 0
    latent = torch.randn(size, backbone.latent_channels, 1, 4, 8).double()
    return latent, context, torch.randn(size, config.state_dim).double()


@settings(max_examples=60)
@given(
    SIZES,
    EXPERT,
    st.integers(1, 5),
    st.integers(1, 4),
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
    st.integers(0, 2),
    st.integers(0, 2**20),
)
def test_the_engine_equals_the_model(
    sizes: dict[str, Any], expert: dict[str, Any], state_dim: int, action_dim: int, lengths: list[int],
    foresight: int, seed: int,
) -> None:  # fmt: skip
    config = config_of(sizes, expert, state_dim, action_dim, foresight)
    model, (latent, context, state) = model_of(config, seed), inputs_of(config, lengths, seed)
    folded = FoldedWAM(model, Placement(torch.device("cpu"), torch.float64))
    prompts = [folded.encode_prompt(states) for states in context]
    context_kv = folded.batch_prompts(prompts)
    expected = model.act(latent, context, state).detach()
    torch.testing.assert_close(
        folded.act(latent, context_kv, state), expected, rtol=0, atol=1e-12 * max(1, expected.abs().max())
    )
    # the memory serves again, whatever the robot's state was; more keys, as graphs have, change nothing
    other = torch.randn_like(state)
    expected = model.act(latent, context, other).detach()
    padded_kv = folded.batch_prompts(prompts, 16)
    assert padded_kv.score_bias.shape[-1] % 16 == 0 and padded_kv.keys.shape[2] == padded_kv.score_bias.shape[-1]
    for each in (context_kv, padded_kv):
        torch.testing.assert_close(
            folded.act(latent, each, other), expected, rtol=0, atol=1e-12 * max(1, expected.abs().max())
        )
