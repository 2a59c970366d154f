"""The server's side of XPolicyLab's protocol: every request is a frame with an id, and its answer bears that id."""

from __future__ import annotations

from typing import Any

from aiohttp import WSMsgType, web

from lightwam.errors import WireError
from lightwam.serving.service import RequestQueue, Service, frame_bytes
from lightwam.wire.limits import Limits
from lightwam.wire.xpolicylab import Envelope, answer, pack, refuse, unpack


async def talk(socket: web.WebSocketResponse, client: str, service: Service, limits: Limits) -> None:
    """Serve a client until it leaves; a bad frame is answered by an error, and does not end the connection."""
    num_frames = 0

    async def infer(request: Envelope) -> None:
        try:
            observation = request.payload.get("observation")
            if not isinstance(observation, dict):
                got = type(observation).__name__
                raise WireError("infer must carry an observation, a map", where="payload.observation", got=got)
            done, actions, _ = await service.serve(observation, "xpolicylab")
            reply: dict[str, Any] = {"actions": actions, "latency_ms": done.infer_ms + done.waited_ms}
            await socket.send_bytes(pack(answer(request, reply)))
        except Exception as error:
            await fail(request, "infer_failed", error)

    async def fail(request: Envelope | bytes | None, code: str, error: Exception) -> None:
        if not socket.closed:
            why = service.refusal(error, client, "xpolicylab")
            await socket.send_bytes(pack(refuse(request, code, why.message, why._asdict())))

    requests = RequestQueue(infer)
    try:
        async for message in socket:
            if message.type is WSMsgType.ERROR:  # the connection broke its protocol, or a limit, and is closed
                break
            num_frames += 1
            data: bytes | None = None
            try:
                data = frame_bytes(message)
                with service.decoding("xpolicylab"):
                    request = unpack(data, limits)
            except Exception as error:
                await fail(data, "invalid_frame", error)
                continue
            if request.message_type == "close":
                break
            try:
                if request.message_type == "infer":
                    requests.add(request)
                else:
                    await socket.send_bytes(pack(answer(request, {"ok": True})))
            except Exception as error:
                await fail(request, "infer_failed", error)
        if not num_frames:
            why, expected = "the client left without sending anything: XPolicyLab's send first", "openpi's port"
            service.refusals.add(client, why, expected=expected, setting="the client's port", protocol="xpolicylab")
    finally:
        await requests.cancel()
