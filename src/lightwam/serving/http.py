"""Plain HTTP: POST /act with an observation in JSON, arrays as json_numpy writes them; GET /act says that it is up."""

from __future__ import annotations

import asyncio

import numpy as np
from aiohttp import HttpVersion11, web

from lightwam.errors import WireError
from lightwam.serving.connection import ENCODINGS, refused
from lightwam.serving.service import Refusal, Service
from lightwam.serving.settings import Serving
from lightwam.wire.json_arrays import dumps, loads

STATUS = {"busy": 503, "closing": 503, "bad_message": 400}
"""of an error's code; 500 else"""
METHODS = "GET, POST"


async def act(request: web.BaseRequest, service: Service, settings: Serving, draining: bool) -> web.Response:
    """Answer 200 with {"actions", "infer_ms"}; a JSON error with 400 for a bad observation, 503 when busy or stopping.

    HTTP's own errors: 405 for another method, 408 for a body that takes too long, 411 for a body without a length, 413
    for one that is too large, 417 for an unknown Expect header.
    """
    if request.method == "GET":
        return web.json_response({"status": "draining" if draining else "ok"}, status=503 if draining else 200)
    if request.method != "POST":
        response = refused(405, Refusal("bad_message", "/act", f"{request.method} is not allowed", METHODS))
        response.headers["Allow"] = METHODS
        return response
    client, most = str(request.remote), settings.limits.message_bytes
    try:
        body = await asyncio.wait_for(_body(request, most), settings.handshake_seconds)
    except TimeoutError:
        service.refusals.add(client, "the whole body did not arrive in time", setting="--handshake-seconds",
                             expected=f"within {settings.handshake_seconds:g} s", protocol="http")  # fmt: skip
        return refused(408, Refusal("bad_message", "the body", "the whole body did not arrive in time",
                                    f"within {settings.handshake_seconds:g} s (--handshake-seconds)"))  # fmt: skip
    except web.RequestPayloadError:  # bytes that are no gzip, a chunk that is none, or the client left
        return refused(400, Refusal("bad_message", "the body", "the body is not encoded as its header says",
                                    f"{ENCODINGS}; chunks as HTTP/1.1 has them"))  # fmt: skip
    except _NotRead as error:
        if error.status == 413:
            service.refusals.add(client, "the message is too large", setting="--limits.message-bytes",
                                 expected=error.why.expected, protocol="http")  # fmt: skip
        return refused(error.status, error.why)
    try:
        try:
            message = await asyncio.to_thread(loads, body, settings.limits)
            if not isinstance(message, dict):
                raise WireError("an observation is an object", where="the body", got=type(message).__name__)
        except WireError as error:
            service.reject(error, "http")
            raise
        done, actions, schema = await service.serve(message, "http")
    except Exception as error:
        # every error goes to the client that caused it
        why = service.refusal(error, client, "http")
        status = STATUS.get(why.code, 500)
        return web.json_response({"error": why.fields()}, status=status)
    if schema.reply == "list":
        bare = actions.tolist() if isinstance(actions, np.ndarray) else [
            {key: part.tolist() for key, part in one.items()} for one in actions]  # fmt: skip
        return web.json_response(bare)
    reply = {"actions": actions, "infer_ms": done.infer_ms, "waited_ms": done.waited_ms}
    return web.Response(body=dumps(reply), content_type="application/json")


class _NotRead(Exception):
    """A body that is refused by its headers, or while it is being read."""

    def __init__(self, status: int, message: str, expected: str) -> None:
        super().__init__(message)
        self.status, self.why = status, Refusal("bad_message", "the body", message, expected)


async def _body(request: web.BaseRequest, most: int) -> bytes:
    """Read the whole body; its headers are checked first."""
    too_long = _NotRead(413, "the message is too large", f"at most {most} bytes (--limits.message-bytes)")
    if request.content_length is None and "chunked" not in request.headers.get("Transfer-Encoding", "").lower():
        raise _NotRead(411, "the body has no length", "Content-Length, or Transfer-Encoding: chunked")
    if (request.content_length or 0) > most:
        raise too_long
    if expected := request.headers.get("Expect"):
        if expected.lower() != "100-continue":
            raise _NotRead(417, f"unknown Expect header: {expected[:80]!r}", "100-continue")
        if request.version >= HttpVersion11:  # curl and libcurl wait a second for it before they send
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # the answer itself has not been started
    parts, size = [], 0
    async for part in request.content.iter_any():
        size += len(part)
        if size > most:
            raise too_long
        parts.append(part)
    return b"".join(parts)
