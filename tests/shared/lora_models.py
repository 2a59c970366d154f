"""Tiny models with LoRA over frozen weights, their batches, and gradients to compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from lightwam.config.schema import BackboneConfig, ExpertConfig, FlowConfig, ModelConfig
from lightwam.model.light_wam import LightWAM
from lightwam.types import Batch, Losses, pool

FROZEN = BackboneConfig(
    width=48, ffn_width=64, num_heads=2, num_blocks=4, latent_channels=3, text_dim=10, time_code_dim=16, taps=(0, 2),
    adapter_width=6, lora_rank=3, lora_alpha=6.0,
)  # fmt: skip


def model_of(
    backbone: BackboneConfig, dtype: torch.dtype = torch.float64, state_frequencies: int = 0, **settings: Any
) -> LightWAM:
    """A model without zeros and with queries that differ, so that every gradient is well above rounding."""
    torch.manual_seed(1)
    expert = ExpertConfig(3, 2, layer_width=12, trunk_width=16, step_code_dim=8, state_frequencies=state_frequencies)
    model = LightWAM(
        ModelConfig(
            backbone, expert, FlowConfig(), state_dim=2, action_dim=3, horizon=8, supervised_prefix=6, **settings
        )
    )
    for name, parameter in model.named_parameters():
        if "query" in name or not parameter.any():
            torch.nn.init.normal_(parameter, std=1.0 if "query" in name else 0.2)
    return model.to(dtype)


def batch_of(dtype: torch.dtype = torch.float64, size: int = 3) -> tuple[Batch, Tensor, Tensor]:
    """Two rows of prompts are padded, one episode has ended; and the draws of the step."""
    torch.manual_seed(2)
    latents, context = torch.randn(size, 3, 3, 8, 12), torch.randn(size, 5, 10)
    context[0, 3:], context[1, 1:] = 0, 0
    action, frame = torch.zeros(size, 8, dtype=torch.bool), torch.zeros(size, 9, dtype=torch.bool)
    action[-1, 4:], frame[-1, 4:] = True, True
    batch = Batch(
        latents[:, :, :1], pool(latents), context, torch.randn(size, 2), torch.randn(size, 8, 3), action, frame
    )
    floats = [value for field in fields(batch) if (value := getattr(batch, field.name)) is not None]
    batch = Batch(*(value.to(dtype) if value.is_floating_point() else value for value in floats))
    return batch, torch.rand(size, dtype=torch.float64), torch.randn(size, 3, 3, 4, 6).to(dtype)


def gradients(model: LightWAM, losses: Losses) -> Mapping[str, Tensor]:
    model.zero_grad()
    losses.total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def worst(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest relative difference of a gradient."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs)
