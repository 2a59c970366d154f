"""An openpi client: observations to a server over a websocket, chunks of actions back.

The protocol is openpi's (PyPI `openpi-client` 0.1.2), so any server that speaks it will do. Temporary faults (a server
that is gone, silent or busy) are a `ConnectionLost`: the next call reconnects, after a wait that doubles with every
failure. Permanent ones are raised at once: a refusal as `Refused`, with the server's fields, and what makes connecting
impossible (another protocol, TLS at only one end) as `CannotConnect`.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from lightwam.errors import ConfigError, LightwamError, WireError
from lightwam.robot.addresses import OTHER_PORT, is_address
from lightwam.robot.errors import BUSY, CLOSING, CannotConnect, ConnectionLost, Refused, connection_lost, parse_refusal
from lightwam.robot.proxies import proxy_for

FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS = 0.05, 2.0
"""before the second try, and at most; doubled after every failure"""
CLOSE_SECONDS = 0.5
"""how long the client waits for the server's close frame"""
MESSAGE_CLOSE_CODES = (1003, 1007, 1008, 1009)
"""close codes for a wrong message: of another type, with invalid bytes, against a policy, too large"""
MAX_SILENT = 3
"""connections in a row without a greeting before `CannotConnect`: it is another kind of server"""
LOGGER = logging.getLogger("lightwam.robot.websockets")
LOGGER.addHandler(logging.NullHandler())  # our errors have what websockets logs of a failed handshake


class Client:
    """A connection to an openpi server, opened by the first call that needs it. Calls from several threads take turns.

    `timeout_seconds` limits a whole call, with connecting and waiting for a busy server. `attempts` limits the tries to
    connect in a call. `ssl_context` is for a wss:// server with a certificate of its own. `message_bytes` limits
    answers, and observations if the server's greeting has no limit; lightwam's has. Proxies come from the environment,
    and are never used for this machine or for hosts in NO_PROXY.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 10.0,
        attempts: int = 5,
        ssl_context: ssl.SSLContext | None = None,
        message_bytes: int = 32 << 20,
    ) -> None:
        """Check the arguments, without connecting; ConfigError for one that cannot be used."""
        if not is_address(url):
            raise ConfigError("url must be ws://HOST:PORT or wss://HOST:PORT", got=repr(url))
        if ssl_context is not None and not url.startswith("wss:"):
            raise ConfigError("url must be wss://HOST:PORT, as there is an ssl_context", got=repr(url))
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise ConfigError("api_key must be printable ASCII without spaces", got=f"{len(api_key)} characters")
        limits = {"timeout_seconds": timeout_seconds, "attempts": attempts, "message_bytes": message_bytes}
        for name, limit in limits.items():
            if limit <= 0:
                raise ConfigError(f"{name} must be positive", where="Client", got=limit)
        self.url, self._timeout, self._attempts, self._ssl = url, timeout_seconds, attempts, ssl_context
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._connection: Any = None  # websockets' ClientConnection
        self._metadata: dict[str, Any] = {}
        self._failures, self._not_before = 0, 0.0
        self._message_bytes, self._num_silent = message_bytes, 0

    @property
    def metadata(self) -> dict[str, Any]:
        """The server's greeting; connects if necessary."""
        self.connect()
        return self._metadata

    def connect(self) -> None:
        """Connect, unless connected.

        ConnectionLost if that fails and may succeed later, Refused if the server needs another key, CannotConnect if
        the address has no openpi server or cannot be reached this way, ConfigError for a proxy that cannot be used.
        """
        with self._lock:
            self._open(time.monotonic() + self._timeout)

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Return the server's answer to an observation; its arrays are read-only. "actions" is the chunk (H, A).

        Refused (a WireError) for what the server does not accept, WireError for what cannot be sent or parsed,
        ConnectionLost if the server is gone, does not answer in time, or stays busy (the next call reconnects), and
        the errors of `connect`.
        """
        from lightwam.wire import openpi

        message, wait = openpi.pack(dict(observation)), FIRST_WAIT_SECONDS
        with self._lock:
            deadline = time.monotonic() + self._timeout
            while True:
                answer = self._exchange(message, deadline)
                if isinstance(answer, bytes):
                    self._failures = 0
                    return self._parse(answer)
                self._drop()  # an openpi server ends a connection after a refusal
                refusal = parse_refusal(answer)
                if refusal.code == CLOSING:
                    raise self._failed("the server is stopping") from refusal
                if refusal.code != BUSY:
                    raise refusal
                if time.monotonic() + wait >= deadline or self._closed.wait(wait):
                    raise connection_lost(self.url, "the server stays busy") from refusal
                wait = min(2 * wait, MAX_WAIT_SECONDS)

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the answer's chunk (H, A), in robot units; raises as `infer`, and WireError without a chunk."""
        answer = self.infer(observation)
        if isinstance(actions := answer.get("actions"), np.ndarray):
            return actions
        raise WireError("the server's answer must have actions, an array (H, A)", where=self.url, got=sorted(answer))

    def close(self) -> None:
        """End the connection for good; a call that waits in another thread raises ConnectionLost."""
        self._closed.set()
        self._drop()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _exchange(self, message: bytes, deadline: float) -> bytes | str:
        from websockets.exceptions import ConnectionClosed

        connection = self._open(deadline)
        self._check_size(message)
        try:
            connection.send(message)
            return connection.recv(timeout=max(0.0, deadline - time.monotonic()))
        except ConnectionClosed as error:
            if too_large := self._too_large(error):
                raise too_large from error
            if error.rcvd is not None and error.rcvd.code in MESSAGE_CLOSE_CODES:
                self._drop()
                reason = error.rcvd.reason or "the server ended the connection because of this message"
                raise Refused(reason, code=str(error.rcvd.code), where=self.url) from error
            raise self._failed(str(error)) from error
        except OSError as error:
            is_late = isinstance(error, TimeoutError)
            raise self._failed(f"no answer in {self._timeout:g} s" if is_late else str(error)) from error

    def _open(self, deadline: float) -> Any:
        """Return the connection; opens it if necessary, with several tries, each after a longer wait."""
        if self._connection is not None and self._connection.close_code is not None:
            self._drop()  # it ended between two calls
        if self._connection is not None:
            return self._connection
        failure = connection_lost(self.url, f"no connection in {self._timeout:g} s")
        for _ in range(self._attempts):
            wait = max(0.0, self._not_before - time.monotonic())
            if self._closed.wait(min(wait, max(0.0, deadline - time.monotonic()))):
                raise connection_lost(self.url, "the client is closed")
            if time.monotonic() >= deadline:
                break
            try:
                return self._try_to_connect(deadline)
            except ConnectionLost as error:
                failure = error
        raise failure

    def _check_size(self, message: bytes) -> None:
        """Raise WireError for a message that would make the server close the connection."""
        from lightwam.wire.openpi import MESSAGE_BYTES

        limit, setting = self._metadata.get(MESSAGE_BYTES), "--limits.message-bytes of lightwam serve"
        if type(limit) is not int:
            limit, setting = self._message_bytes, "Client(message_bytes=...)"
        if len(message) > limit:
            what, got = f"the observation must be at most {limit} bytes", f"{len(message)} bytes"
            step = f"send smaller pictures, as uint8 and not floats; or raise {setting}"
            raise WireError(what, where=self.url, got=got, next_step=step)

    def _try_to_connect(self, deadline: float) -> Any:
        """Connect once, and receive the greeting."""
        from websockets.exceptions import ConnectionClosed
        from websockets.sync.client import connect

        from lightwam.robot import handshake

        proxy = proxy_for(self.url)
        try:
            # entered as by a with block, which websockets 17 requires; `_drop` closes it. No pings: a server that
            # computes on its event loop does not answer them, and the call's deadline finds one that is gone
            connection = connect(
                self.url,
                compression=None,
                max_size=self._message_bytes,
                additional_headers=self._headers,
                open_timeout=max(0.01, deadline - time.monotonic()),
                close_timeout=CLOSE_SECONDS,
                ping_interval=None,
                ssl=self._ssl,
                proxy=proxy.address if proxy else None,
                logger=LOGGER,
            ).__enter__()
        except handshake.CONNECT_ERRORS as error:
            raise self._fail(handshake.connect_error(error, self.url, proxy, deadline - time.monotonic())) from error
        self._connection = connection
        try:
            greeting = connection.recv(timeout=max(0.01, deadline - time.monotonic()))
        except handshake.CONNECT_ERRORS as error:
            if isinstance(error, ConnectionClosed) and (too_large := self._too_large(error)):
                raise too_large from error
            self._num_silent += isinstance(error, TimeoutError)
            raise self._fail(handshake.greeting_error(error, self.url, self._num_silent, MAX_SILENT)) from error
        self._num_silent = 0
        self._metadata = self._parse_greeting(greeting)
        if self._closed.is_set():  # by another thread, meanwhile
            raise self._failed("")
        return connection

    def _parse_greeting(self, greeting: str | bytes) -> dict[str, Any]:
        what = "the server must begin with a map, as openpi's does"
        if isinstance(greeting, str):
            refusal = parse_refusal(greeting)
            if refusal.code in (BUSY, CLOSING):
                raise self._failed(f"refused: {refusal.what}")
            if refusal.code:
                raise self._fail(refusal)
            # another program's greeting, or an error before a question
            raise self._fail(CannotConnect(self.url, f"{what}, not with a text", greeting[:200], OTHER_PORT))
        try:
            return self._parse(greeting)
        except WireError as error:
            raise self._fail(CannotConnect(self.url, what, f"{error.got}", OTHER_PORT)) from error

    def _too_large(self, error: Any) -> WireError | None:
        """Return the error for an answer over this client's limit; None if the connection ended for another reason."""
        if error.sent is None or error.sent.code != 1009 or error.rcvd_then_sent:
            return None
        self._drop()
        what = f"the server's answer must be at most {self._message_bytes} bytes"
        step = "Client(message_bytes=...), if it is openpi's server"
        return WireError(what, where=self.url, got=error.sent.reason, next_step=step)

    def _parse(self, data: bytes) -> dict[str, Any]:
        from lightwam.wire import openpi
        from lightwam.wire.limits import Limits

        limit = max(self._message_bytes, Limits.message_bytes)
        try:
            answer = openpi.unpack(data, Limits(message_bytes=limit, array_bytes=limit))
            if isinstance(answer, dict):
                return answer
            raise WireError("not a map", got=type(answer).__name__)
        except WireError as error:
            self._drop()
            what, got = "the server's answer must be a map of openpi's", f"{error.what}; {error.got}"
            raise WireError(what, where=self.url, got=got, expected=error.expected) from error

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _failed(self, why: str) -> LightwamError:
        return self._fail(connection_lost(self.url, why))

    def _fail(self, error: LightwamError) -> LightwamError:
        """Drop the connection and return `error`; if a retry may succeed, delay the next try."""
        self._drop()
        if not isinstance(error, ConnectionLost):
            return error
        wait = min(FIRST_WAIT_SECONDS * 2**self._failures, MAX_WAIT_SECONDS)
        self._failures, self._not_before = self._failures + 1, time.monotonic() + wait
        return connection_lost(self.url, "the client is closed") if self._closed.is_set() else error
