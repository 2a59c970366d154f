"""Sizes of a policy: complete recipes but for cameras, state and actions, which `fit` adds for a robot's dataset.

`lightwam init DATASET --size NAME` writes such a recipe. A recipe file names its size as `base`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from lightwam.config import paper_recipes, recipes
from lightwam.config.schema import (
    BackboneConfig,
    CodecConfig,
    DctConfig,
    EvalConfig,
    ExpertConfig,
    FlowConfig,
    HashedTextConfig,
    ModelConfig,
    Recipe,
    TrainConfig,
)


def small() -> Recipe:
    """1.9 M parameters, from scratch: an hour of two CPU cores. The model of the recipe libero-object-small."""
    base = recipes.libero_object_small()
    return replace(
        _without_robot(base, "small"),
        model=_without_dims(base.model),
        train=replace(
            base.train,
            steps=2400,
            ema_decay=0.995,
            warmup_steps=60,
            save_every=500,
            shift_pixels=4,
            video_share=0.25,
        ),
    )


def base() -> Recipe:
    """About 100 M parameters, from scratch, in bfloat16: an evening of one GPU of 24 GB.

    Between `small` and the paper's: 8 times small's width, twice its blocks, the same weight-free encoders. It has not
    been trained: its memory and hours are calculated.
    """
    text = HashedTextConfig(num_tokens=16, dim=128)
    model = ModelConfig(
        backbone=BackboneConfig(
            width=768,
            ffn_width=3072,
            num_heads=16,
            num_blocks=8,
            latent_channels=18,
            text_dim=text.dim,
            taps=(3, 5, 7),
            adapter_width=128,
            lora_rank=0,
            frozen=False,
        ),
        expert=ExpertConfig(num_queries=16, num_pool_heads=8, layer_width=768, trunk_width=1024, step_code_dim=128),
        flow=FlowConfig(),
        state_dim=1,
        action_dim=1,
        action_loss_weight=5.0,
    )
    train = TrainConfig(
        steps=20_000,
        batch_size=64,
        learning_rate=3e-4,
        muon_learning_rate=4e-3,
        warmup_steps=500,
        ema_decay=0.999,
        precision="bfloat16",
        save_every=1000,
        shift_pixels=6,
    )
    return replace(
        small(), name="base", model=model, latents=DctConfig(luma_channels=8, chroma_channels=5), text=text, train=train
    )


def paper() -> Recipe:
    """1.86 B parameters, the paper's: LoRA on Wan2.1 1.3B, its VAE and text encoder; a GPU of 24 GB at least.

    Deviations: those of the recipe libero-10-24gb; all steps of a chunk are supervised.
    """
    source = paper_recipes.libero_10_24gb()
    return replace(_without_robot(source, "paper"), model=_without_dims(source.model))


def _without_robot(recipe: Recipe, name: str) -> Recipe:
    codec = CodecConfig(canvas=(0, 0), places=())
    evaluation = EvalConfig(trials=20, replan=1)
    return replace(recipe, name=name, codec=codec, sim=None, collect=None, eval=evaluation, notes="")


def _without_dims(model: ModelConfig) -> ModelConfig:
    return replace(model, state_dim=1, action_dim=1)


@dataclass(frozen=True)
class Size:
    """A size, and what it is meant for."""

    recipe: Callable[[], Recipe]
    heights: tuple[int, ...]
    """of every camera on the canvas, in pixels: the first one with which all cameras have at most `max_tokens`"""
    max_tokens: int
    epochs: int
    """passes over the windows"""
    hours: float
    """of training, at most"""


SIZES: Mapping[str, Size] = {
    "small": Size(small, (96, 64), 160, 60, 1.0),
    "base": Size(base, (128, 96), 400, 60, 4.0),
    "paper": Size(paper, (224,), 1200, 20, 20.0),
}
"""name -> the size"""
