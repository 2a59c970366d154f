"""Commands as a user types them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def command(name: str, *arguments: str) -> str:
    """Run a command of this environment and return what it said; fails the test with that when it fails."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    program = Path(sys.executable).parent / name
    done = subprocess.run([program, *arguments], capture_output=True, text=True, env=environment)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    return said
