"""Checking that the run's text encoder can read a client's sentence, before the policy is called."""

from __future__ import annotations

from collections.abc import Callable, Collection

from lightwam.config.schema import Recipe
from lightwam.encoders.frozen import sentences_of
from lightwam.encoders.prompt_check import PromptCheck
from lightwam.errors import CheckpointError, ConfigError, WireError
from lightwam.serving.logs import log_event

CheckSentence = Callable[[str], None]
"""raises PromptError or WireError for a sentence that the policy cannot take"""
MAX_LOGGED = 256
"""truncated sentences that are logged, each once"""


def sentence_check(recipe: Recipe, known: Collection[str]) -> CheckSentence:
    """Return the check of sentences for a run; `known` are the prompts whose states the run has.

    If this machine lacks the text encoder, only known prompts are accepted, which is logged at once. CheckpointError or
    ConfigError if there are no known prompts either.
    """
    logged: set[str] = set()
    sentences: PromptCheck | None = None
    try:
        sentences = PromptCheck(recipe)
    except (CheckpointError, ConfigError) as error:
        if not known:
            raise
        event = "without the text encoder, only the run's own sentences are answered"
        log_event(event, 30, sentences=len(known), where=error.where, why=error.what, setting="--weights")

    def check(sentence: str) -> None:
        is_new = recipe.prompt.format(task=sentence) not in known
        if sentences is None and is_new:
            what = "the sentence is new, and the text encoder is not on the server"
            step = "start the server with --weights, a path to the text encoder"
            raise WireError(what, where="prompt", expected="a sentence from training", next_step=step)
        if sentences is not None and (is_new or recipe.text.truncate):
            truncated = sentences.check(sentence)
            if truncated and truncated not in logged and len(logged) < MAX_LOGGED:
                logged.add(truncated)
                log_event("a sentence is truncated", 30, what=truncated)

    if recipe.text.truncate:
        log_event("longer sentences are truncated", 30, tokens=recipe.text.num_tokens, setting="text.truncate")
        for sentence in sentences_of(recipe, known) if sentences is not None else ():
            check(sentence)
    return check
