"""A LightWAM of a few thousand weights, and inputs for it."""

from dataclasses import replace

import torch
from torch import Tensor

from lightwam.config.schema import BackboneConfig, ExpertConfig, FlowConfig, ModelConfig
from lightwam.model.light_wam import LightWAM

CONFIG = ModelConfig(
    BackboneConfig(
        width=48, ffn_width=64, num_heads=2, num_blocks=5, latent_channels=3, text_dim=10, time_code_dim=16,
        taps=(0, 3), adapter_width=6, lora_rank=3, lora_alpha=6.0,
    ),
    ExpertConfig(num_queries=3, num_pool_heads=2, layer_width=12, trunk_width=16, step_code_dim=8),
    FlowConfig(), state_dim=2, action_dim=3, horizon=8,
)  # fmt: skip


def config_of(foresight: int = 0) -> ModelConfig:
    """With foresight, the other addition to the published model too: an expert that reads the state."""
    return replace(CONFIG, foresight=foresight, expert=replace(CONFIG.expert, state_frequencies=foresight))


def model_of(seed: int = 0, noise: float = 0.1, foresight: int = 0) -> LightWAM:
    torch.manual_seed(seed)
    model = LightWAM(config_of(foresight))
    for parameter in model.parameters():
        parameter.data += noise * torch.randn_like(parameter)
    return model


def inputs_of(size: int = 2, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    context = torch.randn(size, 6, 10)
    context[:, 4:] = 0
    return torch.randn(size, 3, 1, 8, 12), context, torch.randn(size, 2)


def canvas_of(size: int, seed: int = 1) -> Tensor:
    return torch.randint(256, (size, 8, 12, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


class Same:
    """Latents that are the pixels."""

    channels, spatial_stride, temporal_stride = 3, 1, 4

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels

    def with_frames_in(self, dtype: torch.dtype) -> "Same":
        return self

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def decode_pooled(self, latents: Tensor) -> Tensor:
        return latents

    def motionless(self, present: Tensor) -> Tensor:
        return present
