"""The server's side of vla-eval's protocol: one action for each observation.

A harness asks before every step and executes one action, so a connection keeps a chunk: the policy is asked for one,
and its first `replan` actions answer this observation and the next ones, whose pictures are not decoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from aiohttp import WSMsgType, web

from lightwam.errors import WireError
from lightwam.serving.service import RequestQueue, Service, frame_bytes
from lightwam.wire.limits import Limits
from lightwam.wire.vla_eval import (
    ACTION,
    ERROR,
    HELLO,
    OBSERVATION,
    OBSERVATION_PARAMS,
    PROTOCOL_VERSION,
    START,
    Message,
    check_hello,
    pack,
    unpack,
)

NAME = "vla-eval"
Actions = deque[Any]
"""the actions of a chunk that are not executed yet"""


async def talk(
    socket: web.WebSocketResponse,
    client: str,
    service: Service,
    metadata: Mapping[str, Any],
    limits: Limits,
    replan: int | None,
) -> None:
    """Serve a client until it leaves; a bad message is answered by an error, and does not end the connection.

    `service` has the robot schemas of this protocol. `replan`: actions of a chunk that are executed; None: all.
    """
    actions = Actions()

    async def answer(request: tuple[Message, Actions]) -> None:
        message, left = request
        try:
            if message.payload.get("episode_restart"):  # the next subtask of CALVIN's episode
                left.clear()
            if not left:
                left.extend((await service.serve(message.payload, NAME)).actions[:replan])
            reply = pack(Message(ACTION, {"actions": left.popleft()}, message.seq))
        except Exception as error:
            return await fail(error, message.seq)
        await socket.send_bytes(reply)

    async def fail(error: Exception, seq: int = 0) -> None:
        if not socket.closed:
            why = service.refusal(error, client, NAME)._asdict()
            await socket.send_bytes(pack(Message(ERROR, {"error": why.pop("message")} | why, seq)))

    requests = RequestQueue(answer)
    try:
        async for frame in socket:
            if frame.type is WSMsgType.ERROR:  # the connection broke its protocol, or a limit, and is closed
                break
            message = Message(ERROR)
            try:
                with service.decoding(NAME):
                    message = unpack(frame_bytes(frame), limits)
                if message.kind == OBSERVATION:
                    requests.add((message, actions))
                elif message.kind == HELLO:
                    check_hello(message.payload)
                    await socket.send_bytes(pack(Message(HELLO, _hello(service, metadata), message.seq)))
                elif message.kind == START:
                    actions = Actions()  # those of unanswered observations stay with their episode
                elif message.kind == ACTION:
                    raise WireError("only the server sends actions", where="type", got=ACTION, expected=OBSERVATION)
            except Exception as error:
                await fail(error, message.seq)
    finally:
        await requests.cancel()


def _hello(service: Service, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the harness writes into its results, and what its benchmark is to send.

    Benchmarks leave out wrist cameras and state unless they are asked to send them.
    """
    schema = service.schemas[0]
    wanted = {"send_wrist_image": len(schema.cameras) > 1, "send_state": bool(schema.state)}
    asked = {name: True for name, is_wanted in wanted.items() if is_wanted}
    about = {key: value for key, value in metadata.items() if isinstance(value, (str, int))}
    return about | {
        "protocol_version": PROTOCOL_VERSION,
        "model_server": "lightwam",
        "capabilities": {},
        "observation_params": asked | dict(OBSERVATION_PARAMS.get(schema.name, {})),
    }
