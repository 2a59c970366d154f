"""Encoding windows for a latent cache: as `lightwam cache` does it, and in other precisions, with their errors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightwam.data.cache.encoder import WINDOWS_AT_ONCE
from lightwam.encoders.frozen import encode_clip
from lightwam.evaluation.gpu_figures.act import relative
from lightwam.evaluation.gpu_figures.setup import Figure, Setup, skipped
from lightwam.policy.benchmark import random_latents
from lightwam.system.timing import time_interleaved
from lightwam.training.precompute import clip_encoder
from lightwam.types import Latents, to_pixels

LIMIT_S = 4.0
"""for the repetitions of each way"""
WAYS: Mapping[str, tuple[torch.dtype, Mapping[str, bool]]] = {
    "float32": (torch.float32, {"allow_tf32": False}),
    "TF32": (torch.float32, {"allow_tf32": True}),
    "TF32, cuDNN tries its kernels": (torch.float32, {"allow_tf32": True, "benchmark": True}),
    "bfloat16": (torch.bfloat16, {"allow_tf32": True}),
}
"""dtype of the VAE, and cuDNN's settings; the first is what the others are compared with"""


def figures(setup: Setup) -> Mapping[str, Figure]:
    """Return the section's figures by name."""
    if not setup.recipe.latents.pretrained:
        return {"windows": skipped("the recipe's latents are computed while it trains")}
    recipe = setup.recipe
    shape = (WINDOWS_AT_ONCE, recipe.num_frames, *recipe.codec.canvas, 3)
    canvases = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    @lru_cache(1)
    def wan() -> Any:
        return random_latents(recipe, setup.device)

    @lru_cache(1)
    def exact() -> Tensor:
        return _encoder(wan(), canvases, setup.device, "float32")().clip.cpu()

    def cached() -> dict[str, Any]:
        return _timed(partial(clip_encoder(wan(), setup.device), canvases), exact(), setup.device)

    def way(name: str) -> dict[str, Any]:
        return _timed(_encoder(wan(), canvases, setup.device, name), exact(), setup.device)

    return {"as lightwam cache": cached, **{name: partial(way, name) for name in WAYS}}


def _encoder(wan: Any, canvases: np.ndarray, device: torch.device, name: str) -> Callable[[], Latents]:
    """Return a call that encodes the windows in one of WAYS; what it returns stays on the device."""
    from lightwam.encoders.wan_vae import WanVaeLatents

    dtype, cudnn = WAYS[name]
    latents = wan if dtype == torch.float32 else WanVaeLatents(copy.deepcopy(wan.vae).to(dtype))

    @torch.inference_mode()
    def encode() -> Latents:
        with torch.backends.cudnn.flags(enabled=True, **cudnn):
            return encode_clip(latents, to_pixels(torch.from_numpy(canvases).to(device)))

    return encode


def _timed(call: Callable[[], Latents], exact: Tensor, device: torch.device) -> dict[str, Any]:
    """Return the time of a batch of windows, windows a second, and the error of the clips' latents."""
    row = time_interleaved({"way": call}, device, limit_s=LIMIT_S)["way"]
    rate = 1000 * WINDOWS_AT_ONCE / row["p50_ms"]
    return {"windows": WINDOWS_AT_ONCE, **row, "windows_per_second": rate, "error": relative(call().clip.cpu(), exact)}
