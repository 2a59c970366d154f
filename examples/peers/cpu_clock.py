"""Run a command, and begin each line that it prints with the processor seconds it has used until then (Linux).

    python examples/peers/cpu_clock.py lightwam train demo > train.log

On a machine that does other work too, two trainings have had the same budget when these seconds are equal; wall time
depends on the other work. Processes that the command starts, such as a loader's workers, are included.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return user and system seconds of a process, its ended children that it waited for, and its running ones."""
    try:
        # the name of the program, in brackets, may have spaces: the numbers are counted from the last bracket
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text(encoding="utf-8").split()
        ]
    except (FileNotFoundError, ProcessLookupError):  # it has ended since it was listed
        return 0.0
    own = sum(map(int, fields[11:15])) / TICKS  # utime, stime, cutime, cstime
    return own + sum(map(cpu_seconds, children))


def main(command: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    environment, pipe = os.environ | {"PYTHONUNBUFFERED": "1"}, subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"{cpu_seconds(process.pid):9.1f}  {line.decode(errors='replace')}", end="", flush=True)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
