"""Wan's weights from every format in which they are published, against diffusers' transformer and its own converter."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightwam.config.schema import BackboneConfig
from lightwam.errors import CheckpointError
from lightwam.model.dit import DiT
from lightwam.training import wan_backbone

diffusers = pytest.importorskip("diffusers", reason="diffusers is a development-time oracle")

CONFIG = BackboneConfig(
    width=48,
    ffn_width=64,
    num_heads=2,
    num_blocks=3,
    latent_channels=4,
    text_dim=10,
    time_code_dim=16,
    taps=(0, 1),
    adapter_width=6,
    lora_rank=2,
    lora_alpha=3.0,
)
FILE = "diffusion_pytorch_model.safetensors"
WAN_NAMES = (
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("attn1.", "self_attn."),
    ("attn2.", "cross_attn."),
    ("to_q.", "q."),
    ("to_k.", "k."),
    ("to_v.", "v."),
    ("to_out.0.", "o."),
    ("ffn.net.0.proj", "ffn.0"),
    ("ffn.net.2", "ffn.2"),
    (".norm2.", ".norm3."),
    ("proj_out.", "head.head."),
    (".scale_shift_table", ".modulation"),
)
FORMATS = ("official", "official shards", "official pth", "diffusers", "diffusers shards")


def transformer(**changes: Any) -> Any:
    """diffusers' transformer of CONFIG's sizes, nothing in it left at zero."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "patch_size": CONFIG.patch,
        "num_attention_heads": CONFIG.num_heads,
        "attention_head_dim": CONFIG.width // CONFIG.num_heads,
        "in_channels": CONFIG.latent_channels,
        "out_channels": CONFIG.latent_channels,
        "text_dim": CONFIG.text_dim,
        "freq_dim": CONFIG.time_code_dim,
        "ffn_dim": CONFIG.ffn_width,
        "num_layers": CONFIG.num_blocks,
    }
    model = diffusers.WanTransformer3DModel(**(sizes | changes)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.12)
    return model


@pytest.fixture(scope="module")
def theirs() -> Any:
    return transformer()


@pytest.fixture(scope="module")
def official(theirs: Any) -> dict[str, Tensor]:
    """The same tensors by Wan's names."""
    return {wan_name(name): tensor for name, tensor in theirs.state_dict().items()}


def wan_name(name: str) -> str:
    for ours, original in WAN_NAMES:
        name = name.replace(ours, original)
    return "head.modulation" if name == "scale_shift_table" else name


def published(folder: Path, layout: str, theirs: Any, official: dict[str, Tensor]) -> Path:
    """A source in one of FORMATS."""
    folder.mkdir(exist_ok=True)
    if layout == "official":
        save_file(official, folder / FILE)
    elif layout == "official shards":
        names, places = sorted(official), {}
        for i in range(3):
            shard = f"diffusion_pytorch_model-0000{i + 1}-of-00003.safetensors"
            save_file({name: official[name] for name in names[i::3]}, folder / shard)
            places |= dict.fromkeys(names[i::3], shard)
        (folder / f"{FILE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    elif layout == "official pth":
        torch.save(official, folder / "diffusion_pytorch_model.pth")
    else:
        theirs.save_pretrained(folder / "transformer", max_shard_size="100KB" if "shards" in layout else "10GB")
        shards = len(list((folder / "transformer").glob("*-of-*.safetensors")))
        assert (shards > 2) == ("shards" in layout)
    return folder


def test_the_names_are_what_diffusers_converter_reads(official: dict[str, Tensor], theirs: Any) -> None:
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    converted = convert_wan_transformer_to_diffusers(dict(official))
    state = theirs.state_dict()
    assert set(converted) == set(state) and all(converted[name] is official[wan_name(name)] for name in state)


@pytest.mark.parametrize("layout", FORMATS)
def test_every_format_gives_the_same_bits(
    tmp_path: Path, theirs: Any, official: dict[str, Tensor], layout: str
) -> None:
    state = wan_backbone.backbone(published(tmp_path, layout, theirs, official), CONFIG)
    expected = theirs.state_dict()
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name


@torch.no_grad()
@pytest.mark.parametrize("layout", ["official", "diffusers shards"])
def test_a_loaded_backbone_computes_what_diffusers_does(
    tmp_path: Path, theirs: Any, official: dict[str, Tensor], layout: str
) -> None:
    ours = DiT(CONFIG)
    own = {name: tensor.clone() for name, tensor in ours.state_dict().items() if name not in theirs.state_dict()}
    trained = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    wan_backbone.load_backbone(ours, published(tmp_path, layout, theirs, official))
    latents, context = torch.randn(2, 4, 1, 4, 6), torch.randn(2, 5, 10)
    expected = theirs(latents, torch.zeros(2), context).sample
    velocity = ours(latents, None, ours.encode_context(context)).velocity
    torch.testing.assert_close(velocity, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1
    assert any("lora_" in name for name in own) and any(name.startswith("adapters.") for name in own)
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in own.items())
    assert trained == {name for name, parameter in ours.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("file", "model"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float16, torch.float64)],
)
def test_values_fill_a_model_of_another_precision(
    tmp_path: Path, official: dict[str, Tensor], theirs: Any, file: torch.dtype, model: torch.dtype
) -> None:
    save_file({name: tensor.to(file) for name, tensor in official.items()}, tmp_path / FILE)
    assert {tensor.dtype for tensor in wan_backbone.backbone(tmp_path, CONFIG).values()} == {file}
    dit = DiT(CONFIG).to(model)
    wan_backbone.load_backbone(dit, tmp_path)
    assert {parameter.dtype for parameter in dit.parameters()} == {model}
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(dit.state_dict()[name], tensor.to(file).to(model)), name


def refused(tmp_path: Path, state: dict[str, Tensor], config: BackboneConfig = CONFIG) -> str:
    """The refusal of a file with these tensors, which leaves the model as it was."""
    save_file(state, tmp_path / FILE)
    dit = DiT(config)
    before = {name: tensor.clone() for name, tensor in dit.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        wan_backbone.load_backbone(dit, tmp_path)
    assert all(torch.equal(dit.state_dict()[name], tensor) for name, tensor in before.items())
    assert str(tmp_path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("names", ["wan", "diffusers"])
def test_all_that_differs_is_listed(tmp_path: Path, theirs: Any, official: dict[str, Tensor], names: str) -> None:
    state = dict(official if names == "wan" else theirs.state_dict())
    table, query, embedding = (
        ("head.modulation", "blocks.1.self_attn.q.weight", "text_embedding.0.bias")
        if names == "wan"
        else ("scale_shift_table", "blocks.1.attn1.to_q.weight", "condition_embedder.text_embedder.linear_1.bias")
    )
    del state[table]
    state["blocks.1.extra.weight"] = torch.zeros(2)
    state[query] = torch.zeros(48, 47)
    state[embedding] = torch.zeros(48, dtype=torch.int8)
    message = refused(tmp_path, state)
    for line in (
        "of another backbone",
        "4 differences",
        f"missing: {table}\n",
        "unknown: blocks.1.extra.weight\n",
        f"of another shape: {query} [48, 47], expected [48, 48]\n",
        f"not of floating point: {embedding} int8\n",
    ):
        assert line in message


def test_both_kinds_of_names_in_one_file_are_refused(tmp_path: Path, theirs: Any, official: dict[str, Tensor]) -> None:
    state = dict(official)
    state["proj_out.bias"] = state.pop("head.head.bias")
    message = refused(tmp_path, state)
    assert "missing: head.head.bias" in message and "unknown: proj_out.bias" in message
    assert "2 differences" in message
    both = {name: tensor.clone() for name, tensor in (official | theirs.state_dict()).items()}
    assert "differences" in refused(tmp_path, both)


def test_another_size_is_refused_by_its_sizes(tmp_path: Path, official: dict[str, Tensor]) -> None:
    """As Wan2.1's 14B is for a config of the 1.3B: wider, and of more blocks."""
    larger = transformer(attention_head_dim=30, ffn_dim=80, num_layers=5, in_channels=9)
    message = refused(tmp_path, {wan_name(name): tensor for name, tensor in larger.state_dict().items()})
    assert "of another shape: patch_embedding.weight [60, 9, 1, 2, 2], expected [48, 4, 1, 2, 2]" in message
    assert "unknown: blocks.3." in message
    assert "the file has width 60, 5 blocks, 9 latent channels" in message
    assert "backbone has width 48, 3 blocks, 4 latent channels" in message
    message = refused(tmp_path, official, replace(CONFIG, num_blocks=4, lora_rank=0, frozen=False))
    assert "missing: blocks.3.modulation" in message and "the file has width 48, 3 blocks" in message
    message = refused(tmp_path, official | {"patch_embedding.weight": torch.zeros(48)})
    assert "the file has width 48, 3 blocks, ? latent channels" in message


@pytest.mark.parametrize("names", ["wan", "diffusers"])
def test_an_image_to_video_transformer_is_refused_as_that(tmp_path: Path, names: str) -> None:
    state = transformer(image_dim=12, added_kv_proj_dim=48).state_dict()
    if names == "wan":
        state = {wan_name(name): tensor for name, tensor in state.items()}
        for i in range(CONFIG.num_blocks):
            at = f"blocks.{i}.cross_attn."
            for kind in ("k", "v"):
                for part in ("weight", "bias"):
                    state[f"{at}{kind}_img.{part}"] = state.pop(f"{at}add_{kind}_proj.{part}")
            state[f"{at}norm_k_img.weight"] = state.pop(f"{at}norm_added_k.weight")
    message = refused(tmp_path, state)
    key = "blocks.0.cross_attn.k_img.weight" if names == "wan" else "blocks.0.attn2.add_k_proj.weight"
    assert f"unknown: {key}" in message and "image-to-video" in message


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, official: dict[str, Tensor]) -> None:
    spoilt = official["head.head.bias"].clone()
    spoilt[0] = float("nan")
    assert "not finite: head.head.bias (1 NaN" in refused(tmp_path, official | {"head.head.bias": spoilt})


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "unet."])
def test_other_names_are_refused_as_no_wan_transformer(
    tmp_path: Path, official: dict[str, Tensor], prefix: str
) -> None:
    message = refused(tmp_path, {f"{prefix}{name}": tensor for name, tensor in official.items()})
    assert "must be a Wan transformer" in message and "blocks.0.attn1" in message
    assert f"all names begin with {prefix!r}" in message and "remove it from each name" in message
    refused(tmp_path, {"patch_embedding.weight": torch.zeros(48, 4, 1, 2, 2)})


def test_missing_and_torn_files_are_refused(tmp_path: Path, theirs: Any, official: dict[str, Tensor]) -> None:
    whole = published(tmp_path / "shards", "diffusers shards", theirs, official)
    shard = sorted((whole / "transformer").glob("*-of-*.safetensors"))[1]
    shard.rename(tmp_path / shard.name)
    with pytest.raises(CheckpointError, match="shards are missing") as caught:
        wan_backbone.backbone(whole, CONFIG)
    assert shard.name in str(caught.value)
    shard.write_bytes((tmp_path / shard.name).read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors") as caught:
        wan_backbone.backbone(whole, CONFIG)
    assert caught.value.where == shard
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="there is no backbone"):
        wan_backbone.backbone(tmp_path / "empty", CONFIG)
    with pytest.raises(CheckpointError, match="must be a folder or a Hub repo"):
        wan_backbone.backbone("not anything", CONFIG)


def test_a_model_without_memory_is_refused(tmp_path: Path, theirs: Any, official: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        dit = DiT(CONFIG)
    with pytest.raises(AssertionError, match="without memory"):
        wan_backbone.load_backbone(dit, published(tmp_path, "official", theirs, official))


def test_a_repo_of_the_hub_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: Any, official: dict[str, Tensor]
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def snapshot(repo_id: str, *, allow_patterns: list[str]) -> str:
        asked.append((repo_id, allow_patterns))
        return str(published(tmp_path / "snapshot", "official", theirs, official))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    state = wan_backbone.backbone("Wan-AI/Wan2.1-T2V-1.3B", CONFIG)
    stored = load_file(tmp_path / "snapshot" / FILE)
    assert torch.equal(state["proj_out.weight"], stored["head.head.weight"])
    assert len(asked) == 1 and asked[0][0] == "Wan-AI/Wan2.1-T2V-1.3B"
    assert all(pattern.startswith(("diffusion_pytorch_model", "transformer/")) for pattern in asked[0][1])
