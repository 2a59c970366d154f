"""Whether the run's text encoder can read a client's sentence, asked before the policy is."""

from __future__ import annotations

from collections.abc import Callable, Collection

from lightwam.config import Recipe
from lightwam.encoders import Sentences
from lightwam.errors import CheckpointError, ConfigError, WireError
from lightwam.serve.logs import note

CheckSentence = Callable[[str], None]
"""raises PromptError or WireError for a sentence that the policy cannot be asked with"""
MOST_TOLD = 256
"""truncated sentences that the log names, each once"""


def sentence_check(recipe: Recipe, known: Collection[str]) -> CheckSentence:
    """The check of a run's sentences; `known` are the prompts whose states the run holds.

    Without the text encoder on this machine known prompts alone are taken, which the log says at once. CheckpointError
    or ConfigError when there are none of them either.
    """
    told: set[str] = set()
    sentences: Sentences | None = None
    try:
        sentences = Sentences(recipe)
    except (CheckpointError, ConfigError) as error:
        if not known:
            raise
        note("the text encoder is not here: only the run's own sentences are answered", 30, sentences=len(known),
             where=error.where, why=error.what, setting="--weights")  # fmt: skip

    def tell(what: str) -> None:
        if what and what not in told and len(told) < MOST_TOLD:
            told.add(what)
            note("a sentence is truncated", 30, what=what)

    def check(sentence: str) -> None:
        if sentences is not None and (recipe.text.truncate or recipe.prompt.format(task=sentence) not in known):
            tell(sentences.check(sentence))
        elif sentences is None and recipe.prompt.format(task=sentence) not in known:
            raise WireError("the sentence is new, and the text encoder is not on the server", where="prompt",
                            expected="a sentence of the run's training",
                            next_step="start the server with --weights PATH of the text encoder")  # fmt: skip

    if recipe.text.truncate:
        note("longer sentences are truncated", 30, tokens=recipe.text.num_tokens, setting="text.truncate")
        before, _, after = recipe.prompt.partition("{task}")
        for prompt in known if sentences is not None else ():
            check(prompt.removeprefix(before).removesuffix(after))
    return check
