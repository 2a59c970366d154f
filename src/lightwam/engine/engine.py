"""Fast inference from pictures to actions: the folded model, prompts encoded once, and on a GPU CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightwam.engine.folded_model import ContextKV, FoldedWAM, PromptKV
from lightwam.engine.folding import Placement
from lightwam.engine.graphs import Graphs
from lightwam.model.light_wam import LightWAM
from lightwam.system.cpu import has_bfloat16, matmul_dtype
from lightwam.types import LatentCodec, to_pixels

MAX_SENTENCES = 64
"""sentences whose keys and values are cached; about 6 MiB each at the paper's sizes in bfloat16"""
KEYS_MULTIPLE = 16
"""a graph's number of keys is a multiple of this: few graphs, and no pass that pads the scores' biases"""
GRAPHS_ON = "cuda"
"""kind of device where graphs are used"""
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""on a GPU, in this order: cuDNN's, which torch prefers, builds a plan for every new batch size and number of keys"""


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
        `int8` keeps the weights of linear layers in 8 bits, and a CPU with units for it multiplies in 8 bits: less
        memory and perhaps time, and actions that differ slightly. Where actions are not float32's anyway, a CPU with
        bfloat16 units encodes pictures in bfloat16.
        """
        dtype = getattr(torch, matmul_dtype(device, dtype))
        self.device = device
        if device.type == "cpu" and (int8 or dtype == torch.bfloat16) and has_bfloat16():
            latents = latents.with_frames_in(torch.bfloat16)
        self.latents = latents
        placement = Placement(device, dtype, int8)
        self.folded = folded = FoldedWAM(model, placement)
        bits = f", {'products' if placement.multiplies_int8 else 'weights'} in 8 bits" if int8 else ""
        self.description = f"{str(dtype).removeprefix('torch.')} on {device.type}, by the engine{bits}"
        captures = device.type == GRAPHS_ON

        # The caches are closures without `self`, so an engine's memory is freed as soon as nobody refers to it.
        @lru_cache(MAX_SENTENCES)
        def prompt_kv(sentence: str) -> PromptKV:
            return folded.encode_prompt(states([sentence])[0].to(device))

        @lru_cache(1)
        def context_kv(instructions: tuple[str, ...]) -> ContextKV:
            prompts = [prompt_kv(sentence) for sentence in instructions]
            return folded.batch_prompts(prompts, KEYS_MULTIPLE if captures else 1)

        def act_on_latent(latent: Tensor, context_kv: ContextKV, state: Tensor) -> Tensor:
            with sdpa_kernel(ATTENTION, set_priority=True) if device.type == "cuda" else nullcontext():
                return folded.act(latent, context_kv, state)

        def run(canvas: Tensor, context_kv: ContextKV, state: Tensor) -> Tensor:
            return act_on_latent(latents.encode(to_pixels(canvas[:, None])), context_kv, state)

        self.context_kv, self.act_on_latent, self._run = context_kv, act_on_latent, run
        self._graphs = Graphs(run) if captures else None

    def warm(
        self,
        batch_sizes: Sequence[int],
        canvas: UInt8[Tensor, "1 height width 3"],
        instructions: Sequence[str],
        state: Float[Tensor, "1 P"],
    ) -> None:
        """Capture a graph for each of these batch sizes and of the instructions' numbers of keys; nothing on a CPU.

        Keys and values of the instructions are computed as well, up to MAX_SENTENCES.
        """
        if self._graphs is None:
            return
        self._graphs.add_sizes(batch_sizes)
        kept = instructions[:MAX_SENTENCES]
        by_length = {self.context_kv((sentence,)).score_bias.shape[-1]: sentence for sentence in kept}
        for sentence in by_length.values():
            for size in batch_sizes:
                self.act(canvas.expand(size, -1, -1, -1), [sentence] * size, state.expand(size, -1))

    @torch.inference_mode()
    def act(
        self, canvas: UInt8[Tensor, "B height width 3"], instructions: Sequence[str], state: Float[Tensor, "B P"]
    ) -> Float[Tensor, "B H A"]:
        """Return chunks of normalised actions. A new sentence also costs its encoding.

        Canvases are moved to the engine's device as bytes, a quarter of their size in float32.
        """
        if self._graphs is None:
            return self.act_eagerly(canvas, instructions, state)
        padding = self._graphs.padded(len(canvas)) - len(canvas)
        return self._graphs(canvas, self.context_kv((*instructions, *[instructions[0]] * padding)), state)

    @torch.inference_mode()
    def act_eagerly(
        self, canvas: UInt8[Tensor, "B height width 3"], instructions: Sequence[str], state: Float[Tensor, "B P"]
    ) -> Float[Tensor, "B H A"]:
        """Act without a CUDA graph: each kernel is launched by itself, so that it can be counted."""
        return self._run(canvas.to(self.device), self.context_kv(tuple(instructions)), state.to(self.device))
