"""A recipe's frozen encoders: pixels <-> latents, and prompts -> token states.

Their statistics of the data and the states of the dataset's prompts are saved with the run. So a policy needs neither
the dataset nor, for sentences it was trained on, the text encoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lightwam.config.schema import DctConfig, HashedTextConfig, PcaConfig, Recipe
from lightwam.encoders.dct import DctLatents
from lightwam.encoders.hashed_text import HashedText
from lightwam.encoders.pca import PcaLatents
from lightwam.encoders.weight_files import digest, locate
from lightwam.errors import CheckpointError, PromptError
from lightwam.types import LatentCodec, Latents, TextEncoder, pool, to_pixels

MAX_PROMPTS = 256
"""prompts other than the run's own whose states are cached"""


def vae_identity(recipe: Recipe) -> dict[str, str]:
    """Return the digest of the recipe's VAE, which a run saves in place of statistics."""
    return {"vae": digest(locate(recipe.weights, "vae"))}


def open_latents(recipe: Recipe, measured: Any, where: str, device: torch.device | str = "cpu") -> LatentCodec:
    """Return a run's latents from `measured`, what `fit_latents` measured or the identity of the VAE.

    CheckpointError when the VAE is another one by now; `where` names the source of `measured` in errors.
    """
    if isinstance(recipe.latents, DctConfig):
        return DctLatents.from_dict(recipe.latents, measured, where)
    if isinstance(recipe.latents, PcaConfig):
        return PcaLatents.from_dict(recipe.latents, measured, where)
    from lightwam.encoders.wan_vae import WanVaeLatents

    check_vae(measured, vae_identity(recipe), where)
    return WanVaeLatents.load(recipe.weights, device)


def fit_latents(config: DctConfig | PcaConfig, canvases: UInt8[np.ndarray, "N F height width 3"]) -> dict[str, Any]:
    """Return what `open_latents` takes as `measured`, fitted on clips: PCA on five frames, the DCT on the first."""
    if isinstance(config, PcaConfig):
        return dict(PcaLatents.fit(config, canvases[:, : 1 + config.temporal_stride]).to_dict())
    return dict(DctLatents.fit(config, to_pixels(canvases[:, :1])[:, :, 0]).to_dict())


def check_vae(measured: Any, now: Mapping[str, str], where: object) -> None:
    """Raise CheckpointError when the VAE `now` is not the one that a run was trained with."""
    if measured != now:
        what, step = "the VAE must be the one that the run was trained with", "pass its folder: --weights PATH"
        raise CheckpointError(what, where=where, got=now, expected=measured, next_step=step)


def encode_clip(latents: LatentCodec, pixels: Float[Tensor, "B 3 F height width"]) -> Latents:
    """Encode a clip for the loss: latents of the first frame, and of all frames averaged 2x2 in space."""
    z = latents.encode(pixels)
    return Latents(z[:, :, :1], pool(z))


def encode_clips(
    latents: LatentCodec,
    video: UInt8[np.ndarray, "B F height width 3"],
    has_video: Bool[np.ndarray, " B"] | None = None,
    device: torch.device | str = "cpu",
) -> Latents:
    """Encode canvases for the loss, on `device`.

    Of samples without a video pass only the first canvas is encoded, and their clip is 0.
    """

    def pixels(canvases: UInt8[np.ndarray, "n F2 height width 3"]) -> Float[Tensor, "n 3 F2 height width"]:
        if torch.device(device).type == "cpu":
            return to_pixels(canvases)
        return to_pixels(torch.from_numpy(np.ascontiguousarray(canvases)).to(device, non_blocking=True))

    if has_video is None or has_video.all():
        return encode_clip(latents, pixels(video))
    with_video, without = (
        torch.from_numpy(np.flatnonzero(part)).to(device, non_blocking=True) for part in (has_video, ~has_video)
    )
    whole, single = encode_clip(latents, pixels(video[has_video])), latents.encode(pixels(video[~has_video, :1]))
    present = single.new_zeros(len(video), *single.shape[1:])
    clip = single.new_zeros(len(video), *whole.clip.shape[1:])
    present.index_copy_(0, with_video, whole.present).index_copy_(0, without, single)
    return Latents(present, clip.index_copy_(0, with_video, whole.clip))


def open_text(recipe: Recipe, device: torch.device | str = "cpu") -> TextEncoder:
    """Open the recipe's text encoder; UMT5 computes in bfloat16 on a GPU."""
    if isinstance(recipe.text, HashedTextConfig):
        return HashedText(recipe.text)
    from lightwam.encoders.umt5 import Umt5Text

    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    return Umt5Text.load(recipe.weights, recipe.text, device, dtype)


def sentences_of(recipe: Recipe, prompts: Iterable[str]) -> list[str]:
    """Return the sentences that the recipe made into these prompts."""
    before, _, after = recipe.prompt.partition("{task}")
    return [prompt.removeprefix(before).removesuffix(after) for prompt in prompts]


class Prompts:
    """Instructions -> token states. `known` holds states by prompt; for others the text encoder is opened, once."""

    def __init__(
        self, recipe: Recipe, known: Mapping[str, Float[Tensor, "L E"]], device: torch.device | str = "cpu"
    ) -> None:
        self.recipe, self.known = recipe, dict(known)
        encoder = lru_cache(1)(lambda: open_text(recipe, device))
        self._encoded = lru_cache(MAX_PROMPTS)(lambda prompt: encoder().encode([prompt])[0])

    def sentences(self) -> list[str]:
        """Return the sentences whose prompts are known."""
        return sentences_of(self.recipe, self.known)

    def states(self, instructions: Sequence[str]) -> Float[Tensor, "B L E"]:
        """Return one row of float32 states an instruction, on the CPU; PromptError for one that does not fit."""
        return torch.stack([self._state(instruction).float() for instruction in instructions])

    def _state(self, instruction: str) -> Float[Tensor, "L E"]:
        prompt = self.recipe.prompt.format(task=instruction)
        if prompt in self.known:
            return self.known[prompt]
        if not instruction.strip():  # the recipe's own words around it would hide that it is empty
            raise PromptError(instruction, 0, self.recipe.text.num_tokens, "words")
        return self._encoded(prompt)
