"""examples/peers/cpu_clock.py: lines with the processor time used until each, the command's children included."""

import subprocess
import sys
from pathlib import Path

import pytest

CLOCK = Path(__file__).parents[2] / "examples" / "peers" / "cpu_clock.py"
BUSY = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
CHILD = BUSY + "print('child', flush=True); input()"
SCRIPT = f"""
import subprocess, sys
{BUSY}
print("computed", flush=True)
time.sleep(0.5)
print("slept", flush=True)
subprocess.run([sys.executable, "-c", {CHILD!r}], input=b"\\n")
sys.exit("ended")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_lines_begin_with_the_processor_seconds_used() -> None:
    command = [sys.executable, CLOCK, sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    rows = [line.split() for line in done.stdout.splitlines()]
    at = {word: float(seconds) for seconds, word in rows}
    assert list(at) == ["computed", "slept", "child", "ended"] and done.returncode == 1
    assert at["computed"] >= 0.3
    assert at["slept"] - at["computed"] < 0.25, "sleeping is free"
    assert at["child"] - at["slept"] >= 0.3, "a running child counts"
    assert at["ended"] >= at["child"], "and so does one that has ended"
