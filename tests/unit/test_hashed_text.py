"""encoders/hashed_text.py: the same numbers everywhere, word order, and words never seen before."""

import pytest
import torch

from lightwam.config.schema import HashedTextConfig
from lightwam.encoders.hashed_text import HashedText, hashed_direction, position_code, word_direction
from lightwam.errors import ConfigError
from lightwam.types import TextEncoder

TEXT = HashedText(HashedTextConfig(num_tokens=8, dim=64))
SUMS = [96.0560, 806.1111, 992.8774, 276.4552, 862.5974]


def likeness(one: str, other: str) -> float:
    """Cosine of two words, in a space so wide that chance likeness is near 0.02."""
    return float(word_direction(one, 2048) @ word_direction(other, 2048))


def test_the_numbers_are_the_same_in_every_process_and_release() -> None:
    """Literals: a run trained today must be told the same tomorrow."""
    assert (hashed_direction("abc", 16) > 0).astype(int).tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 1]
    states = TEXT.encode(["move to the red dot"])[0].double()
    sums = (states * torch.arange(1, 65)).sum(1)
    torch.testing.assert_close(sums[:5], torch.tensor(SUMS).double(), atol=1e-3, rtol=0)


def test_word_order_matters() -> None:
    one, other = TEXT.encode(["push red from blue", "push blue from red"])
    assert not torch.allclose(one.sum(0), torch.zeros(64))
    assert (one - other).abs().max() > 0.1
    # the same words in all, so a bag of words could not tell
    torch.testing.assert_close(one.sum(0), other.sum(0))


def test_an_unknown_word_is_near_words_that_share_letters() -> None:
    assert likeness("windows", "window") > 0.25
    assert abs(likeness("windows", "drawer")) < 0.12
    assert likeness("drawer", "drawer") == pytest.approx(1)


def test_a_server_that_hears_ever_new_words_does_not_keep_them_all() -> None:
    room = word_direction.cache_info().maxsize
    assert room is not None
    for number in range(room + 9):
        word_direction(str(number), 8)
    assert word_direction.cache_info().currsize == room


def test_case_and_spaces_do_not_matter_and_punctuation_does() -> None:
    one, other, third = TEXT.encode(["Move to", "  move   to ", "move to!"])
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


def test_padding_is_zero_and_words_have_unit_mean_square() -> None:
    states = TEXT.encode(["a b c", "one two three four five six seven eight"])
    assert states.shape == (2, 8, 64)
    assert states.dtype == torch.float32
    assert (states[0, 3:] == 0).all()
    square = torch.cat([states[0, :3], states[1]]).square().mean(1)
    assert ((square > 0.4) & (square < 2)).all(), square


def test_a_sentence_does_not_depend_on_its_neighbours() -> None:
    alone = TEXT.encode(["close the window"])[0]
    assert torch.equal(TEXT.encode(["open it", "close the window"])[1], alone)


@pytest.mark.parametrize(
    ("instruction", "words"), [("", 0), ("   ", 0), ("a b c d e f g h i", 9), ("a, b, c, d, e", 9)]
)
def test_too_long_or_empty_is_refused_with_its_length(instruction: str, words: int) -> None:
    with pytest.raises(ConfigError, match=f"{words} words") as caught:
        TEXT.encode(["fine", instruction])
    assert repr(instruction) in str(caught.value)


@pytest.mark.parametrize("dim", [7, 6, 0, 33])
def test_widths_that_cannot_be_are_refused(dim: int) -> None:
    with pytest.raises(ConfigError, match=r"text\.dim"):
        HashedText(HashedTextConfig(num_tokens=4, dim=dim))


def test_places_of_words_differ() -> None:
    codes = torch.stack([torch.from_numpy(position_code(place, 64)) for place in range(16)])
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(16))
    gram = codes @ codes.T - 2 * torch.eye(16)
    assert gram.max() < 0.99


def test_the_encoder_is_a_text_encoder() -> None:
    assert isinstance(TEXT, TextEncoder)
