"""Length check of instructions for a recipe's text encoder, without its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightwam.config.schema import HashedTextConfig, Recipe
from lightwam.encoders.hashed_text import words
from lightwam.errors import PromptError


class PromptCheck:
    """Length check of instructions; for UMT5 only the tokenizer is loaded."""

    def __init__(self, recipe: Recipe) -> None:
        """Raise CheckpointError when UMT5's tokenizer is missing, ConfigError when transformers is not installed."""
        self.recipe = recipe
        own = "" if recipe.prompt == "{task}" else ", including the recipe's own words around the sentence"
        if isinstance(recipe.text, HashedTextConfig):
            self._count, self._unit = (lambda text: len(words(text))), f"words{own}"
            return
        from lightwam.encoders import umt5

        tokenizer = umt5.read_tokenizer(recipe.weights)
        self._count, self._unit = (lambda text: len(umt5.token_ids(tokenizer, umt5.cleaned(text)))), f"{umt5.UNIT}{own}"

    def check(self, instruction: str) -> str:
        """Raise PromptError for an instruction that is empty or too long for the encoder.

        Return a warning if the recipe truncates it, else "".
        """
        most = self.recipe.text.num_tokens
        count = self._count(self.recipe.prompt.format(task=instruction)) if self._count(instruction) else 0
        if not count or (count > most and not self.recipe.text.truncate):
            raise PromptError(instruction, count, most, self._unit)
        if count <= most:
            return ""
        return f"text.truncate: {instruction!r} has {count} {self._unit}; only the first {most} are read"


def check_prompts(recipe: Recipe, instructions: Sequence[str], say: Callable[[str], None] = print) -> None:
    """Raise PromptError when an instruction does not fit the recipe's text encoder, without opening its weights.

    `say` gets a warning for every instruction that the recipe truncates. Raises what `PromptCheck` raises, too.
    """
    for warning in map(PromptCheck(recipe).check, dict.fromkeys(instructions)):
        if warning:
            say(warning)
