"""Reading and writing the published format of Light-WAM checkpoints (`.pt`): tensors are renamed, never changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightwam.config.schema import BackboneConfig, ModelConfig
from lightwam.encoders.tensor_check import check_tensors, mismatch_error, not_finite, tensor_differences
from lightwam.encoders.weight_files import read_pickled
from lightwam.errors import CheckpointError
from lightwam.model.light_wam import LightWAM
from lightwam.system.files import replace_file

SECTIONS = VIDEO, EXPERT, PROPRIO = "mot", "state_fusion_action_expert", "proprio_encoder"
KEYS = (*SECTIONS, "step", "torch_dtype")

EMBEDDINGS = (
    ("patch_embedding", "patch_embedding"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
)
ATTENTION = (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))
ATTENTION_LORA = (("lora_q", "lora_q"), ("lora_k", "lora_k"), ("lora_v", "lora_v"), ("lora_o", "lora_out"))
FEED_FORWARD = (("ffn.0", "ffn.net.0.proj"), ("ffn.2", "ffn.net.2"))
FEED_FORWARD_LORA = (("ffn_lora_in", "ffn.lora_in"), ("ffn_lora_out", "ffn.lora_out"))

NEXT_STEP = "use the config that the checkpoint was trained with"


@dataclass(frozen=True)
class Published:
    """A published checkpoint with our tensor names and the file's dtypes."""

    state: dict[str, Tensor]
    step: int
    torch_dtype: str
    """as in the file, for example "torch.float32" """


def read(path: Path | str, config: ModelConfig) -> Published:
    """Read the checkpoint at `path`.

    Raises CheckpointError when the file is no published checkpoint, and when tensors, which it lists, are missing,
    unknown, of other shapes than in `config`'s model, or not finite.
    """
    _check_inputs(config, path)
    content = read_pickled(Path(path))
    _check_layout(content, path)
    shapes, faults = _shapes(config), list[str]()
    state: dict[str, Tensor] = {}
    for section, names in published_names(config).items():
        wanted = {theirs: shapes[ours] for theirs, ours in names.items()}
        faults += tensor_differences(content[section], wanted, where=f"{section} ")
        state |= {ours: content[section][theirs] for theirs, ours in names.items() if theirs in content[section]}
    if faults:
        raise mismatch_error("the checkpoint is of another model", path, faults, NEXT_STEP)
    if lines := [line for section in SECTIONS for line in not_finite(content[section], where=f"{section} ")]:
        raise mismatch_error("the weights are not finite", path, lines, "fetch it again, or take another checkpoint")
    return Published(state, content["step"], content["torch_dtype"])


def write(path: Path | str, published: Published, config: ModelConfig) -> None:
    """Write a checkpoint in the published format, keys in the same order; the file is complete or absent.

    Raises CheckpointError when the state is not that of `config`'s model, or writing fails.
    """
    _check_inputs(config, path)
    check_tensors("the state is of another model", path, published.state, _shapes(config), NEXT_STEP)
    sections = {
        section: OrderedDict((theirs, published.state[ours]) for theirs, ours in names.items())
        for section, names in published_names(config).items()
    }
    num_bytes = sum(tensor.nbytes for tensor in published.state.values())
    with replace_file(Path(path), num_bytes=num_bytes) as temporary, temporary.open("wb") as file:
        torch.save(sections | {"step": published.step, "torch_dtype": published.torch_dtype}, file)


def published_names(config: ModelConfig) -> dict[str, dict[str, str]]:
    """Return a table from the publication's names to ours for each section, in the publication's order."""
    video = {f"mixtures.video.{theirs}": f"dit.{ours}" for theirs, ours in backbone_names(config.backbone)}
    expert = {_expert_name(ours): ours for ours in _shapes(config) if ours.startswith("expert.")}
    proprio = {name: f"proprio_encoder.{name}" for name in ("weight", "bias")}
    return {VIDEO: video, EXPERT: expert, PROPRIO: proprio}


def _expert_name(ours: str) -> str:
    _, part, *rest = ours.split(".")
    return ".".join((part, rest[0], "adapted", *rest[1:]) if part == "layer_poolers" else (part, *rest))


def backbone_names(config: BackboneConfig) -> Iterator[tuple[str, str]]:
    """Yield Wan's name (the publication's for LoRA and taps) and ours of every tensor of a DiT, in Wan's order."""
    yield from _linears(EMBEDDINGS)
    for i in range(config.num_blocks):
        for theirs, ours in _block_names(lora=config.lora_rank > 0):
            yield f"blocks.{i}.{theirs}", f"blocks.{i}.{ours}"
    for i in config.taps:
        parts = (("norm", "norm"), ("down_proj", "down"), ("up_proj", "up"))
        yield from _linears((f"wam_adapters.{i}.{theirs}", f"adapters.{i}.{ours}") for theirs, ours in parts)
    yield "head.modulation", "scale_shift_table"
    yield from _linears((("head.head", "proj_out"),))


def _block_names(lora: bool) -> Iterator[tuple[str, str]]:
    yield "modulation", "scale_shift_table"
    for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2")):
        yield from _linears((f"{theirs}.{a}", f"{ours}.{b}") for a, b in ATTENTION)
        yield from ((f"{theirs}.{name}.weight", f"{ours}.{name}.weight") for name in ("norm_q", "norm_k"))
        if lora:
            yield from _loras((f"{theirs}.{a}", f"{ours}.{b}") for a, b in ATTENTION_LORA)
    yield from _linears((("norm3", "norm2"), *FEED_FORWARD))
    if lora:
        yield from _loras(FEED_FORWARD_LORA)


def _linears(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    return ((f"{theirs}.{name}", f"{ours}.{name}") for theirs, ours in pairs for name in ("weight", "bias"))


def _loras(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    return (
        (f"{theirs}.{name}_proj.weight", f"{ours}.{name}.weight") for theirs, ours in pairs for name in ("down", "up")
    )


def _shapes(config: ModelConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in LightWAM(config).state_dict().items()}


def _check_inputs(config: ModelConfig, path: Path | str) -> None:
    """Refuse a model whose expert reads what the published one does not."""
    step = "to train with it from published weights, adopt them without, then train --start-from that run"
    for name, got in (("foresight", config.foresight), ("expert.state_frequencies", config.expert.state_frequencies)):
        if got:
            what = f"model.{name} must be 0: the published model's expert reads the present's tokens alone"
            raise CheckpointError(what, where=path, got=got, expected=0, next_step=step)


def _check_layout(content: Any, path: Path | str) -> None:
    if not isinstance(content, Mapping) or set(content) != set(KEYS):
        got = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError("the file must have the published layout", where=path, got=got, expected=sorted(KEYS))
    for section in SECTIONS:
        table = content[section]
        if not isinstance(table, Mapping) or not all(isinstance(value, Tensor) for value in table.values()):
            what, got = "a section must be a table of tensors", type(table).__name__
            raise CheckpointError(what, where=f"{path} {section}", got=got)
