"""ACT and Diffusion Policy of LeRobot's, tiny and with random weights, and LeRobot's own loop around them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import get_policy_class, make_policy_config, make_pre_post_processors
from lerobot.policies.utils import prepare_observation_for_inference

from lerobot_policy_lightwam.served_policy import noise_seed
from lightwam.types import Observation

EXECUTED = 3
"""actions of a chunk of 8 that are executed"""
FEATURES = {
    "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 32, 32)),
    "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
}
ACTION = {"action": PolicyFeature(FeatureType.ACTION, (2,))}
SETTINGS: dict[str, dict[str, Any]] = {
    "act": {
        "chunk_size": 8,
        "dim_model": 16,
        "n_heads": 2,
        "dim_feedforward": 16,
        "n_encoder_layers": 1,
        "use_vae": False,
    },
    "diffusion": {
        "horizon": 8,
        "down_dims": (16, 32),
        "diffusion_step_embed_dim": 8,
        "n_groups": 4,
        "num_train_timesteps": 10,
        "num_inference_steps": 2,
        "use_group_norm": True,
    },
}
STATISTICS = {
    "observation.images.top": {"mean": [[[0.3]]] * 3, "std": [[[0.2]]] * 3, "min": [[[0.0]]] * 3, "max": [[[1.0]]] * 3},
    "observation.state": {"mean": [0.1, -0.1], "std": [0.5, 0.6], "min": [-1.0, -1.0], "max": [1.0, 1.0]},
    "action": {"mean": [0.2, 0.0], "std": [0.4, 0.5], "min": [-1.0, -0.9], "max": [1.0, 0.8]},
}


def save_policy(kind: str, folder: Path, **changes: Any) -> Path:
    """Write a checkpoint as lerobot-train does."""
    torch.manual_seed(0)
    settings = {"n_action_steps": EXECUTED, "pretrained_backbone_weights": None} | SETTINGS[kind] | changes
    config = make_policy_config(
        kind, device="cpu", input_features=dict(FEATURES), output_features=dict(ACTION), push_to_hub=False, **settings
    )
    get_policy_class(kind)(config).save_pretrained(folder)
    stats = {name: {key: torch.tensor(rows) for key, rows in of.items()} for name, of in STATISTICS.items()}
    for processor in make_pre_post_processors(config, dataset_stats=stats):
        processor.save_pretrained(folder)
    return folder


def lerobots_actions(folder: Path, observations: Iterable[Observation]) -> Iterator[np.ndarray]:
    """Yield the action for each observation of an episode, one at a time, as LeRobot's commands compute them.

    Its noise is seeded as the server's, where a chunk is computed.
    """
    kind = json.loads((folder / "config.json").read_text())["type"]
    policy = get_policy_class(kind).from_pretrained(folder)
    before, after = make_pre_post_processors(policy.config, str(folder))
    policy.reset()
    for step, observation in enumerate(observations):
        if step % policy.config.n_action_steps == 0:
            torch.manual_seed(noise_seed(0, observation))
        arrays = {"observation.images.top": observation.frames["top"].copy(), "observation.state": observation.state}
        batch = prepare_observation_for_inference(arrays, torch.device("cpu"), observation.instruction)
        with torch.inference_mode():
            action = after(policy.select_action(before(batch)))
        yield action[0].numpy()
