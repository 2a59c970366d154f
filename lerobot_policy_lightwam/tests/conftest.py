"""A dataset of the point simulator's, written by lightwam, and a run trained on it; LeRobot kept off the network."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}
install_import_hook(["lightwam", "lerobot_policy_lightwam"], "beartype.beartype")


@dataclass(frozen=True)
class Tiny:
    """Demonstrations, and a run of lightwam's own training on them."""

    dataset: Path
    run: Path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Look, do not touch."""
    from lightwam.config.recipes import point
    from lightwam.data.collect import collect
    from lightwam.training.train import train

    root, base = tmp_path_factory.mktemp("tiny"), point()
    recipe = replace(
        base,
        collect=replace(base.collect, demos_per_task=12, workers=1),
        train=replace(base.train, steps=6, batch_size=4, warmup_steps=2, ema_decay=0.9, log_every=3),
    )
    in_here = replace(recipe, collect=replace(recipe.collect, workers=0))  # 0 workers: in this process
    collect(in_here, root / "dataset", say=lambda line: None)
    train(recipe, root / "dataset", root / "run", say=lambda line: None, device="cpu")
    return Tiny(root / "dataset", root / "run")
