"""XPolicyLab's side of the conversation: every request is a frame with a number, and its answer bears that number."""

from __future__ import annotations

from typing import Any

from aiohttp import WSMsgType, web

from lightwam.errors import WireError
from lightwam.serving.service import RequestQueue, Service
from lightwam.wire.limits import Limits
from lightwam.wire.xpolicylab import Envelope, answer, pack, refuse, unpack


async def talk(socket: web.WebSocketResponse, client: str, service: Service, limits: Limits) -> None:
    """Serves one client until it leaves. A bad frame costs its own answer, not the connection."""
    num_frames = 0

    async def act(frame: Envelope) -> None:
        try:
            observation = frame.payload.get("observation")
            if not isinstance(observation, dict):
                raise WireError("infer carries an observation", where="payload.observation",
                                got=type(observation).__name__, expected="a map")  # fmt: skip
            done, actions, _ = await service.serve(observation, "xpolicylab")
            reply: dict[str, Any] = {"actions": actions, "latency_ms": done.infer_ms + done.waited_ms}
            await socket.send_bytes(pack(answer(frame, reply)))
        except Exception as error:
            # every error goes to the client that caused it
            await fail(frame, error)

    async def fail(request: Envelope | bytes | None, error: Exception) -> None:
        if not socket.closed:
            why = service.refusal(error, client, "xpolicylab")
            code = "infer_failed" if isinstance(request, Envelope) else "invalid_frame"
            await socket.send_bytes(pack(refuse(request, code, why.message, why.fields())))

    lane = RequestQueue(act)
    try:
        async for message in socket:
            if message.type is WSMsgType.ERROR:  # the connection broke its protocol, or a limit, and is closed
                break
            num_frames += 1
            request: Envelope | bytes | None = None
            try:
                if message.type is not WSMsgType.BINARY:
                    raise WireError("a frame is binary", where="the websocket", got="a text frame", expected="msgpack")
                request = message.data
                try:
                    request = frame = unpack(message.data, limits)
                except WireError as error:
                    service.reject(error, "xpolicylab")
                    raise
                if frame.message_type == "close":
                    break
                if frame.message_type == "infer":
                    lane.add(frame)
                else:
                    await socket.send_bytes(pack(answer(frame, {"ok": True})))
            except Exception as error:
                # every error goes to the client that caused it
                await fail(request, error)
        if not num_frames:
            service.refusals.add(client, "it left without sending anything: XPolicyLab's clients send first",
                                 expected="openpi's clients on openpi's port", setting="the client's port",
                                 protocol="xpolicylab")  # fmt: skip
    finally:
        await lane.drop()
