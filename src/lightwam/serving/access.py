"""Who may ask: API keys, TLS, and the rule that an open door stays on this machine."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import ssl
from collections.abc import Iterable
from pathlib import Path

from lightwam.errors import ConfigError

KEYS_VARIABLE = "LIGHTWAM_API_KEYS"
"""environment variable with keys, separated by commas; a key on the command line would be seen by everyone in `ps`"""
SHORTEST_KEY = 16
"""characters; `openssl rand -hex 32` gives 64"""


class Keys:
    """The accepted API keys, kept as digests. Without any, everybody may ask."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """ConfigError for a key that is too short or has spaces or signs that a header cannot carry."""
        self._digests: list[bytes] = []
        for number, key in enumerate(keys, 1):
            if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError("an API key that cannot be used", where=f"key {number}", got=f"{len(key)} characters",
                                  expected=f"at least {SHORTEST_KEY} printable ASCII characters without spaces",
                                  next_step="make one: openssl rand -hex 32")  # fmt: skip
            self._digests.append(hashlib.sha256(key.encode()).digest())

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, authorization: str | None) -> bool:
        """Whether an Authorization header (`Api-Key KEY`, as openpi's clients send, or `Bearer KEY`) opens the door.

        Every key is compared whole, so the time it takes tells nothing.
        """
        if not self._digests:
            return True
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode(errors="replace")).digest()
        known = [hmac.compare_digest(digest, one) for one in self._digests]
        return scheme.lower() in ("api-key", "bearer") and any(known)


def read_keys(file: Path | None, variable: str | None) -> Keys:
    """The keys of a file, one a line (`#` begins a comment), and those of the environment variable's value."""
    keys = [key.strip() for key in (variable or "").split(",") if key.strip()]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").split("\n")  # some editors put a byte order mark first
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("the file of API keys cannot be read", where=file, got=f"{error}",
                              expected="a text file, one key a line") from error  # fmt: skip
        found = [re.split(r"(?:^|\s)#", line)[0].strip() for line in lines]  # a key may hold the sign itself
        if not any(found):
            raise ConfigError("the file of API keys holds none", where=file, expected="one key a line",
                              next_step=f"openssl rand -hex 32 > {file}")  # fmt: skip
        keys += [key for key in found if key]
    return Keys(keys)


def check_exposure(host: str, keys: Keys, *, anyone: bool) -> None:
    """ConfigError when the server would listen to other machines and ask none of them for a key."""
    if keys or anyone or is_loopback(host):
        return
    raise ConfigError(
        "whoever reaches this machine could drive the robot",
        where="--host",
        got=f"{host}, without an API key",
        expected="127.0.0.1, or a key",
        next_step=f"--api-keys FILE (or {KEYS_VARIABLE}), with --tls-certificate; or, aloud, --allow-anyone",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`; a name other than localhost counts as reachable by others."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """The server's side of TLS 1.2 or newer, None without a certificate; ConfigError when files do not fit."""
    if certificate is None:
        if key is not None:
            raise ConfigError("a TLS key without its certificate", where="--tls-key", got=key,
                              next_step="--tls-certificate FILE as well")  # fmt: skip
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("the TLS certificate cannot be used", where=certificate, got=f"{error}",
                          expected="PEM files of a certificate chain and its unencrypted private key",
                          next_step="--tls-certificate FILE --tls-key FILE") from error  # fmt: skip
    return context
