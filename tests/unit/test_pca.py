"""encoders/pca.py: latents fitted on pictures, with the same motionless latents in a clip's first and later frames."""

import json

import numpy as np
import pytest
import torch

from lightwam.config.schema import DctConfig, PcaConfig
from lightwam.encoders.dct import DctLatents
from lightwam.encoders.frozen import fit_latents
from lightwam.encoders.future import decode_future
from lightwam.encoders.pca import PcaLatents, shapes
from lightwam.errors import ConfigError
from lightwam.types import LatentCodec, pool, to_pixels

CONFIG = PcaConfig(channels=18, motion_channels=4)
SIZE = 64


def clips_of(count: int, seed: int = 0) -> np.ndarray:
    """Clips of a bright square that moves over a coloured gradient."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(40, 200, SIZE)
    picture = np.stack(
        (np.add.outer(ramp, ramp) / 2, np.tile(ramp, (SIZE, 1)), np.tile(ramp[:, None], (1, SIZE))), axis=2
    )
    clips = np.tile(picture, (count, 5, 1, 1, 1))
    for clip in clips:
        clip *= rng.uniform(0.6, 1.2)
        row, column = rng.integers(0, SIZE - 14, 2)
        down, right = rng.integers(-2, 3, 2)
        for k, frame in enumerate(clip):
            top, left = max(row + k * down, 0), max(column + k * right, 0)
            frame[top : top + 6, left : left + 6] = (250, 60, 30)
    return clips.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def latents() -> PcaLatents:
    return PcaLatents.fit(CONFIG, clips_of(24))


def rms(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().mean().sqrt())


def test_rows_are_orthonormal_over_four_frames(latents: PcaLatents) -> None:
    parts = latents.components
    kept = parts.spatial[: CONFIG.channels - CONFIG.motion_channels].repeat(1, 4) / 2
    rows = torch.cat((kept, parts.motion)).double()
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)).double(), atol=1e-5, rtol=0)
    single = parts.spatial.double()
    torch.testing.assert_close(single @ single.T, torch.eye(len(single)).double(), atol=1e-5, rtol=0)


def test_encode_undoes_decode(latents: PcaLatents) -> None:
    z = torch.randn(2, CONFIG.channels, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    assert latents.decode(z).shape == (2, 3, 9, 16, 32)
    torch.testing.assert_close(latents.encode(latents.decode(z)), z, atol=1e-3, rtol=0)


def test_channels_have_about_deviation_1(latents: PcaLatents) -> None:
    z = latents.encode(to_pixels(clips_of(24)))
    first, motion = z[:, :, 0].std(dim=(0, 2, 3)), z[:, -CONFIG.motion_channels :, 1].std(dim=(0, 2, 3))
    assert 0.9 < first.min() < first.max() < 1.4  # fitted on single frames and on means of four, which vary less
    torch.testing.assert_close(motion, torch.ones(len(motion)), atol=0.01, rtol=0)


def test_a_clip_without_motion_has_the_latents_that_motionless_says(latents: PcaLatents) -> None:
    pixels = to_pixels(clips_of(4, seed=1)[:, :1].repeat(5, axis=1))
    z = latents.encode(pixels)
    held = latents.motionless(z[:, :, :1])
    kept = CONFIG.channels - CONFIG.motion_channels
    torch.testing.assert_close(z[:, :kept, 1:], held[:, :kept], atol=1e-4, rtol=0)
    assert z[:, kept:, 1:].abs().mean() < 0.3


def test_it_shows_motion_that_the_dct_averages(latents: PcaLatents) -> None:
    new = clips_of(16, seed=2)
    pixels, dct = to_pixels(new), DctLatents.fit(DctConfig(8, 5), to_pixels(clips_of(24))[:, :, 0])
    assert dct.channels == latents.channels
    mine, theirs = (codec.decode(codec.encode(pixels)) for codec in (latents, dct))
    assert rms(mine, pixels) < 0.9 * rms(theirs, pixels)
    change, mine_change, their_change = (each[:, :, 1:].diff(dim=2) for each in (pixels, mine, theirs))
    assert rms(mine_change, change) < 0.95 * rms(their_change, change)


def test_averaged_latents_show_the_picture(latents: PcaLatents) -> None:
    pixels = to_pixels(clips_of(16, seed=2))
    shown = latents.decode_pooled(pool(latents.encode(pixels)))
    assert shown.shape == pixels.shape
    assert rms(shown, pixels) < 0.4 * float(pixels.std())


def test_the_present_stays_and_so_does_what_does_not_move(latents: PcaLatents) -> None:
    clips = clips_of(4, seed=3)
    pixels = to_pixels(clips)
    z = pool(latents.encode(pixels))
    future, plain = decode_future(latents, pixels[:, :, :1], z), latents.decode_pooled(z)
    assert torch.equal(future[:, :, :1], pixels[:, :, :1])
    assert rms(future, pixels) < 0.9 * rms(plain, pixels)
    held = torch.cat((z[:, :, :1], *[latents.motionless(z[:, :, :1])] * 2), dim=2)
    still = decode_future(latents, pixels[:, :, :1], held)
    torch.testing.assert_close(still, pixels[:, :, :1].expand(-1, -1, 9, -1, -1), atol=1e-5, rtol=0)
    assert torch.equal(decode_future(latents, pixels[:, :, :1], z[:, :, :1]), pixels[:, :, :1])


def test_components_round_trip_through_json(latents: PcaLatents) -> None:
    again = PcaLatents.from_dict(CONFIG, json.loads(json.dumps(latents.to_dict())))
    for name in shapes(CONFIG):
        assert torch.equal(getattr(again.components, name), getattr(latents.components, name))
    assert isinstance(latents, LatentCodec)


def test_equal_pictures_give_equal_latents_and_black_ones_finite_ones() -> None:
    assert fit_latents(CONFIG, clips_of(6)) == fit_latents(CONFIG, np.tile(clips_of(6), (1, 2, 1, 1, 1)))
    black = PcaLatents.fit(CONFIG, np.zeros((2, 5, 16, 16, 3), np.uint8))
    z = black.encode(torch.ones(1, 3, 5, 16, 16))
    assert z.isfinite().all()
    assert black.decode_pooled(pool(z)).isfinite().all()


@pytest.mark.parametrize(("channels", "motion"), [(4, 0), (4, 4), (193, 4)])
def test_channels_that_are_impossible_are_refused(channels: int, motion: int) -> None:
    with pytest.raises(ConfigError, match="1 <= motion_channels < channels"):
        PcaLatents.fit(PcaConfig(channels, motion), clips_of(1))


@pytest.mark.parametrize("change", [{"mean": "?"}, {"std": "AAAA"}, {"spatial": None}])
def test_a_damaged_record_is_refused(latents: PcaLatents, change: dict[str, str | None]) -> None:
    (name,) = change
    with pytest.raises(ConfigError, match=name):
        PcaLatents.from_dict(CONFIG, {**latents.to_dict(), **change}, "processing.json latents")


def test_other_clips_are_refused(latents: PcaLatents) -> None:
    with pytest.raises(ConfigError, match="4 frames of 12x8"):
        latents.encode(torch.zeros(1, 3, 4, 12, 8))
