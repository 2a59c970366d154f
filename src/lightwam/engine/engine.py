"""The fast way from pictures to actions: the folded model, sentences read once, and on a GPU one graph of kernels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lightwam.engine.folded_model import ContextKV, FoldedWAM, PromptKV
from lightwam.engine.folding import Placement
from lightwam.model.light_wam import LightWAM
from lightwam.system.cpu import product_dtype
from lightwam.types import LatentCodec, to_pixels

NUM_SENTENCES = 64
"""sentences whose keys and values are kept, the latest used; about 6 MiB each at the paper's sizes in bfloat16"""
NUM_GRAPHS = 8
"""sizes of batch and prompts whose CUDA graphs are kept, the latest used"""

Key = TypeVar("Key")
Value = TypeVar("Value")


class Engine:
    """Acts as `LightWAM.act` does on the latents of a canvas. Not for several threads at once."""

    def __init__(
        self,
        model: LightWAM,
        latents: LatentCodec,
        states: Callable[[Sequence[str]], Float[Tensor, "B L E"]],
        device: torch.device,
        dtype: torch.dtype,
        *,
        int8: bool = False,
    ) -> None:
        """Folds the model, where it is, to compute in `dtype` on `device`; the model is only read.

        A CPU without bfloat16 units computes in float32 instead. `states` gives the token states of instructions.
        `int8` keeps the weights of linear layers in 8 bits: less memory, and actions that are not quite the model's.
        """
        dtype = getattr(torch, product_dtype(device, dtype))
        self.folded, self.latents, self.device = FoldedWAM(model, Placement(device, dtype, int8)), latents, device
        self._states = states
        self._sentences: OrderedDict[str, PromptKV] = OrderedDict()
        self._graphs: OrderedDict[tuple[int, ...], Graph] = OrderedDict()
        self._memory: tuple[tuple[str, ...], ContextKV] | None = None

    @torch.inference_mode()
    def act(
        self, canvas: UInt8[Tensor, "B height width 3"], instructions: Sequence[str], state: Float[Tensor, "B P"]
    ) -> Float[Tensor, "B H A"]:
        """Chunks of normalised actions. A sentence that is new costs its encoding and one reading.

        Canvases travel to the engine's device as bytes, a quarter of what they are as floats.
        """
        context_kv, canvas, state = self.context_kv(tuple(instructions)), canvas.to(self.device), state.to(self.device)
        if self.device.type != "cuda":
            return self.run(canvas, context_kv, state)
        sizes = (*canvas.shape, context_kv.weight.shape[-1])
        graph = _kept(self._graphs, sizes, lambda: Graph(self.run, canvas, context_kv, state), NUM_GRAPHS)
        return graph(canvas, context_kv, state)

    def run(
        self, canvas: UInt8[Tensor, "B height width 3"], context_kv: ContextKV, state: Float[Tensor, "B P"]
    ) -> Float[Tensor, "B H A"]:
        """All of it, kernel by kernel."""
        return self.folded.act(self.latents.encode(to_pixels(canvas[:, None])), context_kv, state)

    def context_kv(self, instructions: tuple[str, ...]) -> ContextKV:
        """The instructions as the model reads them, one a sample."""
        if self._memory is None or self._memory[0] != instructions:
            self._memory = instructions, self.folded.batch_prompts([self._sentence(one) for one in instructions])
        return self._memory[1]

    def _sentence(self, instruction: str) -> PromptKV:
        def read() -> PromptKV:
            return self.folded.encode_prompt(self._states([instruction])[0].to(self.device))

        return _kept(self._sentences, instruction, read, NUM_SENTENCES)


class Graph:
    """`run`, captured once for inputs of some shapes, then replayed: one launch instead of over a thousand."""

    def __init__(self, run: Callable[..., Tensor], seen: Tensor, context_kv: ContextKV, state: Tensor) -> None:
        self.seen, self.state = seen.clone(), state.clone()
        self.context_kv, self.given = ContextKV(*(part.clone() for part in context_kv)), context_kv
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries choose their kernels and workspaces before the capture
            for _ in range(3):
                run(self.seen, self.context_kv, self.state)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.action = run(self.seen, self.context_kv, self.state)

    def __call__(self, seen: Tensor, context_kv: ContextKV, state: Tensor) -> Float[Tensor, "B H A"]:
        """What `run` gives for these."""
        if context_kv is not self.given:
            for ours, theirs in zip(self.context_kv, context_kv, strict=True):
                ours.copy_(theirs)
            self.given = context_kv
        self.seen.copy_(seen, non_blocking=True)
        self.state.copy_(state, non_blocking=True)
        self.graph.replay()
        return self.action.clone()


def _kept(kept: OrderedDict[Key, Value], key: Key, make: Callable[[], Value], most: int) -> Value:
    """What is kept under a key, made when it is not; the one that was not asked for the longest is let go."""
    if key not in kept:
        kept[key] = make()
        if len(kept) > most:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]
