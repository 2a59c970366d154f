"""Errors of a client: lost connections, refusals, and addresses that cannot be connected to."""

from __future__ import annotations

import json

from lightwam.errors import LightwamError, WireError
from lightwam.robot.proxies import Proxy, without_proxy

BUSY, CLOSING = "busy", "closing"
"""refusal codes that do not depend on the message: retry, or connect again"""


class ConnectionLost(LightwamError):
    """A server that is gone, silent or busy: another try may succeed."""


class Refused(WireError):
    """The server's refusal: the same message would be refused again."""

    def __init__(self, what: str, *, code: str = "", where: object = None, expected: object = None) -> None:
        super().__init__(what, where=where, got=f"refusal {code!r}" if code else None, expected=expected)
        self.code = code
        """the server's error code; empty if it sent plain text"""


class CannotConnect(LightwamError):
    """An address without an openpi server, or that needs another setting: a retry would fail the same way."""

    def __init__(self, url: str, what: str, got: str, next_step: str) -> None:
        super().__init__(what, where=url, got=got, expected="openpi's websocket", next_step=next_step)


def connection_lost(url: str, why: str, proxy: Proxy | None = None) -> ConnectionLost:
    """Make the error for a server that does not answer."""
    step = f"start the server, or the proxy, or {without_proxy(url)}" if proxy else "start the server"
    step += "; the next call reconnects"
    return ConnectionLost("no answer from the policy server", where=url, got=why, next_step=step)


def parse_refusal(text: str, code: str = "") -> Refused:
    """Parse a text frame: our servers' {"code", "where", "message", "expected"}, or another server's plain text."""
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if isinstance(fields, dict):
        fields = fields.get("error", fields)  # over HTTP
    if not isinstance(fields, dict) or not isinstance(fields.get("message"), str):
        return Refused(text or "the server sent an empty text, which is openpi's for an error", code=code)
    if isinstance(fields.get("code"), str):
        code = fields["code"]
    return Refused(fields["message"], code=code, where=fields.get("where"), expected=fields.get("expected"))


class RobotError(LightwamError):
    """A robot that cannot be driven: another one than the policy's, a lost camera, a joint or motor that fails."""
