"""Time policies of lightwam and of LeRobot side by side: milliseconds a chunk at batch 1, and memory.

    python examples/peers/latency.py lightwam=runs/demo act=outputs/act

NAME=PATH is a run of lightwam's, which acts by its engine, or a checkpoint of LeRobot's. Each policy has a process of its own,
so that its memory can be told; the processes are asked in turns, one at a time, and wait otherwise. Pictures are random:
times do not depend on them. Needs an environment with LeRobot and lightwam (`make lerobot`).
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

RECIPE = "demo"
"""of its simulator the observations have cameras and sizes"""
MIB = 2**20


def load(path: str) -> tuple[Any, float]:
    """Return the policy at `path`, and the resident MiB of this process when its code was imported."""
    if (Path(path) / "recipe.json").is_file():
        from lightwam import Policy

        imported = resident_mib()
        return Policy.load(path, device="cpu", engine=True), imported
    from lerobot_policy_lightwam.served_policy import ServedPolicy

    imported = resident_mib()
    return ServedPolicy.load(path, "cpu"), imported


def observe(num_before: int) -> Any:
    """Return a random observation of the recipe's robot, with `num_before` observations before it."""
    from lightwam import Observation
    from lightwam.config.recipe_files import recipe

    chosen, random = recipe(RECIPE), np.random.default_rng(0)
    sim = chosen.simulation
    frames = {camera: random.integers(0, 256, (sim.height, sim.width, 3), np.uint8) for camera in sim.cameras}
    state = np.zeros(chosen.model.state_dim, np.float32)
    one = Observation(frames, state, "open the drawer", episode=0, step=0)
    return Observation(frames, state, "open the drawer", episode=0, step=0, history=(one,) * num_before)


def resident_mib() -> float:
    """Return the resident memory of this process (Linux)."""
    import os

    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def serve(path: str, connection: Connection) -> None:
    """Answer each request of the parent process with a chunk's shape and this process's memory, until it sends None."""
    policy, imported = load(path)
    observation = observe(max(0, getattr(policy, "n_obs_steps", 0) - 1))
    replan = getattr(policy, "replan", 0) or policy.recipe.eval.replan
    while connection.recv():
        (chunk,) = policy.act_batch([observation])
        connection.send({"chunk": len(chunk), "replan": replan, "imported_mib": imported, "mib": resident_mib()})


def ask(connection: Connection) -> dict[str, Any]:
    """Let the process at the other end compute a chunk."""
    connection.send(True)
    answer: dict[str, Any] = connection.recv()
    return answer


def measure(policies: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return milliseconds and memory of each policy, asked in turns; `policies` maps names to paths."""
    from lightwam.system.timing import CPU, time_interleaved

    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    processes = []
    for name, path in policies.items():
        connections[name], other = context.Pipe()
        processes.append(context.Process(target=serve, args=(path, other), daemon=True))
        processes[-1].start()
        other.close()
        ask(connections[name])  # loaded
    times = time_interleaved({name: partial(ask, one) for name, one in connections.items()}, CPU, print)
    rows = {name: times[name] | ask(one) for name, one in connections.items()}
    for connection, process in zip(connections.values(), processes, strict=True):
        connection.send(None)
        process.join()
    return rows


def main(arguments: Sequence[str]) -> None:
    """Measure the policies and print a table."""
    from lightwam.system.machine import machine
    from lightwam.system.tables import table_lines

    rows = measure(dict(argument.split("=", 1) for argument in arguments))
    head = ["policy", "p50, ms", "p95, ms", "ms a control step", "chunk", "executed", "MiB", "of it imports", "calls", "warm-up"]
    cells = [
        [
            name,
            f"{row['p50_ms']:.1f}",
            f"{row['p95_ms']:.1f}",
            f"{row['p50_ms'] / row['replan']:.2f}",
            str(row["chunk"]),
            str(row["replan"]),
            f"{row['mib']:.0f}",
            f"{row['imported_mib']:.0f}",
            str(row["repetitions"]),
            str(row["warm_up"]),
        ]
        for name, row in rows.items()
    ]
    import torch

    print(f"batch 1, float32, {torch.get_num_threads()} threads, torch {torch.__version__}, {machine()['processor']}")
    print("\n".join(table_lines([head, *cells])))


if __name__ == "__main__":
    main(sys.argv[1:])
