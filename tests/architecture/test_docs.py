"""What the documents say can be done: links lead somewhere, commands exist, a recipe named is a recipe."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lightwam.cli import main as cli
from lightwam.config import recipes

LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
MAKE = re.compile(r"(?:^|`|\$ )make ([a-z-]+)", re.MULTILINE)
COMMAND = re.compile(r"(?:^|`|\$ )lightwam ([a-z]+)(?: ([a-z][\w/-]*))?", re.MULTILINE)
TAKES_A_RECIPE = ("demo", "collect", "cache", "train", "adopt", "show")


def pages(house: Any) -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in house.documents()}


def test_links_lead_somewhere(house: Any) -> None:
    wrong = []
    for path, text in pages(house).items():
        for found in LINK.findall(text):
            target = (found[0] or found[1]).split("#")[0]
            if target and "://" not in target and not (path.parent / target).exists():
                wrong.append(f"{path.relative_to(house.root)}: {target}")
    assert not wrong, wrong


def test_make_has_what_the_documents_name(house: Any) -> None:
    targets = house.make_targets()
    named = {word for text in pages(house).values() for word in MAKE.findall(text)}
    assert {"demo", "test"} <= named
    assert named <= targets


def test_commands_and_recipes_in_the_documents_exist(house: Any) -> None:
    wrong = []
    for path, text in pages(house).items():
        for command, word in COMMAND.findall(text):
            known = word in recipes.RECIPES or not word
            if command not in cli.COMMANDS or (command in TAKES_A_RECIPE and not known):
                wrong.append(f"{path.relative_to(house.root)}: lightwam {command} {word}")
    assert not wrong, wrong


@pytest.mark.parametrize(
    "target", ["demo", "test", "lint", "types", "slow", "lerobot", "lowest", "report", "gl", "browser", "clean"]
)
def test_make_can_plan_every_target(target: str, house: Any) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=house.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ci_runs_what_make_test_runs(house: Any) -> None:
    assert re.search(r"^make .*\btest$", (house.root / ".ci" / "run").read_text(), re.MULTILINE)


def test_the_readme_is_one_screen(house: Any) -> None:
    lines = (house.root / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60


def test_a_script_that_starts_processes_has_a_main_guard(house: Any) -> None:
    blocks = [
        (path.name, block)
        for path, text in pages(house).items()
        for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        if re.search(r"\b(evaluate|collect|watch|check_experts|Workers|bench_\w+)\(", block)
    ]
    assert {"python.md", "evaluation.md"} <= {name for name, _ in blocks}
    assert all('if __name__ == "__main__":' in block for _, block in blocks)


def test_every_test_that_a_document_names_exists(house: Any) -> None:
    named = {found for text in pages(house).values() for found in re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)}
    texts = [(path.name, path.read_text(encoding="utf-8")) for path in (house.root / "tests").glob("*/test_*.py")]
    there = {(file, test) for file, text in texts for test in re.findall(r"def (test_\w+)\(", text)}
    missing = sorted(named - there)
    assert len(named) > 60 and not missing, missing
