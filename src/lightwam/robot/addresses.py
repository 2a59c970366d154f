"""The address of a websocket server, and what else listens there."""

from __future__ import annotations

import contextlib
import socket
import ssl
from urllib.parse import urlsplit

OTHER_PORT = "try another port or address: openpi's default port is 8000"


def is_address(url: str) -> bool:
    """Check that it is a websocket URL whose host and port are possible."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")  # UnicodeError is a ValueError
        return parts.scheme in ("ws", "wss") and bool(host) and parts.port != 0 and not parts.fragment
    except ValueError:
        return False


def diagnose(url: str, left_seconds: float) -> tuple[str, str] | None:
    """Try an address where the handshake failed over TLS and plain HTTP; return the fault and what to do, or None.

    Each try takes at most 2 s, and no longer than `left_seconds`.
    """
    parts = urlsplit(url)
    secure, seconds = parts.scheme == "wss", min(2.0, max(0.05, left_seconds))
    place, answer = (parts.hostname, parts.port or (443 if secure else 80)), b""
    if not secure:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            contextlib.suppress(OSError, EOFError),  # ssl.SSLError is an OSError
            socket.create_connection(place, seconds) as plain,
            context.wrap_socket(plain),
        ):
            return "the server speaks TLS", "use wss:// instead of ws://"
    with contextlib.suppress(OSError, EOFError), socket.create_connection(place, seconds) as plain:
        plain.sendall(f"GET /healthz HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
        answer = plain.recv(5)
    is_http = answer == b"HTTP/"
    if secure:
        return ("the server does not speak TLS", "use ws:// instead of wss://") if is_http else None
    return ("the server does not speak HTTP", OTHER_PORT) if answer and not is_http else None
