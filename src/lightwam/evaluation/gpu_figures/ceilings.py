"""What the GPU can do: large products and copies, and the products of the model's own layers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from lightwam.config.schema import BackboneConfig
from lightwam.evaluation.gpu_figures.setup import Figure, Setup, dtype_name
from lightwam.system import timing
from lightwam.system.timing import time_kernels
from lightwam.training.footprint import num_tokens

COPIED = 2**28
"""numbers of 4 bytes; on a CPU a 256th"""
INNER, LIMIT_S = 20, 2.0
"""different weights in a row, which together do not fit into the GPU's cache; seconds for a layer"""


def figures(setup: Setup) -> Mapping[str, Figure]:
    """Return the section's figures by name."""
    train, tokens = setup.recipe.train, num_tokens(setup.recipe)
    acting, samples = tokens["action_pass"], train.micro_batch or train.batch_size
    return {
        "large product": partial(_large_product, setup),
        "copy": partial(_copy, setup),
        "layers, acting": partial(_layers, setup, acting),
        "layers, training": partial(_layers, setup, samples * (acting + tokens["video_pass"])),
    }


def _large_product(setup: Setup) -> dict[str, Any]:
    dtypes = (torch.bfloat16, torch.float32) if setup.on_gpu else (torch.float32,)
    rates = {dtype_name(dtype): timing.ceilings(setup.device, dtype) for dtype in dtypes}
    return {"tflops": {name: rate["gmac_per_second"] / 500 for name, rate in rates.items()}, "repetitions": 10}


def _copy(setup: Setup) -> dict[str, Any]:
    source = torch.randn(COPIED // (1 if setup.on_gpu else 256), device=setup.device)
    target = torch.empty_like(source)
    row = time_kernels({"copy": lambda: target.copy_(source)}, setup.device, 1, LIMIT_S)["copy"]
    return {"bytes": 8 * source.numel(), **row, "gb_per_second": 8 * source.numel() / row["p50_ms"] / 1e6}


def _layers(setup: Setup, rows: int) -> dict[str, Any]:
    """Time the linear layers of a block on `rows` tokens, each with weights that are not in the cache."""
    backbone, table = setup.recipe.model.backbone, {}
    for name, (outputs, inputs) in shapes(backbone).items():
        x, *weights = (
            torch.randn(size, inputs, device=setup.device).to(setup.dtype) for size in (rows, *[outputs] * INNER)
        )
        bias, turn = torch.zeros(outputs, device=setup.device, dtype=setup.dtype), itertools.cycle(weights)
        call = partial(_product, x, turn, bias)
        row = time_kernels({name: call}, setup.device, INNER, LIMIT_S)[name]
        table[name] = {"n": outputs, "k": inputs, **row, "tflops": 2e-9 * rows * outputs * inputs / row["p50_ms"]}
    return {"rows": rows, "dtype": dtype_name(setup.dtype), "layers": table}


def _product(x: torch.Tensor, weights: itertools.cycle[torch.Tensor], bias: torch.Tensor) -> torch.Tensor:
    return F.linear(x, next(weights), bias)


def shapes(backbone: BackboneConfig) -> dict[str, tuple[int, int]]:
    """Return the outputs and inputs of a block's linear layers, LoRA's among them."""
    width, wide, rank = backbone.width, backbone.ffn_width, backbone.lora_rank
    low = {"LoRA down": (rank, width), "LoRA up": (width, rank), "LoRA down, wide": (rank, wide)}
    return {
        "q, k, v": (3 * width, width),
        "out": (width, width),
        "feed-forward up": (wide, width),
        "feed-forward down": (width, wide),
        **(low if rank else {}),
    }
