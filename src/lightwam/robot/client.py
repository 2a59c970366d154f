"""An openpi client: observations to a server over a websocket, chunks of actions back.

The protocol is openpi's (PyPI `openpi-client` 0.1.2), so any server that speaks it will do. What that client leaves to
chance is decided here. Temporary faults (the server is gone, silent or busy) are a `ConnectionLost`: the next call
reconnects, waiting longer after every failure. Permanent ones are raised at once: a refusal as a `Refused`, with its
fields, and what makes connecting impossible (another protocol, TLS at only one end) as a `CannotConnect`.
"""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from lightwam.errors import ConfigError, LightwamError, WireError
from lightwam.robot.addresses import OTHER_PORT, diagnose, is_address
from lightwam.robot.proxies import Proxy, proxy_for

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.05, 2.0
"""before the second try, and at most; doubled after every failure"""
CLOSE_SECONDS = 0.5
"""so long a server is waited for to say good-bye"""
OUR_FAULT = (1003, 1007, 1008, 1009)
"""codes of a websocket's end that say the message was wrong: its kind, its bytes, against the rules, too long"""
LASTING = (1002, 1003, 1007, 1008, 1009, 1010)
"""close codes before the greeting that a retry would get again; so are those from 3000 up"""
SHORTAGE = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that are worth a retry"""
MAX_SILENT = 3
"""connections in a row without a greeting, after which the server is taken for another kind of server"""
LOGGER = logging.getLogger("lightwam.robot.websockets")
LOGGER.addHandler(logging.NullHandler())  # what websockets logs of a failed handshake is in our error
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


class CannotConnect(LightwamError):
    """A connection that cannot be made until something is changed: a retry would fail the same way."""


class Client:
    """One connection to an openpi server, made by the first call that needs it. Calls from several threads take turns.

    `timeout_seconds` is for a whole call, connecting and a busy server included. `attempts` are tries to connect within
    it. `ssl_context` is for a wss:// server with a self-made certificate. `message_bytes` limits answers, and
    observations for a server whose greeting has no limit; lightwam's has. Proxies come from the environment, and are
    never used for this machine or for hosts in NO_PROXY.
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
        """Connects to nothing yet.

        ConfigError for a `url` that is no ws://HOST:PORT or wss://HOST:PORT, and for a key that cannot be sent.
        """
        if not is_address(url):
            raise ConfigError("not the address of a websocket", where="url", got=repr(url),
                              expected="ws://HOST:PORT or wss://HOST:PORT")  # fmt: skip
        if ssl_context is not None and not url.startswith("wss:"):
            raise ConfigError("TLS needs an address of its own", where="url", got=repr(url),
                              expected="wss://HOST:PORT, as there is an ssl_context")  # fmt: skip
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise ConfigError("an API key that a header cannot carry", where="api_key",
                              got=f"{len(api_key)} characters", expected="printable ASCII without spaces")  # fmt: skip
        if timeout_seconds <= 0 or attempts < 1 or message_bytes < 1:
            raise ConfigError("a client needs time, an attempt and a byte", where="Client",
                              got=f"timeout_seconds {timeout_seconds}, attempts {attempts}, "
                              f"message_bytes {message_bytes}")  # fmt: skip
        self.url, self._timeout, self._attempts, self._ssl = url, timeout_seconds, attempts, ssl_context
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._connection: Any = None  # websockets' ClientConnection
        self._metadata: dict[str, Any] = {}
        self._failures, self._not_before = 0, 0.0
        self._message_bytes, self._num_silent = message_bytes, 0

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server says of itself when it is connected to; connects if need be."""
        self.connect()
        return self._metadata

    def connect(self) -> None:
        """Connect, unless connected.

        ConnectionLost when that fails and may succeed later, Refused when the server wants another key, CannotConnect
        when the address has no openpi server or cannot be reached this way, ConfigError for a proxy that cannot be
        used.
        """
        with self._lock:
            self._open(time.monotonic() + self._timeout)

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer to an observation; its arrays are read-only. "actions" is the chunk (H, A).

        Raises Refused (a WireError) for what the server does not accept, WireError for what cannot be sent or read,
        ConnectionLost when the server is gone, does not answer in time, or stays busy (the next call reconnects), and
        what `connect` raises.
        """
        from lightwam.wire import openpi

        message, wait = openpi.pack(dict(observation)), FIRST_WAIT_SECONDS
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
        self._check_size(message)
        try:
            connection.send(message)
            return connection.recv(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            raise self._failed(f"no answer in {self._timeout:g} s") from error
        except ConnectionClosed as error:
            if too_large := self._too_large(error):
                raise too_large from error
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

    def _check_size(self, message: bytes) -> None:
        """Raise WireError for a message so large that the server would close the connection."""
        from lightwam.wire.openpi import MESSAGE_BYTES

        limit = self._metadata.get(MESSAGE_BYTES)
        most, whose = (limit, "--limits.message-bytes of lightwam serve") if type(limit) is int else (
            self._message_bytes, "Client(message_bytes=...)")  # fmt: skip
        if len(message) > most:
            raise WireError("the observation is too large", where=self.url, got=f"{len(message)} bytes",
                            expected=f"at most {most}",
                            next_step=f"send smaller pictures, as uint8 and not floats; or raise {whose}")  # fmt: skip

    def _dial(self, deadline: float) -> Any:
        """One try to connect and to hear the server's first word."""
        import websockets.exceptions as problems
        from websockets.sync.client import connect

        left, proxy = max(0.01, deadline - time.monotonic()), proxy_for(self.url)
        try:
            # entered as by a with block, which is what websockets 17 asks for; `_drop` leaves it. No pings, as a server
            # that thinks on its event loop does not answer them; the call's deadline tells who is gone
            connection = connect(
                self.url, compression=None, max_size=self._message_bytes, additional_headers=self._headers,
                open_timeout=left, close_timeout=CLOSE_SECONDS, ping_interval=None, ssl=self._ssl,
                proxy=proxy.address if proxy else None, logger=LOGGER,
            ).__enter__()  # fmt: skip
        except (OSError, EOFError, ImportError, ValueError, AssertionError, problems.WebSocketException) as error:
            # websockets asserts that nothing broke while it said its first word
            raise self._not_made(error, proxy, deadline) from error
        self._connection = connection
        try:
            hello = connection.recv(timeout=max(0.01, deadline - time.monotonic()))
        except (TimeoutError, OSError, EOFError, problems.WebSocketException) as error:
            raise self._no_greeting(error) from error
        self._num_silent = 0
        if isinstance(hello, str):
            if not (refusal := refused(hello)).code:  # another program's greeting, or an error before a question
                raise self._impossible("what listens there begins with a text, and openpi's server with a map",
                                       hello[:200], "another port, or address")  # fmt: skip
            failure = self._failed(f"refused: {refusal.what}")
            raise failure if refusal.code in (BUSY, CLOSING) else refusal
        try:
            self._metadata = self._read(hello)
        except WireError as error:
            raise self._impossible("what listens there does not begin with a map, as openpi's server does",
                                   f"{error.got}", "another port, or address") from error  # fmt: skip
        if self._closed.is_set():  # while it was dialled
            raise self._failed("")
        return connection

    def _not_made(self, error: Exception, proxy: Proxy | None, deadline: float) -> LightwamError:
        """Turn a failed connection attempt into our error: ConnectionLost if a retry may succeed."""
        import websockets.exceptions as problems

        broken = (problems.InvalidMessage, problems.ConnectionClosed, EOFError, ConnectionResetError, BrokenPipeError,
                  AssertionError, ssl.SSLError)  # fmt: skip
        why = str(error) or type(error).__name__
        if isinstance(error, problems.InvalidMessage) and error.__cause__ is not None:
            why += f": {error.__cause__}"
        if proxy is not None:
            why = why.replace(proxy.address, proxy.shown)  # its password is nobody's business
        match error:
            case ImportError():  # websockets needs python-socks only for SOCKS
                return ConfigError("a package that the proxy needs is not installed", where=proxy, got=why,
                                   next_step=f"pip install python-socks; or {self._without_proxy()}")  # fmt: skip
            case problems.InvalidProxy() | ValueError() if proxy and not isinstance(error, ssl.SSLError):
                return ConfigError("the proxy cannot be used", where=proxy, got=why,
                                   expected="http://HOST:PORT, https:// or socks5://",
                                   next_step=self._without_proxy())  # fmt: skip
            case problems.InvalidProxyStatus() if error.response.status_code not in SHORTAGE:
                return self._impossible(f"the proxy {proxy} refuses to connect", f"HTTP {error.response.status_code}",
                                        self._without_proxy())  # fmt: skip
            case problems.InvalidProxyMessage() if not isinstance(error.__cause__, (EOFError, OSError)):
                return self._impossible(f"the proxy {proxy} is not one", why, self._without_proxy())
            case problems.InvalidStatus():
                return self._no_websocket(error)
            case ssl.SSLError() if proxy and proxy.address.startswith("https:") and self.url.startswith("ws:"):
                step = f"http:// in place of https:// in {proxy.source}; or {self._without_proxy()}"
                return self._impossible(f"the proxy {proxy} does not speak TLS as this client does", why, step)
            case ssl.SSLCertVerificationError():
                return self._impossible("the server's certificate is not trusted", error.verify_message or why,
                                        "Client(ssl_context=ssl.create_default_context(cafile=CERTIFICATE)), or "
                                        "SSL_CERT_FILE=CERTIFICATE in the environment; the address must be one that "
                                        "the certificate names")  # fmt: skip
            case ssl.SSLError() if not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
                return self._impossible("the server does not speak TLS as this client does", why,
                                        "use ws:// instead of wss:// if it has no certificate")  # fmt: skip
            case _ if (
                proxy is None
                and isinstance(error, broken)
                and (other := diagnose(self.url, deadline - time.monotonic()))
            ):
                what, step = other
                return self._impossible(what, why, step)
            case problems.InvalidMessage() if not isinstance(error.__cause__, (EOFError, OSError)):
                kind = (
                    "is an HTTP server, not openpi's" if "HTTP/1.0" in str(error.__cause__) else "does not speak HTTP"
                )
                return self._impossible(f"the server {kind}", why, OTHER_PORT)
            case _ if isinstance(error, (*broken, OSError, problems.ProxyError)):  # a TimeoutError is an OSError
                if isinstance(error, socket.gaierror) and proxy is None:
                    why += ": the address's host is unknown here"
                return self._failed(f"by the proxy {proxy}: {why}" if proxy else why, proxy)
        return self._impossible("this is not a websocket server", why, "try another port or address")

    def _no_websocket(self, error: Any) -> LightwamError:
        """Turn an HTTP answer to the handshake into our error."""
        status, body = error.response.status_code, (error.response.body or b"").decode(errors="replace")
        if status in SHORTAGE:
            return self._failed(f"HTTP {status}")
        refusal = refused(body, str(status))
        if status in (401, 403) or refusal.where is not None:
            self._drop()
            if refusal.where is not None:
                return refusal
            what = "the server, or a proxy in front of it, wants other credentials"
            return Refused(what, code=str(status), where=self.url, expected="Client(api_key=...) with a key it knows")
        return self._impossible("this is an HTTP server, not openpi's", f"HTTP {status}",
                                "try another port or address")  # fmt: skip

    def _no_greeting(self, error: Exception) -> LightwamError:
        """Turn a missing greeting on an open websocket into our error."""
        import websockets.exceptions as problems

        if isinstance(error, problems.ConnectionClosed) and (too_large := self._too_large(error)):
            return too_large
        if isinstance(error, problems.ConnectionClosed) and error.rcvd is not None:
            code = error.rcvd.code
            if code in LASTING or code >= 3000:
                return self._impossible("the server closed the connection before its greeting",
                                        f"{code} {error.rcvd.reason}".strip(),
                                        "try another port or address")  # fmt: skip
        if isinstance(error, TimeoutError):
            self._num_silent += 1
            what = "a websocket server that sends no greeting, as openpi's does"
            if self._num_silent >= MAX_SILENT:
                return self._impossible(f"this is {what}", f"nothing, {self._num_silent} times",
                                        "try another port: XPolicyLab's protocol has its own")  # fmt: skip
            return self._failed(f"{what}; XPolicyLab's protocol has its own port")
        return self._failed(str(error) or type(error).__name__)

    def _too_large(self, error: Any) -> WireError | None:
        """Return the refusal of an answer over this client's limit; None if the connection ended for another reason."""
        if error.sent is None or error.sent.code != 1009 or error.rcvd_then_sent:
            return None
        self._drop()
        return WireError("the server's answer is too large", where=self.url, got=error.sent.reason,
                         expected=f"at most {self._message_bytes} bytes",
                         next_step="Client(message_bytes=...), if it is openpi's server")  # fmt: skip

    def _impossible(self, what: str, got: str, next_step: str) -> CannotConnect:
        self._drop()
        return CannotConnect(what, where=self.url, got=got, expected="openpi's websocket", next_step=next_step)

    def _without_proxy(self) -> str:
        return f"NO_PROXY={urlsplit(self.url).hostname} to connect without it"

    def _read(self, data: bytes) -> dict[str, Any]:
        from lightwam.wire import openpi
        from lightwam.wire.limits import Limits

        most = max(self._message_bytes, Limits.message_bytes)
        try:
            answer = openpi.unpack(data, Limits(message_bytes=most, array_bytes=most))
        except WireError as error:
            self._drop()
            raise WireError("the server's answer cannot be read", where=self.url, got=f"{error.what}; {error.got}",
                            expected=error.expected) from error  # fmt: skip
        if not isinstance(answer, dict):
            self._drop()
            raise WireError("the server's message is not a map", where=self.url, got=type(answer).__name__)
        return answer

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _failed(self, why: str, proxy: Proxy | None = None) -> ConnectionLost:
        """Drops the connection, and keeps the next try waiting."""
        self._drop()
        wait = min(FIRST_WAIT_SECONDS * 2**self._failures, LONGEST_WAIT_SECONDS)
        self._failures, self._not_before = self._failures + 1, time.monotonic() + wait
        return self._lost("the client is closed" if self._closed.is_set() else why, proxy)

    def _lost(self, why: str, proxy: Proxy | None = None) -> ConnectionLost:
        step = f"start the server, or the proxy, or {self._without_proxy()}" if proxy else "start the server"
        return ConnectionLost("no answer from the policy server", where=self.url, got=why,
                              next_step=f"{step}; the next call reconnects")  # fmt: skip


def refused(text: str, code: str = "") -> Refused:
    """What a text frame says: our servers' {"code", "where", "message", "expected"}, or another server's plain text."""
    try:
        said = json.loads(text)
    except ValueError:
        return Refused(text or "the server sent an empty text, which is openpi's for an error", code=code)
    if isinstance(said, dict):
        said = said.get("error", said)  # over HTTP
    if not isinstance(said, dict) or not isinstance(said.get("message"), str):
        return Refused(text, code=code)
    word = said.get("code")
    return Refused(said["message"], code=word if isinstance(word, str) else code, where=said.get("where"),
                   expected=said.get("expected"))  # fmt: skip
