"""Text states without weights: for each word the sum of its letter groups' hashed directions, plus a position code.

The built-in default, so that everything runs without a download. There is no table and no training: a new word has a
state, too, near that of words with which it shares letter groups ("window", "windows"). Each word has its own state, so
that word order can matter.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightwam.config.schema import HashedTextConfig
from lightwam.errors import ConfigError, PromptError

POSITION_SCALE = 0.5
"""length of the position code; a word's direction has length 1"""


class HashedText:
    """Implements `TextEncoder`."""

    def __init__(self, config: HashedTextConfig) -> None:
        if config.dim % 2 or config.dim < 8:
            raise ConfigError("text.dim must be even and at least 8", where="text.dim", got=config.dim)
        self.dim, self.num_tokens, self._truncate = config.dim, config.num_tokens, config.truncate

    def encode(self, instructions: Sequence[str]) -> Float[Tensor, "B L E"]:
        """Return one state for each word, and zeros after the last.

        PromptError for an empty instruction, and for one with too many words, unless `config.truncate`: then the first
        num_tokens words are used. States have a mean square near 1 an element, like a normalised encoder's.
        """
        states = torch.zeros(len(instructions), self.num_tokens, self.dim)
        for row, instruction in enumerate(instructions):
            for position, word in enumerate(self._words(instruction)):
                state = word_direction(word, self.dim) + POSITION_SCALE * position_code(position, self.dim)
                states[row, position] = torch.from_numpy(state * math.sqrt(self.dim / (1 + POSITION_SCALE**2)))
        return states

    def _words(self, instruction: str) -> list[str]:
        split = words(instruction)
        if not split or (len(split) > self.num_tokens and not self._truncate):
            raise PromptError(instruction, len(split), self.num_tokens, "words")
        return split[: self.num_tokens]


def words(text: str) -> list[str]:
    """Split a text into lower-case words; a punctuation mark is a word of its own."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


@functools.lru_cache(maxsize=4096)
def word_direction(word: str, dim: int) -> Float[np.ndarray, " dim"]:
    """A word as a unit vector: its letter groups of 3 to 5, ends marked, and the word itself, hashed, summed."""
    marked = f"<{word}>"
    groups = [marked[i : i + n] for n in (3, 4, 5) for i in range(len(marked) - n + 1)]
    total = hashed_direction(marked, dim) * math.sqrt(len(groups) + 1)
    for group in groups:
        total = total + hashed_direction(group, dim)
    return (total / np.linalg.norm(total)).astype(np.float32)


def hashed_direction(text: str, dim: int) -> Float[np.ndarray, " dim"]:
    """A unit vector that depends on `text` alone: the same on every machine, near orthogonal for different texts."""
    bits = np.frombuffer(hashlib.shake_256(text.encode()).digest(dim), dtype=np.uint8)
    signs = np.where(bits & 1, 1.0, -1.0)
    return signs / math.sqrt(dim)


@functools.cache
def position_code(position: int, dim: int) -> Float[np.ndarray, " dim"]:
    """A unit vector of sines and cosines of the word's position, wavelengths from 4 words up."""
    waves = (math.pi / 2) * 100.0 ** (-np.arange(dim // 2) / (dim // 2))
    code = np.concatenate([np.cos(position * waves), np.sin(position * waves)])
    return (code / np.linalg.norm(code)).astype(np.float32)
