"""An openpi client: observations to a server over a websocket, chunks of actions back.

The protocol is openpi's (PyPI `openpi-client` 0.1.2), so any server that speaks it will do. What that client leaves to
chance is decided here: a refusal is a `Refused`, with its fields, a server that is gone or silent a `ConnectionLost`,
and the next call connects anew, waiting longer after every failure.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from ssl import SSLContext
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from lightwam.errors import ConfigError, LightwamError, WireError

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.05, 2.0
"""before the second try, and at most; doubled after every failure"""
CLOSE_SECONDS = 0.5
"""so long a server is waited for to say good-bye"""
OUR_FAULT = (1003, 1007, 1008, 1009)
"""codes of a websocket's end that say the message was wrong: its kind, its bytes, against the rules, too long"""
BUSY, CLOSING = "busy", "closing"
"""codes of refusals that say nothing of the message: another try, another connection"""


class ConnectionLost(LightwamError):
    """The server is gone, silent, or has no time: nothing is wrong with the message, and another try may help."""


class Refused(WireError):
    """The server's refusal: the same message would be refused again."""

    def __init__(self, what: str, *, code: str = "", where: object = None, expected: object = None) -> None:
        super().__init__(what, where=where, got=f"refusal {code!r}" if code else None, expected=expected)
        self.code = code
        """the server's word for it; empty when it sent plain text"""


class Client:
    """One connection to an openpi server, made by the first call that needs it. Calls from several threads take turns.

    `timeout_seconds` is for a whole call, connecting and a busy server included. `attempts` are tries to connect within
    it. `ssl_context` is for a wss:// server with a certificate of one's own.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 10.0,
        attempts: int = 5,
        ssl_context: SSLContext | None = None,
    ) -> None:
        """Connects to nothing yet.

        ConfigError for a `url` that is no ws://HOST:PORT or wss://HOST:PORT, and for a key that cannot be sent.
        """
        if not _is_address(url):
            raise ConfigError("not the address of a websocket", where="url", got=repr(url),
                              expected="ws://HOST:PORT or wss://HOST:PORT")  # fmt: skip
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise ConfigError("an API key that a header cannot carry", where="api_key",
                              got=f"{len(api_key)} characters", expected="printable ASCII without spaces")  # fmt: skip
        if timeout_seconds <= 0 or attempts < 1:
            raise ConfigError("a client needs time and an attempt", where="Client",
                              got=f"timeout_seconds {timeout_seconds}, attempts {attempts}")  # fmt: skip
        self.url, self._timeout, self._attempts, self._ssl = url, timeout_seconds, attempts, ssl_context
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._connection: Any = None  # websockets' ClientConnection
        self._metadata: dict[str, Any] = {}
        self._failures, self._not_before = 0, 0.0

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server says of itself when it is connected to; connects if need be."""
        self.connect()
        return self._metadata

    def connect(self) -> None:
        """Connects, unless connected. ConnectionLost when that fails, Refused when the server wants another key."""
        with self._lock:
            self._open(time.monotonic() + self._timeout)

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer to an observation; its arrays are read-only. "actions" is the chunk (H, A).

        Raises Refused (a WireError) for what the server does not take, WireError for what cannot be sent or read, and
        ConnectionLost when the server is gone, does not answer in time, or stays busy; the next call connects anew.
        """
        from lightwam.wire import openpi
        from lightwam.wire.limits import Limits

        message, wait = openpi.pack(dict(observation)), FIRST_WAIT_SECONDS
        if len(message) > (most := Limits().message_bytes):  # a server hangs up on it before it can say why
            raise WireError("the observation is too large", where=self.url, got=f"{len(message)} bytes",
                            expected=f"at most {most}", next_step="smaller pictures; uint8, not floats")  # fmt: skip
        with self._lock:
            deadline = time.monotonic() + self._timeout
            while True:
                answer = self._exchange(message, deadline)
                if isinstance(answer, bytes):
                    self._failures = 0
                    return self._read(answer)
                self._drop()  # an openpi server ends a connection after a refusal
                refusal = refused(answer)
                if refusal.code == CLOSING:
                    raise self._failed("the server is stopping") from refusal
                if refusal.code != BUSY:
                    raise refusal
                if time.monotonic() + wait >= deadline or self._closed.wait(wait):
                    raise self._lost("the server stays busy") from refusal
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The chunk (H, A) of the answer, in robot units; raises as `infer`, and WireError when there is none."""
        answer = self.infer(observation)
        if not isinstance(answer.get("actions"), np.ndarray):
            raise WireError("the server's answer has no actions", where=self.url, got=sorted(answer),
                            expected="actions, an array (H, A)")  # fmt: skip
        return answer["actions"]

    def close(self) -> None:
        """Ends the connection for good; a call that waits in another thread ends with ConnectionLost."""
        self._closed.set()
        self._drop()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _exchange(self, message: bytes, deadline: float) -> bytes | str:
        from websockets.exceptions import ConnectionClosed

        connection = self._open(deadline)
        try:
            connection.send(message)
            return connection.recv(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            raise self._failed(f"no answer in {self._timeout:g} s") from error
        except ConnectionClosed as error:
            if error.rcvd is not None and error.rcvd.code in OUR_FAULT:
                self._drop()
                reason = error.rcvd.reason or "the server ended the connection over this message"
                raise Refused(reason, code=str(error.rcvd.code), where=self.url) from error
            raise self._failed(str(error)) from error
        except OSError as error:
            raise self._failed(str(error)) from error

    def _open(self, deadline: float) -> Any:
        """The connection, made if there is none; several tries, each after a longer wait."""
        if self._connection is not None and self._connection.close_code is not None:
            self._drop()  # it ended while nobody looked
        if self._connection is not None:
            return self._connection
        failure = self._lost(f"no connection in {self._timeout:g} s")
        for _ in range(self._attempts):
            wait = max(0.0, self._not_before - time.monotonic())
            if self._closed.wait(min(wait, max(0.0, deadline - time.monotonic()))):
                raise self._lost("the client is closed")
            if time.monotonic() >= deadline:
                break
            try:
                return self._dial(deadline)
            except ConnectionLost as error:
                failure = error
        raise failure

    def _dial(self, deadline: float) -> Any:
        """One try to connect and to hear the server's first word."""
        import websockets.exceptions as problems
        from websockets.sync.client import connect

        from lightwam.wire.limits import Limits

        left = max(0.01, deadline - time.monotonic())
        try:
            # entered as by a with block, which is what websockets 17 asks for; `_drop` leaves it. No pings, as a server
            # that thinks on its event loop does not answer them; the call's deadline tells who is gone
            connection = connect(
                self.url, compression=None, max_size=Limits().message_bytes, additional_headers=self._headers,
                open_timeout=left, close_timeout=CLOSE_SECONDS, ping_interval=None, ssl=self._ssl,
            ).__enter__()  # fmt: skip
            self._connection = connection
            hello = connection.recv(timeout=max(0.01, deadline - time.monotonic()))
        except problems.InvalidStatus as error:
            status, body = error.response.status_code, error.response.body or b""
            if status >= 500 or status == 429:
                raise self._failed(f"HTTP {status}") from error
            raise refused(body.decode(errors="replace") or f"HTTP {status}", str(status)) from error
        except (TimeoutError, OSError, EOFError, problems.WebSocketException) as error:
            raise self._failed(str(error) or type(error).__name__) from error
        if isinstance(hello, str):
            refusal = refused(hello)
            failure = self._failed(f"refused: {refusal.what}")
            raise failure if refusal.code in (BUSY, CLOSING) else refusal
        self._metadata = self._read(hello)
        if self._closed.is_set():  # while it was dialled
            raise self._failed("")
        return connection

    def _read(self, data: bytes) -> dict[str, Any]:
        from lightwam.wire import openpi

        try:
            answer = openpi.unpack(data)
            if not isinstance(answer, dict):
                raise WireError("the server's message is not a map", where=self.url, got=type(answer).__name__)
        except WireError:
            self._drop()
            raise
        return answer

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _failed(self, why: str) -> ConnectionLost:
        """Drops the connection, and keeps the next try waiting."""
        self._drop()
        wait = min(FIRST_WAIT_SECONDS * 2**self._failures, LONGEST_WAIT_SECONDS)
        self._failures, self._not_before = self._failures + 1, time.monotonic() + wait
        return self._lost("the client is closed" if self._closed.is_set() else why)

    def _lost(self, why: str) -> ConnectionLost:
        return ConnectionLost("no answer from the policy server", where=self.url, got=why,
                              next_step="start the server; the next call connects anew")  # fmt: skip


def _is_address(url: str) -> bool:
    """Whether it is a websocket's, with a host and a port that can be one."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def refused(text: str, code: str = "") -> Refused:
    """What a text frame says: our servers' {"code", "where", "message", "expected"}, or another server's plain text."""
    try:
        said = json.loads(text)
    except ValueError:
        return Refused(text, code=code)
    if isinstance(said, dict):
        said = said.get("error", said)  # over HTTP
    if not isinstance(said, dict) or not isinstance(said.get("message"), str):
        return Refused(text, code=code)
    word = said.get("code")
    return Refused(said["message"], code=word if isinstance(word, str) else code, where=said.get("where"),
                   expected=said.get("expected"))  # fmt: skip
