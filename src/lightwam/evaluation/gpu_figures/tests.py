"""The tests that need a GPU, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from lightwam.evaluation.gpu_figures.setup import Figure, Setup, skipped
from lightwam.system.files import write_file

ROOT = Path(__file__).parents[4]
"""the repository, if lightwam runs from it"""
MARK = "pytest.mark.gpu"
LEAST_SECONDS, MOST_SECONDS = 60.0, 240.0


def figures(setup: Setup) -> Mapping[str, Figure]:
    """Return the section's figures by name."""
    if not (ROOT / "tests").is_dir():
        return {"gpu tests": skipped("lightwam runs without its repository")}
    return {"gpu tests": setup.on_gpu_only(partial(_run, setup))}


def _run(setup: Setup) -> dict[str, Any]:
    return run_tests(ROOT, setup.out, min(max(setup.seconds_left, LEAST_SECONDS), MOST_SECONDS))


def run_tests(root: Path, out: Path, limit_s: float) -> dict[str, Any]:
    """Run the tests of `root` that are marked "gpu"; returns their numbers, and what failed. OUT/tests.txt is the log.

    Warnings are no errors, as other versions than the pinned ones have warnings of their own, and a file whose imports
    are missing counts as one that could not be loaded.
    """
    files = sorted(path for path in (root / "tests").rglob("test_*.py") if MARK in path.read_text(encoding="utf-8"))
    report = out.resolve() / "tests.xml"
    options = ["-m", "gpu", "-q", "-o", "filterwarnings=default", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command = [sys.executable, "-m", "pytest", *options, "--continue-on-collection-errors", *map(str, files)]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, timeout=limit_s)
    except subprocess.TimeoutExpired as late:
        write_file(out / "tests.txt", (late.stdout or b"").decode(errors="replace"))
        raise
    write_file(out / "tests.txt", (done.stdout + done.stderr).decode(errors="replace"))
    cases = list(ElementTree.parse(report).iter("testcase"))
    report.unlink()
    bad = {
        kind: [_name(case) for case in cases if case.find(kind) is not None] for kind in ("failure", "error", "skipped")
    }
    count = len(cases) - sum(map(len, bad.values()))
    return {"passed": count, "failed": bad["failure"], "not_loaded": bad["error"], "not_run": bad["skipped"]}


def _name(case: ElementTree.Element) -> str:
    return "::".join(filter(None, (case.get("classname"), case.get("name"))))
