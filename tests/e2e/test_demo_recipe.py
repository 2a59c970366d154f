"""The demo as a newcomer runs it, whole: a quarter of an hour, so `make slow` runs it and `make test` does not."""

import json
from pathlib import Path

import pytest

from lightwam.cli.pipeline import demo
from lightwam.config import recipe_files
from lightwam.evaluation.statistics import wilson


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(3600)
def test_the_demo_solves_its_tasks_and_reads_its_sentences(tmp_path: Path) -> None:
    demo(recipe_files.recipe("demo"), tmp_path / "demo")
    result = json.loads((tmp_path / "demo" / "result.json").read_text())
    assert result["trials"] == 80
    assert result["successes"] >= 0.9 * result["trials"], result["tasks"]
    swap = json.loads((tmp_path / "demo" / "eval" / "swap.json").read_text())
    right, swapped = (wilson(swap[name]["successes"], swap[name]["trials"]) for name in ("right", "swapped"))
    assert swapped[1] < right[0], "with another task's sentence the policy must fail"
    assert (tmp_path / "demo" / "report.html").stat().st_size > 100_000
