"""Wan2.1 at a tiny size with random weights, made by diffusers and transformers in their own formats."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightwam.config import recipes
from lightwam.config.schema import Recipe, Umt5Config, WanVaeConfig

SIZES = {"width": 48, "ffn_width": 64, "num_heads": 2, "num_blocks": 3, "latent_channels": 4, "text_dim": 24}


def save_tokenizer(folder: Path) -> None:
    """Letters and nothing else, with an end."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir(parents=True)
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(about | names))


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in diffusers' layout: transformer, VAE, text encoder, tokenizer."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wan")
    WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=24,
        freq_dim=256, ffn_dim=64, num_layers=3, cross_attn_norm=True, qk_norm="rms_norm_across_heads", eps=1e-6,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    AutoencoderKLWan(
        base_dim=4, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    ).save_pretrained(folder / "vae")
    sizes = {"d_model": 24, "d_kv": 5, "d_ff": 40, "num_layers": 2, "num_heads": 4}
    UMT5EncoderModel(UMT5Config(vocab_size=32, **sizes)).save_pretrained(folder / "text_encoder")
    save_tokenizer(folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def paper_recipe(tiny_recipe: Recipe, tiny_wan: Path) -> Recipe:
    """The paper-scale recipe at a tiny size: its encoders, precision, LoRA and prompt, on the tiny simulator."""
    paper: Any = recipes.libero_10()
    tiny = tiny_recipe
    backbone = replace(paper.model.backbone, **SIZES, taps=(0, 1), adapter_width=6, lora_rank=2)
    expert = replace(tiny.model.expert, num_pool_heads=2)
    train = replace(
        paper.train, steps=4, batch_size=4, micro_batch=2, warmup_steps=1, log_every=1, save_every=2, ema_decay=0.5,
        learning_rate=1e-2,
    )  # fmt: skip
    return replace(
        paper, sim=tiny.sim, codec=tiny.codec, collect=tiny.collect, eval=tiny.eval, weights=str(tiny_wan),
        latents=WanVaeConfig(channels=4), text=Umt5Config(num_tokens=128, dim=24), train=train,
        model=replace(tiny.model, backbone=backbone, expert=expert),
    )  # fmt: skip
