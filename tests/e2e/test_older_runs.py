"""A run directory and a dataset of an earlier version: they load, act, are evaluated and are resumed as they were.

tests/data/run_3719b6d was written by commit 3719b6d: `lightwam collect point --collect.demos-per-task 1`, then
`lightwam train point --train.steps 4 --train.save-every 2` at a small width, of which only step 2 is kept. The numbers
below are what that commit computed from it.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightwam import Policy
from lightwam.evaluation.evaluate import evaluate
from lightwam.policy.run_directory import read_recipe
from lightwam.training.train import train
from lightwam.types import Observation

WRITTEN = Path(__file__).parents[1] / "data" / "run_3719b6d"
ACTIONS = [
    [-0.0107073, -0.4747256],
    [-0.0030529, -0.5033224],
    [0.0082742, -0.4937319],
    [0.0016121, -0.4705483],
    [-0.0081193, -0.4523213],
    [-0.0136780, -0.4442011],
    [-0.0209446, -0.4497913],
    [-0.0287461, -0.4679528],
]
RENAMED = ["'turn' is now 'demos_per_turn'", "'listeners' is now 'loggers'"]
pytestmark = [pytest.mark.filterwarnings(f"ignore:.*{words}:FutureWarning") for words in RENAMED]
LOSSES = {3: 4.343107, 4: 3.232005}


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A copy of what was written, as tests write into it."""
    return Path(shutil.copytree(WRITTEN, tmp_path / "older"))


def test_an_older_run_acts_as_it_did(older: Path) -> None:
    frame = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    seen = Observation({"top": frame}, np.array([0.25, -0.5], np.float32), "go to the red dot")
    np.testing.assert_allclose(Policy.load(older / "run").act(seen), ACTIONS, atol=1e-5)


def test_old_names_in_an_older_recipe_are_one_line_of_warning_each(older: Path) -> None:
    with pytest.warns(FutureWarning) as caught:
        recipe = read_recipe(older / "run")
    assert [str(warning.message).partition(": ")[2] for warning in caught] == RENAMED
    assert (recipe.collect.demos_per_turn, recipe.train.loggers) == (1, ())


def test_an_older_run_is_resumed_with_the_same_losses(older: Path) -> None:
    recipe = read_recipe(older / "run")
    train(recipe, older / "dataset", older / "run", say=lambda line: None, device="cpu")
    rows = [json.loads(line) for line in (older / "run" / "log.jsonl").read_bytes().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows[2:]:
        assert row["loss"] == pytest.approx(LOSSES[row["step"]], rel=1e-4)


def test_an_older_run_is_evaluated(older: Path) -> None:
    settings = replace(read_recipe(older / "run").eval, trials=1, videos_per_task=0, workers=1)
    assert evaluate(older / "run", settings, say=lambda line: None)["trials"] == 2
