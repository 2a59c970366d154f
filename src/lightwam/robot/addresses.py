"""The address of a websocket, and what listens there when it is no websocket."""

from __future__ import annotations

import contextlib
import socket
import ssl
from urllib.parse import urlsplit

OTHER_PORT = "another port: openpi's is 8000, where nothing else was said"


def is_address(url: str) -> bool:
    """Whether it is a websocket's, with a host and a port that can be one."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")  # UnicodeError is a ValueError
        return parts.scheme in ("ws", "wss") and bool(host) and parts.port != 0 and not parts.fragment
    except ValueError:
        return False


def speaks_otherwise(url: str, left_seconds: float) -> tuple[str, str] | None:
    """What another try finds at an address where no websocket came about, and what to do; None for nothing new.

    Over TLS at a ws:// address, and in plain HTTP at either. It takes 2 s at most for each, or what is left.
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
            return "the server speaks TLS", "wss:// in place of ws://"
    with contextlib.suppress(OSError, EOFError), socket.create_connection(place, seconds) as plain:
        plain.sendall(f"GET /healthz HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
        answer = plain.recv(5)
    is_http = answer == b"HTTP/"
    if secure:
        return ("the server does not speak TLS", "ws:// in place of wss://") if is_http else None
    return ("what listens there does not speak HTTP", OTHER_PORT) if answer and not is_http else None
