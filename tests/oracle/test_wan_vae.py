"""encoders/wan_vae.py against diffusers: one frame by our encoder, clips by the library, the official file by name."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import save_file
from torch import Tensor

from lightwam.encoders import wan_vae, wan_vae_frame
from lightwam.encoders.wan_vae import WanVaeLatents, official_name
from lightwam.encoders.wan_vae_frame import FrameEncoder, Winograd
from lightwam.errors import CheckpointError, ConfigError
from lightwam.types import LatentCodec

CONFIGS: tuple[dict[str, Any], ...] = (
    {"z_dim": 16},
    {"z_dim": 4, "num_res_blocks": 1},
    {"z_dim": 4, "num_res_blocks": 3, "dim_mult": [1, 1, 2, 3], "temperal_downsample": [True, False, True]},
    {"z_dim": 2, "num_res_blocks": 1, "dim_mult": [2, 1, 1, 2]},
    {"z_dim": 4, "num_res_blocks": 1, "attn_scales": [1.0]},
    {"z_dim": 4, "num_res_blocks": 2, "attn_scales": [0.5, 0.125]},
)


def random_vae(seed: int = 0, **config: Any) -> Any:
    """A VAE whose every tensor is random, gains and biases too, so that forgetting one shows."""
    z = config.get("z_dim", 16)
    if z != 16:
        config |= {"latents_mean": [0.1 * i for i in range(z)], "latents_std": [1.0 + 0.1 * i for i in range(z)]}
    torch.manual_seed(seed)
    vae = AutoencoderKLWan(**({"base_dim": 4, "num_res_blocks": 2} | config)).eval()
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            parameter += torch.randn_like(parameter) * (0.3 if name.endswith(("gamma", "bias")) else 0.02)
    return vae


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).clamp(-2, 2) / 2


def standardised(vae: Any, raw: Tensor) -> Tensor:
    mean, std = (torch.tensor(s).view(1, -1, 1, 1, 1) for s in (vae.config.latents_mean, vae.config.latents_std))
    return (raw - mean) / std


@pytest.fixture(scope="module")
def vae() -> Any:
    return random_vae()


@pytest.fixture(scope="module")
def latents(vae: Any) -> WanVaeLatents:
    return WanVaeLatents(vae)


def save_official(vae: Any, folder: Path) -> dict[str, Tensor]:
    """The VAE as the official file has it, by our names for it."""
    state = {official_name(name): tensor.clone() for name, tensor in vae.state_dict().items()}
    torch.save(state, folder / "Wan2.1_VAE.pth")
    return state


def save_diffusers(vae: Any, folder: Path) -> Path:
    vae.save_pretrained(folder / "vae")
    return folder / "vae"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("config", CONFIGS)
def test_one_frame_is_encoded_as_the_library_does(config: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    vae = random_vae(**config).to(dtype)
    frame = noise(2, 3, 24, 32).to(dtype)
    with torch.no_grad():
        # with attention between its blocks the library's encode, which keeps a cache, fails; without a cache it runs
        moments = vae.quant_conv(vae.encoder(frame[:, :, None]))
        if not config.get("attn_scales"):
            assert torch.equal(vae.encode(frame[:, :, None]).latent_dist.parameters, moments)
        ours = FrameEncoder.from_vae(vae)(frame)
    assert ours.dtype == dtype
    theirs = moments.chunk(2, dim=1)[0][:, :, 0]
    assert theirs.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize(("height", "width", "stripe"), [(6, 8, 1), (5, 7, 30), (1, 2, 1000), (9, 4, 60)])
def test_winograds_products_are_the_convolution(
    height: int, width: int, stripe: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of odd sides and in stripes, and where neighbours in memory are channels or columns."""
    monkeypatch.setattr(wan_vae_frame, "STRIPE", stripe)
    conv = torch.nn.Conv2d(6, 5, 3, padding=1, dtype=dtype)
    x = noise(2, 6, height, width).to(dtype)
    with torch.no_grad():
        expected = conv(x)
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            torch.testing.assert_close(Winograd(conv)(given), expected, atol=tolerance, rtol=0)


def test_wide_layers_of_a_cpu_take_winograds_products(monkeypatch: pytest.MonkeyPatch, vae: Any) -> None:
    frame = noise(1, 3, 24, 40)
    plain = FrameEncoder.from_vae(vae)
    assert not any(isinstance(layer, Winograd) for layer in plain.modules())
    monkeypatch.setattr(wan_vae_frame, "WINOGRAD_FROM", 16)
    with torch.no_grad():
        torch.testing.assert_close(FrameEncoder.from_vae(vae)(frame), plain(frame), atol=1e-5, rtol=0)
    halves = FrameEncoder.from_vae(random_vae().to(torch.bfloat16))
    assert sum(isinstance(layer, Winograd) for layer in FrameEncoder.from_vae(vae).modules()) > 4
    assert not any(isinstance(layer, Winograd) for layer in halves.modules())


def test_the_frame_encoder_is_smaller_than_the_video_encoder(vae: Any, latents: WanVaeLatents) -> None:
    ours = sum(p.numel() for p in latents.frame_encoder.parameters())
    assert ours < 0.45 * sum(p.numel() for p in vae.encoder.parameters())
    assert not any(p.requires_grad for p in (*latents.frame_encoder.parameters(), *latents.vae.parameters()))


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_encoding_is_the_standardised_mode(frames: int, vae: Any, latents: WanVaeLatents) -> None:
    clip = noise(2, 3, frames, 16, 24)
    with torch.no_grad():
        theirs = standardised(vae, vae.encode(clip).latent_dist.mode())
    ours = latents.encode(clip)
    assert ours.shape == (2, 16, 1 + frames // 4, 2, 3)
    assert not ours.requires_grad
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_the_first_latent_of_a_clip_is_that_of_its_first_frame(latents: WanVaeLatents) -> None:
    """What a policy sees is what it was trained on, though the two go different ways."""
    clip = noise(1, 3, 5, 16, 16)
    torch.testing.assert_close(latents.encode(clip)[:, :, :1], latents.encode(clip[:, :, :1]), atol=1e-5, rtol=0)


def test_decoding_is_the_library_on_what_encoding_gave(vae: Any, latents: WanVaeLatents) -> None:
    clip = noise(2, 3, 9, 8, 16)
    with torch.no_grad():
        theirs = vae.decode(vae.encode(clip).latent_dist.mode()).sample
    ours = latents.decode(latents.encode(clip))
    assert ours.shape == clip.shape
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_pooled_latents_become_a_picture_of_full_size(latents: WanVaeLatents) -> None:
    pooled = noise(2, 16, 2, 2, 3, seed=1)
    pictures = latents.decode_pooled(pooled)
    assert pictures.shape == (2, 3, 5, 32, 48)
    small = latents.decode(pooled)
    for frame in (0, 4):
        enlarged = F.interpolate(small[:, :, frame], size=(32, 48), mode="bilinear", align_corners=False)
        torch.testing.assert_close(pictures[:, :, frame], enlarged)


@pytest.mark.parametrize("frames", [1, 5])
def test_clips_of_a_batch_do_not_touch_one_another(frames: int, latents: WanVaeLatents) -> None:
    clips = noise(3, 3, frames, 8, 8)
    together = latents.encode(clips)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], latents.encode(clips[i : i + 1]), atol=1e-6, rtol=0)
    back = latents.decode(together)
    torch.testing.assert_close(back[1:2], latents.decode(together[1:2]), atol=1e-5, rtol=0)


def test_a_call_leaves_nothing_behind_for_the_next(latents: WanVaeLatents) -> None:
    clip = noise(1, 3, 5, 8, 16)
    once = latents.encode(clip)
    latents.decode(latents.encode(noise(2, 3, 5, 8, 8, seed=3)))
    assert torch.equal(latents.encode(clip), once)


def test_the_result_has_the_dtype_of_the_input() -> None:
    half, full = WanVaeLatents(random_vae().to(torch.bfloat16)), WanVaeLatents(random_vae())
    for frames in (1, 5):
        clip = noise(1, 3, frames, 8, 8)
        z = half.encode(clip)
        assert z.dtype == torch.float32
        assert half.encode(clip.bfloat16()).dtype == torch.bfloat16
        assert half.decode(z).dtype == torch.float32
        torch.testing.assert_close(z, full.encode(clip), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("frames", "height", "width"), [(0, 8, 8), (2, 8, 8), (4, 8, 8), (7, 8, 8), (1, 12, 8), (5, 8, 9)]
)
def test_other_clips_are_refused(latents: WanVaeLatents, frames: int, height: int, width: int) -> None:
    with pytest.raises(ConfigError, match=f"{frames} frames of {height}x{width}"):
        latents.encode(torch.zeros(1, 3, frames, height, width))


def test_frames_in_bfloat16_leave_clips_and_the_codec_as_they_are(latents: WanVaeLatents) -> None:
    frame, clip = noise(2, 3, 1, 32, 48), noise(1, 3, 5, 32, 48)
    half, before = latents.with_frames_in(torch.bfloat16), latents.encode(frame)
    assert half.frame_encoder.dtype == torch.bfloat16 and half.encode(frame).dtype == torch.float32
    assert 1e-4 < float((half.encode(frame) - before).norm() / before.norm()) < 0.05
    assert torch.equal(half.encode(clip), latents.encode(clip)) and torch.equal(latents.encode(frame), before)


def test_the_encoder_is_a_latent_codec(latents: WanVaeLatents) -> None:
    assert isinstance(latents, LatentCodec)
    assert (latents.channels, latents.spatial_stride, latents.temporal_stride) == (16, 8, 4)


def test_the_official_names_are_those_that_the_library_converts(tmp_path: Path) -> None:
    """Its converter knows the published file: whatever we call a tensor there, it must call it what we came from."""
    vae = random_vae()
    state = {official_name(name): tensor for name, tensor in vae.state_dict().items()}
    assert len(state) == len(vae.state_dict()) == 194
    converted = convert_wan_vae_to_diffusers(dict(state))
    assert converted.keys() == vae.state_dict().keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in vae.state_dict().items())
    assert not any("resnets" in name or "blocks" in name for name in state)


def test_the_statistics_are_the_published_ones() -> None:
    config = AutoencoderKLWan(base_dim=4).config
    assert list(wan_vae.LATENTS_MEAN) == config.latents_mean
    assert list(wan_vae.LATENTS_STD) == config.latents_std
    assert {key: config[key] for key in wan_vae.ARCHITECTURE} == wan_vae.ARCHITECTURE
    assert {key: config[key] for key in wan_vae.FIXED} == wan_vae.FIXED


@pytest.mark.parametrize("save", [save_official, save_diffusers])
def test_both_layouts_load_to_the_same_codec(save: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    vae = random_vae(seed=3)
    save(vae, tmp_path)
    loaded = WanVaeLatents.load(tmp_path)
    assert loaded.vae.state_dict().keys() == vae.state_dict().keys()
    assert all(torch.equal(loaded.vae.state_dict()[name], tensor) for name, tensor in vae.state_dict().items())
    wanted = WanVaeLatents(vae)
    for frames in (1, 5):
        clip = noise(1, 3, frames, 8, 8)
        assert torch.equal(loaded.encode(clip), wanted.encode(clip))
    assert torch.equal(loaded.decode(wanted.encode(clip)), wanted.decode(wanted.encode(clip)))


def test_umt5_loads_in_the_requested_dtype_and_from_diffusers(tmp_path: Path) -> None:
    save_diffusers(random_vae(z_dim=4, num_res_blocks=1, dim_mult=[1, 1, 2, 2]), tmp_path)
    loaded = WanVaeLatents.load(tmp_path, dtype=torch.float64)
    assert loaded.vae.dtype == torch.float64
    assert loaded.channels == 4
    assert {p.dtype for p in loaded.frame_encoder.parameters()} == {torch.float64}


def without(state: dict[str, Tensor]) -> None:
    del state["encoder.middle.1.proj.bias"]


def with_more(state: dict[str, Tensor]) -> None:
    state["encoder.more.weight"] = torch.zeros(1)


def of_other_shape(state: dict[str, Tensor]) -> None:
    state["conv1.weight"] = torch.zeros(3, 3, 1, 1, 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without, r"1 differences\n    missing: encoder.middle.1.proj.bias"),
        (with_more, r"unknown: encoder\.more\.weight"),
        (of_other_shape, r"of another shape: conv1.weight \[3, 3, 1, 1, 1\], expected \[32, 32, 1, 1, 1\]"),
        (lambda state: state.update({"conv1.bias": torch.zeros(32).int()}), "not of floating point: conv1.bias"),
        (lambda state: state["conv1.bias"].fill_(float("nan")), r"not finite: conv1.bias \(32 NaN"),
        (lambda state: [state.update({f"module.{k}": state.pop(k)}) for k in list(state)], "begin with 'module.'"),
        (lambda state: state.pop("conv2.bias"), "not the official file"),
        (lambda state: state.update({"conv2.bias": torch.zeros(8)}), "number of latent channels"),
        (lambda state: state.clear(), "not the official file"),
    ],
)
def test_another_official_file_is_refused(
    change: Callable[[dict[str, Tensor]], Any], says: str, vae: Any, tmp_path: Path
) -> None:
    state = save_official(vae, tmp_path)
    change(state)
    torch.save(state, tmp_path / "Wan2.1_VAE.pth")
    with pytest.raises(CheckpointError, match=says) as caught:
        WanVaeLatents.load(tmp_path)
    assert "Wan2.1_VAE.pth" in str(caught.value)


def test_a_folder_without_one_of_its_tensors_is_refused(vae: Any, tmp_path: Path) -> None:
    folder = save_diffusers(vae, tmp_path)
    state = {name: tensor for name, tensor in vae.state_dict().items() if "time_conv" not in name}
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=r"8 differences\n    missing: encoder\.down_blocks\.5\.time_conv"):
        WanVaeLatents.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"_class_name": "AutoencoderKL"}, "not the config of Wan's VAE"),
        ({"is_residual": True}, "Wan2.1's kind"),
        ({"patch_size": 2}, "Wan2.1's kind"),
        ({"attn_scales": [0.5]}, "Wan2.1's kind"),
        ({"dim_mult": [1, 2, 4]}, "Wan2.1's kind"),
        ({"dim_mult": 4}, "Wan2.1's kind"),
        ({"temperal_downsample": [False, False, True]}, "Wan2.1's kind"),
        ({"temperal_downsample": None}, "Wan2.1's kind"),
        ({"latents_mean": [0.0] * 15}, "statistics"),
        ({"latents_mean": ["0"] * 16}, "statistics"),
        ({"latents_mean": None}, "statistics"),
        ({"latents_std": [1.0] * 15 + [0.0]}, "statistics"),
        ({"latents_std": [1.0] * 15 + [float("nan")]}, "statistics"),
        ({"base_dim": "wide"}, "describes no VAE"),
        ({"base_dim": 8}, "of another shape"),
        ({"twist": 1}, "upgrade diffusers"),
    ],
)
def test_another_config_is_refused(change: dict[str, Any], says: str, vae: Any, tmp_path: Path) -> None:
    path = save_diffusers(vae, tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=says) as caught:
        WanVaeLatents.load(tmp_path)
    assert str(path.parent) in str(caught.value)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_an_invalid_config_is_refused(content: str | None, vae: Any, tmp_path: Path) -> None:
    path = save_diffusers(vae, tmp_path) / "config.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError, match="config"):
        WanVaeLatents.load(tmp_path)


def test_a_folder_with_no_vae_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="vae"):
        WanVaeLatents.load(tmp_path)


def test_without_diffusers_the_extra_is_named(vae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_official(vae, tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"pip install 'lightwam\[wan\]'"):
        WanVaeLatents.load(tmp_path)
