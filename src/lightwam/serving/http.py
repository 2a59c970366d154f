"""Plain HTTP: POST /act with an observation in JSON, arrays as json_numpy writes them; GET /act for the state."""

from __future__ import annotations

import asyncio

import numpy as np
from aiohttp import HttpVersion11, web

from lightwam.errors import WireError
from lightwam.serving.connection import ENCODINGS, error_response
from lightwam.serving.service import Refusal, Service
from lightwam.serving.settings import Serving
from lightwam.wire.json_arrays import dumps, loads

STATUS = {"busy": 503, "closing": 503, "bad_message": 400}
"""status of an error's code; 500 for others"""
METHODS = "GET, POST"


async def act(request: web.BaseRequest, service: Service, settings: Serving, draining: bool) -> web.Response:
    """Answer 200 with {"actions", "infer_ms", "waited_ms"}, or the schema's bare list; 400 or 503 with a JSON error.

    HTTP's own errors: 405 for another method, 408 for a body that takes too long, 411 for a body without a length, 413
    for one that is too large, 417 for an unknown Expect header.
    """
    if request.method == "GET":
        return web.json_response({"status": "draining" if draining else "ok"}, status=503 if draining else 200)
    if request.method != "POST":
        response = error_response(405, Refusal("bad_message", "/act", f"{request.method} is not allowed", METHODS))
        response.headers["Allow"] = METHODS
        return response
    client = str(request.remote)
    try:
        body = await _read_body(request, settings)
    except _BodyError as error:
        status, why, expected, *setting = error.args
        for option in setting:
            service.refusals.add(client, why, setting=option, expected=expected, protocol="http")
            expected += f" ({option})"
        return error_response(status, Refusal("bad_message", "the body", why, expected))
    try:
        with service.decoding("http"):
            message = await asyncio.to_thread(loads, body, settings.limits)
            if not isinstance(message, dict):
                raise WireError("an observation must be an object", where="the body", got=type(message).__name__)
        done, actions, schema = await service.serve(message, "http")
    except Exception as error:
        refusal = service.refusal(error, client, "http")
        return web.json_response({"error": refusal._asdict()}, status=STATUS.get(refusal.code, 500))
    reply = {"actions": actions, "infer_ms": done.infer_ms, "waited_ms": done.waited_ms}
    if schema.reply == "map":
        return web.Response(body=dumps(reply), content_type="application/json")
    if isinstance(actions, np.ndarray):
        return web.json_response(actions.tolist())
    return web.json_response([{key: part.tolist() for key, part in step.items()} for step in actions])


class _BodyError(Exception):
    """A refused body: HTTP status, error, what was expected, and the option to change if there is one."""


async def _read_body(request: web.BaseRequest, settings: Serving) -> bytes:
    seconds = settings.handshake_seconds
    try:
        return await asyncio.wait_for(_read_all(request, settings.limits.message_bytes), seconds)
    except TimeoutError:
        what, expected = "the whole body did not arrive in time", f"within {seconds:g} s"
        raise _BodyError(408, what, expected, "--handshake-seconds") from None
    except web.RequestPayloadError:  # invalid gzip, an invalid chunk, or the client left
        what, expected = "the body must be encoded as its header says", f"{ENCODINGS}; chunks as HTTP/1.1 has them"
        raise _BodyError(400, what, expected) from None


async def _read_all(request: web.BaseRequest, max_bytes: int) -> bytes:
    too_large = _BodyError(413, "the message is too large", f"at most {max_bytes} bytes", "--limits.message-bytes")
    if request.content_length is None and "chunked" not in request.headers.get("Transfer-Encoding", "").lower():
        raise _BodyError(411, "the body has no length", "Content-Length, or Transfer-Encoding: chunked")
    if (request.content_length or 0) > max_bytes:
        raise too_large
    if expected := request.headers.get("Expect"):
        if expected.lower() != "100-continue":
            raise _BodyError(417, f"unknown Expect header: {expected[:80]!r}", "100-continue")
        if request.version >= HttpVersion11:  # curl and libcurl wait a second for it before they send
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # the answer itself has not been started
    parts, size = [], 0
    async for part in request.content.iter_any():
        size += len(part)
        if size > max_bytes:
            raise too_large
        parts.append(part)
    return b"".join(parts)
