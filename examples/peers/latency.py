"""Time policies of lightwam's and of LeRobot's side by side: milliseconds a chunk at batch 1, and memory.

    python examples/peers/latency.py lightwam=runs/demo act=outputs/act

NAME=PATH is a run, which acts by its engine, or a checkpoint of LeRobot's. Each policy has a process of its own, so
that its memory is known; the processes are asked in turns, and wait otherwise. Pictures are random: times do not
depend on them. Needs an environment with LeRobot and lightwam (`make lerobot`).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightwam import Observation, Policy
from lightwam.config.recipes import demo
from lightwam.system.machine import machine
from lightwam.system.tables import table_lines
from lightwam.system.timing import CPU, time_interleaved

MIB = 2**20
HEAD = ("policy", "p50, ms", "p95, ms", "CPU ms", "chunk", "executed", "MiB", "imports", "calls", "warm-up")


def load(path: str) -> tuple[Any, int, float]:
    """Return the policy at `path`, the steps of a chunk that it executes, and the MiB that its imports took."""
    if (Path(path) / "recipe.json").is_file():
        imports = resident_mib()
        policy = Policy.load(path, device="cpu", engine=True)
        return policy, policy.recipe.eval.replan, imports
    from lerobot_policy_lightwam.served_policy import ServedPolicy

    imports = resident_mib()
    served = ServedPolicy.load(path, "cpu")
    return served, served.replan, imports


def resident_mib() -> float:
    """Return the resident memory of this process (Linux)."""
    pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / MIB


def observation(num_before: int) -> Observation:
    """Return a random observation of the demo's robot, with `num_before` observations before it."""
    recipe, random = demo(), np.random.default_rng(0)
    sim = recipe.simulation
    frames = {camera: random.integers(0, 256, (sim.height, sim.width, 3), np.uint8) for camera in sim.cameras}
    state = np.zeros(recipe.model.state_dim, np.float32)
    before = (Observation(frames, state, "open the drawer"),) * num_before
    return Observation(frames, state, "open the drawer", episode=0, step=0, history=before)


def answer(path: str, connection: Connection) -> None:
    """Compute a chunk whenever the parent process asks."""
    policy, replan, imports = load(path)
    seen, took = observation(max(1, getattr(policy, "n_obs_steps", 1)) - 1), list[float]()
    with contextlib.suppress(EOFError):  # the parent has ended
        while connection.recv():
            began = time.process_time()
            (chunk,) = policy.act_batch([seen])
            took.append(1000 * (time.process_time() - began))
            about = {"chunk": len(chunk), "replan": replan, "imports_mib": imports, "mib": resident_mib()}
            connection.send(about | {"cpu_ms": statistics.median(took)})


def ask(connection: Connection) -> dict[str, Any]:
    """Let the process at the other end compute a chunk; return what it says of itself."""
    connection.send(True)
    about: dict[str, Any] = connection.recv()
    return about


def measure(paths: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return milliseconds and memory of the policy at each path, by name; a call includes 0.1 ms between processes."""
    context, connections = multiprocessing.get_context("spawn"), dict[str, Connection]()
    for name, path in paths.items():
        connections[name], other = context.Pipe()
        context.Process(target=answer, args=(path, other), daemon=True).start()
        other.close()  # so that a process that has failed is an EOFError here
        ask(connections[name])
    times = time_interleaved({name: partial(ask, one) for name, one in connections.items()}, CPU, print)
    return {name: times[name] | ask(one) for name, one in connections.items()}


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """Return a row of the table."""
    times = [f"{row[key]:.1f}" for key in ("p50_ms", "p95_ms", "cpu_ms")]
    memory = [f"{row[key]:.0f}" for key in ("mib", "imports_mib")]
    return [name, *times, str(row["chunk"]), str(row["replan"]), *memory, str(row["repetitions"]), str(row["warm_up"])]


def main(arguments: Sequence[str]) -> None:
    """Measure the policies and print a table."""
    rows = measure(dict(argument.split("=", 1) for argument in arguments))
    print(f"batch 1, float32, {torch.get_num_threads()} threads, torch {torch.__version__}, {machine()['processor']}")
    print("\n".join(table_lines([HEAD, *(cells(*row) for row in rows.items())])))


if __name__ == "__main__":
    main(sys.argv[1:])
