"""Calls, waits, bytes and kept activations on a GPU, counted at the paper's sizes on the meta device."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from counting import META, Counts, kept_bytes, like_a_gpu
from torch import Tensor

from lightwam.config import recipes
from lightwam.encoders import wan_vae_frame
from lightwam.encoders.wan_vae import WanVaeLatents
from lightwam.engine import folding
from lightwam.engine.folded_model import ContextKV, FoldedWAM
from lightwam.engine.folding import Placement
from lightwam.engine.packed_step import packed_loss
from lightwam.model.light_wam import LightWAM
from lightwam.training.footprint import activation_bytes
from lightwam.types import Batch, to_pixels

RECIPE, SAMPLES, WORDS = recipes.libero_10(), 16, 40
KEYS = 48
"""of a prompt of about 40 words, padded to a multiple of 8 as attention's masks are"""
HALF = torch.bfloat16


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


@pytest.fixture(scope="module")
def model() -> LightWAM:
    with META:
        return LightWAM(RECIPE.model).place(META, HALF)


@pytest.fixture(autouse=True)
def gpu() -> Iterator[None]:
    with like_a_gpu():
        yield


def given(model: LightWAM) -> tuple[Batch, Tensor, Tensor]:
    config, (_, _, height, width) = model.config, RECIPE.latent_shape
    channels, pooled = config.backbone.latent_channels, RECIPE.pooled_shape
    is_token = torch.zeros(SAMPLES, RECIPE.text.num_tokens, dtype=torch.bool)
    is_token[:, :WORDS] = True
    batch = Batch(
        present=empty(SAMPLES, channels, 1, height, width), clip=empty(SAMPLES, *pooled),
        context=empty(SAMPLES, RECIPE.text.num_tokens, config.backbone.text_dim, dtype=HALF),
        state=empty(SAMPLES, config.state_dim), action=empty(SAMPLES, config.horizon, config.action_dim),
        action_is_pad=empty(SAMPLES, config.horizon, dtype=torch.bool),
        frame_is_pad=empty(SAMPLES, RECIPE.num_frames, dtype=torch.bool), is_token=is_token,
    )  # fmt: skip
    return batch, empty(SAMPLES), empty(SAMPLES, *pooled)


def step(model: LightWAM, loss: Callable[..., Any]) -> tuple[Counts, float]:
    """Count a training step, forward and backward, and the GiB that autograd keeps between the two."""
    arguments = given(model)
    model.zero_grad()
    with kept_bytes(list(model.parameters())) as kept, Counts() as counts:
        loss(*arguments).total.backward()
    return counts, sum(kept.values()) / 2**30


def test_packed_step(model: LightWAM) -> None:
    counts, kept = step(model, lambda *arguments: packed_loss(model, *arguments))
    assert counts.calls.total() <= 4000
    assert not counts.waits
    assert counts.gigabytes <= 110
    assert kept <= 17
    assert kept == pytest.approx(SAMPLES * activation_bytes(RECIPE) / 2**30, rel=0.02), "what `lightwam show` says"


@pytest.mark.slow
def test_plain_step(model: LightWAM) -> None:
    counts, kept = step(model, model.loss)
    assert counts.calls.total() <= 10_600 and not counts.waits
    assert counts.gigabytes <= 260 and kept <= 25


@pytest.fixture
def latents(monkeypatch: pytest.MonkeyPatch) -> WanVaeLatents:
    from diffusers import AutoencoderKLWan

    monkeypatch.setattr(wan_vae_frame, "WINOGRAD_FROM", 10**6)  # as on a GPU
    with META:
        vae = AutoencoderKLWan()
    latents = WanVaeLatents(vae.to_empty(device="cpu"))
    latents.vae.to(META)
    latents.frame_encoder.to(META)
    latents.mean, latents.std = latents.mean.to(META), latents.std.to(META)
    return latents


def test_engine(model: LightWAM, latents: WanVaeLatents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "survives_rounding", lambda *arguments: True)
    folded = FoldedWAM(model, Placement(META, HALF))
    config, num_blocks = model.config.backbone, len(folded.blocks)
    keys = (num_blocks, 1, KEYS, config.num_heads, config.width // config.num_heads)
    context_kv = ContextKV(empty(*keys, dtype=HALF), empty(*keys, dtype=HALF), empty(1, 1, 1, KEYS, dtype=HALF))
    canvas, state = empty(1, *RECIPE.codec.canvas, 3, dtype=torch.uint8), empty(1, model.config.state_dim)

    def act() -> Tensor:
        return folded.act(latents.encode(to_pixels(canvas[:, None])), context_kv, state)

    with torch.inference_mode():
        act()
        with Counts() as counts:
            act()
        with Counts() as parts:
            latents.encode(to_pixels(canvas[:, None]))
    assert not counts.on_cpu and not counts.waits, "a CUDA graph could not capture them"
    assert counts.calls.total() <= 520
    assert parts.calls.total() <= 80, "of the frame encoder"


@pytest.mark.slow
def test_act(model: LightWAM) -> None:
    batch, _, _ = given(model)
    one = batch.rows(0, 1)
    with torch.inference_mode():
        model.act(one.present, one.context, one.state)
        with Counts() as counts:
            model.act(one.present, one.context, one.state)
    assert counts.calls.total() <= 2100 and not counts.waits
