"""Wan2.1's pretrained video transformer, read strictly: by Wan's own names or diffusers', tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lightwam.config.schema import BackboneConfig
from lightwam.encoders.weight_files import check_tensors, locate, prefix_hint, read_tensors, shared_prefix
from lightwam.errors import CheckpointError, first_few
from lightwam.model.dit import DiT
from lightwam.training.published import backbone_names

IMAGE_PARTS = ("img_emb.", "_img.", "image_embedder.", "add_k_proj.", "norm_added_")
"""in the names of what only an image-to-video transformer has, Wan's and diffusers'"""

PATCH = "patch_embedding.weight"


def backbone(source: str | Path, config: BackboneConfig) -> dict[str, Tensor]:
    """The pretrained tensors by our DiT's names, in the dtypes of the file; LoRA and adapters are not among them.

    `source` is a folder or a Hub repo (see `weights.files`); whose names the file has shows in its tensors. Each tensor
    is accounted for: CheckpointError lists what is missing, unknown, of another shape, not of floating point or not
    finite.
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
    """Fill `dit` with the pretrained weights by value, its own dtypes and device kept; LoRA and adapters stay.

    The head is filled too, though it is trained from there on. CheckpointError as `backbone`; the model is then as it
    was.
    """
    assert not any(parameter.is_meta for parameter in dit.parameters()), "a model without memory cannot be filled"
    dit.load_state_dict(dit.state_dict() | backbone(source, dit.config))


def _named(found: Mapping[str, Tensor], tables: tuple[dict[str, str], ...], path: Path) -> dict[str, str]:
    """The table, their name -> ours, that fits the file's names best; files of neither kind are refused."""
    known = [sum(name in found for name in table) for table in tables]
    shared = sum(all(name in table for table in tables) for name in found)
    if max(known) == shared:
        prefix = next(filter(None, (shared_prefix(found, table) for table in tables)), "")
        raise CheckpointError(
            "not a Wan transformer, by its tensors' names",
            where=path,
            got=prefix_hint(prefix) if prefix else first_few(sorted(found)),
            expected="Wan's names (blocks.0.self_attn.q.weight) or diffusers' (blocks.0.attn1.to_q.weight)",
            next_step="name the folder or Hub repo of a Wan2.1 as it was published",
        )
    return tables[known.index(max(known))]


def _next_step(found: Mapping[str, Tensor], config: BackboneConfig) -> str:
    """What the file seems to be, against what the config wants: its sizes say more than a thousand lines."""
    if any(part in name for name in found for part in IMAGE_PARTS):
        return "this is an image-to-video transformer: name a text-to-video one, such as Wan-AI/Wan2.1-T2V-1.3B"
    blocks = {match[1] for name in found if (match := re.match(r"blocks\.(\d+)\.", name))}
    # Padded, because a foreign file may hold a vector by this name.
    width, channels, *_ = (*(list(found[PATCH].shape) if PATCH in found else []), "?", "?")
    there = f"width {width}, {len(blocks)} blocks, {channels} latent channels"
    wanted = f"width {config.width}, {config.num_blocks} blocks, {config.latent_channels} latent channels"
    if there == wanted:
        return "fetch the files again, or name those of the recipe's backbone"
    return f"the file has {there}; the recipe's backbone has {wanted}: change one of them"
