from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightwam.config.schema import BackboneConfig, ExpertConfig, FlowConfig, ModelConfig
from lightwam.model.light_wam import LightWAM, dtype_of
from lightwam.training.footprint import num_parameters
from lightwam.types import Batch, pool

CONFIG = ModelConfig(
    backbone=BackboneConfig(
        width=24,
        ffn_width=32,
        num_heads=1,
        num_blocks=2,
        latent_channels=3,
        text_dim=8,
        time_code_dim=16,
        taps=(0, 1),
        adapter_width=4,
        lora_rank=0,
        frozen=False,
    ),
    expert=ExpertConfig(num_queries=2, num_pool_heads=2, layer_width=12, trunk_width=16, step_code_dim=8),
    flow=FlowConfig(),
    state_dim=2,
    action_dim=3,
    horizon=8,
    supervised_prefix=6,
)
PAPER = ModelConfig(
    backbone=BackboneConfig(), expert=ExpertConfig(), flow=FlowConfig(), state_dim=8, action_dim=7, horizon=32
)


def model_of(config: ModelConfig = CONFIG) -> LightWAM:
    torch.manual_seed(1)
    model = LightWAM(config)
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def batch_of(size: int = 3) -> Batch:
    torch.manual_seed(2)
    action, frame = torch.zeros(size, 8, dtype=torch.bool), torch.zeros(size, 9, dtype=torch.bool)
    action[-1, 4:], frame[-1, 4:] = True, True
    latents = torch.randn(size, 3, 3, 8, 8)
    return Batch(
        latents[:, :, :1],
        pool(latents),
        torch.randn(size, 5, 8),
        torch.randn(size, 2),
        torch.randn(size, 8, 3),
        action,
        frame,
    )


def draws(size: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.rand(size), torch.randn(size, 3, 3, 4, 4)


MODEL = model_of()


def test_the_paper_scale_model_has_the_papers_parameters() -> None:
    counts = num_parameters(PAPER)
    millions = {part: round(count["total"] / 1e6, 2) for part, count in counts.items()}
    assert millions["blocks"] == 1393.22
    assert millions["lora"] == 87.49
    assert millions["adapters"] == 2.37
    assert millions["head"] == 0.10
    assert millions["expert"] == 351.03
    assert millions["proprio_encoder"] == 0.04
    assert round(counts["all"]["trainable"] / 1e6, 2) == 441.03
    dit = ("blocks", "lora", "adapters", "head", "embeddings")
    assert round(sum(counts[part]["total"] for part in dit) / 1e6, 2) == 1508.86
    assert counts.keys() == {*dit, "expert", "proprio_encoder", "all"}
    assert counts["all"]["total"] == sum(counts[part]["total"] for part in (*dit, "expert", "proprio_encoder"))


def test_every_parameter_of_a_backbone_from_scratch_is_trained() -> None:
    counts = num_parameters(CONFIG)
    assert counts["all"]["trainable"] == counts["all"]["total"] == sum(p.numel() for p in LightWAM(CONFIG).parameters())
    assert "lora" not in counts


def test_a_gradient_reaches_every_trained_parameter() -> None:
    lora = replace(CONFIG, backbone=replace(CONFIG.backbone, lora_rank=2, frozen=True))
    for config in (CONFIG, lora, replace(CONFIG, foresight=2)):
        model = model_of(config)
        model.loss(batch_of(), *draws()).total.backward()
        for name, parameter in model.named_parameters():
            reached = parameter.grad is not None and bool(parameter.grad.any())
            assert reached == parameter.requires_grad, name


@torch.no_grad()
def test_total_loss_weighs_video_and_action() -> None:
    batch, (u, noise) = batch_of(), draws()
    model = model_of(replace(CONFIG, video_loss_weight=0.5, action_loss_weight=3.0))
    losses = model.loss(batch, u, noise)
    torch.testing.assert_close(losses.total, 0.5 * losses.video + 3 * losses.action)
    assert losses.video > 0 and losses.action > 0


def test_without_a_video_loss_there_is_no_video_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, (u, noise) = batch_of(), draws()
    expected = MODEL.loss(batch, u, noise).action
    model = model_of(replace(CONFIG, video_loss_weight=0.0))
    monkeypatch.delattr(LightWAM, "velocity")
    losses = model.loss(batch, u, noise)
    assert losses.video == 0
    torch.testing.assert_close(losses.action, expected)
    torch.testing.assert_close(losses.total, expected)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "power"), [("mse", 2), ("l1", 1)])
def test_action_loss_computed_by_hand(kind: Literal["mse", "l1"], power: int) -> None:
    batch, model = batch_of(), model_of(replace(CONFIG, action_loss=kind))
    chunk = model.act(batch.present, batch.context, batch.state)
    steps = [6, 6, 4]
    rows = [(chunk[i, :n] - batch.action[i, :n]).abs().pow(power).mean() for i, n in enumerate(steps)]
    torch.testing.assert_close(model.loss(batch, *draws()).action, torch.stack(rows).mean())


@torch.no_grad()
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.floats(-100, 100))
def test_padding_and_what_is_beyond_the_prefix_cannot_change_a_loss(seed: int, size: float) -> None:
    batch, (u, noise) = batch_of(), draws()
    before = MODEL.loss(batch, u, noise)
    generator = torch.Generator().manual_seed(seed)
    action = batch.action.clone()
    action[-1, 4:] = torch.randn(4, 3, generator=generator) * size
    action[:, 6:] = torch.randn(3, 2, 3, generator=generator) * size
    after = MODEL.loss(replace(batch, action=action), u, noise)
    assert before.action == after.action and before.video == after.video


@torch.no_grad()
def test_a_padded_latent_frame_does_not_count() -> None:
    batch, (u, noise) = batch_of(1), draws(1)
    is_pad = torch.zeros(1, 9, dtype=torch.bool)
    is_pad[:, 5:] = True
    sigma = 5 * u / (1 + 4 * u)
    z = batch.clip
    noised = (1 - sigma) * z + sigma * noise
    noised[:, :, 0] = z[:, :, 0]
    context_kv = MODEL.dit.encode_context(MODEL.append_proprio(batch.context, batch.state))
    error = (MODEL.velocity(noised, sigma, context_kv) - (noise - z)).square().mean(dim=(1, 3, 4))[0]
    whole, part = (
        MODEL.loss(replace(batch, frame_is_pad=pad), u, noise).video for pad in (torch.zeros_like(is_pad), is_pad)
    )
    torch.testing.assert_close(part / whole, error[1] / error[1:].mean())


@torch.no_grad()
@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2), st.integers(0, 2**31))
def test_samples_of_a_batch_are_independent(sample: int, seed: int) -> None:
    batch = batch_of()
    one = slice(sample, sample + 1)
    present = batch.present
    chunk = MODEL.act(present, batch.context, batch.state)
    alone = MODEL.act(present[one], batch.context[one], batch.state[one])
    torch.testing.assert_close(chunk[one], alone, rtol=0, atol=1e-5)
    generator = torch.Generator().manual_seed(seed)
    others = present + torch.randn(present.shape, generator=generator)
    others[one] = present[one]
    torch.testing.assert_close(MODEL.act(others, batch.context, batch.state)[one], chunk[one], rtol=0, atol=1e-5)


@torch.no_grad()
def test_losses_are_means_over_samples() -> None:
    batch, (u, noise) = batch_of(), draws()
    whole = MODEL.loss(batch, u, noise)
    ones = [slice(i, i + 1) for i in range(3)]
    parts = [
        MODEL.loss(Batch(*(value[one] for value in vars(batch).values() if value is not None)), u[one], noise[one])
        for one in ones
    ]
    for name in ("video", "action", "total"):
        mean = torch.stack([getattr(part, name) for part in parts]).mean()
        torch.testing.assert_close(getattr(whole, name), mean)


@torch.no_grad()
@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**31))
def test_actions_do_not_depend_on_later_frames(seed: int) -> None:
    batch, (u, noise) = batch_of(), draws()
    clip = batch.clip.clone()
    clip[:, :, 1:] = torch.randn(3, 3, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    before, after = MODEL.loss(batch, u, noise), MODEL.loss(replace(batch, clip=clip), u, noise)
    assert before.action == after.action and before.video != after.video


@torch.no_grad()
def test_actions_depend_on_picture_sentence_and_state() -> None:
    batch = batch_of()
    given = [batch.present, batch.context, batch.state]
    chunk = MODEL.act(*given)
    for i in range(3):
        other = [value + 0.5 * (i == j) for j, value in enumerate(given)]
        assert (MODEL.act(*other) - chunk).abs().max() > 1e-4
    swapped = [given[0], given[1].flip(1), given[2]]
    assert (MODEL.act(*swapped) - chunk).abs().max() < 2e-6, "the context is a set: word order is the encoder's to mark"


@torch.no_grad()
def test_imagination_keeps_the_present_and_follows_the_velocity() -> None:
    batch, (_, noise) = batch_of(), draws()
    present = batch.present
    future = MODEL.imagine(present, batch.context, batch.state, noise, num_steps=1)
    clean = torch.nn.functional.avg_pool3d(present, (1, 2, 2))
    torch.testing.assert_close(future[:, :, :1], clean)
    start = torch.cat((clean, noise[:, :, 1:]), dim=2)
    context_kv = MODEL.dit.encode_context(MODEL.append_proprio(batch.context, batch.state))
    expected = start - MODEL.velocity(start, torch.ones(3), context_kv)
    torch.testing.assert_close(future[:, :, 1:], expected[:, :, 1:])
    assert not torch.allclose(future, MODEL.imagine(present, batch.context, batch.state, noise, num_steps=4), atol=1e-3)


@torch.no_grad()
def test_imagination_walks_the_shifted_schedule_down_to_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, (_, noise) = batch_of(), draws()
    seen: list[float] = []

    def drift(self: LightWAM, z: Tensor, sigma: Tensor, context_kv: object) -> Tensor:
        seen.append(sigma[0].item())
        return torch.ones_like(z)

    monkeypatch.setattr(LightWAM, "velocity", drift)
    future = MODEL.imagine(batch.present, batch.context, batch.state, noise, num_steps=4)
    assert seen == pytest.approx([5 * u / (1 + 4 * u) for u in (1.0, 0.75, 0.5, 0.25)])
    torch.testing.assert_close(future[:, :, 1:], noise[:, :, 1:] - 1)


@torch.no_grad()
def test_foresight_adds_tokens_and_changes_nothing_of_the_present() -> None:
    batch, model = batch_of(), model_of(replace(CONFIG, foresight=2))
    given = batch.present, batch.context, batch.state
    plain, ours = MODEL.tapped_tokens(*given), model.tapped_tokens(*given)
    for without, tokens in zip(plain, ours, strict=True):
        assert tokens.shape == (3, 16 + 2 * 4, 24)
        torch.testing.assert_close(tokens[:, :16], without)
    others = model.tapped_tokens(batch.present.roll(1, 0), *given[1:])
    assert (ours[0] - others[0])[:, 16:].abs().amax(dim=2).min() > 1e-5, "foreseen tokens see the present"
    assert [look.shape for look in model.attention(*given)] == [(3, 2, 2, 24)] * 2
    assert (model.act(*given) - MODEL.act(*given)).abs().max() > 1e-4


@torch.no_grad()
def test_attention_is_over_the_tokens_of_the_present() -> None:
    batch = batch_of()
    looks = MODEL.attention(batch.present, batch.context, batch.state)
    assert [look.shape for look in looks] == [(3, 2, 2, 16)] * 2
    for look in looks:
        torch.testing.assert_close(look.sum(-1), torch.ones(3, 2, 2))


def test_a_small_model_learns_from_scratch() -> None:
    torch.manual_seed(0)
    model, batch, (u, noise) = LightWAM(CONFIG), batch_of(), draws()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        loss = model.loss(batch, u, noise)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        losses.append(loss)
    assert losses[-1].action < 0.5 * losses[0].action
    assert losses[-1].video < 0.2 * losses[0].video


def test_a_step_in_bfloat16_is_near_full_precision() -> None:
    batch, (u, noise) = batch_of(), draws()
    model = model_of(replace(CONFIG, backbone=replace(CONFIG.backbone, lora_rank=2)))
    full = model.loss(batch, u, noise)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.loss(batch, u, noise)
    half.total.backward()
    assert half.total.dtype == torch.float32
    torch.testing.assert_close(half.total, full.total, rtol=3e-2, atol=0)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@torch.no_grad()
def test_times_are_embedded_in_float32_whatever_the_weights_are() -> None:
    exact, rounded = model_of(), model_of().place("cpu", torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    kinds = {dtype_of(name, torch.bfloat16) for name, _ in rounded.named_parameters()}
    assert kinds == {torch.bfloat16, torch.float32}
    for name, parameter in rounded.named_parameters():
        assert parameter.dtype == dtype_of(name, torch.bfloat16), name
    time = torch.tensor([0.0, 17.0, 999.0])
    ours, theirs = (model.dit.condition_embedder.time(time) for model in (rounded, exact))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert torch.equal(rounded.dit.blocks[0].scale_shift_table, exact.dit.blocks[0].scale_shift_table)
    batch = batch_of()
    chunk = rounded.act(batch.present.bfloat16(), batch.context, batch.state)
    assert chunk.dtype == torch.bfloat16
    torch.testing.assert_close(chunk.float(), exact.act(batch.present, batch.context, batch.state), rtol=0.1, atol=0.1)
    assert model_of().double().place("cpu", torch.float64).dit.scale_shift_table.dtype == torch.float64
