"""aiohttp's connections with HTTP errors as JSON, and a last message that arrives before the connection closes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from http import HTTPStatus

from aiohttp import WSCloseCode, web
from aiohttp.http_exceptions import ContentEncodingError, LineTooLong

from lightwam.serving.logs import log_event
from lightwam.serving.service import Refusal

LINGER_SECONDS = 60.0
"""how long the rest of a refused message is read and discarded, at most, so that its client gets the refusal"""
IDLE_SECONDS = 1.0
"""without a byte for this long, the client has nothing more to send"""
ENCODINGS = "Content-Encoding gzip, deflate or none"
"""of a body"""
TLS = b"\x16\x03"
"""first bytes of a TLS handshake"""
RequestFailed = Callable[[web.BaseRequest, Refusal, bool], None]
"""logs a request that could not be read, with whether it began like TLS"""


def error_response(status: int, why: Refusal) -> web.Response:
    """Make an HTTP error that closes its connection, so that refused clients do not count as connected."""
    response = web.json_response({"error": why._asdict()}, status=status)
    response.force_close()
    return response


class Connection(web.RequestHandler):
    """aiohttp's connection that answers invalid HTTP with our JSON errors, and knows when it last received bytes."""

    def __init__(self, server: web.Server, failed: RequestFailed) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(server, loop=loop, access_log=None, lingering_time=LINGER_SECONDS)  # type: ignore[arg-type]
        self._failed, self._first = failed, b""
        self.last_received = loop.time()
        """when the last bytes were received, by the event loop's clock"""

    def data_received(self, data: bytes) -> None:
        """Receive bytes, and note when."""
        self.last_received = asyncio.get_running_loop().time()
        self._first = self._first or data[:2]
        super().data_received(data)

    def close_when_idle(self) -> None:
        """Close the connection once its client stops sending: closed earlier, our last message would be lost."""
        loop = asyncio.get_running_loop()
        began = loop.time()

        def check() -> None:
            if self.transport is None or self.transport.is_closing():
                return
            if loop.time() >= min(began + LINGER_SECONDS, max(began, self.last_received) + IDLE_SECONDS):
                self.transport.close()
            else:
                loop.call_later(IDLE_SECONDS / 20, check)

        check()

    def answer_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that could not be read, or whose handler failed."""
        if request.writer.output_size > 0:  # an answer has been started: it cannot be replaced
            raise ConnectionError("the answer broke off")
        if status == 500:
            if not isinstance(exc, (ConnectionError, web.RequestPayloadError)):  # those mean that the client left
                log_event("a request failed", 40, error=exc, client=request.remote)
            self.close_when_idle()
            why = Refusal("internal", "the server", "the request failed; the server's log has why", "")
            return error_response(500, why)
        status = 431 if isinstance(exc, LineTooLong) else status
        what = (message or HTTPStatus(status).phrase).splitlines()[0][:200]
        why = Refusal("bad_message", "the request", what, "HTTP/1.1")
        if isinstance(exc, ContentEncodingError):
            why = Refusal("bad_message", "the body", "an encoding that is not known", ENCODINGS)
        self._failed(request, why, self._first == TLS)
        self.close_when_idle()
        return error_response(status, why)

    handle_error = answer_error  # aiohttp's name


KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 3}
"""seconds of silence before the kernel asks, between its questions, and how many stay unanswered until it gives up"""


def keep_alive(transport: asyncio.BaseTransport) -> None:
    """Let the kernel notice a client that is gone: it answers for a client that is too busy for pings."""
    connection = transport.get_extra_info("socket")
    if connection is None:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if (option := getattr(socket, name, None)) is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


class Socket(web.WebSocketResponse):
    """aiohttp's websocket that says why a message is too large, also to a client that is still sending."""

    def __init__(self, message_bytes: int, heartbeat_seconds: float | None) -> None:
        super().__init__(max_msg_size=message_bytes, heartbeat=heartbeat_seconds, compress=False, timeout=2.0)
        self._too_large = f"a message may have at most {message_bytes} bytes (the server's --limits.message-bytes)"
        self.is_too_large = False
        """the client's message was over the limit"""

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = True) -> bool:
        """Send the close frame, with our text if the client's message was too large."""
        if code == WSCloseCode.MESSAGE_TOO_BIG and not self.closed:
            self.is_too_large, message = True, self._too_large.encode()
        return await super().close(code=code, message=message, drain=drain)

    def _close_transport(self) -> None:
        # closing a connection with unread bytes resets it, and the close frame is lost
        if not self.is_too_large:
            super()._close_transport()

    async def linger(self, connection: Connection, transport: asyncio.Transport) -> None:
        """Discard the rest of a message that was too large, until the client stops sending."""
        transport.resume_reading()
        connection.close_when_idle()
        while not transport.is_closing():
            await asyncio.sleep(IDLE_SECONDS / 20)
