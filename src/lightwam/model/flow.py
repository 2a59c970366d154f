"""Flow matching of future video: noise levels, mixing of data and noise, loss weights.

sigma   noise level in [0, 1]; 1 is noise
time    num_times * sigma, the input of the network
u       uniform(0, 1), from which a noise level is computed
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightwam.config.schema import FlowConfig


def shifted(u: Float[Tensor, " n"], shift: float) -> Float[Tensor, " n"]:
    """Return sigma = shift u / (1 + (shift - 1) u): uniform draws shifted towards noise, as video is redundant."""
    return shift * u / (1 + (shift - 1) * u)


def mix(
    clean: Float[Tensor, "B C T h w"], noise: Float[Tensor, "B C T h w"], sigma: Float[Tensor, " B"]
) -> Float[Tensor, "B C T h w"]:
    """Return (1 - sigma) clean + sigma noise; the first frame, the present, stays clean."""
    mixed = torch.lerp(clean, noise, sigma.to(clean.dtype).view(-1, 1, 1, 1, 1))
    return keep_first_frame(mixed, clean)


def keep_first_frame(
    latents: Float[Tensor, "B C T h w"], clean: Float[Tensor, "B C T2 h w"]
) -> Float[Tensor, "B C T h w"]:
    """Return `latents` with the first frame of `clean`."""
    return torch.cat((clean[:, :, :1], latents[:, :, 1:]), dim=2)


def time_weight(time: Float[Tensor, " B"], config: FlowConfig) -> Float[Tensor, " B"]:
    """Return w(t): a bell around the middle time, shifted to a minimum of 0 and scaled to a mean of 1.

    Minimum and mean are taken over the `num_times` shifted times of the schedule.
    """
    low, mean = _bell_range(config)
    return (_bell(time, config.num_times) - low) / mean


def _bell(time: Float[Tensor, " n"], num_times: int) -> Float[Tensor, " n"]:
    return torch.exp(-2 * ((time - num_times / 2) / num_times) ** 2)


@lru_cache(maxsize=8)
def _bell_range(config: FlowConfig) -> tuple[float, float]:
    n = config.num_times
    u = torch.arange(n, 0, -1, dtype=torch.float64, device="cpu") / n
    bell = _bell(n * shifted(u, config.shift), n)
    return float(bell.min()), float((bell - bell.min()).mean())


def latent_frame_is_pad(frame_is_pad: Bool[Tensor, "B F"], num_latent_frames: int) -> Bool[Tensor, "B later"]:
    """Tell which later latent frames are padding: those whose video frames all are."""
    return frame_is_pad[:, 1:].unflatten(1, (num_latent_frames - 1, -1)).all(dim=2)


def masked_mean(values: Float[Tensor, "B n"], keep: Bool[Tensor, "B n"]) -> Float[Tensor, " B"]:
    """Return the mean of each row's kept values; 0 for a row without any."""
    return torch.where(keep, values, 0).sum(dim=1) / keep.sum(dim=1).clamp(min=1)
