"""openpi's side of the conversation: metadata first, then an answer an observation; an error is text, and the end."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from lightwam.errors import WireError
from lightwam.serving.service import RequestQueue, Service
from lightwam.wire.limits import Limits, short
from lightwam.wire.openpi import pack, unpack


async def talk(
    socket: web.WebSocketResponse, client: str, service: Service, metadata: Mapping[str, Any], limits: Limits
) -> None:
    """Serves one client until it leaves, or until its first error: openpi's clients take text for the end."""
    await socket.send_bytes(pack(dict(metadata)))
    before_ms: float | None = None

    def read(data: bytes) -> dict[str, Any]:
        try:
            message = unpack(data, limits)
            if not isinstance(message, dict):
                raise WireError("an observation is a map", where="the message", got=type(message).__name__)
            if {"message_type", "payload"} <= set(message):
                raise WireError("this is XPolicyLab's protocol on openpi's port", where="the message",
                                got=short(message["message_type"]), expected="openpi's observation",
                                next_step="connect to the port of --xpolicylab-port, 19000 by default")  # fmt: skip
        except WireError as error:
            service.reject(error, "openpi")
            raise
        return message

    async def answer(request: tuple[bytes, float]) -> None:
        nonlocal before_ms
        data, came = request
        try:
            message = read(data)
            done, actions, _ = await service.serve(message, "openpi")
        except Exception as error:
            # every error goes to the client that caused it, and its connection ends
            await end(error)
            return
        timing = {"infer_ms": done.infer_ms, "waited_ms": done.waited_ms}
        if before_ms is not None:
            timing["prev_total_ms"] = before_ms
        await socket.send_bytes(
            pack({"actions": actions, "policy_timing": {"infer_ms": done.infer_ms}, "server_timing": timing})
        )
        before_ms = 1000 * (time.perf_counter() - came)

    async def end(error: Exception) -> None:
        if not socket.closed:
            await socket.send_str(json.dumps(service.refusal(error, client, "openpi").fields()))
            await socket.close(code=WSCloseCode.INTERNAL_ERROR, message=b"see the text before")

    lane = RequestQueue(answer)
    try:
        async for message in socket:
            if message.type is WSMsgType.ERROR:  # the connection broke its protocol, or a limit, and is closed
                break
            try:
                if message.type is not WSMsgType.BINARY:
                    raise WireError("an observation is a binary frame", where="the websocket", got="a text frame",
                                    expected="msgpack")  # fmt: skip
                lane.add((message.data, time.perf_counter()))
            except Exception as error:
                await end(error)
    finally:
        await lane.drop()
