"""A server in a process of its own, whose policy mirrors the state: for tests that attack, measure or kill it."""

import asyncio
import multiprocessing
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any


@dataclass
class ServedProcess:
    """Its ports, and what can be seen of it from outside."""

    process: BaseProcess
    openpi: int
    xpolicylab: int

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def alive(self) -> bool:
        return self.process.is_alive()

    def memory_mib(self) -> float:
        """Resident memory."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8"))
        assert found is not None
        return int(found.group(1)) / 1024

    def stop(self) -> None:
        """As somebody who starts it again."""
        os.kill(self.pid, signal.SIGTERM)
        self.process.join(30)

    def kill(self) -> None:
        """As a machine that loses its power."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.join()


@contextmanager
def served_process(**settings: Any) -> Iterator[ServedProcess]:
    """Serves until the block ends, unless it is killed in it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(settings, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ServedProcess(process, *ours.recv())
    finally:
        process.terminate()
        process.join()


def _serve(settings: dict[str, Any], ready: Connection) -> None:
    from serving import LIBERO, mirror

    from lightwam.serving.server import Server
    from lightwam.serving.settings import Serving
    from lightwam.wire.robot_schemas import schemas_for

    server = Server(
        mirror, 1, schemas_for(("libero",), *LIBERO, {}), {}, Serving(**{"port": 0, "xpolicylab_port": 0} | settings)
    )
    signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(server.stopping.set))
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        runner.run(server.run(lambda one: ready.send((one.ports["openpi"], one.ports["xpolicylab"]))))
