"""What a network does to a server: ten thousand broken messages, and many robots at once for a long time."""

import base64
import contextlib
import json
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import msgpack_numpy as xpolicylab_numpy
import numpy as np
import pytest
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from served_process import ServedProcess, served_process
from serving import message
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from lightwam.wire.vla_eval import PATH

# openpi's and XPolicyLab's clients, and some tests, connect in the way of before websockets 17
pytestmark = pytest.mark.filterwarnings(r"ignore:connect\(\) must be used as a context manager:DeprecationWarning")
GROWTH_MIB = 48
"""of the server's memory, allowed between the first thousand messages and the last: what allocators keep"""


@contextmanager
def robots(server: ServedProcess, count: int, hertz: float, size: int = 8) -> Iterator[list[int]]:
    """Well-formed clients that ask on and on, each checking that the answers are its own; how many each had."""
    answered, faults, over = [0] * count, list[BaseException](), threading.Event()

    def drive(number: int) -> None:
        try:
            client = WebsocketClientPolicy("127.0.0.1", server.openpi)
            begun = time.monotonic()
            while not over.is_set():
                told = 10_000 * number + answered[number] % 10_000
                actions = client.infer(message(told, size))["actions"]
                assert (actions[:, :6] == told).all(), (number, told, actions)
                answered[number] += 1
                over.wait(max(0.0, begun + answered[number] / hertz - time.monotonic()))
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        over.set()
        for thread in threads:
            thread.join(30)
    assert not faults, faults[:3]


def spoiled(chance: random.Random) -> bytes:
    """A binary frame that is not an observation."""
    whole = msgpack_numpy.packb(message(1))
    hostile: list[Callable[[], bytes]] = [
        lambda: chance.randbytes(chance.randrange(200)),
        lambda: whole[: chance.randrange(len(whole))],
        lambda: flipped(whole, chance),
        lambda: array(b"|O", [2], b"x" * 16),
        lambda: array(b"<f4", [1 << 40], b"x" * 16),
        lambda: array(b"<f4", [-1, 4], b"x" * 16),
        lambda: array(b"<f4", [2], b"x" * chance.randrange(7)),
        lambda: array(chance.choice([b"<U4", b"V8", b"<c8", b"f4,f4", b"nonsense", b""]), [2], b"x" * 16),
        lambda: b"\x91" * chance.randrange(1, 5000),
        lambda: b"\xdf\xff\xff\xff\xff",
        lambda: b"\xc6\xff\xff\xff\xff" + b"x" * 10,
        lambda: msgpack_numpy.packb(message(1) | {"observation/state": np.full(8, np.nan, np.float32)}),
        lambda: msgpack_numpy.packb(message(1) | {"observation/state": np.zeros(chance.choice([0, 7, 9]), np.float32)}),
        lambda: msgpack_numpy.packb(message(1) | {"observation/image": np.zeros((4, 4), np.uint8)}),
        lambda: msgpack_numpy.packb(message(1) | {"observation/image": np.zeros((4, 4, 3), np.float64)}),
        lambda: msgpack_numpy.packb(message(1) | {"prompt": chance.choice([7, None, "x" * 100_000, [7]])}),
        lambda: msgpack_numpy.packb({}),
    ]
    return chance.choice(hostile)()


def spoiled_envelope(chance: random.Random) -> bytes:
    """A frame of XPolicyLab's whose observation is none."""
    arrays: list[Any] = [
        {b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [2], b"data": b"x" * 16},
        {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [1 << 40], b"data": b"x" * 16},
        {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [-4], b"data": b"x" * 16},
        {b"nd": True, b"type": [["a", "<f4"]], b"kind": b"V", b"shape": [2], b"data": b"x" * 8},
        {b"nd": False, b"type": "<f4", b"data": b"x"},
        [1] * 8,
        "state",
    ]
    observation = {"observation/state": chance.choice(arrays), "prompt": "x"}
    ids = {"message_id": chance.randbytes(4).hex(), "evaluation_id": "2"}
    frame = {"message_type": "infer", **ids, "payload": {"observation": observation}}
    odd = {"message_type": chance.choice(["reset_result", "nothing", 7, None]), "payload": chance.choice([[], 3, None])}
    return msgpack.packb(frame if chance.random() < 0.7 else frame | odd)


def spoiled_call(chance: random.Random) -> bytes:
    """A call of XPolicyLab's that nobody can answer, or one that is answered with yes."""
    pictures = [b"\xff\xd8\xff\xe0" + chance.randbytes(60), b"\x89PNG\r\n\x1a\n", b"GIF89a", 7, None]
    picture = chance.choice([*pictures, np.zeros((4, 4), "<f8"), np.zeros((2, 3, 3), np.uint8)])
    seen = message(1) | {"observation/image": picture, "env_idx": chance.choice([0, "1", -1, None, [0], 1 << 60, "x"])}
    obs = chance.choice(
        [seen, [seen], [seen] * 3, [seen, message(2)], [], [[]], {}, None, 7, "seen", [0], [1 << 62], b"x"]
    )
    function = chance.choice(["update_obs", "update_obs_batch", "get_action", "get_action_batch", "reset", "infer",
                              "__class__", "", None, 7, ["reset"], {"reset": 1}, "x" * 5000])  # fmt: skip
    payload: Any = {"func_name": function, "obs": obs}
    frame = {
        "message_type": chance.choice(["call"] * 9 + ["reset", "trial_end", "infer", "call_result"]),
        "message_id": chance.choice(["1", chance.randbytes(4).hex()]), "evaluation_id": str(chance.randrange(3)),
        "trial_id": chance.choice([None, "t"]), "payload": chance.choice([payload] * 9 + [{}, None, []]),
    }  # fmt: skip
    whole = bytearray(msgpack.packb(frame, default=xpolicylab_numpy.encode))
    if chance.random() < 0.2:
        whole[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
    return bytes(whole)


def spoiled_harness(chance: random.Random) -> bytes:
    """A message of vla-eval's that nobody can answer."""
    png = b"\x89PNG\r\n\x1a\n" + chance.randbytes(40)
    form = chance.choice(["png", "jpeg", "raw", "webp", 7])
    images: list[Any] = [
        {"__image__": True, "format": form, "data": png, "shape": [4, 4, 3]},
        {"__image__": True, "format": "raw", "data": png, "dtype": chance.choice(["|u1", "|O", 7]), "shape": [1 << 40]},
        {"__image__": chance.choice([1, None]), "format": "png", "data": png, "shape": [-1]},
        {"__ndarray__": True, "data": b"x" * 48, "dtype": "|u1", "shape": [4, 4, 4]},
        [7] * 48,
        None,
    ]
    seen = {"observation/image": chance.choice(images), "observation/state": [1.0] * 8, "prompt": "x"}
    frame = {"type": "observation", "payload": seen, "seq": chance.choice([1, -1, 1 << 62]), "timestamp": 0.0}
    odd = [
        {"type": chance.choice(["action", "nothing", 7, None, ["hello"]])},
        {"type": "hello", "payload": {"protocol_version": chance.choice([2, "1", [], None])}},
        {"payload": chance.choice([[], 3, None])},
        {"seq": chance.choice(["1", None, 1.5, []])},
    ]
    return msgpack.packb(frame if chance.random() < 0.6 else frame | chance.choice(odd))


def flipped(whole: bytes, chance: random.Random) -> bytes:
    """A valid message with an array's header spoiled."""
    spoilt = bytearray(whole)
    at = whole.index(b"__ndarray__") + chance.randrange(11)
    spoilt[at] ^= 1 << chance.randrange(7)
    return bytes(spoilt)


def array(dtype: bytes, shape: list[int], data: bytes) -> bytes:
    fields = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}
    return msgpack.packb(message_without_state() | {"observation/state": fields})


def message_without_state() -> dict[str, Any]:
    return {"prompt": "x"}


def over_vla_eval(server: ServedProcess, chance: random.Random) -> None:
    """A bad message; the server must say so, and answers a good one on the same connection."""
    with connect(f"ws://127.0.0.1:{server.openpi}{PATH}", compression=None, max_size=None, close_timeout=2) as client:
        client.send("text" if chance.random() < 0.05 else chance.choice([spoiled, spoiled_harness])(chance))
        told = msgpack.unpackb(client.recv(timeout=20))
        assert (told["type"], told["payload"]["code"]) == ("error", "bad_message"), told
        seen = {"type": "observation", "payload": message(3), "seq": 5, "timestamp": 0.0}
        client.send(msgpack_numpy.packb(seen))
        told = msgpack.unpackb(client.recv(timeout=20))
        assert (told["type"], told["seq"]) == ("action", 5), told


def over_websocket(server: ServedProcess, chance: random.Random, port: int) -> None:
    """A bad frame; the server must say so, or hang up."""
    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, close_timeout=2) as client:
        if port == server.openpi:
            client.recv(timeout=20)
        kinds = [spoiled] if port == server.openpi else [spoiled, spoiled_envelope, spoiled_call, spoiled_call]
        client.send("text" if chance.random() < 0.05 else chance.choice(kinds)(chance))
        with contextlib.suppress(ConnectionClosed):
            told = client.recv(timeout=20)
            if port == server.openpi:
                assert json.loads(told)["code"] == "bad_message", told
            else:
                answer = msgpack.unpackb(told, object_hook=xpolicylab_numpy.decode)
                details = answer["payload"].get("details", {"code": "bad_message"})
                assert details["code"] == "bad_message", answer


def over_http(server: ServedProcess, chance: random.Random) -> None:
    picture = {"__numpy__": base64.b64encode(b"x" * 48).decode(), "dtype": chance.choice(["|u1", "|O", "<f8"]),
               "shape": chance.choice([[4, 4, 3], [1 << 50], [-1], "no"])}  # fmt: skip
    body = chance.choice([chance.randbytes(50), json.dumps({"observation/image": picture}).encode(), b"[" * 9000, b""])
    head = f"POST /act HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    answer = over_tcp(server.openpi, head + body)
    assert answer.startswith(b"HTTP/1.1 400"), answer[:200]


def broken_frames(server: ServedProcess, chance: random.Random) -> None:
    """A websocket that breaks the websocket's own rules, or stops in the middle and vanishes."""
    key = base64.b64encode(chance.randbytes(16)).decode()
    head = (f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n\r\n").encode()  # fmt: skip
    frames = [
        b"\x82\x05hello",  # not masked
        b"\x83\x80\0\0\0\0",  # an opcode that is reserved
        b"\xf2\x80\0\0\0\0",  # bits that are reserved
        b"\x80\x80\0\0\0\0",  # goes on with nothing
        b"\x89\xfe\x00\x7e" + b"\0" * 130,  # a ping that is too long
        b"\x82\xff" + struct.pack(">Q", 1 << 62) + b"\0" * 20,  # as long as the sea is deep
        b"\x82\xfe\x40\x00" + b"\0" * 50,  # half a frame
    ]
    over_tcp(server.openpi, head + chance.choice(frames), wait=False)


def over_tcp(port: int, data: bytes, *, wait: bool = True) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        with contextlib.suppress(ConnectionError):
            raw.sendall(data)
            if wait:
                return b"".join(iter(lambda: raw.recv(65536), b""))
        # closes with a reset, as a robot that loses its power: nothing more is sent
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return b""


def hostile(server: ServedProcess, count: int, seed: int) -> None:
    chance = random.Random(seed)
    ways: list[Callable[[], Any]] = [
        *[lambda: over_websocket(server, chance, server.openpi)] * 5,
        *[lambda: over_websocket(server, chance, server.xpolicylab)] * 2,
        *[lambda: over_vla_eval(server, chance)] * 2,
        lambda: over_http(server, chance),
        lambda: broken_frames(server, chance),
        lambda: over_tcp(server.openpi, chance.randbytes(60), wait=False),
    ]
    for _ in range(count):
        chance.choice(ways)()


def attacked(count: int) -> None:
    with served_process(handshake_seconds=2.0) as server:
        slow = [socket.create_connection(("127.0.0.1", server.openpi)) for _ in range(20)]
        for one in slow:
            one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")  # and never the rest
        with robots(server, 2, hertz=20) as answered:
            hostile(server, count // 10, seed=1)
            before = server.memory_mib()
            hostile(server, count - count // 10, seed=2)
            after = server.memory_mib()
        assert server.alive()
        assert min(answered) > 0
        assert after - before < GROWTH_MIB, (before, after)
        for one in slow:
            one.close()
        client = WebsocketClientPolicy("127.0.0.1", server.openpi)
        assert client.infer(message(3))["actions"][0, 0] == 3


def test_broken_messages_do_not_affect_other_clients() -> None:
    attacked(200)


@pytest.mark.slow
def test_ten_thousand_broken_messages_do_not_affect_other_clients() -> None:
    attacked(10_000)


@pytest.mark.slow
def test_fifty_robots_for_ten_minutes() -> None:
    """LIGHTWAM_SOAK_SECONDS shortens it."""
    seconds, hertz = float(os.environ.get("LIGHTWAM_SOAK_SECONDS", "600")), 2.0
    with served_process() as server, robots(server, 50, hertz, size=224) as answered:
        time.sleep(min(30.0, seconds / 4))
        before = server.memory_mib()
        time.sleep(seconds - min(30.0, seconds / 4))
        after = server.memory_mib()
        print(f"{sum(answered)} answers to 50 clients in {seconds:.0f} s, {before:.0f} MiB then {after:.0f}")
        assert min(answered) > 0.5 * seconds * hertz, answered
        assert after - before < GROWTH_MIB
    assert Path(f"/proc/{server.pid}").exists() is False
