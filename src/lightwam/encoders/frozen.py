"""The frozen parts of a recipe, opened: pixels <-> latents, and prompts -> token states.

What was measured of them on the data, and the prompts' states, stay with the run, so a policy needs neither the dataset
nor, for sentences it was trained on, the text encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightwam.config.schema import DctConfig, HashedTextConfig, Recipe
from lightwam.encoders.dct import DctLatents
from lightwam.encoders.hashed_text import HashedText, words
from lightwam.encoders.weight_files import digest, locate
from lightwam.errors import CheckpointError, PromptError
from lightwam.types import LatentCodec, Latents, TextEncoder, pool

MAX_PROMPTS = 256
"""prompts beyond those of the run whose states are kept"""


def vae_identity(recipe: Recipe) -> dict[str, str]:
    """What tells the recipe's VAE from another one: it is all that a run has to know of its latents."""
    return {"vae": digest(locate(recipe.weights, "vae"))}


def open_latents(recipe: Recipe, measured: Any, where: str, device: torch.device | str = "cpu") -> LatentCodec:
    """A run's latents, of the DCT's statistics or the VAE's identity; CheckpointError when now there is another VAE."""
    if isinstance(recipe.latents, DctConfig):
        return DctLatents.from_dict(recipe.latents, measured, where)
    from lightwam.encoders.wan_vae import WanVaeLatents

    check_vae(measured, vae_identity(recipe), where)
    return WanVaeLatents.load(recipe.weights, device)


def check_vae(measured: Any, now: Mapping[str, str], where: object) -> None:
    """CheckpointError when the VAE found now is not the one that a run was trained with."""
    if measured != now:
        raise CheckpointError("the VAE is not the one that the run was trained with", where=where, got=now,
                              expected=measured, next_step="give the weights of then: --weights PATH")  # fmt: skip


def encode_clip(latents: LatentCodec, pixels: Float[Tensor, "B 3 F height width"]) -> Latents:
    """A clip as the loss reads it: its first frame's latents, and all of them averaged 2x2 in space."""
    z = latents.encode(pixels)
    return Latents(z[:, :, :1], pool(z))


def open_text(recipe: Recipe, device: torch.device | str = "cpu") -> TextEncoder:
    """The recipe's text encoder; UMT5 computes in bfloat16 on a GPU."""
    if isinstance(recipe.text, HashedTextConfig):
        return HashedText(recipe.text)
    from lightwam.encoders.umt5 import Umt5Text

    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    return Umt5Text.load(recipe.weights, recipe.text, device, dtype)


class Sentences:
    """Length check of instructions for the recipe's text encoder; for UMT5 only the tokenizer is loaded."""

    def __init__(self, recipe: Recipe) -> None:
        """CheckpointError when UMT5's tokenizer is not there, ConfigError when transformers is not installed."""
        self.recipe = recipe
        own = "" if recipe.prompt == "{task}" else ", including the recipe's own words around the sentence"
        if isinstance(recipe.text, HashedTextConfig):
            self._count, self._unit = (lambda text: len(words(text))), f"words{own}"
            return
        from lightwam.encoders import umt5

        tokenizer = umt5.read_tokenizer(recipe.weights)
        self._count, self._unit = (lambda text: len(umt5.token_ids(tokenizer, umt5.cleaned(text)))), f"{umt5.UNIT}{own}"

    def check(self, instruction: str) -> str:
        """Raise PromptError for an instruction that is empty or longer than the encoder allows.

        Returns a warning for one that the recipe truncates; else "".
        """
        most = self.recipe.text.num_tokens
        count = self._count(self.recipe.prompt.format(task=instruction)) if self._count(instruction) else 0
        if not count or (count > most and not self.recipe.text.truncate):
            raise PromptError(instruction, count, most, self._unit)
        if count <= most:
            return ""
        return f"text.truncate: {instruction!r} has {count} {self._unit}; only the first {most} are read"


def check_prompts(recipe: Recipe, instructions: Sequence[str], say: Callable[[str], None] = print) -> None:
    """Raise PromptError when one of the instructions does not fit the recipe's text encoder; opens no weights.

    A warning for each one that the recipe truncates goes to `say`. Raises as `Sentences` does, too.
    """
    sentences = Sentences(recipe)
    for warning in map(sentences.check, dict.fromkeys(instructions)):
        if warning:
            say(warning)


class Prompts:
    """Instructions -> token states. `known` are prompts with their states; others open the text encoder, once."""

    def __init__(
        self, recipe: Recipe, known: Mapping[str, Float[Tensor, "L E"]], device: torch.device | str = "cpu"
    ) -> None:
        self.recipe, self.known, self.device = recipe, dict(known), device
        self._more: dict[str, Float[Tensor, "L E"]] = {}
        self._encoder: TextEncoder | None = None

    def states(self, instructions: Sequence[str]) -> Float[Tensor, "B L E"]:
        """One row of states an instruction, on the CPU."""
        return torch.stack([self._state(instruction).float() for instruction in instructions])

    def _state(self, instruction: str) -> Float[Tensor, "L E"]:
        prompt = self.recipe.prompt.format(task=instruction)
        for table in (self.known, self._more):
            if prompt in table:
                return table[prompt]
        if not instruction.strip():  # with the recipe's own words around it, it would not look empty
            raise PromptError(instruction, 0, self.recipe.text.num_tokens, "words")
        if self._encoder is None:
            self._encoder = open_text(self.recipe, self.device)
        if len(self._more) >= MAX_PROMPTS:
            self._more.pop(next(iter(self._more)))
        self._more[prompt] = self._encoder.encode([prompt])[0]
        return self._more[prompt]
