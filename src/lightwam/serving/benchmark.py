"""What serving adds to acting: round trips with a policy that does nothing, and /healthz while one thinks."""

from __future__ import annotations

import asyncio
import http.client
import json
import multiprocessing
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import websockets.sync.client
from jaxtyping import Float32

from lightwam.serving.server import Server
from lightwam.serving.settings import Serving
from lightwam.system.machine import machine, versions
from lightwam.system.workers import require_main_guard
from lightwam.types import Observation
from lightwam.wire.openpi import pack, unpack
from lightwam.wire.robot_schemas import schemas_for

WARM_UP, ROUND_TRIPS, GLANCES = 100, 2000, 100
THINKING_SECONDS = 1.0
HORIZON, ACTION_DIM, STATE_DIM = 32, 7, 8


def bench_serve(*, as_json: bool = False, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure and print milliseconds: openpi's round trip with two 224x224 pictures, and /healthz.

    The server is a process of its own, the client this one, in openpi's format. Returns what is printed.
    """
    with served(0.0) as port, openpi_client(port) as (ask, message), bare(message) as send:
        both = [(_seconds(ask), _seconds(send)) for _ in range(WARM_UP + ROUND_TRIPS)][WARM_UP:]
        times, floor = zip(*both, strict=True)
    with served(THINKING_SECONDS) as port, openpi_client(port) as (_, message), _connect(port) as talking:
        talking.recv()
        glances: list[float] = []
        while len(glances) < GLANCES:
            talking.send(message)
            for _ in range(10):
                time.sleep(0.05)
                glances.append(_seconds(lambda: _healthz(port)))
            talking.recv()
    result: dict[str, Any] = {
        "round_trip": _percentiles(times),
        "bare_sockets": _percentiles(floor),
        "healthz_while_thinking": _percentiles(glances) | {"max_ms": 1000 * max(glances)},
        "message_bytes": len(message),
        "warm_up": WARM_UP,
        "repetitions": {"round_trip": len(times), "healthz": len(glances)},
        "machine": machine(),
        "versions": versions() | {"aiohttp": versions(("aiohttp",)).get("aiohttp", "")},
    }
    if as_json:
        say(json.dumps(result, indent=2))
        return result
    say(f"openpi round trip, {len(message) / 1024:.0f} KiB there, no-op policy: {_line(result['round_trip'])}")
    say(f"the same bytes over bare sockets, in turns with it: {_line(result['bare_sockets'])}")
    say(f"GET /healthz while the model thinks for {THINKING_SECONDS:.0f} s: {_line(result['healthz_while_thinking'])}")
    say(f"{ROUND_TRIPS} round trips after {WARM_UP}, {len(glances)} looks; {result['machine']}")
    return result


@contextmanager
def served(thinking_seconds: float, **settings: Any) -> Iterator[int]:
    """The port of a server in a process of its own, whose policy does nothing for so long."""
    require_main_guard()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    serving = replace(Serving(port=0, xpolicylab_port=None), **settings)
    process = context.Process(target=_serve, args=(thinking_seconds, serving, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _serve(thinking_seconds: float, settings: Serving, ready: Connection) -> None:
    def act(observations: Sequence[Observation]) -> Float32[np.ndarray, "B H A"]:
        time.sleep(thinking_seconds)
        return np.zeros((len(observations), HORIZON, ACTION_DIM), np.float32)

    schemas = schemas_for(("libero",), ("agentview", "wrist"), STATE_DIM, ACTION_DIM, {})
    server = Server(act, 0, schemas, {"policy": "no-op"}, settings)
    asyncio.run(server.run(lambda one: ready.send(one.ports["openpi"])))


@contextmanager
def bare(message: bytes) -> Iterator[Callable[[], Any]]:
    """As many bytes to a process that only takes them, and a few back: what this machine needs for that at least."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_take, args=(len(message), theirs), daemon=True)
    process.start()
    with socket.create_connection(("127.0.0.1", ours.recv())) as connection:

        def send() -> None:
            connection.sendall(message)
            connection.recv(1024)

        yield send
    process.join()


def _take(size: int, ready: Connection) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ready.send(server.getsockname()[1])
        connection, _ = server.accept()
        with connection:
            left = size
            while got := len(connection.recv(left)):
                left -= got
                if not left:
                    connection.sendall(bytes(1024))
                    left = size


@contextmanager
def openpi_client(port: int) -> Iterator[tuple[Callable[[], Any], bytes]]:
    """A LIBERO client of openpi: one round trip, packing and unpacking included, and what it sends."""
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    observation = {
        "observation/image": pictures[0],
        "observation/wrist_image": pictures[1],
        "observation/state": np.zeros(STATE_DIM, np.float32),
        "prompt": "put the bowl on the plate",
    }
    with _connect(port) as talking:
        talking.recv()

        def ask() -> Any:
            talking.send(pack(observation))
            answer = talking.recv()
            assert isinstance(answer, bytes), answer
            return unpack(answer)

        yield ask, pack(observation)


def _connect(port: int) -> websockets.sync.client.ClientConnection:
    return websockets.sync.client.connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None)


def _healthz(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/healthz")
    assert connection.getresponse().read() == b"OK\n"
    connection.close()


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{q}_ms": float(1000 * np.percentile(seconds, q)) for q in (50, 95, 99)}


def _line(row: dict[str, float]) -> str:
    return ", ".join(f"{name.removesuffix('_ms')} {value:.2f} ms" for name, value in row.items())
