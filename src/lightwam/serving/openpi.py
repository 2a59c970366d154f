"""The server's side of openpi's protocol: metadata first, then an answer for each observation. An error is text."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from lightwam.errors import WireError
from lightwam.serving.service import RequestQueue, Service, frame_bytes
from lightwam.wire.limits import Limits, short
from lightwam.wire.openpi import pack, unpack
from lightwam.wire.vla_eval import PATH


async def talk(
    socket: web.WebSocketResponse, client: str, service: Service, metadata: Mapping[str, Any], limits: Limits
) -> None:
    """Serve a client until it leaves, or until its first error: openpi's clients take text for the end."""
    await socket.send_bytes(pack(dict(metadata)))
    previous_ms: float | None = None

    async def answer(request: tuple[bytes, float]) -> None:
        nonlocal previous_ms
        data, received = request
        try:
            with service.decoding("openpi"):
                message = _decode(data, limits)
            done, actions, _ = await service.serve(message, "openpi")
        except Exception as error:
            return await end(error)
        timing = {"infer_ms": done.infer_ms, "waited_ms": done.waited_ms}
        if previous_ms is not None:
            timing["prev_total_ms"] = previous_ms
        reply = {"actions": actions, "policy_timing": {"infer_ms": done.infer_ms}, "server_timing": timing}
        await socket.send_bytes(pack(reply))
        previous_ms = 1000 * (time.perf_counter() - received)

    async def end(error: Exception) -> None:
        if not socket.closed:
            await socket.send_str(json.dumps(service.refusal(error, client, "openpi")._asdict()))
            await socket.close(code=WSCloseCode.INTERNAL_ERROR, message=b"see the text before")

    requests = RequestQueue(answer)
    try:
        async for message in socket:
            if message.type is WSMsgType.ERROR:  # the connection broke its protocol, or a limit, and is closed
                break
            try:
                requests.add((frame_bytes(message), time.perf_counter()))
            except Exception as error:
                await end(error)
    finally:
        await requests.cancel()


def _decode(data: bytes, limits: Limits) -> dict[str, Any]:
    message = unpack(data, limits)
    if not isinstance(message, dict):
        raise WireError("an observation must be a map", where="the message", got=type(message).__name__)
    if {"message_type", "payload"} <= set(message):
        what, step = "this is XPolicyLab's protocol on openpi's port", "connect to --xpolicylab-port, 19000 by default"
        got, expected = short(message["message_type"]), "openpi's observation"
        raise WireError(what, where="the message", got=got, expected=expected, next_step=step)
    if {"type", "payload", "seq"} <= set(message):
        what, step = "this is vla-eval's protocol at openpi's address", f"server url ws://HOST:PORT{PATH}"
        got, expected = short(message["type"]), "openpi's observation"
        raise WireError(what, where="the message", got=got, expected=expected, next_step=step)
    return message
