"""A server in a thread of this process, for tests that talk to it over real sockets on 127.0.0.1."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from lightwam.serving.access import Keys
from lightwam.serving.server import Server
from lightwam.serving.settings import Serving
from lightwam.types import Observation
from lightwam.wire.robot_schemas import schemas_for

LIBERO = (("agentview", "wrist"), 8, 7)
"""cameras, state and action sizes that LIBERO's and openpi's clients know"""


def mirror(observations: Sequence[Observation]) -> np.ndarray:
    """Actions that tell who asked: three steps of the state's first seven numbers."""
    return np.stack([np.tile(one.state[:7].astype(np.float32), (3, 1)) for one in observations])


def message(number: float = 0.0, size: int = 8) -> dict[str, Any]:
    """What a LIBERO client of openpi sends; its state says who it is."""
    picture = np.full((size, size, 3), 7, np.uint8)
    return {
        "observation/image": picture,
        "observation/wrist_image": picture,
        "observation/state": np.full(8, number, np.float32),
        "prompt": "put the bowl on the plate",
    }


@contextmanager
def serving(act: Any = mirror, keys: Sequence[str] = (), load_newer: Any = None, **settings: Any) -> Iterator[Server]:
    """A server that listens, and stops and drains when the block ends."""
    schemas = settings.pop("schemas_of", None) or schemas_for(("libero",), *LIBERO, {})
    check, metadata = settings.pop("check_sentence", None), settings.pop("metadata", {"recipe": "test"})
    replan = settings.pop("replan", None)
    options = Serving(**{"port": 0, "xpolicylab_port": 0} | settings)
    server = Server(act, 1, schemas, metadata, options, Keys(keys), load_newer, check_sentence=check, replan=replan)
    del act  # so that only the server keeps it
    listening, failures = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            asyncio.run(server.run(ready))
        except BaseException as error:
            failures.append(error)
            listening.set()

    def ready(_: Server) -> None:
        LOOPS[id(server)] = asyncio.get_running_loop()
        SERVERS.append(server)
        listening.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert listening.wait(20)
    try:
        if failures:
            raise failures[0]
        yield server
    finally:
        stop(server)
        thread.join(20)
        LOOPS.pop(id(server), None)
        SERVERS.remove(server) if server in SERVERS else None
        assert not thread.is_alive()
    if failures:
        raise failures[0]


LOOPS: dict[int, asyncio.AbstractEventLoop] = {}


def running() -> list[Server]:
    """Servers of this process that have not stopped yet."""
    return [server for server in SERVERS if id(server) in LOOPS and not LOOPS[id(server)].is_closed()]


SERVERS: list[Server] = []


def stop(server: Server) -> None:
    """Asks the server to drain; does not wait for it."""
    loop = LOOPS.get(id(server))
    if loop is not None and loop.is_running():
        loop.call_soon_threadsafe(server.stopping.set)
