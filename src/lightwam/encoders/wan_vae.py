"""Wan2.1's video VAE: clips by diffusers' AutoencoderKLWan, single frames by an exact encoder of a third of the work.

Latents are the mode of the posterior, standardised by the VAE's published mean and standard deviation of each channel.
Acting needs single frames only; their encoder is in wan_vae_frame.py.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightwam.encoders.tensor_check import check_tensors, describe_names
from lightwam.encoders.wan_vae_frame import FrameEncoder, precise
from lightwam.encoders.weight_files import locate, read_config, read_tensors
from lightwam.errors import CheckpointError, ConfigError

SPATIAL_STRIDE = 8
TEMPORAL_STRIDE = 4

# Wan2.1's published statistics of its 16 latent channels; the official weights file does not hold them.
LATENTS_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENTS_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
ARCHITECTURE = {
    "num_res_blocks": 2,
    "dim_mult": [1, 2, 4, 4],
    "temperal_downsample": [False, True, True],
    "latents_mean": list(LATENTS_MEAN),
    "latents_std": list(LATENTS_STD),
}
"""settings that do not follow from the official file's tensors; the spelling is diffusers'"""
FIXED: Mapping[str, Any] = dict(is_residual=False, patch_size=None, attn_scales=[], in_channels=3, out_channels=3)
"""settings that distinguish Wan2.1's VAE from its successors, in diffusers' words"""


class WanVaeLatents:
    """Implements `LatentCodec`. Results have the device and dtype of the argument."""

    spatial_stride = SPATIAL_STRIDE
    temporal_stride = TEMPORAL_STRIDE

    def __init__(self, vae: Any) -> None:
        """Wrap diffusers' AutoencoderKLWan, whose config has the channels' statistics; its weights are frozen."""
        self.channels = vae.config.z_dim
        self.vae = vae.eval().requires_grad_(False)
        self.frame_encoder = FrameEncoder.from_vae(vae)
        # on the VAE's device: a CUDA graph must not copy from the CPU
        self.mean = torch.tensor(vae.config.latents_mean, dtype=torch.float64, device=vae.device)
        self.std = torch.tensor(vae.config.latents_std, dtype=torch.float64, device=vae.device)

    @classmethod
    def load(
        cls, source: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> WanVaeLatents:
        """Load the VAE of `source` (a folder, or a Hub repo id), in the official layout or in diffusers'.

        CheckpointError when it is not there, when it is not Wan2.1's kind, or, listing them, when tensors are missing,
        unknown, of other shapes or not finite; ConfigError when diffusers is not installed.
        """
        path = locate(source, "vae")
        tensors = read_tensors(path)
        config = _read_config(path / "config.json") if path.is_dir() else _official_config(tensors, path)
        vae = empty_vae(config, path)
        wanted = {name: tensor.shape for name, tensor in vae.state_dict().items()}
        names = {name: name if path.is_dir() else official_name(name) for name in wanted}
        shapes = {names[name]: shape for name, shape in wanted.items()}
        what = "the weights are not those of this VAE"
        check_tensors(what, path, tensors, shapes, "take the VAE as it was published")
        # a copy of each, as mapped tensors are unaligned, which changes the last bits; one at a time, to save memory
        state = {ours: tensors.pop(theirs).to(device, dtype, copy=True) for ours, theirs in names.items()}
        vae.load_state_dict(state, assign=True)
        return cls(vae)

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "B 3 F height width"]) -> Float[Tensor, "B C T h w"]:
        """Encode pixels in [-1, 1] to standardised latents; ConfigError unless F = 1 + 4k and 8 divides the sides.

        Clips of a batch do not influence each other. Memory grows with the batch and the picture, not with F.
        """
        frames, height, width = pixels.shape[2:]
        if frames % TEMPORAL_STRIDE != 1 or height % SPATIAL_STRIDE or width % SPATIAL_STRIDE:
            got = f"{frames} frames of {height}x{width}"
            raise ConfigError("a clip must have 1 + 4k frames, sides multiples of 8", where="latents", got=got)
        clip, single = pixels.to(self.vae.device, self.vae.dtype), frames == 1
        if single:
            raw = self.frame_encoder(clip[:, :, 0].to(self.frame_encoder.dtype))[:, :, None]
        else:
            raw = self.vae.encode(clip).latent_dist.mode()
        raw = precise(raw)
        mean, std = self._statistics(raw)
        return ((raw - mean) / std).to(pixels)

    def with_frames_in(self, dtype: torch.dtype) -> WanVaeLatents:
        """Return the same latents with single frames encoded in `dtype`; clips and decoding stay in the VAE's."""
        other = copy.copy(self)
        other.frame_encoder = FrameEncoder.from_vae(self.vae, dtype)
        return other

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B C T h w"]) -> Float[Tensor, "B 3 F height width"]:
        """Decode standardised latents to pixels in [-1, 1], F = 1 + 4(T - 1)."""
        z = precise(latents)
        mean, std = self._statistics(z)
        return self.vae.decode((z * std + mean).to(self.vae.device, self.vae.dtype)).sample.to(latents)

    def decode_pooled(self, latents: Float[Tensor, "B C T h2 w2"]) -> Float[Tensor, "B 3 F height width"]:
        """Decode latents averaged 2x2 in space to pixels at the full picture size.

        The VAE is convolutional and its latents vary slowly, so an average of four is near the latent of a picture of
        half the size: that picture is decoded, and enlarged bilinearly.
        """
        small = self.decode(latents)
        pictures = F.interpolate(small.transpose(1, 2).flatten(0, 1), scale_factor=2, mode="bilinear")
        return pictures.unflatten(0, (small.shape[0], small.shape[2])).transpose(1, 2)

    def motionless(self, present: Float[Tensor, "B C 1 h w"]) -> Float[Tensor, "B C 1 h w"]:
        """Return the later latents of a clip that stays as it is: about those of its first frame."""
        return present

    def _statistics(self, like: Tensor) -> list[Tensor]:
        return [s.to(like).view(1, -1, 1, 1, 1) for s in (self.mean, self.std)]


_OFFICIAL = (
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.down_blocks\.", ".downsamples."),
)
_OFFICIAL_RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
_UP_BLOCK = re.compile(r"\.up_blocks\.(\d+)\.(?:resnets\.(\d+)|upsamplers\.0)\.")


def official_name(name: str) -> str:
    """Return the official file's name of a tensor that diffusers' AutoencoderKLWan calls `name`."""
    *layer, tensor = name.split(".")
    theirs = ".".join((*layer[:-1], _OFFICIAL_RESIDUAL.get(layer[-1], layer[-1]), tensor))
    for pattern, words in _OFFICIAL:
        theirs = re.sub(pattern, words, theirs)
    # The decoder's layers are in one list there: three residual blocks, one that enlarges, three residual blocks, ...
    return _UP_BLOCK.sub(lambda match: f".upsamples.{4 * int(match[1]) + int(match[2] or 3)}.", theirs)


def _official_config(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Return the config of the official file: Wan2.1's architecture, with the widths of these tensors."""
    sizes = {"encoder.conv1.bias": "base_dim", "decoder.head.0.gamma": "decoder_base_dim", "conv2.bias": "z_dim"}
    if missing := [name for name in sizes if name not in tensors]:
        what, got = "not the official file of Wan2.1's VAE", describe_names(tensors, sizes)
        step = "take Wan2.1_VAE.pth as it was published, or the folder of diffusers' layout"
        raise CheckpointError(what, where=path, got=got, expected=missing, next_step=step)
    config = ARCHITECTURE | {size: len(tensors[name]) for name, size in sizes.items()}
    if config["z_dim"] != len(LATENTS_MEAN):
        what = f"the VAE must have Wan2.1's number of latent channels, {len(LATENTS_MEAN)}"
        raise CheckpointError(what, where=path, got=config["z_dim"])
    return config


def _read_config(path: Path) -> dict[str, Any]:
    """Read diffusers' config of a Wan2.1 VAE, without keys that begin with "_"."""
    values = read_config(path, "the VAE's config")
    if (got := values.get("_class_name")) != "AutoencoderKLWan":
        raise CheckpointError("not the config of Wan's VAE", where=path, got=got, expected="AutoencoderKLWan")
    config: Any = {key: value for key, value in values.items() if not key.startswith("_")}
    wrong = {key: config[key] for key, value in FIXED.items() if config.get(key, value) != value}
    blocks, halvings = config.get("dim_mult"), config.get("temperal_downsample")
    listed = isinstance(blocks, list) and isinstance(halvings, list)
    if not (listed and len(blocks) == 4 and len(halvings) == 3 and halvings.count(True) == 2):
        wrong |= {"dim_mult": blocks, "temperal_downsample": halvings}
    if wrong:
        expected = f"{FIXED}, strides 8 in space and 4 in time"
        raise CheckpointError("not a VAE of Wan2.1's kind", where=path, got=wrong, expected=expected)
    return config


def empty_vae(config: Mapping[str, Any], path: Path) -> Any:
    """Return diffusers' AutoencoderKLWan of this config on the meta device, without memory for its weights."""
    try:
        from diffusers import AutoencoderKLWan
    except ImportError as error:
        what, step = "a package that Wan2.1's VAE needs is not installed", "pip install 'lightwam[wan]'"
        raise ConfigError(what, where="latents", got=f"diffusers ({error})", next_step=step) from error
    known = inspect.signature(AutoencoderKLWan.__init__).parameters
    if unknown := sorted(set(config) - set(known)):
        what, step = "the VAE's config has keys that this diffusers does not know", "upgrade diffusers"
        raise CheckpointError(what, where=path, got=unknown, next_step=step)
    try:
        with torch.device("meta"):
            vae: Any = AutoencoderKLWan(**config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError("the VAE's config describes no VAE", where=path, got=error) from error
    if not _fit(vae.config.latents_mean, vae.config.latents_std, vae.config.z_dim):
        got = f"means {vae.config.latents_mean}, stds {vae.config.latents_std}"
        what, expected = "the VAE's statistics do not fit its channels", f"{vae.config.z_dim} of each, stds positive"
        raise CheckpointError(what, where=path, got=got, expected=expected)
    return vae


def _fit(mean: Any, std: Any, channels: int) -> bool:
    if not (isinstance(mean, (list, tuple)) and isinstance(std, (list, tuple))) or {len(mean), len(std)} != {channels}:
        return False
    return all(type(number) in (int, float) and math.isfinite(number) for number in (*mean, *std)) and min(std) > 0
