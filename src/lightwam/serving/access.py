"""API keys, TLS, and the rule that a server without keys listens to this machine alone."""

from __future__ import annotations

import binascii
import hashlib
import hmac
import ipaddress
import re
import ssl
from collections.abc import Iterable
from pathlib import Path

from lightwam.errors import ConfigError

KEYS_VARIABLE = "LIGHTWAM_API_KEYS"
"""environment variable with keys, separated by commas; `ps` would show a key on the command line to everyone"""
MIN_KEY_CHARS = 16
"""`openssl rand -hex 32` gives 64"""


class Keys:
    """The accepted API keys, as digests. Without any, every client is accepted."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """ConfigError for a key that is too short or has spaces or characters that a header cannot have."""
        self._digests: list[bytes] = []
        for number, key in enumerate(keys, 1):
            if len(key) < MIN_KEY_CHARS or not key.isascii() or not key.isprintable() or " " in key:
                what = f"an API key must be at least {MIN_KEY_CHARS} printable ASCII characters without spaces"
                got, step = f"{len(key)} characters", "make one: openssl rand -hex 32"
                raise ConfigError(what, where=f"key {number}", got=got, next_step=step)
            self._digests.append(hashlib.sha256(key.encode()).digest())

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, authorization: str | None) -> bool:
        """Return whether an Authorization header is accepted: `Api-Key KEY`, as openpi's clients send, `Bearer KEY`, or
        `Basic`, which clients send for an address with a name and the key before its host.

        Takes constant time, so that timing reveals nothing about the keys.
        """
        if not self._digests:
            return True
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() == "basic":
            key = _password(key)
        digest = hashlib.sha256(key.strip().encode(errors="replace")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() in ("api-key", "bearer", "basic") and any(matches)


def _password(credentials: str) -> str:
    """Return the password of Basic credentials, "" if they are none."""
    try:
        return binascii.a2b_base64(credentials.strip(), strict_mode=True).decode().partition(":")[2]
    except ValueError:  # neither base64 nor UTF-8
        return ""


def read_keys(file: Path | None, variable: str | None) -> Keys:
    """Read the keys of a file, one a line (`#` begins a comment), and of the environment variable's value."""
    keys = [key.strip() for key in (variable or "").split(",") if key.strip()]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").split("\n")  # some editors put a byte order mark first
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("the file of API keys cannot be read", where=file, got=f"{error}") from error
        in_file = [re.split(r"(?:^|\s)#", line)[0].strip() for line in lines]  # a key may contain #
        if not any(in_file):
            what = "the file of API keys must have one key a line"
            raise ConfigError(what, where=file, got="none", next_step=f"openssl rand -hex 32 > {file}")
        keys += [key for key in in_file if key]
    return Keys(keys)


def check_exposure(host: str, keys: Keys, *, anyone: bool) -> None:
    """Raise ConfigError if the server would listen to other machines without asking for a key."""
    if not (keys or anyone or is_loopback(host)):
        what = "without an API key, --host must be 127.0.0.1: other machines could drive the robot"
        step = f"--api-keys FILE (or {KEYS_VARIABLE}), with --tls-certificate; or --allow-anyone"
        raise ConfigError(what, got=host, next_step=step)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`; names other than localhost count as reachable by others."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Return the server's TLS context (1.2 or newer), None without a certificate; ConfigError for unusable files."""
    if certificate is None and key is not None:
        raise ConfigError("--tls-key needs --tls-certificate FILE", got=key)
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        what = "--tls-certificate and --tls-key must be PEM files: a certificate chain and its unencrypted private key"
        raise ConfigError(what, where=certificate, got=f"{error}") from error
    return context
