import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightwam.config.schema import BackboneConfig
from lightwam.model import dit as dit_module
from lightwam.model.dit import DiT

CONFIG = BackboneConfig(
    width=48,
    ffn_width=64,
    num_heads=2,
    num_blocks=3,
    latent_channels=4,
    text_dim=10,
    time_code_dim=16,
    taps=(0, 1),
    adapter_width=6,
    lora_rank=2,
    lora_alpha=3.0,
)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


def shaken(config: BackboneConfig) -> DiT:
    """A DiT with nothing left at zero."""
    dit = DiT(config)
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.3) if parameter.ndim < 2 else nn.init.normal_(parameter, std=0.12)
    return dit


def clip(frames: int = 3) -> tuple[Tensor, Tensor | None, Tensor]:
    """Latents, later times and context of two samples."""
    return (
        torch.randn(2, 4, frames, 4, 6),
        (torch.tensor([310.0, 905.5]) if frames > 1 else None),
        torch.randn(2, 5, 10),
    )


def test_first_frame_does_not_attend_to_later_frames() -> None:
    dit, (latents, times, context) = shaken(CONFIG), clip()
    before = dit(latents, times, dit.encode_context(context))
    latents[:, :, 1:] = torch.randn_like(latents[:, :, 1:])
    assert times is not None
    after = dit(latents, times / 2, dit.encode_context(context))
    torch.testing.assert_close(before.velocity[:, :, 0], after.velocity[:, :, 0], rtol=0, atol=1e-6)
    assert (before.velocity[:, :, 1:] - after.velocity[:, :, 1:]).abs().min() > 1e-6


def test_first_frame_alone_equals_first_frame_of_a_clip() -> None:
    dit, (latents, times, context) = shaken(CONFIG), clip()
    context_kv = dit.encode_context(context)
    alone, in_clip = dit(latents[:, :, :1], None, context_kv), dit(latents, times, context_kv)
    torch.testing.assert_close(alone.velocity[:, :, 0], in_clip.velocity[:, :, 0], rtol=0, atol=2e-6)
    for one, many in zip(alone.taps, in_clip.taps, strict=True):
        torch.testing.assert_close(one, many[:, :6], rtol=0, atol=2e-6)


def test_later_frames_attend_to_all_frames() -> None:
    dit, (latents, times, context) = shaken(CONFIG), clip()
    before = dit(latents, times, dit.encode_context(context)).velocity
    for frame in range(3):
        changed = latents.clone()
        changed[:, :, frame] += 1
        after = dit(changed, times, dit.encode_context(context)).velocity
        assert ((before - after)[:, :, 1:].abs().amax(dim=(1, 3, 4)) > 1e-4).all()


def test_stopping_after_the_last_tap_gives_the_same_taps_and_no_velocity() -> None:
    dit, (latents, times, context) = shaken(CONFIG), clip()
    whole = dit(latents, times, dit.encode_context(context))
    short = dit(latents, times, dit.encode_context(context, stop_at_last_tap=True), stop_at_last_tap=True)
    assert short.velocity is None and len(short.taps) == len(whole.taps) == 2
    for a, b in zip(short.taps, whole.taps, strict=True):
        assert torch.equal(a, b)


def test_adapter_output_replaces_its_input() -> None:
    dit, (latents, times, context) = shaken(CONFIG), clip()
    inputs: list[Tensor] = []
    dit.adapters["1"].register_forward_hook(lambda _, given, __: inputs.append(given[0].flatten(1, 2)))
    before = dit(latents, times, dit.encode_context(context))
    nn.init.zeros_(dit.adapters["1"].up.weight)
    nn.init.zeros_(dit.adapters["1"].up.bias)
    after = dit(latents, times, dit.encode_context(context))
    assert torch.equal(inputs[0], inputs[1])
    assert torch.equal(inputs[1], after.taps[1]) and not torch.equal(inputs[0], before.taps[1])
    assert not torch.allclose(before.velocity, after.velocity, atol=1e-3)


def test_fresh_adapters_and_lora_change_nothing() -> None:
    plain = DiT(replace(CONFIG, lora_rank=0, frozen=False))
    full, (latents, times, context) = DiT(CONFIG), clip()
    state = full.state_dict()
    full.load_state_dict(state | {k: v for k, v in plain.state_dict().items() if not k.startswith("adapters.")})
    torch.testing.assert_close(
        full(latents, times, full.encode_context(context)).velocity,
        plain(latents, times, plain.encode_context(context)).velocity,
    )


def test_a_time_for_a_single_frame_is_refused() -> None:
    dit, (latents, times, context) = DiT(CONFIG), clip()
    with pytest.raises(AssertionError, match="have a time"):
        dit(latents[:, :, :1], times, dit.encode_context(context))
    with pytest.raises(AssertionError, match="have a time"):
        dit(latents, None, dit.encode_context(context))


def test_at_most_two_times_a_sample_are_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    dit, (latents, times, context) = DiT(CONFIG), clip()
    rows: list[int] = []
    sinusoid = dit_module.sinusoid
    monkeypatch.setattr(dit_module, "sinusoid", lambda t, dim: (rows.append(len(t)), sinusoid(t, dim))[1])
    dit(latents, times, dit.encode_context(context))
    dit(latents[:, :, :1], None, dit.encode_context(context))
    assert rows == [1 + len(latents), 1]


def test_trained_parts_with_a_frozen_backbone() -> None:
    dit = DiT(CONFIG)
    trained = {name for name, p in dit.named_parameters() if p.requires_grad}
    for name, _ in dit.named_parameters():
        head = name == "scale_shift_table" or name.startswith("proj_out")
        assert (name in trained) == ("lora_" in name or "adapters" in name or head), name
    assert all(p.requires_grad for p in DiT(replace(CONFIG, frozen=False)).parameters())


def test_forward_stores_nothing_on_modules() -> None:
    dit, (latents, times, context) = DiT(CONFIG), clip()
    held = {name: set(vars(module)) for name, module in dit.named_modules()}
    dit(latents, times, dit.encode_context(context))
    assert held == {name: set(vars(module)) for name, module in dit.named_modules()}


def wan(config: BackboneConfig) -> Any:
    """diffusers' transformer of the same sizes."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is a development-time oracle")
    return diffusers.WanTransformer3DModel(
        patch_size=config.patch,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.width // config.num_heads,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        text_dim=config.text_dim,
        freq_dim=config.time_code_dim,
        ffn_dim=config.ffn_width,
        num_layers=config.num_blocks,
    ).eval()


def loaded(theirs: Any, config: BackboneConfig) -> DiT:
    """Ours with diffusers' weights: its names are ours, but for LoRA and adapters."""
    ours = DiT(config)
    own = {k: v for k, v in ours.state_dict().items() if "lora_" in k or k.startswith("adapters.")}
    assert not set(own) & set(theirs.state_dict())
    ours.load_state_dict(own | theirs.state_dict())
    return ours


def test_diffusers_weights_load_strictly_into_a_backbone_without_lora() -> None:
    theirs = wan(CONFIG)
    ours = DiT(replace(CONFIG, lora_rank=0, frozen=False)).state_dict()
    backbone = {name for name in ours if not name.startswith("adapters.")}
    assert backbone == set(theirs.state_dict())
    assert all(ours[name].shape == tensor.shape for name, tensor in theirs.state_dict().items())


def shake(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.12)


@torch.no_grad()
@pytest.mark.parametrize("heads", [2, 1])
def test_one_frame_equals_diffusers(heads: int) -> None:
    config = replace(CONFIG, num_heads=heads)
    theirs = wan(config)
    shake(theirs)
    ours, (latents, _, context) = loaded(theirs, config), clip(frames=1)
    expected = theirs(latents, torch.zeros(2), context).sample
    velocity = ours(latents, None, ours.encode_context(context)).velocity
    torch.testing.assert_close(velocity, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_clip_equals_diffusers_with_a_time_a_token_and_a_mask() -> None:
    """What we do with two times and two attentions, diffusers does with a row of times a token and a dense mask."""
    theirs = wan(CONFIG)
    shake(theirs)
    ours, (latents, times, context) = loaded(theirs, CONFIG), clip()
    assert times is not None
    sees = torch.ones(18, 18, dtype=torch.bool)
    sees[:6, 6:] = False
    for block in theirs.blocks:
        plain = block.attn1.processor
        block.attn1.processor = lambda attn, x, c, mask, rope, plain=plain: plain(attn, x, c, sees, rope)
    token_times = torch.cat((torch.zeros(2, 6), times[:, None].expand(2, 12)), dim=1)
    expected = theirs(latents, token_times, context).sample
    velocity = ours(latents, times, ours.encode_context(context)).velocity
    torch.testing.assert_close(velocity, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1 and math.isfinite(expected.std())


@torch.no_grad()
def test_foreseen_frames_equal_diffusers_with_a_mask() -> None:
    """Two frames of zeros after a present of 2x4 tokens; a row of times a token, positions by hand, a dense mask."""
    theirs = wan(CONFIG)
    shake(theirs)
    ours, latent, context = loaded(theirs, CONFIG), torch.randn(2, 4, 1, 4, 8), torch.randn(2, 5, 10)
    found = ours(latent, torch.tensor([1000.0]), ours.encode_context(context), stop_at_last_tap=True, foresight=2).taps
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    given = latent, torch.zeros(2, 4, 2, 2, 4)
    x = torch.cat([theirs.patch_embedding(part).flatten(2).transpose(1, 2) for part in given], dim=1)
    places = [(0, row, column) for row in range(2) for column in range(4)]
    places += [(frame, 0.5, column) for frame in (1, 2) for column in (0.5, 2.5)]
    positions = torch.tensor(places, dtype=torch.float64)
    rows = [get_1d_rotary_pos_embed(8, positions[:, i], use_real=True, repeat_interleave_real=True) for i in range(3)]
    rope = tuple(torch.cat(part, dim=1)[None, :, None].float() for part in zip(*rows, strict=True))
    times = torch.tensor([0.0] * 8 + [1000.0] * 4).expand(2, -1)
    _, vectors, text, _ = theirs.condition_embedder(times.flatten(), context, None, timestep_seq_len=12)
    sees = torch.ones(12, 12, dtype=torch.bool)
    sees[:8, 8:] = False
    for i in range(2):
        block = theirs.blocks[i]
        plain = block.attn1.processor
        block.attn1.processor = lambda attn, x, c, mask, rope, plain=plain: plain(attn, x, c, sees, rope)
        x = block(x, text, vectors.unflatten(2, (6, -1)), rope)
        torch.testing.assert_close(found[i], x, rtol=0, atol=1e-5)


@torch.no_grad()
def test_block_equals_diffusers() -> None:
    theirs = wan(CONFIG)
    shake(theirs)
    ours, x = loaded(theirs, CONFIG), torch.randn(2, 1, 6, 48)
    context, modulation = torch.randn(2, 5, 48), torch.randn(1, 1, 6, 48)
    rope = theirs.rope(torch.empty(2, 4, 1, 4, 6))
    expected = theirs.blocks[1](x[:, 0], context, modulation[0].expand(2, 6, 48), rope)
    rope = dit_module.rope_3d(1, 2, 3, 24, x.device)
    block = ours.blocks[1]
    torch.testing.assert_close(
        block(x, modulation, block.attn2.key_value(context), rope)[:, 0], expected, rtol=0, atol=1e-5
    )
