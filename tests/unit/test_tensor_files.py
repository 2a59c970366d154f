"""policy/tensor_files.py: strict loading of weights."""

from pathlib import Path

import pytest
import torch

from lightwam.errors import CheckpointError
from lightwam.policy.tensor_files import load_strict


def test_load_strict_copies_every_value() -> None:
    module = torch.nn.Linear(2, 3)
    weights = {"weight": torch.ones(3, 2), "bias": torch.arange(3.0)}
    load_strict(module, weights, Path("here"))
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())


def test_load_strict_copies_a_counter_and_refuses_an_integer_weight() -> None:
    module = torch.nn.Linear(2, 3)
    module.register_buffer("drawn", torch.tensor(0))
    weights = {"weight": torch.ones(3, 2), "bias": torch.ones(3), "drawn": torch.tensor(7)}
    load_strict(module, weights, Path("here"))
    assert int(module.drawn) == 7
    with pytest.raises(CheckpointError, match="not of floating point: bias"):
        load_strict(module, weights | {"bias": torch.ones(3, dtype=torch.int64)}, Path("here"))


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"weight": torch.ones(3, 2)}, "missing: bias"),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(3), "odd": torch.ones(1)}, "unknown: odd"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(3)}, "of another shape: weight [2, 3], expected [3, 2]"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_load_strict_lists_differences_and_changes_nothing(weights: dict[str, torch.Tensor], told: str) -> None:
    module = torch.nn.Linear(2, 3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"do not fit the model(.|\n)*1 differences") as caught:
        load_strict(module, weights, Path("here"))
    assert told in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_names_with_a_prefix_are_refused_by_that(tmp_path: Path) -> None:
    weights = {f"_orig_mod.{name}": value for name, value in torch.nn.Linear(2, 3).state_dict().items()}
    with pytest.raises(CheckpointError, match=r"all names begin with '_orig_mod\.', as torch\.compile saves them"):
        load_strict(torch.nn.Linear(2, 3), weights, tmp_path)
