from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightwam.config.schema import BackboneConfig, ExpertConfig, FlowConfig, ModelConfig
from lightwam.errors import CheckpointError
from lightwam.model.light_wam import LightWAM
from lightwam.training import published
from lightwam.training.published import Published

CONFIG = ModelConfig(
    backbone=BackboneConfig(
        width=24,
        ffn_width=32,
        num_heads=1,
        num_blocks=2,
        latent_channels=3,
        text_dim=8,
        time_code_dim=16,
        taps=(0, 1),
        adapter_width=4,
        lora_rank=2,
        lora_alpha=4.0,
    ),
    expert=ExpertConfig(num_queries=2, num_pool_heads=2, layer_width=12, trunk_width=16, step_code_dim=8),
    flow=FlowConfig(),
    state_dim=2,
    action_dim=3,
    horizon=8,
    supervised_prefix=8,
)
VIDEO = "mixtures.video."


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A published checkpoint of a random model."""
    file = tmp_path / "published.pt"
    published.write(file, Published(LightWAM(CONFIG).state_dict(), 7, "torch.float32"), CONFIG)
    return file


def rewrite(path: Path, change: Any) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def test_every_parameter_has_one_published_name() -> None:
    pairs = [pair for names in published.published_names(CONFIG).values() for pair in names.items()]
    assert sorted(ours for _, ours in pairs) == sorted(LightWAM(CONFIG).state_dict())
    assert len({theirs for theirs, _ in pairs}) == len(pairs)


def test_names_are_the_publications() -> None:
    names = published.published_names(CONFIG)
    video, expert = list(names["mot"]), list(names["state_fusion_action_expert"])
    assert video[0] == f"{VIDEO}patch_embedding.weight" and video[-1] == f"{VIDEO}head.head.bias"
    for name in (
        "blocks.1.modulation",
        "blocks.1.self_attn.lora_o.down_proj.weight",
        "blocks.1.cross_attn.o.bias",
        "blocks.1.norm3.weight",
        "blocks.0.ffn.2.weight",
        "blocks.0.ffn_lora_in.up_proj.weight",
        "wam_adapters.1.up_proj.bias",
        "head.modulation",
    ):
        assert f"{VIDEO}{name}" in video
    assert "layer_poolers.1.adapted.attn.in_proj_weight" in expert and "step_pos_proj.3.bias" in expert


def test_a_backbone_without_lora_has_no_lora_names(tmp_path: Path) -> None:
    config = replace(CONFIG, backbone=replace(CONFIG.backbone, lora_rank=0, frozen=False))
    assert not [name for name in published.published_names(config)["mot"] if "lora" in name]
    state = LightWAM(config).state_dict()
    published.write(tmp_path / "plain.pt", Published(state, 1, "torch.float32"), config)
    assert set(published.read(tmp_path / "plain.pt", config).state) == set(state)


def test_dtypes_survive(path: Path) -> None:
    def halve(content: dict[str, Any]) -> None:
        content["mot"] = {name: tensor.bfloat16() for name, tensor in content["mot"].items()}

    rewrite(path, halve)
    there = published.read(path, CONFIG)
    assert (there.step, there.torch_dtype) == (7, "torch.float32")
    for name, tensor in there.state.items():
        assert tensor.dtype == (torch.bfloat16 if name.startswith("dit.") else torch.float32)


def test_all_that_differs_is_listed(path: Path) -> None:
    def spoil(content: dict[str, Any]) -> None:
        del content["mot"][f"{VIDEO}head.modulation"]
        content["mot"][f"{VIDEO}blocks.9.norm3.bias"] = torch.zeros(1)
        content["state_fusion_action_expert"]["output.2.bias"] = torch.zeros(4)
        content["proprio_encoder"]["scale"] = torch.ones(1)

    rewrite(path, spoil)
    with pytest.raises(CheckpointError) as caught:
        published.read(path, CONFIG)
    message = str(caught.value)
    for part in (
        "4 differences",
        f"missing: mot {VIDEO}head.modulation",
        f"unknown: mot {VIDEO}blocks.9.norm3.bias",
        "of another shape: state_fusion_action_expert output.2.bias [4], expected [3]",
        "unknown: proprio_encoder scale",
        str(path),
    ):
        assert part in message


def test_a_checkpoint_of_another_config_is_refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match="another model"):
        published.read(path, replace(CONFIG, backbone=replace(CONFIG.backbone, num_blocks=3)))
    with pytest.raises(CheckpointError, match="of another shape"):
        published.read(path, replace(CONFIG, backbone=replace(CONFIG.backbone, lora_rank=3)))


def test_a_state_of_another_config_is_not_written(tmp_path: Path) -> None:
    state = LightWAM(CONFIG).state_dict()
    del state["dit.proj_out.bias"]
    with pytest.raises(CheckpointError, match=r"missing: dit\.proj_out\.bias"):
        published.write(tmp_path / "x.pt", Published(state, 0, "torch.float32"), CONFIG)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.pt"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        published.read(file, CONFIG)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        published.read(tmp_path / "none.pt", CONFIG)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (replace(CONFIG, foresight=2), "foresight"),
        (replace(CONFIG, expert=replace(CONFIG.expert, state_frequencies=2)), "expert.state_frequencies"),
    ],
)
def test_a_model_whose_expert_reads_more_is_refused(config: ModelConfig, name: str, path: Path) -> None:
    read = published.read(path, CONFIG)
    with pytest.raises(CheckpointError, match=f"model.{name} must be 0"):
        published.read(path, config)
    with pytest.raises(CheckpointError, match=f"model.{name} must be 0"):
        published.write(path, read, config)


def test_another_layout_is_refused(path: Path) -> None:
    rewrite(path, lambda content: content.pop("step"))
    with pytest.raises(CheckpointError, match="must have the published layout"):
        published.read(path, CONFIG)


def test_a_section_that_is_no_table_of_tensors_is_refused(path: Path) -> None:
    rewrite(path, lambda content: content["proprio_encoder"].update(weight=3))
    with pytest.raises(CheckpointError, match="must be a table of tensors"):
        published.read(path, CONFIG)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    state = LightWAM(CONFIG).state_dict()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"could not save(.|\n)*something else is there"):
        published.write(tmp_path / "file" / "x.pt", Published(state, 0, "torch.float32"), CONFIG)


def test_weights_that_are_not_finite_are_refused_by_name(path: Path) -> None:
    rewrite(path, lambda content: content["proprio_encoder"]["weight"].view(-1)[:2].fill_(float("nan")))
    with pytest.raises(CheckpointError, match=r"not finite: proprio_encoder weight \(2 NaN"):
        published.read(path, CONFIG)


def test_a_prefix_of_all_names_of_a_section_is_recognised(path: Path) -> None:
    def wrap(content: dict[str, Any]) -> None:
        content["mot"] = {f"module.{name}": tensor for name, tensor in content["mot"].items()}

    rewrite(path, wrap)
    with pytest.raises(CheckpointError, match=r"1 differences\n    mot all names begin with 'module\.'"):
        published.read(path, CONFIG)
