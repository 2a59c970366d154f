"""The GPU's clocks, power and temperature while it is measured, by nvidia-smi in the background."""

from __future__ import annotations

import shutil
import subprocess
from threading import Lock, Thread
from typing import Any

import torch

FIELDS = {"clocks.sm": "sm_mhz", "clocks.mem": "memory_mhz", "power.draw": "watts", "temperature.gpu": "celsius"}
"""nvidia-smi's names -> ours"""
INTERVAL_MS = 500


class Clocks:
    """A context in which nvidia-smi reads the clocks of a GPU twice a second; without nvidia-smi it reads nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process: subprocess.Popen[str] | None = None
        self._readings: list[tuple[float, ...]] = []
        self._lock = Lock()

    def __enter__(self) -> Clocks:
        if self._device.type == "cuda" and (program := shutil.which("nvidia-smi")):
            identity = f"--id=GPU-{torch.cuda.get_device_properties(self._device).uuid}"
            self._start(program, identity)
        return self

    def _start(self, program: str, identity: str) -> None:
        query = [f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits", f"--loop-ms={INTERVAL_MS}"]
        self._process = subprocess.Popen(
            [program, identity, *query], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
        )
        self._thread = Thread(target=self._read, args=(self._process,), daemon=True)
        self._thread.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                try:
                    reading = tuple(float(number) for number in line.split(","))
                except ValueError:  # a GPU that does not tell all of them writes [N/A]
                    continue
                if len(reading) == len(FIELDS):
                    with self._lock:
                        self._readings.append(reading)

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._thread.join()

    def restart(self) -> None:
        """Forget what was read so far."""
        with self._lock:
            self._readings.clear()

    def seen(self) -> dict[str, Any]:
        """Return the least and the largest of each reading since `restart`; {} if there was none."""
        with self._lock:
            if not self._readings:
                return {}
            columns = zip(*self._readings, strict=True)
            return {name: [min(column), max(column)] for name, column in zip(FIELDS.values(), columns, strict=True)}
