"""Graphs of the engine: padded batches and keys, captures before robots ask, bounded numbers. A capture is replayed by
running again what it saw."""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_model import Same, canvas_of, inputs_of, model_of
from torch import Tensor

from lightwam.engine import engine as engines
from lightwam.engine import graphs
from lightwam.engine.engine import Engine
from lightwam.engine.folded_model import ContextKV
from lightwam.engine.graphs import Graph, GraphMemory, Graphs, batch_sizes
from lightwam.policy.benchmark import random_observation
from lightwam.policy.policy import Policy
from lightwam.system.devices import DEVICE_WIDE

SENTENCES = ("ab", "abc", "a long sentence", "abcd")


class ReplayedGraph(torch.cuda.CUDAGraph):
    """In place of torch's, which cannot be made without CUDA."""

    def __new__(cls) -> "ReplayedGraph":
        return object.__new__(cls)

    def __init__(self) -> None:
        self.again: Callable[[], object] = lambda: None

    def replay(self) -> None:
        self.again()


class SideStream(torch.cuda.Stream):
    """Likewise."""

    name = "side"

    def __new__(cls) -> "SideStream":
        return object.__new__(cls)

    def __init__(self) -> None:
        pass

    def wait_stream(self, stream: object) -> None:
        pass


class Cuda:
    """What `Graph` uses of `torch.cuda`, and what was done with it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, failing: bool = False) -> None:
        self.current, self.failing = "main", failing
        self.captures: list[dict[str, object]] = []
        self.seen: Callable[[], object] = lambda: None
        """computes the last call again, into its result"""
        fakes = {
            "Stream": SideStream,
            "current_stream": SideStream,
            "graph_pool_handle": lambda: (0, 1),
            "CUDAGraph": ReplayedGraph,
            "device": lambda device: self.stream(SimpleNamespace(name=self.current)),
            "stream": self.stream,
            "graph": self.graph,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: Any, pool: object, stream: Any, capture_error_mode: str) -> Iterator[None]:
        self.captures.append({"pool": pool, "stream": stream.name, "mode": capture_error_mode})
        yield
        if self.failing:
            self.current = "lost"  # as torch leaves it when the capture ends with an error
            raise RuntimeError("capture failed")
        graph.again = self.seen

    def recorded(self, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return `run`, whose last call `seen` repeats."""

        def call(*inputs: Any) -> Tensor:
            out = run(*inputs)
            self.seen = lambda: out.copy_(run(*inputs))
            return out

        return call

    def make(self, run: Callable[..., Tensor], memory: GraphMemory) -> Graph:
        return Graph(self.recorded(run), memory)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda(monkeypatch)


def states_of(sentences: Sequence[str]) -> Tensor:
    """As many tokens as characters, of 40."""
    torch.manual_seed(len(sentences[0]))
    rows = torch.randn(1, 40, 10)
    rows[:, len(sentences[0]) :] = 0
    return rows


@pytest.fixture
def both(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> tuple[Engine, Engine]:
    """An engine that runs eagerly, and one that uses graphs as on a GPU, both in float64 on the CPU."""
    make = partial(Engine, model_of(), Same(), states_of, torch.device("cpu"), torch.float64)
    eager = make()
    monkeypatch.setattr(engines, "GRAPHS_ON", "cpu")
    monkeypatch.setattr(engines, "Graphs", partial(Graphs, make=cuda.make))
    return eager, make()


def inputs(size: int, seed: int = 0) -> tuple[Tensor, list[str], Tensor]:
    return canvas_of(size, seed), [SENTENCES[(row + seed) % 4] for row in range(size)], inputs_of(size, seed)[2]


def test_padding_to_a_graph_changes_no_row(both: tuple[Engine, Engine], cuda: Cuda) -> None:
    """Batches of all sizes in one order and another, so that rows of the call before are in the padding."""
    eager, captured = both
    for seed, size in enumerate((1, 3, 2, 5, 4, 1, 6, 3, 1)):
        given_ = inputs(size, seed)
        ours, expected = captured.act(*given_), eager.act(*given_)
        assert ours.shape == expected.shape
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(captured.act(*given_), expected, rtol=0, atol=1e-12)
    assert len(cuda.captures) == 5  # 1 and 4 samples with 16 keys, 2, 4 and 8 with 32


def test_more_keys_than_a_graph_has_are_another_graph(both: tuple[Engine, Engine], cuda: Cuda) -> None:
    eager, captured = both
    for sentence in ("a", "b" * 13, "c" * 14, "d" * 16, "e" * 29, "f" * 30, "g" * 40):
        given_ = canvas_of(1), [sentence], inputs_of(1)[2]
        torch.testing.assert_close(captured.act(*given_), eager.act(*given_), rtol=0, atol=1e-12)
    assert len(cuda.captures) == 3  # 16, 32 and 48 keys: tokens, their padding, proprioception


def test_after_warming_nothing_is_captured(both: tuple[Engine, Engine], cuda: Cuda) -> None:
    eager, captured = both
    captured.warm(batch_sizes(6), canvas_of(1), SENTENCES, torch.zeros(1, 2))
    assert len(cuda.captures) == 4 * 2  # sizes and numbers of keys, 16 and 32
    for seed, size in enumerate((1, 3, 5, 6, 2, 1, 6)):
        given_ = inputs(size, seed)
        torch.testing.assert_close(captured.act(*given_), eager.act(*given_), rtol=0, atol=1e-12)
    assert len(cuda.captures) == 4 * 2
    assert {(each["pool"], each["stream"], each["mode"]) for each in cuda.captures} == {
        ((0, 1), "side", "thread_local")
    }
    captured.act(*inputs(7))
    assert len(cuda.captures) == 4 * 2 + 1
    eager.warm((1, 2), canvas_of(1), SENTENCES, torch.zeros(1, 2))  # a CPU has nothing to warm
    assert len(cuda.captures) == 4 * 2 + 1


def test_a_policy_is_warmed_for_the_sentences_that_it_knows(
    cuda: Cuda, tiny_once: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "GRAPHS_ON", "cpu")
    monkeypatch.setattr(engines, "Graphs", partial(Graphs, make=cuda.make))
    policy, plain = (Policy.load(tiny_once.run, device="cpu", engine=engine) for engine in (True, False))
    for each in (policy, plain):
        each.warm((1, 2))
    assert len(cuda.captures) == 2
    assert policy.facts is not None
    seen = [random_observation(policy.recipe, sentence) for sentence in policy.facts.sentences]
    np.testing.assert_allclose(policy.act_batch(seen), plain.act_batch(seen), rtol=0, atol=5e-6)
    assert len(seen) == 2 and len(cuda.captures) == 2


@given(st.integers(1, 300), st.data())
def test_a_batch_fits_a_size_that_is_less_than_twice_as_large(most: int, data: st.DataObject) -> None:
    sizes = batch_sizes(most)
    assert sizes[0] == 1 and sizes[-1] == most and list(sizes) == sorted({*sizes})
    each = Graphs(lambda *_: torch.zeros(1))
    size = data.draw(st.integers(1, most))
    assert size <= each.padded(size) < 2 * size
    each.add_sizes(sizes)
    assert each.padded(size) in sizes and size <= each.padded(size) < 2 * size


def context_of(size: int) -> ContextKV:
    return ContextKV(torch.zeros(1, size, 2, 1, 1), torch.zeros(1, size, 2, 1, 1), torch.zeros(size, 1, 1, 2))


def test_the_least_recently_used_graph_is_freed_before_another_is_captured(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    made: list[weakref.ref[Graph]] = []

    def make(run: Callable[..., Tensor], memory: GraphMemory) -> Graph:
        assert sum(graph() is not None for graph in made) < 2
        made.append(weakref.ref(graph := cuda.make(run, memory)))
        return graph

    each = Graphs(lambda image, context, state: state + 1, make=make)
    for size in (1, 2, 1, 4, 1, 2, 4, 2):
        assert each(torch.zeros(size, 1), context_of(size), torch.ones(size, 1, 1)).tolist() == [[[2]]] * size
    assert len(made) == 5


def test_a_capture_that_fails_leaves_nothing_behind(cuda: Cuda) -> None:
    """Torch refuses to capture into the memory of a capture that failed."""
    memories: list[GraphMemory] = []

    def make(run: Callable[..., Tensor], memory: GraphMemory) -> Graph:
        memories.append(memory)
        return cuda.make(run, memory)

    def run(image: Tensor, context: ContextKV, state: Tensor) -> Tensor:
        if len(memories) == 1:
            raise torch.OutOfMemoryError("full")
        return state + 1

    each = Graphs(run, make=make)
    given = torch.zeros(1, 1), context_of(1), torch.ones(1, 1, 1)
    with pytest.raises(torch.OutOfMemoryError):
        each(*given)
    assert each(*given).tolist() == [[[2]]]
    assert len(memories) == 2 and memories[0] is not memories[1]


def test_prompts_are_copied_again_only_when_they_change(cuda: Cuda) -> None:
    graph = Graph(cuda.recorded(lambda image, context, state: state + context.keys[0, :, :1, 0]))
    one, other = context_of(1), context_of(1)._replace(keys=torch.full((1, 1, 2, 1, 1), 5.0))
    state = torch.ones(1, 1, 1)
    assert [graph(torch.zeros(1, 1), each, state).item() for each in (one, other, other, one)] == [1, 6, 6, 1]
    one.keys.fill_(9)
    assert graph(torch.zeros(1, 1), one, state).item() == 1  # known to be the same as before


def test_a_graph_is_captured_beside_threads_that_load(cuda: Cuda) -> None:
    on: list[object] = []
    graph = Graph(lambda image, context, state: (on.append((cuda.current, DEVICE_WIDE.locked())), state + 1)[1])
    assert graph(torch.zeros(1, 1), context_of(1), torch.ones(1, 1, 1)).item() in (1, 2)
    assert on == [("side", True)] * 4
    assert (cuda.captures[0]["mode"], cuda.current, DEVICE_WIDE.locked()) == ("thread_local", "main", False)


def test_one_graph_is_captured_at_a_time(cuda: Cuda) -> None:
    """Two engines in two threads, as when a newer checkpoint is loaded: torch allows one capture in a process."""
    inside, most = [0], [0]

    def run(image: Tensor, context: ContextKV, state: Tensor) -> Tensor:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        threading.Event().wait(0.01)
        inside[0] -= 1
        return state

    def capture() -> None:
        Graph(run)(torch.zeros(1, 1), context_of(1), torch.ones(1, 1, 1))

    threads = [threading.Thread(target=capture) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_a_failed_capture_leaves_the_stream_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch, failing=True)
    with pytest.raises(RuntimeError, match="capture failed"):
        Graph(lambda image, context, state: state)(torch.zeros(1, 1), context_of(1), torch.ones(1, 1, 1))
    assert cuda.current == "main" and not DEVICE_WIDE.locked()


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_batches_of_all_sizes_on_a_gpu(dtype: torch.dtype, share: float) -> None:
    """Against the CPU in float32; `share` of the actions' spread."""
    make = partial(Engine, model_of(), Same(), states_of)
    exact, ours = make(torch.device("cpu"), torch.float32), make(torch.device("cuda"), dtype)
    ours.warm(batch_sizes(6), canvas_of(1), SENTENCES, torch.zeros(1, 2))
    assert ours._graphs is not None
    captured = {*ours._graphs._graphs.values()}
    for seed, size in enumerate((1, 3, 2, 5, 4, 1, 6, 3, 1)):
        expected = exact.act(*inputs(size, seed))
        found = ours.act(*inputs(size, seed)).cpu().float()
        torch.testing.assert_close(found, expected, rtol=0, atol=share * float(expected.std()))
    assert {*ours._graphs._graphs.values()} == captured and len(captured) == 8


@pytest.mark.gpu
def test_a_gpu_captures_while_another_thread_allocates() -> None:
    """As one that loads a checkpoint does: pageable copies, memory taken and given back, products."""
    stopped, rounds, failures = threading.Event(), [0], list[Exception]()

    def load() -> None:
        try:
            while not stopped.is_set():
                weights = [torch.ones(256, 1 + 256 * (i % 5)).to("cuda") for i in range(20)]
                assert torch.isfinite(weights[0].mT @ weights[1]).all()
                with DEVICE_WIDE:
                    torch.cuda.empty_cache()
                rounds[0] += 1
        except Exception as error:
            failures.append(error)

    make = partial(Engine, model_of(), Same(), states_of)
    exact, ours = make(torch.device("cpu"), torch.float32), make(torch.device("cuda"), torch.float32)
    thread = threading.Thread(target=load)
    thread.start()
    try:
        for seed in range(3):
            for size in (1, 2, 4, 8, 16):
                given_ = inputs(size, seed)
                expected = exact.act(*given_)
                found = ours.act(*given_).cpu()
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.std()))
    finally:
        stopped.set()
        thread.join()
    assert not failures and rounds[0] > 0
