"""CUDA graphs of the engine: one for each batch size and number of keys that it is captured for, in shared memory.

A batch is padded to the next captured size, so that few graphs answer batches of every size. Rows do not depend on
one another, so the rows asked for are the same.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightwam.engine.folded_model import ContextKV
from lightwam.system.devices import DEVICE_WIDE

MAX_GRAPHS = 32
"""graphs kept, the most recently used; a server needs one for each of its sizes and every 16 keys of its sentences"""
Run = Callable[[Tensor, ContextKV, Tensor], Tensor]


def batch_sizes(most: int) -> tuple[int, ...]:
    """Return the powers of two below `most`, and `most`: any batch up to it is at least half of one of them."""
    return (*(2**i for i in range((most - 1).bit_length())), most)


class Graph:
    """`run`, captured in a CUDA graph at the first call, for inputs of one shape; a call is then a single launch."""

    def __init__(self, run: Run, memory: GraphMemory | None = None) -> None:
        """Graphs that share `memory` must be used one after the other."""
        self._run, self._memory = run, GraphMemory() if memory is None else memory
        self._captured: tuple[torch.cuda.CUDAGraph, Tensor, ContextKV, Tensor, Tensor] | None = None
        self._copied: Callable[[], Tensor | None] = lambda: None

    @property
    def is_captured(self) -> bool:
        """Whether it can be replayed."""
        return self._captured is not None

    def __call__(self, image: Tensor, context_kv: ContextKV, state: Tensor) -> Float[Tensor, "B H A"]:
        """Return `run(image, context_kv, state)`; `context_kv` may have more samples than the others, and is copied
        only when it is not that of the call before."""
        if self._captured is None:
            self._captured = self._capture(image, context_kv, state)
        graph, own_image, own_context_kv, own_state, action = self._captured
        if self._copied() is not context_kv.keys:
            for own, other in zip(own_context_kv, context_kv, strict=True):
                own.copy_(other)
            self._copied = weakref.ref(context_kv.keys)
        own_image[: len(image)].copy_(image, non_blocking=True)
        own_state[: len(state)].copy_(state, non_blocking=True)
        graph.replay()
        return action[: len(image)].clone()

    def _capture(
        self, image: Tensor, context_kv: ContextKV, state: Tensor
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, ContextKV, Tensor, Tensor]:
        device, size = context_kv.keys.device, len(context_kv.score_bias)
        own_image, own_state = (x.new_zeros(size, *x.shape[1:], device=device) for x in (image, state))
        inputs = own_image, ContextKV(*(part.clone() for part in context_kv)), own_state
        with DEVICE_WIDE, torch.cuda.device(device):
            graph, side = torch.cuda.CUDAGraph(), self._memory.stream
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # which a failed capture would otherwise leave current
                for _ in range(3):  # libraries choose their kernels and workspaces before the capture, on its stream
                    self._run(*inputs)
                # thread_local: another thread, which loads the next checkpoint, may allocate memory meanwhile
                with torch.cuda.graph(graph, pool=self._memory.pool, stream=side, capture_error_mode="thread_local"):
                    action = self._run(*inputs)
            torch.cuda.current_stream().wait_stream(side)
        return graph, *inputs, action


class GraphMemory:
    """Where graphs are captured; it is made with the first, on the current device.

    Torch reuses freed memory for work on the same stream only, so graphs that share a pool share the stream too.
    """

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        """The stream of all captures."""
        return torch.cuda.Stream()

    @cached_property
    def pool(self) -> Any:
        """Torch's handle of the memory."""
        return torch.cuda.graph_pool_handle()


class Graphs:
    """`run` for batches of any size, by graphs that are captured when they are first needed."""

    def __init__(self, run: Run, *, make: Callable[[Run, GraphMemory], Graph] = Graph) -> None:
        self._run, self._make, self._memory = run, make, GraphMemory()
        self._sizes: set[int] = set()
        self._graphs: dict[tuple[int, ...], Graph] = {}
        """picture's size, batch size and number of keys -> graph; the most recently used is the last"""

    def add_sizes(self, sizes: Iterable[int]) -> None:
        """Pad batches to these sizes, too, where that is less than to the next power of two."""
        self._sizes.update(sizes)

    def padded(self, size: int) -> int:
        """Return the batch size of the graph that answers batches of `size`."""
        return min(fit for fit in (*self._sizes, 1 << (size - 1).bit_length()) if fit >= size)

    def __call__(self, image: Tensor, context_kv: ContextKV, state: Tensor) -> Float[Tensor, "B H A"]:
        """Return `run(image, context_kv, state)`; `context_kv` has `padded(B)` samples."""
        key = *image.shape[1:], *context_kv.score_bias.shape
        graph = self._graphs.pop(key, None)
        if graph is None:
            while len(self._graphs) >= MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]  # its memory is free before the new one needs some
            graph = self._make(self._run, self._memory)
        self._graphs[key] = graph
        try:
            return graph(image, context_kv, state)
        except RuntimeError:
            if not graph.is_captured:  # torch refuses the memory of a capture that failed
                del self._graphs[key]
                self._memory = GraphMemory()
            raise
