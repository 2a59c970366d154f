"""Attention by each of torch's backends, at the shapes of acting and of the packed training step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightwam.evaluation.gpu_figures.act import relative
from lightwam.evaluation.gpu_figures.setup import Figure, Setup, dtype_name
from lightwam.policy.benchmark import PROMPT_TOKENS
from lightwam.system.timing import time_kernels
from lightwam.training.footprint import num_tokens

LIMIT_S, INNER = 1.0, 20
BACKENDS: Mapping[str, SDPBackend | None] = {
    "torch's choice": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
PADDING_BIAS = 4.5
"""about the log of the number of padding positions that one key stands for"""


class Shape(NamedTuple):
    """Sizes of one call of attention."""

    batch: int
    queries: int
    keys: int
    masked: bool = False
    """with a bias for each key"""


def shapes(setup: Setup) -> dict[str, Shape]:
    """Return the calls that acting and training make."""
    recipe, tokens = setup.recipe, num_tokens(setup.recipe)
    acting, video, context = tokens["action_pass"], tokens["video_pass"], tokens["context"]
    first = video // (recipe.pooled_shape[1] // recipe.model.backbone.patch[0])
    size = recipe.train.micro_batch or recipe.train.batch_size
    prompt = min(PROMPT_TOKENS, recipe.text.num_tokens // 2) + 2  # and the padding's, and the state's
    return {
        "acting, self": Shape(1, acting, acting),
        "acting, cross": Shape(1, acting, prompt, True),
        "acting, cross, keys padded to 16": Shape(1, acting, -(-prompt // 16) * 16, True),
        "training, self, action": Shape(size, acting, acting),
        "training, self, later frames": Shape(size, video - first, video),
        "training, cross": Shape(size, acting + video, context),
    }


def figures(setup: Setup) -> Mapping[str, Figure]:
    """Return the section's figures by name."""
    return {name: partial(_attention, setup, shape) for name, shape in shapes(setup).items()}


@torch.inference_mode()
def _attention(setup: Setup, shape: Shape) -> dict[str, Any]:
    """Time one shape by each backend, with its error against float64; a backend that cannot says why."""
    backbone = setup.recipe.model.backbone
    heads, width = backbone.num_heads, backbone.width // backbone.num_heads
    lengths = (shape.queries, shape.keys, shape.keys)
    q, k, v = (
        torch.randn(shape.batch, n, heads, width, device=setup.device).to(setup.dtype).transpose(1, 2) for n in lengths
    )
    mask = None
    if shape.masked:
        mask = torch.zeros(shape.batch, 1, 1, shape.keys, device=setup.device, dtype=setup.dtype)
        mask[..., -2] = PADDING_BIAS
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), None if mask is None else mask.double())
    ways: dict[str, dict[str, Any]] = {}
    for name, backend in BACKENDS.items():
        call = partial(F.scaled_dot_product_attention, q, k, v, mask)
        try:
            with contextlib.nullcontext() if backend is None else sdpa_kernel(backend):
                error = relative(call(), exact)
                if not math.isfinite(error):
                    raise RuntimeError("its numbers are not finite")
                ways[name] = time_kernels({name: call}, setup.device, INNER, LIMIT_S)[name] | {"error": error}
        except RuntimeError as refusal:
            ways[name] = {"refused": str(refusal).split("\n")[0][:120]}
    return {**shape._asdict(), "heads": heads, "head_width": width, "dtype": dtype_name(setup.dtype), "ways": ways}
