"""training/batches.py: the same inputs with and without the thread, and the state of what was returned."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from lightwam.data.loader import WindowLoader
from lightwam.training import batches
from lightwam.training.batches import BatchEncoder, BatchStream, StepInput
from lightwam.training.dataset import open_training_data
from lightwam.training.distributed import World
from lightwam.types import Batch

CPU = World(torch.device("cpu"))


@pytest.fixture(scope="module")
def opened(tiny_once: Any) -> tuple[Any, Any, BatchEncoder]:
    cache, encoder = open_training_data(tiny_once.recipe, tiny_once.dataset, tiny_once.run, lambda line: None)
    return tiny_once.recipe, cache, encoder


@contextmanager
def stream_of(opened: tuple[Any, Any, BatchEncoder], *, ahead: bool) -> Iterator[BatchStream]:
    recipe, cache, encoder = opened
    settings = recipe.train
    loader = WindowLoader(cache, encoder.codec, recipe.model.horizon, settings.batch_size, settings.seed)
    with BatchStream(loader, encoder, settings, CPU, ahead=ahead) as stream:
        yield stream


def assert_equal(ours: StepInput, theirs: StepInput) -> None:
    for name, value in vars(ours.batch).items():
        assert torch.equal(value, getattr(theirs.batch, name)), name
    assert torch.equal(ours.u, theirs.u)
    assert torch.equal(ours.noise, theirs.noise)


def test_the_thread_changes_nothing_and_a_resumed_stream_goes_on_where_it_was(opened: Any) -> None:
    with stream_of(opened, ahead=False) as stream:
        expected = [stream.next(step) for step in range(4)]
        states = [stream.state_dict()]
    with stream_of(opened, ahead=True) as stream:
        for step in range(2):
            assert_equal(stream.next(step), expected[step])
        states.append(stream.state_dict())
        assert stream._next is not None
        stream._next.result()
        assert stream.loader.state_dict()["batches"] == 3, "one is ready"
    assert (states[0]["batches"], states[1]["batches"]) == (4, 2), "what was returned, not what is ready"
    with stream_of(opened, ahead=True) as stream:
        stream.load_state_dict(states[1])
        assert stream.state_dict() == states[1]
        for step in (2, 3):
            assert_equal(stream.next(step), expected[step])
        assert stream.wait_seconds > 0


def test_an_error_of_the_thread_is_raised_by_next(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Batch:
        raise ZeroDivisionError

    with stream_of(opened, ahead=True) as stream:
        stream.next(0)
        stream.next(1)  # the third is being made, or is ready
        monkeypatch.setattr(BatchEncoder, "encode", broken)
        with pytest.raises(ZeroDivisionError):
            for step in range(2, 5):
                stream.next(step)


def test_tokens_are_marked_as_the_prompts_have_them(opened: Any) -> None:
    with stream_of(opened, ahead=False) as stream:
        batch = stream.next(0).batch
    assert batch.is_token is not None
    assert torch.equal(batch.is_token, batch.context.any(dim=2))
    assert 0 < batch.is_token.sum() < batch.is_token.numel()
    kept = batch.to("meta")
    assert kept.is_token is batch.is_token and kept.context.device.type == "meta"


def test_an_encoder_on_a_device_has_prompts_there_in_the_weights_dtype(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, cache, encoder = opened
    loader = WindowLoader(cache, encoder.codec, recipe.model.horizon, 2, 0)
    windows, moved = loader.window(0), encoder.to(torch.device("cpu"), torch.bfloat16)
    assert moved.encode(windows).context.dtype == torch.bfloat16
    monkeypatch.setattr(batches, "ON_DEVICE", 0)
    assert encoder.to(torch.device("meta"), torch.float32).prompts.device.type == "cpu", "too many for a GPU"
    monkeypatch.setattr(batches, "ON_DEVICE", 2**30)
    assert encoder.to(torch.device("meta"), torch.float32).prompts.device.type == "meta"
    some = np.array([True])
    assert torch.equal(moved.encode(windows, some).clip, encoder.encode(windows).clip)
