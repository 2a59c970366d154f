from dataclasses import replace

import torch
from torch import Tensor, nn

from lightwam.config.schema import BackboneConfig, ExpertConfig, FlowConfig, ModelConfig
from lightwam.model.action_expert import Pooler, StateFusionActionExpert
from lightwam.model.state_reader import state_features

CONFIG = ModelConfig(
    backbone=BackboneConfig(width=24, num_heads=1, num_blocks=3, taps=(0, 2)),
    expert=ExpertConfig(num_queries=3, num_pool_heads=2, layer_width=10, trunk_width=12, step_code_dim=8),
    flow=FlowConfig(),
    state_dim=2,
    action_dim=5,
    horizon=6,
    supervised_prefix=6,
)


def shaken(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def by_torch(pooler: Pooler, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """torch's own attention with the pooler's parameters, merged query by query after the output projection."""
    keys = pooler.token_norm(tokens)
    queries = pooler.query_tokens.expand(len(tokens), -1, -1)
    found, weights = pooler.attn(queries, keys, keys, average_attn_weights=False)
    merged = (pooler.query_merge_logits.softmax(0)[:, None] * found).sum(1)
    return pooler.output_norm(merged), weights


def test_pooling_is_torchs_multi_head_attention() -> None:
    torch.manual_seed(0)
    pooler, tokens = shaken(Pooler(24, 3, 2)), torch.randn(2, 7, 24)
    vector, weights = by_torch(pooler, tokens)
    torch.testing.assert_close(pooler(tokens), vector)
    torch.testing.assert_close(pooler.attention(tokens), weights)


def test_fresh_queries_are_merged_equally() -> None:
    assert torch.equal(Pooler(24, 4, 2).query_merge_logits.softmax(0), torch.full((4,), 0.25))


def test_pooling_does_not_depend_on_the_order_of_tokens() -> None:
    pooler, tokens = shaken(Pooler(24, 3, 2)), torch.randn(2, 7, 24)
    torch.testing.assert_close(pooler(tokens), pooler(tokens.flip(1)))


def test_every_tap_and_every_step_counts() -> None:
    torch.manual_seed(0)
    expert, taps = shaken(StateFusionActionExpert(CONFIG)), [torch.randn(2, 7, 24) for _ in range(2)]
    chunk = expert(taps, torch.zeros(2, 2))
    assert chunk.shape == (2, 6, 5)
    for tap in range(2):
        other = [tokens + (i == tap) * torch.randn_like(tokens) for i, tokens in enumerate(taps)]
        assert (expert(other, torch.zeros(2, 2)) - chunk).abs().max() > 1e-3
    assert (chunk[:, 1:] - chunk[:, :-1]).abs().amax(dim=(0, 2)).min() > 1e-3, "steps are told apart"


def test_attention_is_one_map_a_tap_and_sums_to_one() -> None:
    expert = StateFusionActionExpert(CONFIG)
    looks = expert.attention([torch.randn(2, 7, 24) for _ in range(2)])
    assert [look.shape for look in looks] == [(2, 2, 3, 7)] * 2
    for look in looks:
        torch.testing.assert_close(look.sum(-1), torch.ones(2, 2, 3))


def test_the_state_is_read_where_asked_and_nothing_changes_before_training() -> None:
    torch.manual_seed(0)
    reads = replace(CONFIG, expert=replace(CONFIG.expert, state_frequencies=3))
    expert, taps, state = StateFusionActionExpert(reads), [torch.randn(2, 7, 24) for _ in range(2)], torch.rand(2, 2)
    without = StateFusionActionExpert(CONFIG)
    without.load_state_dict({k: v for k, v in expert.state_dict().items() if not k.startswith("state_reader.")})
    torch.testing.assert_close(expert(taps, state), without(taps, state), rtol=0, atol=0)
    shaken(expert)
    assert (expert(taps, state + 1e-3) - expert(taps, state)).abs().max() > 1e-3
    assert torch.equal(without(taps, state + 1), without(taps, state)), "as published"


def test_the_features_of_a_state() -> None:
    features = state_features(torch.tensor([[0.5, -0.25]]), 2)
    sines, cosines = [1.0, -(0.5**0.5), 0.0, -1.0], [0.0, 0.5**0.5, -1.0, 0.0]
    torch.testing.assert_close(features, torch.tensor([[0.5, -0.25, *sines, *cosines]]))
    assert state_features(torch.zeros(1, 2, dtype=torch.float64), 2).dtype == torch.float64
