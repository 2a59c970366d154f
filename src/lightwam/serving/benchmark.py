"""What serving adds to acting: round trips with a policy that does nothing, and /healthz while one computes.

`bench_robots` serves a real engine, with random weights, to several robots at once.
"""

from __future__ import annotations

import asyncio
import http.client
import multiprocessing
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from threading import Barrier
from typing import Any

import numpy as np
import torch
import websockets.sync.client
from jaxtyping import Float32

from lightwam.config.schema import Recipe
from lightwam.policy.benchmark import acting_dtype, random_engine, random_observation, random_policy
from lightwam.robot.client import Client
from lightwam.serving.serve import warm
from lightwam.serving.server import Server
from lightwam.serving.settings import Serving
from lightwam.system.machine import machine, versions
from lightwam.system.tables import table_lines
from lightwam.system.timing import FEWEST, in_turns, percentiles, seconds
from lightwam.system.workers import require_main_guard
from lightwam.types import Observation
from lightwam.wire.openpi import pack, unpack
from lightwam.wire.robot_schema import RobotSchema
from lightwam.wire.robot_schemas import schemas_for

WARM_UP, ROUND_TRIPS, HEALTH_CHECKS = 100, 2000, 100
THINKING_SECONDS = 1.0
ROBOT_WARM_UP, ROBOT_ROUND_TRIPS, ROBOT_SECONDS = 30, 300, 6.0
"""of each robot of `bench_robots`; the first round trips warm every size of batch that occurs"""
FIRST_ANSWER_SECONDS = 120.0
"""a first answer of a batch's size may capture a graph"""
HORIZON, ACTION_DIM, STATE_DIM = 32, 7, 8


def bench_serve() -> dict[str, Any]:
    """Measure openpi's round trip with two 224x224 pictures, and /healthz; returns plain JSON values, see `table`.

    The server is a process of its own, this one is the client, in openpi's format.
    """
    with served(0.0) as port, openpi_client(port) as (ask, message), bare(message) as send:
        calls = {"round_trip": ask, "bare_sockets": send}
        timers = {name: partial(_milliseconds, call) for name, call in calls.items()}
        trips = in_turns(timers, range(WARM_UP + ROUND_TRIPS))
    with served(THINKING_SECONDS) as port, _connect(port) as connection:
        health: list[float] = []
        while len(health) < HEALTH_CHECKS:
            connection.send(message)
            for _ in range(10):
                time.sleep(0.05)
                health.append(_milliseconds(partial(_healthz, port)))
            connection.recv()
    return {
        **{name: percentiles(times[WARM_UP:], "_ms") for name, times in trips.items()},
        "healthz_while_thinking": percentiles(health, "_ms") | {"max_ms": max(health)},
        "message_bytes": len(message),
        "warm_up": WARM_UP,
        "repetitions": {"round_trip": ROUND_TRIPS, "healthz": len(health)},
        "machine": machine(),
        "versions": versions() | versions(("aiohttp",)),
    }


def bench_robots(recipe: Recipe, counts: Sequence[int], device: torch.device) -> dict[str, dict[str, float]]:
    """Serve an engine with random weights to several robots, each of which asks again as soon as it is answered.

    The server is a process of its own; the robots are threads of this one, with the client of `lightwam.robot`. Of each
    number of robots: milliseconds of a round trip, from observation to chunk, and the chunks a second of all robots.
    """
    require_main_guard()
    schema, *_ = _schemas(recipe)
    message = schema.message(random_observation(recipe))
    results = {}
    with _process(_serve_engine, recipe, device) as port:
        for count in counts:
            ready = Barrier(count)
            ask = partial(_robot, port, message, ready)
            with ThreadPoolExecutor(count) as pool:
                robots = [robot.result() for robot in [pool.submit(ask) for _ in range(count)]]
            trips = [took for robot in robots for took in robot]
            row = percentiles(trips, "_ms") | {"chunks_per_second": 1000 * sum(len(r) / sum(r) for r in robots)}
            results[str(count)] = row | {"warm_up": ROBOT_WARM_UP, "repetitions": len(trips)}
    return results


def _robot(port: int, message: Mapping[str, Any], ready: Barrier) -> list[float]:
    """Return milliseconds of a robot's round trips, which it begins when all are warm."""
    with Client(f"ws://127.0.0.1:{port}", timeout_seconds=FIRST_ANSWER_SECONDS) as client:
        try:
            for _ in range(ROBOT_WARM_UP):
                client.act(message)
        except BaseException:
            ready.abort()  # the others must not wait for this one
            raise
        ready.wait()
        until, trips = time.perf_counter() + ROBOT_SECONDS, list[float]()
        while len(trips) < ROBOT_ROUND_TRIPS and (len(trips) < FEWEST or time.perf_counter() < until):
            trips.append(_milliseconds(partial(client.act, message)))
    return trips


def _schemas(recipe: Recipe) -> list[RobotSchema]:
    model, cameras = recipe.model, [place.camera for place in recipe.codec.places]
    return schemas_for(("light-wam",), cameras, model.state_dim, model.action_dim, {})


def _serve_engine(recipe: Recipe, device: torch.device, ready: Connection) -> None:
    policy = random_engine(random_policy(recipe, device), acting_dtype(recipe, device))
    settings = Serving(port=0, xpolicylab_port=None)
    warm(policy, settings.max_batch)
    server = Server(policy.act_batch, 0, _schemas(recipe), {"policy": "random weights"}, settings)
    asyncio.run(server.run(lambda started: ready.send(started.ports["openpi"])))


def table(result: Mapping[str, Any]) -> str:
    """Return the result as text."""
    heads = ("p50", "p95", "p99", "max")
    kinds = {
        f"openpi round trip, {result['message_bytes'] / 1024:.0f} KiB there, no-op policy": result["round_trip"],
        "the same bytes over bare sockets, in turns with it": result["bare_sockets"],
        f"GET /healthz while the model computes for {THINKING_SECONDS:.0f} s": result["healthz_while_thinking"],
    }
    rows = [["ms", *heads]]
    for name, row in kinds.items():
        rows.append([name, *(f"{row[f'{head}_ms']:.2f}" for head in heads if f"{head}_ms" in row)])
    counts, on = result["repetitions"], result["machine"]
    about = f"{counts['round_trip']} round trips after {result['warm_up']}, {counts['healthz']} health checks"
    return "\n".join([*table_lines(rows, indent=0), f"{about}; {on['cores']} cores of {on['processor']}"])


@contextmanager
def _process(target: Callable[..., None], *arguments: Any) -> Iterator[int]:
    """Yield the port on which a process serves: target(*arguments, connection), which sends the port."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, theirs), daemon=True)
    process.start()
    theirs.close()  # so that `recv` ends with a process that ends early
    try:
        try:
            port = ours.recv()
        except EOFError:
            raise RuntimeError("the server's process ended before it listened; stderr has its error") from None
        yield port
    finally:
        process.terminate()
        process.join()


def served(thinking_seconds: float, **settings: Any) -> AbstractContextManager[int]:
    """Yield the port of a server process whose policy does nothing for `thinking_seconds`."""
    require_main_guard()
    return _process(_serve, thinking_seconds, replace(Serving(port=0, xpolicylab_port=None), **settings))


def _serve(thinking_seconds: float, settings: Serving, ready: Connection) -> None:
    def act(observations: Sequence[Observation]) -> Float32[np.ndarray, "B H A"]:
        time.sleep(thinking_seconds)
        return np.zeros((len(observations), HORIZON, ACTION_DIM), np.float32)

    schemas = schemas_for(("libero",), ("agentview", "wrist"), STATE_DIM, ACTION_DIM, {})
    server = Server(act, 0, schemas, {"policy": "no-op"}, settings)
    asyncio.run(server.run(lambda started: ready.send(started.ports["openpi"])))


@contextmanager
def bare(message: bytes) -> Iterator[Callable[[], Any]]:
    """Yield a call that sends as many bytes to a bare socket and receives a few: the least this machine needs."""
    with _process(_receive, len(message)) as port, socket.create_connection(("127.0.0.1", port)) as connection:

        def send() -> None:
            connection.sendall(message)
            connection.recv(1024)

        yield send


def _receive(size: int, ready: Connection) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ready.send(server.getsockname()[1])
        connection, _ = server.accept()
        with connection:
            while connection.recv(size, socket.MSG_WAITALL):
                connection.sendall(bytes(1024))


@contextmanager
def openpi_client(port: int) -> Iterator[tuple[Callable[[], Any], bytes]]:
    """Yield one round trip of openpi's LIBERO client, packing and unpacking included, and its message."""
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    observation = {
        "observation/image": pictures[0],
        "observation/wrist_image": pictures[1],
        "observation/state": np.zeros(STATE_DIM, np.float32),
        "prompt": "put the bowl on the plate",
    }
    with _connect(port) as connection:

        def ask() -> Any:
            connection.send(pack(observation))
            answer = connection.recv()
            assert isinstance(answer, bytes), answer
            return unpack(answer)

        yield ask, pack(observation)


@contextmanager
def _connect(port: int) -> Iterator[websockets.sync.client.ClientConnection]:
    url = f"ws://127.0.0.1:{port}"
    with websockets.sync.client.connect(url, compression=None, max_size=None) as connection:
        connection.recv()  # the server's metadata
        yield connection


def _healthz(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/healthz")
    assert connection.getresponse().read() == b"OK\n"
    connection.close()


def _milliseconds(call: Callable[[], Any], number: int = 0) -> float:
    return 1000 * seconds(call)
