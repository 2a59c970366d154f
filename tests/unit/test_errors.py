"""errors.py: the five things that an error says, and suggestions."""

import pytest

from lightwam import errors
from lightwam.errors import ConfigError, LightwamError, did_you_mean


def test_an_error_says_what_where_got_expected_and_next() -> None:
    error = ConfigError("too long", where="train.steps", got=0, expected=">= 1", next_step="give one step")
    assert str(error).splitlines() == [
        "too long",
        "  where: train.steps",
        "  got: 0",
        "  expected: >= 1",
        "  next: give one step",
    ]


def test_unknown_facts_are_left_out() -> None:
    assert str(LightwamError("only this")) == "only this"


def test_parts_stay_readable_by_programs() -> None:
    error = LightwamError("w", where="a", got=1, expected=2, next_step="n")
    assert (error.what, error.where, error.got, error.expected, error.next_step) == ("w", "a", 1, 2, "n")


@pytest.mark.parametrize("name", ["ConfigError", "DatasetError", "CheckpointError", "SimulatorError", "WireError"])
def test_every_error_is_a_lightwam_error(name: str) -> None:
    assert issubclass(vars(errors)[name], LightwamError)


def test_near_words_are_suggested() -> None:
    assert did_you_mean("reech", ["push", "reach"]) == "did you mean 'reach'?"


def test_all_words_are_listed_without_a_near_one() -> None:
    assert did_you_mean("zzzz", ["b", "a"]) == "known: a, b"
