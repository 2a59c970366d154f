"""Loading Wan2.1's pretrained video transformer, strictly, from files with Wan's own tensor names or diffusers'."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lightwam.config.schema import BackboneConfig
from lightwam.encoders.tensor_check import check_tensors, describe_names
from lightwam.encoders.weight_files import locate, read_tensors
from lightwam.errors import CheckpointError
from lightwam.model.dit import DiT
from lightwam.training.published import backbone_names

IMAGE_PARTS = ("img_emb.", "_img.", "image_embedder.", "add_k_proj.", "norm_added_")
"""parts of tensor names, Wan's and diffusers', that only image-to-video transformers have"""

PATCH = "patch_embedding.weight"


def backbone(source: str | Path, config: BackboneConfig) -> dict[str, Tensor]:
    """Read the pretrained tensors by our DiT's names, in the file's dtypes; LoRA and adapters are not among them.

    `source` is a folder or a Hub repo (see `weight_files.locate`). Raises CheckpointError, which lists all tensors that
    are missing, unknown, of another shape, not of floating point or not finite.
    """
    path = locate(source, "backbone")
    found, plain = read_tensors(path), replace(config, lora_rank=0, taps=())
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in DiT(plain).state_dict().items()}
    names = _named(found, (dict(backbone_names(plain)), {name: name for name in shapes}), path)
    wanted = {theirs: shapes[ours] for theirs, ours in names.items()}
    what = "the pretrained weights are of another backbone"
    check_tensors(what, path, found, wanted, _next_step(found, config))
    return {ours: found[theirs] for theirs, ours in names.items()}


def load_backbone(dit: DiT, source: str | Path) -> None:
    """Copy the pretrained weights, the head's included, into `dit`, which keeps its dtypes, device, LoRA and adapters.

    Raises CheckpointError as `backbone` does, and then leaves `dit` unchanged.
    """
    assert not any(parameter.is_meta for parameter in dit.parameters()), "a model without memory cannot be filled"
    dit.load_state_dict(dit.state_dict() | backbone(source, dit.config))


def _named(found: Mapping[str, Tensor], tables: tuple[dict[str, str], ...], path: Path) -> dict[str, str]:
    """Return the table of names (theirs -> ours) that fits the file; CheckpointError when neither does."""
    known = [sum(name in found for name in table) for table in tables]
    shared = sum(all(name in table for table in tables) for name in found)
    if max(known) == shared:
        what, step = "the file must be a Wan transformer", "name the folder or Hub repo of a Wan2.1 as it was published"
        expected = "Wan's names (blocks.0.self_attn.q.weight) or diffusers' (blocks.0.attn1.to_q.weight)"
        raise CheckpointError(what, where=path, got=describe_names(found, *tables), expected=expected, next_step=step)
    return tables[known.index(max(known))]


def _next_step(found: Mapping[str, Tensor], config: BackboneConfig) -> str:
    """Compare the sizes in the file with the config's: they explain more than a long list of tensors."""
    if any(part in name for name in found for part in IMAGE_PARTS):
        return "this is an image-to-video transformer: name a text-to-video one, such as Wan-AI/Wan2.1-T2V-1.3B"
    blocks = {match[1] for name in found if (match := re.match(r"blocks\.(\d+)\.", name))}
    # padded, because another model's file may have a vector of this name
    width, channels, *_ = (*(list(found[PATCH].shape) if PATCH in found else []), "?", "?")
    there = f"width {width}, {len(blocks)} blocks, {channels} latent channels"
    wanted = f"width {config.width}, {config.num_blocks} blocks, {config.latent_channels} latent channels"
    if there == wanted:
        return "fetch the files again, or name those of the recipe's backbone"
    return f"the file has {there}; the recipe's backbone has {wanted}: change one of them"
