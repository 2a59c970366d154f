"""Fast inference from pictures to actions: the folded model, prompts encoded once, and on a GPU one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lightwam.engine.folded_model import ContextKV, FoldedWAM, PromptKV
from lightwam.engine.folding import Placement
from lightwam.model.light_wam import LightWAM
from lightwam.system.cpu import matmul_dtype
from lightwam.types import LatentCodec, to_pixels

MAX_SENTENCES = 64
"""sentences whose keys and values are cached; about 6 MiB each at the paper's sizes in bfloat16"""
MAX_GRAPHS = 8
"""combinations of batch size and prompt length whose CUDA graphs are cached"""


class Engine:
    """Acts as `LightWAM.act` does on the latents of a canvas. Not thread-safe."""

    plain: None = None
    """an engine only acts: it keeps no plain model"""

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
        """Fold the model to compute in `dtype` on `device`; the model itself is not changed.

        A CPU without bfloat16 units computes in float32 instead. `states` returns the token states of instructions.
        `int8` keeps the weights of linear layers in 8 bits: less memory, and actions that differ slightly.
        """
        dtype = getattr(torch, matmul_dtype(device, dtype))
        self.device = device
        self.folded = folded = FoldedWAM(model, Placement(device, dtype, int8))
        bits = ", weights in 8 bits" if int8 else ""
        self.description = f"{str(dtype).removeprefix('torch.')} on {device.type}, by the engine{bits}"

        # The caches are closures without `self`, so an engine's memory is freed as soon as nobody refers to it.
        @lru_cache(MAX_SENTENCES)
        def prompt_kv(sentence: str) -> PromptKV:
            return folded.encode_prompt(states([sentence])[0].to(device))

        @lru_cache(1)
        def context_kv(instructions: tuple[str, ...]) -> ContextKV:
            return folded.batch_prompts([prompt_kv(sentence) for sentence in instructions])

        def run(canvas: Tensor, context_kv: ContextKV, state: Tensor) -> Tensor:
            return folded.act(latents.encode(to_pixels(canvas[:, None])), context_kv, state)

        self.context_kv, self._run = context_kv, run
        self._graph = lru_cache(MAX_GRAPHS)(lambda *sizes: Graph(run))

    @torch.inference_mode()
    def act(
        self, canvas: UInt8[Tensor, "B height width 3"], instructions: Sequence[str], state: Float[Tensor, "B P"]
    ) -> Float[Tensor, "B H A"]:
        """Return chunks of normalised actions. A new sentence also costs its encoding.

        Canvases are moved to the engine's device as bytes, a quarter of their size in float32.
        """
        if self.device.type != "cuda":
            return self.act_eagerly(canvas, instructions, state)
        context_kv, canvas, state = self.context_kv(tuple(instructions)), canvas.to(self.device), state.to(self.device)
        return self._graph(*canvas.shape, context_kv.score_bias.shape[-1])(canvas, context_kv, state)

    @torch.inference_mode()
    def act_eagerly(
        self, canvas: UInt8[Tensor, "B height width 3"], instructions: Sequence[str], state: Float[Tensor, "B P"]
    ) -> Float[Tensor, "B H A"]:
        """Act without a CUDA graph: each kernel is launched by itself, so that it can be counted."""
        return self._run(canvas.to(self.device), self.context_kv(tuple(instructions)), state.to(self.device))


class Graph:
    """`run`, captured in a CUDA graph at the first call, for inputs of one shape; a call is then a single launch."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        self._run = run
        self._captured: tuple[torch.cuda.CUDAGraph, Tensor, ContextKV, Tensor, Tensor] | None = None
        self._copied: ContextKV | None = None

    def __call__(self, image: Tensor, context_kv: ContextKV, state: Tensor) -> Float[Tensor, "B H A"]:
        """Return `run(image, context_kv, state)`."""
        if self._captured is None:
            self._captured = self._capture(image, context_kv, state)
        graph, own_image, own_context_kv, own_state, action = self._captured
        if context_kv is not self._copied:
            for own, other in zip(own_context_kv, context_kv, strict=True):
                own.copy_(other)
            self._copied = context_kv
        own_image.copy_(image, non_blocking=True)
        own_state.copy_(state, non_blocking=True)
        graph.replay()
        return action.clone()

    def _capture(
        self, image: Tensor, context_kv: ContextKV, state: Tensor
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, ContextKV, Tensor, Tensor]:
        inputs = image.clone(), ContextKV(*(part.clone() for part in context_kv)), state.clone()
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # which a failed capture would otherwise leave current
            for _ in range(3):  # libraries choose their kernels and workspaces before the capture, on its stream
                self._run(*inputs)
            # thread_local: another thread, which loads the next checkpoint, may allocate memory meanwhile
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                action = self._run(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        return graph, *inputs, action
