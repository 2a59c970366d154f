"""encoders/dct.py: an orthonormal, invertible, standardised look at pictures."""

import json

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightwam.config.schema import DctConfig
from lightwam.encoders.dct import DctLatents, analysis
from lightwam.encoders.frozen import encode_clips
from lightwam.errors import ConfigError
from lightwam.types import LatentCodec

CONFIG = DctConfig(luma_channels=10, chroma_channels=3)
CONFIGS = (CONFIG, DctConfig(luma_channels=4, chroma_channels=2), DctConfig(luma_channels=64, chroma_channels=1))


def latents_of(config: DctConfig = CONFIG) -> DctLatents:
    """Latents with statistics that are not trivial, so that forgetting them shows."""
    channels = config.luma_channels + 2 * config.chroma_channels
    mean = torch.linspace(-0.7, 0.9, channels).tolist()
    return DctLatents(config, mean, torch.linspace(0.2, 3, channels).tolist())


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", CONFIGS)
def test_rows_are_orthonormal(config: DctConfig) -> None:
    rows = analysis(config).double()
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)).double(), atol=1e-6, rtol=0)


def test_a_record_is_decoded_exactly() -> None:
    config = DctConfig(luma_channels=64, chroma_channels=64)
    pixels = noise(1, 3, 1, 16, 8)
    latents = latents_of(config)
    torch.testing.assert_close(latents.decode(latents.encode(pixels)), pixels, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", CONFIGS)
def test_encode_undoes_decode(config: DctConfig) -> None:
    latents = latents_of(config)
    z = noise(2, latents.channels, 3, 2, 4)
    torch.testing.assert_close(latents.encode(latents.decode(z)), z, atol=1e-4, rtol=0)


def test_decode_of_encode_is_a_projection() -> None:
    latents, pixels = latents_of(), noise(2, 3, 5, 16, 24)
    once = latents.decode(latents.encode(pixels))
    assert (once - pixels).abs().max() > 0.1  # something is dropped
    torch.testing.assert_close(latents.decode(latents.encode(once)), once, atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", range(4))
def test_frames_become_one_and_one_for_every_four(k: int) -> None:
    latents = latents_of()
    z = latents.encode(noise(2, 3, 1 + 4 * k, 16, 24))
    assert z.shape == (2, 16, 1 + k, 2, 3)
    assert latents.decode(z).shape == (2, 3, 1 + 4 * k, 16, 24)


def test_the_first_frame_is_alone_and_later_ones_are_averaged_by_four() -> None:
    latents, pixels = latents_of(), noise(1, 3, 9, 8, 8)
    z = latents.encode(pixels)
    torch.testing.assert_close(z[:, :, :1], latents.encode(pixels[:, :, :1]))
    mean = pixels[:, :, 5:9].mean(dim=2, keepdim=True)
    torch.testing.assert_close(z[:, :, 2:], latents.encode(mean), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("frames", "height", "width"), [(0, 8, 8), (2, 8, 8), (4, 8, 8), (7, 8, 8), (1, 12, 8), (1, 8, 9)]
)
def test_other_clips_are_refused(frames: int, height: int, width: int) -> None:
    with pytest.raises(ConfigError, match=f"{frames} frames of {height}x{width}"):
        latents_of().encode(torch.zeros(1, 3, frames, height, width))


def test_fit_standardises() -> None:
    pixels = (noise(32, 3, 16, 16) * 0.3 + torch.tensor([0.5, -0.2, 0.1]).view(3, 1, 1)).clamp(-1, 1)
    z = DctLatents.fit(CONFIG, pixels).encode(pixels[:, :, None])
    torch.testing.assert_close(z.mean(dim=(0, 2, 3, 4)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(dim=(0, 2, 3, 4)), torch.ones(16), atol=1e-4, rtol=0)


def test_fit_on_pictures_that_never_change_stays_finite() -> None:
    latents = DctLatents.fit(CONFIG, torch.zeros(2, 3, 8, 8))
    assert latents.encode(noise(1, 3, 1, 8, 8)).isfinite().all()


def test_flat_pictures_come_back_from_pooled_latents() -> None:
    latents = latents_of()
    colour = torch.tensor([0.8, -0.4, 0.1]).view(1, 3, 1, 1, 1)
    flat = colour.expand(1, 3, 5, 32, 48)
    z = latents.encode(flat)
    pooled = z.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).mean(dim=(4, 6))
    assert pooled.shape == (1, 16, 2, 2, 3)
    torch.testing.assert_close(latents.decode_pooled(pooled), flat, atol=2e-3, rtol=0)


def test_pooled_decoding_puts_things_where_they_are() -> None:
    latents = latents_of()
    pixels = torch.full((1, 3, 1, 64, 64), -1.0)
    pixels[:, :, :, 32:, :32] = 1.0
    z = latents.encode(pixels)
    pooled = z.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).mean(dim=(4, 6))
    back = latents.decode_pooled(pooled)
    assert back[..., 36:, :28].mean() > 0.8
    assert back[..., :28, :].mean() < -0.8
    assert back[..., 36:, 36:].mean() < -0.8


def test_statistics_round_trip_through_json() -> None:
    latents = DctLatents.fit(CONFIG, noise(4, 3, 16, 16))
    again = DctLatents.from_dict(CONFIG, json.loads(json.dumps(latents.to_dict())))
    assert torch.equal(again.mean, latents.mean)
    assert torch.equal(again.std, latents.std)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([0.0] * 15, [1.0] * 16),
        ([0.0] * 16, [1.0] * 17),
        ([], []),
        ([0.0] * 16, [1.0] * 15 + [0.0]),
        ([0.0] * 16, [-1.0] + [1.0] * 15),
        ([0.0] * 16, [1.0] * 15 + [float("nan")]),
        ([0.0] * 16, [float("inf")] * 16),
        ([float("nan")] + [0.0] * 15, [1.0] * 16),
    ],
)
def test_wrong_statistics_are_refused(mean: list[float], std: list[float]) -> None:
    with pytest.raises(ConfigError, match="statistics"):
        DctLatents(CONFIG, mean, std)


@pytest.mark.parametrize(("luma", "chroma"), [(65, 1), (0, 3), (10, 65), (10, 0), (-1, 2)])
def test_counts_that_a_block_does_not_have_are_refused(luma: int, chroma: int) -> None:
    config = DctConfig(luma_channels=luma, chroma_channels=chroma)
    channels = max(0, luma + 2 * chroma)
    with pytest.raises(ConfigError, match="channels"):
        DctLatents(config, [0.0] * channels, [1.0] * channels)


def test_samples_without_a_video_pass_have_the_present_and_no_clip() -> None:
    video = np.random.default_rng(0).integers(0, 256, (4, 5, 16, 16, 3), np.uint8)
    marked = np.array([True, False, True, False])
    encoder = latents_of()
    whole, part = encode_clips(encoder, video), encode_clips(encoder, video, marked)
    torch.testing.assert_close(part.present, whole.present)
    torch.testing.assert_close(part.clip[marked], whole.clip[marked])
    assert not part.clip[~marked].any() and part.clip.shape == whole.clip.shape


def test_the_encoder_is_a_latent_codec() -> None:
    assert isinstance(latents_of(), LatentCodec)


def test_the_encoder_moves_to_a_device_once() -> None:
    """As a CUDA graph asks: nothing is copied from the CPU once it is there."""
    latents, pixels = DctLatents(DctConfig(6, 2), [0.5] * 10, [2.0] * 10), torch.zeros(1, 3, 1, 8, 16, device="meta")
    for copies in (True, False):
        with Moves() as seen:
            assert latents.encode(pixels).device.type == "meta"
        assert bool(seen.found) == copies


class Moves(TorchDispatchMode):
    """Every operator that reads a tensor of the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if any(isinstance(x, torch.Tensor) and x.device.type == "cpu" for x in args):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))
