"""Errors of connecting: what `websockets` raises, as an error that says whether a retry may succeed."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import websockets.exceptions as problems

from lightwam.errors import ConfigError, LightwamError
from lightwam.robot.addresses import OTHER_PORT, diagnose
from lightwam.robot.errors import CannotConnect, Refused, connection_lost, parse_refusal
from lightwam.robot.proxies import Proxy, without_proxy

CONNECT_ERRORS = (OSError, EOFError, ImportError, ValueError, AssertionError, problems.WebSocketException)
"""what `connect` may raise; websockets asserts that the connection survived the handshake"""
BROKEN = (
    problems.InvalidMessage,
    problems.ConnectionClosed,
    EOFError,
    ConnectionResetError,
    BrokenPipeError,
    AssertionError,
    ssl.SSLError,
)
"""errors of servers that stop or speak another protocol"""
RETRY_STATUSES = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that may change"""
PERMANENT_CLOSE_CODES = (1002, 1003, 1007, 1008, 1009, 1010)
"""close codes before the greeting that a retry would get again; so are those from 3000 up"""
TRUST = (
    "Client(ssl_context=ssl.create_default_context(cafile=CERTIFICATE)), or SSL_CERT_FILE=CERTIFICATE in the "
    "environment; the address must be in the certificate"
)


def connect_error(error: Exception, url: str, proxy: Proxy | None, left_seconds: float) -> LightwamError:
    """Convert a failed handshake; diagnosing it may take `left_seconds`."""
    why = str(error) or type(error).__name__
    if isinstance(error, problems.InvalidMessage) and error.__cause__ is not None:
        why += f": {error.__cause__}"
    if proxy is not None:
        why = why.replace(proxy.address, proxy.shown)  # without its password
        if known := _proxy_error(error, url, proxy, why):
            return known
    match error:
        case problems.InvalidStatus():
            return _status_error(error, url)
        case ssl.SSLCertVerificationError():
            what = "the server's certificate is not trusted"
            return CannotConnect(url, what, error.verify_message or why, TRUST)
        case ssl.SSLError() if not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            step = "use ws:// instead of wss:// if it has no certificate"
            return CannotConnect(url, "the server does not speak TLS as this client does", why, step)
        case _ if proxy is None and isinstance(error, BROKEN) and (other := diagnose(url, left_seconds)):
            return CannotConnect(url, other[0], why, other[1])
        case problems.InvalidMessage() if not isinstance(error.__cause__, (EOFError, OSError)):
            what = "is an HTTP server, not openpi's" if "HTTP/1.0" in str(error.__cause__) else "does not speak HTTP"
            return CannotConnect(url, f"the server {what}", why, OTHER_PORT)
        case _ if isinstance(error, (*BROKEN, OSError, problems.ProxyError)):
            if isinstance(error, socket.gaierror) and proxy is None:
                why += ": unknown host"
            return connection_lost(url, f"by the proxy {proxy}: {why}" if proxy else why, proxy)
    return CannotConnect(url, "this is not a websocket server", why, OTHER_PORT)


def _proxy_error(error: Exception, url: str, proxy: Proxy, why: str) -> LightwamError | None:
    """Convert an error of the proxy; None if it may be the server's, or a retry may succeed."""
    match error:
        case ImportError():  # websockets needs python-socks only for SOCKS
            step = f"pip install python-socks; or {without_proxy(url)}"
            return ConfigError("a package for the proxy is not installed", where=proxy, got=why, next_step=step)
        case problems.InvalidProxy() | ValueError() if not isinstance(error, ssl.SSLError):
            what = "the proxy must be http://HOST:PORT, https:// or socks5://"
            return ConfigError(what, where=proxy, got=why, next_step=without_proxy(url))
        case problems.InvalidProxyStatus() if error.response.status_code not in RETRY_STATUSES:
            status = f"HTTP {error.response.status_code}"
            return CannotConnect(url, f"the proxy {proxy} refuses to connect", status, without_proxy(url))
        case problems.InvalidProxyMessage() if not isinstance(error.__cause__, (EOFError, OSError)):
            return CannotConnect(url, f"the proxy {proxy} is not one", why, without_proxy(url))
        case ssl.SSLError() if proxy.address.startswith("https:") and url.startswith("ws:"):
            step = f"http:// in place of https:// in {proxy.source}; or {without_proxy(url)}"
            return CannotConnect(url, f"the proxy {proxy} does not speak TLS as this client does", why, step)
    return None


def _status_error(error: problems.InvalidStatus, url: str) -> LightwamError:
    """Convert an HTTP answer other than 101."""
    status, body = error.response.status_code, (error.response.body or b"").decode(errors="replace")
    if status in RETRY_STATUSES:
        return connection_lost(url, f"HTTP {status}")
    refusal = parse_refusal(body, str(status))
    if refusal.where is not None:
        return refusal
    if status in (401, 403):
        what = "the server, or a proxy in front of it, needs other credentials"
        return Refused(what, code=str(status), where=url, expected="Client(api_key=...) with a key that it knows")
    return CannotConnect(url, "this is an HTTP server, not openpi's", f"HTTP {status}", OTHER_PORT)


def greeting_error(error: Any, url: str, num_silent: int, max_silent: int) -> LightwamError:
    """Convert a missing greeting on an open websocket; `num_silent` connections in a row got none before a timeout."""
    if isinstance(error, problems.ConnectionClosed) and error.rcvd is not None:
        code = error.rcvd.code
        if code in PERMANENT_CLOSE_CODES or code >= 3000:
            what = "the server closed the connection before its greeting"
            return CannotConnect(url, what, f"{code} {error.rcvd.reason}".strip(), OTHER_PORT)
    if isinstance(error, TimeoutError):
        what = "a websocket server that sends no greeting, as openpi's does"
        if num_silent >= max_silent:
            step = "try another port: XPolicyLab's protocol has its own"
            return CannotConnect(url, f"this is {what}", f"nothing, {num_silent} times", step)
        return connection_lost(url, f"{what}; XPolicyLab's protocol has its own port")
    return connection_lost(url, str(error) or type(error).__name__)
