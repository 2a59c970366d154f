"""`lightwam play` in a process of its own, to be ended and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@dataclass
class PlayedProcess:
    """The command, and the address that it printed."""

    process: subprocess.Popen[str]
    address: str

    def simulators(self) -> list[int]:
        """Processes that the server started, but Python's own for shared resources."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        found = [int(word) for file in children for word in file.read_text(encoding="utf-8").split()]
        return [pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def stop(self) -> int:
        """End it as Ctrl-C does, and return its exit status."""
        os.kill(self.process.pid, signal.SIGINT)
        return self.process.wait(30)


@contextmanager
def played_process(run: Path, port: int, *options: str) -> Iterator[PlayedProcess]:
    """Serve a run's page until the block ends, unless it is stopped in it."""
    command = [sys.executable, "-m", "lightwam", "play", str(run), "--port", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("open http"), line
            yield PlayedProcess(process, line.split()[1])
        finally:
            process.terminate()
            process.wait(30)
