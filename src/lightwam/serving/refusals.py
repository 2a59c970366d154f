"""The log of refusals, for the operator of a server: one line a peer and reason, with the setting that changes it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from lightwam.errors import LightwamError, PromptError
from lightwam.serving.logs import log_event

MAX_KEPT = 1024
"""pairs of peer and reason that are remembered; the oldest are evicted"""
SETTINGS: Mapping[str, str] = {
    "the message is too large": "--limits.message-bytes",
    "an array is too large": "--limits.array-bytes",
    "the message has too many arrays": "--limits.num-arrays",
    "the message has too many entries": "--limits.num-items",
    "the message is too deep": "--limits.depth",
    "a text is too long": "--limits.text-chars",
}
"""what was wrong -> the option of `lightwam serve` that allows more"""
FORMAT_OPTIONS = "--robot-schemas, --renames (lightwam check client shows what arrives)"
"""the options for all other messages: how robots name things"""


class RefusalLog:
    """A log that has each refusal once for every peer, and passes it to `tell`, if given."""

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self._tell, self._seen = tell, OrderedDict[tuple[str, str], None]()

    def add(self, client: str, why: str, *, setting: str, expected: str = "", protocol: str = "http") -> None:
        """Log a refusal; `client` is the peer's address, with or without the number of its connection."""
        key = client.partition("/")[0], why
        known = key in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        while len(self._seen) > MAX_KEPT:
            self._seen.popitem(last=False)
        if known:
            return
        log_event("refused", 30, client=client, protocol=protocol, why=why, expected=expected, setting=setting)
        if self._tell is not None:
            self._tell(f"refused {client}: {why}" + f"; expected: {expected}" * bool(expected))

    def message(self, client: str, error: LightwamError, protocol: str) -> None:
        """Log a refused message."""
        is_sentence = isinstance(error, PromptError)
        setting = "text.num_tokens, text.truncate of the recipe" if is_sentence else FORMAT_OPTIONS
        why = error.what if is_sentence or not error.where else f"{error.what} ({error.where})"
        self.add(client, why, setting=SETTINGS.get(error.what, setting), expected=str(error.expected or ""),
                 protocol=protocol)  # fmt: skip
