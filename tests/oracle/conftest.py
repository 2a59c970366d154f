"""Recorded runs of the published model: every fixture in the folder named by LIGHTWAM_ORACLE_DIR, else ours."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from lightwam.config.schema import BackboneConfig, ExpertConfig, FlowConfig, ModelConfig
from lightwam.types import Batch, pool

FOLDER = Path(os.environ.get("LIGHTWAM_ORACLE_DIR") or Path(__file__).parents[1] / "data" / "oracle")


@dataclass(frozen=True)
class Recorded:
    """One fixture: NAME.json, NAME.arrays.safetensors and NAME.checkpoint.pt."""

    facts: dict[str, Any]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    checkpoint: Path
    config: ModelConfig

    @property
    def batch(self) -> Batch:
        """The recorded training batch; of the states only the window's first step is read."""
        given = self.inputs
        pads = given["action_is_pad"].bool(), given["image_is_pad"].bool()
        latents, state = given["latents"], given["proprio"][:, 0]
        return Batch(latents[:, :, :1], pool(latents), given["context"], state, given["action"], *pads)

    @property
    def sigma(self) -> Tensor:
        """The recorded noise levels, in fp64 so that 1000 * sigma is the recorded time to the last bit."""
        return self.inputs["video_timestep"].double() / self.config.flow.num_times

    @property
    def u(self) -> Tensor:
        """The uniform draws that the schedule turns into these noise levels."""
        shift = self.config.flow.shift
        return self.sigma / (shift - (shift - 1) * self.sigma)


def load(folder: Path, name: str) -> Recorded:
    """The fixture, its sizes taken from its json."""
    facts = json.loads((folder / f"{name}.json").read_text())
    arrays = load_file(folder / f"{name}.arrays.safetensors")
    inputs, outputs = (
        {key.removeprefix(side): value for key, value in arrays.items() if key.startswith(side)}
        for side in ("input.", "output.")
    )
    config = model_config(facts, latent_channels=inputs["latents"].shape[1])
    return Recorded(facts, inputs, outputs, folder / f"{name}.checkpoint.pt", config)


def model_config(facts: dict[str, Any], latent_channels: int) -> ModelConfig:
    """The config that a fixture's json describes."""
    sizes = facts["config"]
    assert sizes["num_heads"] * sizes["attn_head_dim"] == sizes["hidden_dim"]
    backbone = BackboneConfig(
        width=sizes["hidden_dim"],
        ffn_width=sizes["ffn_dim"],
        num_heads=sizes["num_heads"],
        num_blocks=sizes["num_layers"],
        latent_channels=latent_channels,
        text_dim=sizes["text_dim"],
        taps=tuple(sorted(sizes["adapters"])),
        adapter_width=sizes["adapter_dim"],
        lora_rank=sizes["rank"],
        lora_alpha=float(sizes["alpha"]),
    )
    expert = ExpertConfig(
        num_queries=sizes["nq"],
        num_pool_heads=sizes["nh"],
        layer_width=sizes["per_layer_dim"],
        trunk_width=sizes["trunk_dim"],
    )
    horizon, prefix = facts["horizon"], facts["prefix"]
    return ModelConfig(
        backbone=backbone,
        expert=expert,
        flow=FlowConfig(shift=float(facts["video_shift"]), num_times=facts["num_train_timesteps"]),
        state_dim=facts["proprio_dim"],
        action_dim=facts["action_dim"],
        horizon=horizon,
        supervised_prefix=horizon if prefix is None else prefix,
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that takes `recorded` runs on every fixture; a folder without one is an error, not a pass."""
    if "recorded" in metafunc.fixturenames:
        names = sorted(path.stem for path in FOLDER.glob("*.json"))
        if not names:
            raise pytest.UsageError(f"no recorded runs (NAME.json) in {FOLDER}; see LIGHTWAM_ORACLE_DIR")
        metafunc.parametrize("recorded", [load(FOLDER, name) for name in names], ids=names)
