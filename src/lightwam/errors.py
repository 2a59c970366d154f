"""The errors a user can cause. Each says what is wrong and, where it helps, the location, the value and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class LightwamError(Exception):
    """Base of every error that a user's input can cause; anything else that escapes lightwam is a bug in lightwam."""

    def __init__(
        self, what: str, *, where: object = None, got: object = None, expected: object = None, next_step: str = ""
    ) -> None:
        self.what, self.where, self.got, self.expected, self.next_step = what, where, got, expected, next_step
        parts = [what]
        for label, value in (("where", where), ("got", got), ("expected", expected), ("next", next_step or None)):
            if value is not None:
                parts.append(f"  {label}: {value}")
        super().__init__("\n".join(parts))


class ConfigError(LightwamError):
    """A recipe, option or config file that cannot be used."""


class PromptError(ConfigError):
    """A sentence that does not fit the run's text encoder: empty, or too long."""

    def __init__(self, sentence: str, count: int, most: int, unit: str) -> None:
        """`count`: words or tokens (`unit`) of the sentence; `most`: the encoder's maximum."""
        what, expected = "the instruction must fit the text encoder", f"1 to {most} {unit}"
        step = "shorten it, or train with a larger text.num_tokens, or with text.truncate"
        step = step if count else "send a sentence that says what to do"
        super().__init__(what, where=repr(sentence), got=f"{count} {unit}", expected=expected, next_step=step)


class DatasetError(LightwamError):
    """A dataset that is missing, broken or not of the declared layout."""


class CheckpointError(LightwamError):
    """A run directory or weights file that is missing, broken or of another model."""


class SimulatorError(LightwamError):
    """A simulator that is not installed, unknown, or breaks the `Simulator` protocol."""


class SetupError(SimulatorError):
    """A simulator that cannot run on this machine: a wrong package, version, driver, folder or environment variable."""


class WireError(LightwamError):
    """A message or observation that is refused: malformed, over a limit, or not what the policy was trained on."""


def first_few(words: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """Join the first `most` words of a list for an error, and the number of the others."""
    more = f"{separator}and {len(words) - most} more" if len(words) > most else ""
    return separator.join(words[:most]) + more


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A next step naming the known words nearest to `word`, or all of them when none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(known)}"
