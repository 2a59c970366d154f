"""Plain HTTP: POST /act with an observation in JSON, arrays as json_numpy writes them; GET /act says that it is up."""

from __future__ import annotations

import asyncio

from aiohttp import web

from lightwam.errors import WireError
from lightwam.serve.service import Service, refusal
from lightwam.serve.settings import Serving
from lightwam.wire.json_arrays import dumps, loads

STATUS = {"busy": 503, "closing": 503, "bad_message": 400}
"""of an error's code; 500 else"""


async def act(request: web.BaseRequest, service: Service, settings: Serving, draining: bool) -> web.Response:
    """200 with {"actions", "infer_ms"}; 400 for a bad observation, 413 a long one, 503 when busy or stopping."""
    if request.method == "GET":
        return web.json_response({"status": "draining" if draining else "ok"}, status=503 if draining else 200)
    if request.method != "POST":
        raise web.HTTPMethodNotAllowed(request.method, ["GET", "POST"])
    try:
        body = await asyncio.wait_for(_body(request, settings.limits.message_bytes), settings.handshake_seconds)
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    try:
        try:
            message = await asyncio.to_thread(loads, body, settings.limits)
            if not isinstance(message, dict):
                raise WireError("an observation is an object", where="the body", got=type(message).__name__)
        except WireError as error:
            service.reject(error, "http")
            raise
        done, actions = await service.serve(message, "http")
    except Exception as error:
        # every error goes to the client that caused it
        why = refusal(error, str(request.remote))
        status = STATUS.get(why.code, 500)
        return web.json_response({"error": why.fields()}, status=status)
    reply = {"actions": actions, "infer_ms": done.infer_ms, "waited_ms": done.waited_ms}
    return web.Response(body=dumps(reply), content_type="application/json")


async def _body(request: web.BaseRequest, most: int) -> bytes:
    parts, size = [], 0
    async for part in request.content.iter_any():
        size += len(part)
        if size > most:
            raise web.HTTPRequestEntityTooLarge(max_size=most, actual_size=size)
        parts.append(part)
    return b"".join(parts)
