"""The log of refusals, for a server's operator: one line a client and reason, with the setting to change."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from lightwam.errors import LightwamError, PromptError
from lightwam.serving.logs import log_event

MAX_KEPT = 1024
"""pairs of client and reason that are remembered; the oldest are evicted"""
SETTINGS: Mapping[str, str] = {
    "the message is too large": "--limits.message-bytes",
    "an array is too large": "--limits.array-bytes",
    "the message has too many arrays": "--limits.num-arrays",
    "the message has too many entries": "--limits.num-items",
    "the message is too deep": "--limits.depth",
    "a text is too long": "--limits.text-chars",
}
"""error -> the option of `lightwam serve` that allows more"""
FORMAT_OPTIONS = "--robot-schemas, --renames (lightwam check client shows what arrives)"
"""the options for all other messages"""


class RefusalLog:
    """Logs each refusal once for every client, and passes it to `on_refusal`."""

    def __init__(self, on_refusal: Callable[[str], None] | None = None) -> None:
        self._on_refusal, self._logged = on_refusal, OrderedDict[tuple[str, str], None]()

    def add(self, client: str, why: str, *, setting: str, expected: str = "", protocol: str = "http") -> None:
        """Log a refusal; `client` is the address, with or without the number of the connection."""
        key = client.partition("/")[0], why
        is_known = key in self._logged
        self._logged[key] = None
        self._logged.move_to_end(key)
        while len(self._logged) > MAX_KEPT:
            self._logged.popitem(last=False)
        if is_known:
            return
        log_event("refused", 30, client=client, protocol=protocol, why=why, expected=expected, setting=setting)
        if self._on_refusal is not None:
            self._on_refusal(f"refused {client}: {why}" + f"; expected: {expected}" * bool(expected))

    def message(self, client: str, error: LightwamError, protocol: str) -> None:
        """Log a refused message."""
        is_sentence = isinstance(error, PromptError)
        why = error.what if is_sentence or not error.where else f"{error.what} ({error.where})"
        default = "text.num_tokens, text.truncate of the recipe" if is_sentence else FORMAT_OPTIONS
        setting, expected = SETTINGS.get(error.what, default), str(error.expected or "")
        self.add(client, why, setting=setting, expected=expected, protocol=protocol)
